"""Does gpovae work with the oldest and the newest versions that settings.ini allows?

    python tools/versions.py                # both on every Python here; or lowest, or newest
    python tools/versions.py newest 3.13    # on these Pythons only

Builds the wheel, installs it into a fresh environment outside the checkout, and there runs the
quickstart, `gpovae demo`, and a quick part of the tests. torch alone is that of constraints.txt in
both. Prints what was installed, and which Pythons are not here; exit status 1 where something
fails.
"""

import configparser
import os
import shutil
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


def pythons(wanted):
    "Interpreters of these versions, on PATH or of pyenv; and the versions that are not here."
    here, missing = {}, []
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in wanted:
        installed = sorted(root.glob(f"versions/{version}.*/bin/python"))
        candidates = [shutil.which(f"python{version}"), *installed, Path(sys.executable)]
        found = [str(c) for c in candidates if c and _is(c, version)]
        if found:
            here[version] = found[0]
        else:
            missing.append(version)
    return here, missing


def _is(python, version):
    "Does this interpreter run, and is it of that version?"
    code = "import sys; print('%d.%d' % tuple(sys.version_info[:2]))"
    if not Path(python).exists():
        return False
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() == version


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


def check(which, interpreter, wheel, folder):
    "True where all of it passes."
    print(f"{folder.name}, {interpreter}", flush=True)
    folder.mkdir()
    (folder / "pins.txt").write_text("\n".join(pins(which)) + "\n")
    python = folder / "venv/bin/python"
    if not run("environment", [interpreter, "-m", "venv", folder / "venv"], folder) or not run(
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


def main(arguments):
    "Every Python here, with the lowest and the newest versions; one environment at a time."
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    stated = config["DEFAULT"]["pythons"].split()
    here, missing = pythons([a for a in arguments if a in stated] or stated)
    for version in missing:
        print(f"Python {version} is not installed here: skipped.", flush=True)

    ends = [a for a in arguments if a in ("lowest", "newest")] or ["lowest", "newest"]
    passed = bool(here)
    with tempfile.TemporaryDirectory(prefix="gpovae-versions-") as tmp:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp, str(ROOT)]
        subprocess.run(command, check=True)
        wheel = next(Path(tmp).glob("*.whl"))
        for version, interpreter in here.items():
            for which in ends:
                folder = Path(tmp) / f"{version}-{which}"
                passed &= check(which, interpreter, wheel, folder)
                shutil.rmtree(folder)  # several GB
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
