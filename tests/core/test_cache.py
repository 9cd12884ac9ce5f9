"An installation that nobody may write to, and a user without a home."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpovae

CODE = """
import gpovae, numba, os
from gpovae.data.stream import _copy_stretch
import numpy as np
target = np.zeros(2)
_copy_stretch(np.ones(2), 0, 2, target, 0)
assert target.sum() == 2
print(numba.config.CACHE_DIR)
"""


def run(folder: Path, before="", **environment):
    inherited = {k: v for k, v in os.environ.items() if k not in ("HOME", "NUMBA_CACHE_DIR")}
    env = inherited | dict(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1") | environment
    done = subprocess.run(
        [sys.executable, "-c", before + CODE], env=env, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_only(tmp_path) -> Path:
    "A copy whose folders take no cache, not even of root: a file stands where it would be."
    package = Path(gpovae.__file__).parent
    copy = tmp_path / "gpovae"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "notebooks"))
    for folder in [copy, *(p for p in copy.iterdir() if p.is_dir())]:
        (folder / "__pycache__").write_text("")
    return tmp_path


def test_compiled_functions_work_without_a_place_for_their_cache(tmp_path):
    folder = read_only(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    places = dict(HOME="/dev/null", XDG_CACHE_HOME="/dev/null", TMPDIR=str(scratch))
    used = run(folder, **places)
    assert Path(used).parent == scratch and any(Path(used).rglob("*.nbi"))
    assert Path(used).stat().st_mode & 0o077 == 0
    assert run(folder, "import numba\n", **places) == used  # also where numba came first

    # what somebody else may write to is not trusted
    Path(used).chmod(0o777)
    assert run(folder, **places) != used
