"""Does gpovae work with the oldest and the newest versions that settings.ini allows?

    python tools/versions.py                # both; one of them: lowest, newest

Builds the wheel, installs it into a fresh environment outside the checkout, and there runs the
quickstart, `gpovae demo`, and a quick part of the tests. torch alone is that of constraints.txt in
both. Prints what was installed; exit status 1 where something fails.
"""

import configparser
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TESTS = "core network api model/test_objective.py evaluate/test_response.py".split()
QUICKSTART = """import papermill, sys
from gpovae.app.reports import ThisInterpreter
settings = dict(kernel_name="python3", kernel_manager_class=ThisInterpreter, progress_bar=False)
papermill.execute_notebook(sys.argv[1], "quickstart.ipynb", **settings)"""


def requirements(key="requirements"):
    s = configparser.ConfigParser()
    s.read(ROOT / "settings.ini", encoding="utf-8")
    return [Requirement(r) for r in s["DEFAULT"][key].split()]


def pins(which):
    """Lines of a constraints file.

    Torch as ever, and the lower bound of everything else where the lowest are asked for.
    """
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    ]
    if which == "lowest":
        lines += [
            f"{r.name}=={next(s.version for s in r.specifier if s.operator == '>=')}"
            for r in requirements()
            if r.name != "torch"
        ]
    return lines


def run(what, command, folder):
    "Run in the folder; says how long it took, and the end of the output where it failed."
    start = time.perf_counter()
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
    } | dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", MPLBACKEND="agg")
    done = subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(
        f"  {what}: {'failed' if done.returncode else 'passed'},"
        f" {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-6000:], flush=True)
    return done.returncode == 0


def check(which, wheel, folder):
    "True where all of it passes."
    print(which, flush=True)
    folder.mkdir()
    (folder / "pins.txt").write_text("\n".join(pins(which)) + "\n")
    python = folder / "venv/bin/python"
    if not run("environment", [sys.executable, "-m", "venv", folder / "venv"], folder) or not run(
        "installation",
        [
            python,
            "-m",
            "pip",
            "install",
            "-c",
            "pins.txt",
            f"{wheel}[excel]",
            "pytest",
            "pytest-xdist",
        ],
        folder,
    ):
        return False
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True
    ).stdout.split()
    print(
        "  "
        + " ".join(
            item
            for item in listed
            if item.partition("==")[0].lower() in {r.name.lower() for r in requirements()}
        ),
        flush=True,
    )
    return all(
        [
            run(
                "installed",
                [
                    python,
                    "-c",
                    (
                        f"import gpovae; assert gpovae.__file__.startswith({str(folder)!r}),"
                        " gpovae.__file__"
                    ),
                ],
                folder,
            ),
            run(
                "quickstart",
                [python, "-c", QUICKSTART, ROOT / "nbs/start/10_quickstart.ipynb"],
                folder,
            ),
            run(
                "gpovae demo",
                [folder / "venv/bin/gpovae", "demo", "--max-epochs", "3", "--out", folder / "demo"],
                folder,
            ),
            run(
                "tests",
                [
                    python,
                    "-m",
                    "pytest",
                    "-q",
                    "-x",
                    "-m",
                    "not slow",
                    "-p",
                    "no:cacheprovider",
                    *(ROOT / "tests" / t for t in TESTS),
                ],
                folder,
            ),
        ]
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="gpovae-versions-") as tmp:
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp, str(ROOT)],
            check=True,
        )
        sys.exit(
            not all(
                [
                    check(which, next(Path(tmp).glob("*.whl")), Path(tmp) / which)
                    for which in sys.argv[1:] or ("lowest", "newest")
                ]
            )
        )
