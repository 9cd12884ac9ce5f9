"""Where the tests find files: the one place that knows."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
DATA = Path(os.environ.get("GPOVAE_DATA") or ROOT.parent / "shared" / "data")
CONFORMANCE = DATA.parent / "conformance"

# cells of each label of the TAP-seq screen of Schraivogel et al. 2020, as published
TAPSEQ_CELLS = {
    "non-targeting": 8586,
    "FAM83A": 1212,
    "CCNE2": 1173,
    "OXR1": 1159,
    "PHF20L1": 1119,
    "HS2": 1067,
    "CPQ": 1044,
    "RIPK2": 1014,
    "MYC": 923,
    "LRRCC1": 851,
    "UBR5": 715,
    "STK3": 650,
    "DSCC1": 590,
    "GATA1": 562,
    "ZFPM2": 329,
}


def needs(path: Path):
    "Mark that skips a test, and says why, where shared material is not at hand."
    where = path.relative_to(DATA.parent) if path.is_relative_to(DATA.parent) else path.name
    return pytest.mark.skipif(
        not path.exists(),
        reason=f"{where} is not at hand: set GPOVAE_DATA to the folder of screens",
    )
