"""Where the tests find files: the one place that knows."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
DATA = Path(os.environ.get("GPOVAE_DATA") or ROOT.parent / "shared" / "data")
CONFORMANCE = DATA.parent / "conformance"


def needs(path: Path):
    "Mark that skips a test, and says why, where shared material is not at hand."
    where = path.relative_to(DATA.parent) if path.is_relative_to(DATA.parent) else path.name
    return pytest.mark.skipif(
        not path.exists(),
        reason=f"{where} is not at hand: set GPOVAE_DATA to the folder of screens",
    )
