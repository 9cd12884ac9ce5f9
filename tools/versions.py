"""Does gpovae work with the oldest and the newest versions that settings.ini allows?

    python tools/versions.py                   # both, on every Python here; or lowest, or newest
    python tools/versions.py newest 3.13       # on these Pythons only
    python tools/versions.py newest 3.13 --torch newest
    python tools/versions.py table             # what is recorded, into CONTRIBUTING.md

Builds the wheel, installs it into a fresh environment outside the checkout, and there runs the
quickstart, `gpovae demo`, and a quick part of the tests. Torch is that of constraints.txt in all
of them unless --torch says otherwise, and installed once for each Python, since it takes
gigabytes; --keep FOLDER keeps these environments for another time. What came out is recorded in
benchmarks/versions.json; exit status 1 where something fails.
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks/versions.json"
ENDS = ["lowest", "newest"]
SHOWN = ["torch", "numpy", "scipy", "pandas", "anndata", "scanpy", "zarr"]
TESTS = ["core", "network/test_grn.py", "network/test_export.py", "model/test_objective.py"]
TESTS += ["data/test_responses.py", "data/test_missing_text.py", "evaluate/test_response.py"]
QUICKSTART = """import papermill, sys
from gpovae.app.reports import ThisInterpreter
settings = dict(kernel_name="python3", kernel_manager_class=ThisInterpreter, progress_bar=False)
papermill.execute_notebook(sys.argv[1], "quickstart.ipynb", **settings)"""


def settings():
    "What settings.ini says."
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def requirements(python):
    "Those that hold on this Python."
    stated = [Requirement(r) for r in settings()["requirements"].split()]
    here = dict(python_version=python)
    return [r for r in stated if r.marker is None or r.marker.evaluate(here)]


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


def lowest(python):
    "Name -> the lowest version allowed on this Python, of everything but torch."
    bounds = {}
    for r in requirements(python):
        bound = next(s.version for s in r.specifier if s.operator == ">=")
        bounds[r.name] = max(bounds.get(r.name, "0"), bound, key=Version)
    del bounds["torch"]
    return bounds


def pins(which, python):
    "Lines of a constraints file."
    bounds = lowest(python) if which == "lowest" else {}
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def run(what, command, folder):
    "Run in the folder: passed, seconds, and the output, whose end is printed where it failed."
    start = time.perf_counter()
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env=inherited | dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", MPLBACKEND="agg"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = round(time.perf_counter() - start)
    verdict = "failed" if done.returncode else "passed"
    print(f"  {what}: {verdict}, {seconds} s", flush=True)
    if done.returncode:
        print(done.stdout[-6000:], flush=True)
    return dict(passed=not done.returncode, seconds=seconds), done.stdout


def with_torch(interpreter, torch, folder):
    "An environment with nothing but torch, whose packages others of this Python see; or None."
    if folder.exists():
        return next(folder.glob("lib/python*/site-packages"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    run("environment for torch", [interpreter, "-m", "venv", folder], folder.parent)
    command = [folder / "bin/python", "-m", "pip", "install", torch]
    done, _ = run(f"installation of {torch}", command, folder)
    return next(folder.glob("lib/python*/site-packages")) if done["passed"] else None


def installation(interpreter, wheel, packages, folder):
    "A fresh environment with the wheel in it, beside torch: passed, seconds."
    venv = folder / "venv"
    run("environment", [interpreter, "-m", "venv", venv], folder)
    own = next(venv.glob("lib/python*/site-packages"))
    (own / "torch.pth").write_text(f"{packages}\n")
    wanted = [f"{wheel}[excel]", "pytest", "pytest-xdist", "hypothesis"]
    command = [venv / "bin/python", "-m", "pip", "install", "-c", "pins.txt", *wanted]
    return run("installation", command, folder)[0]


def installed(python, version):
    "Name -> version of what gpovae requires."
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    found = {canonicalize_name(item["name"]): item["version"] for item in listed}
    wanted = sorted({canonicalize_name(r.name) for r in requirements(version)})
    return {name: found[name] for name in wanted}


def steps(folder):
    "What is run in the environment: step -> command."
    python = folder / "venv/bin/python"
    demo = [folder / "venv/bin/gpovae", "demo", "--max-epochs", "3", "--out", folder / "demo"]
    elsewhere = f"import gpovae; assert gpovae.__file__.startswith({str(folder)!r})"
    chosen = [ROOT / "tests" / t for t in TESTS]
    pytest = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    return {
        "import": [python, "-c", elsewhere],
        "quickstart": [python, "-c", QUICKSTART, ROOT / "nbs/start/10_quickstart.ipynb"],
        "demo": demo,
        "tests": [*pytest, *chosen],
    }


def counted(output):
    "passed, failed, skipped of pytest's last line; an error counts as failed."
    last = output.strip().splitlines()[-1] if output.strip() else ""
    number = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = number.get("failed", 0) + number.get("error", 0)
    return dict(passed=number.get("passed", 0), failed=failed, skipped=number.get("skipped", 0))


def check(which, version, wheel, packages, folder):
    "The row of the record: what was installed, and what came out."
    print(folder.name, flush=True)
    folder.mkdir()
    (folder / "pins.txt").write_text("\n".join(pins(which, version)) + "\n")
    row = dict(python=version, versions=which, date=date.today().isoformat())
    interpreter = packages.parents[2] / "bin/python"
    done = {"installation": installation(interpreter, wheel, packages, folder)}
    if done["installation"]["passed"]:
        row["installed"] = installed(folder / "venv/bin/python", version)
        row["megabytes"] = dict(
            wheel=round(wheel.stat().st_size / 1e6, 1),
            environment=_megabytes(folder / "venv") + _megabytes(packages.parents[2]),
        )
        print("  " + " ".join(f"{k}=={v}" for k, v in row["installed"].items()), flush=True)
        for what, command in steps(folder).items():
            done[what], output = run(what, command, folder)
            if what == "tests":
                row["tests"] = counted(output)
    return row | dict(steps=done, passed=all(d["passed"] for d in done.values()))


def _megabytes(folder):
    "What the files of a folder hold."
    files = (f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return round(sum(f.stat().st_size for f in files) / 1e6)


def record(row, command):
    "Put the row in place of an earlier one of the same Python, end and torch."
    kept = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    rows = [r for r in kept if _key(r) != _key(row)] + [row | dict(command=command)]
    rows.sort(key=_key)
    RECORD.write_text(json.dumps(dict(rows=rows), indent=1) + "\n")


def _key(row):
    "What identifies a row."
    torch = row.get("installed", {}).get("torch", "")
    return Version(row["python"]), row["versions"], torch.partition("+")[0]


def table():
    "The record as lines of Markdown."
    rows = json.loads(RECORD.read_text())["rows"]
    head = ["Python", "versions", *SHOWN, "quickstart", "demo", "tests", "date"]
    lines = [head, ["---"] * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row):
    "A row of the record as cells of the table."
    have, tests = row.get("installed", {}), row.get("tests")
    outcome = [_verdict(row["steps"].get(step)) for step in ("quickstart", "demo")]
    count = f"{tests['passed']} passed, {tests['failed']} failed" if tests else "not run"
    shown = [have.get(name, "").partition("+")[0] for name in SHOWN]
    return [row["python"], row["versions"], *shown, *outcome, count, row["date"]]


def _verdict(step):
    "passed, failed, or not run."
    if step is None:
        return "not run"
    return "passed" if step["passed"] else "failed"


def write_table(file=ROOT / "CONTRIBUTING.md"):
    "Put the table between its two marks."
    text = file.read_text(encoding="utf-8")
    marks = r"(<!-- versions -->\n).*?(\n<!-- end -->)"
    file.write_text(re.sub(marks, rf"\1{table()}\2", text, flags=re.S), encoding="utf-8")


def options(arguments):
    "What was asked for."
    stated = settings()["pythons"].split()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*ENDS, *stated, "table"]
    parser.add_argument("what", nargs="*", metavar="WHAT", help=", ".join(choices))
    parser.add_argument("--torch", help="a version, or newest; default: that of constraints.txt")
    parser.add_argument("--keep", metavar="FOLDER", help="for environments with torch")
    asked = parser.parse_args(arguments)
    unknown = set(asked.what) - set(choices)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(choices)}")
    return asked, stated


def main(arguments):
    "Every Python here, with the lowest and the newest versions; one environment at a time."
    asked, stated = options(arguments)
    if "table" in asked.what:
        write_table()
        return 0
    here, missing = pythons([a for a in asked.what if a in stated] or stated)
    for version in missing:
        print(f"Python {version} is not installed here: skipped.", flush=True)
    ends = [a for a in asked.what if a in ENDS] or ENDS
    torch = wanted_torch(asked.torch)
    command = " ".join(["python tools/versions.py", *asked.what])
    command += f" --torch {asked.torch}" if asked.torch else ""
    with tempfile.TemporaryDirectory(prefix="gpovae-versions-") as place:
        wheel = _wheel(place)
        bases = Path(asked.keep or place).absolute()
        outcomes = []
        for version, interpreter in here.items():
            print(f"Python {version}", flush=True)
            packages = with_torch(interpreter, torch, bases / version)
            outcomes.append(_python(version, ends, wheel, packages, command))
            if not asked.keep:
                shutil.rmtree(bases / version, ignore_errors=True)  # several GB
    write_table()
    return 0 if outcomes and all(outcomes) else 1


def wanted_torch(asked):
    "The requirement: what was asked for, else the line of constraints.txt."
    if asked:
        return "torch" if asked == "newest" else f"torch=={asked}"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _wheel(place):
    "Build it there."
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, str(ROOT)]
    subprocess.run(command, check=True)
    return next(Path(place).glob("*.whl"))


def _python(version, ends, wheel, packages, command):
    "True where these ends pass on this Python."
    passed = packages is not None
    for which in ends if passed else []:
        folder = wheel.parent / f"{version}-{which}"
        row = check(which, version, wheel, packages, folder)
        record(row, command)
        passed &= row["passed"]
        shutil.rmtree(folder)
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
