"""Python 3.11 and newer: which one make takes, exact versions for each, what the metadata say."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import metadata

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from places import ROOT

settings = configparser.ConfigParser()
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

# an interpreter that says that it is another version, and notes what it is asked to do
PRETEND = """#!{python} -IS
import sys
version, log = {version!r}, {log!r}
if sys.argv[1] == "-c":
    sys.version_info = tuple(map(int, version.split(".")))
    exec(sys.argv[2])
elif sys.argv[1] == "-V":
    print("Python", version)
else:
    open(log, "a").write(" ".join([version, *sys.argv[1:]]) + "\\n")
"""


def pretend(file, version, log):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PRETEND.format(python=sys.executable, version=version, log=str(log)))
    file.chmod(0o755)


def made(folder, interpreters, *arguments, present=None):
    "What make asks of which Python where PATH has these, and what it says."
    log = folder / "log"
    for name, version in interpreters.items():
        pretend(folder / "bin" / name, version, log)
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("touch", "sh"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    for name in ("Makefile", "constraints.txt", "setup.py", "settings.ini"):
        shutil.copy(ROOT / name, folder)
    # venv itself is not made by those that pretend: what is installed goes into this one
    pretend(folder / ".venv/bin/python", present or next(iter(interpreters.values()), ""), log)
    done = subprocess.run(
        [shutil.which("make"), ".venv/.done", *arguments],
        cwd=folder,
        env=dict(PATH=str(folder / "bin")),
        capture_output=True,
        text=True,
    )
    return (log.read_text().splitlines() if log.exists() else []), done


@pytest.mark.parametrize(
    ["interpreters", "taken"],
    [
        ({"python3": "3.13.0"}, "3.13.0"),
        ({"python3": "3.14.2", "python3.11": "3.11.7"}, "3.14.2"),
        # what is active comes first
        ({"python3": "3.11.7", "python3.13": "3.13.0"}, "3.11.7"),
        # an active one that is too old: the newest of the others
        ({"python3": "3.10.4", "python3.11": "3.11.7", "python3.13": "3.13.0"}, "3.13.0"),
    ],
)
def test_make_takes(tmp_path, interpreters, taken):
    asked, done = made(tmp_path, interpreters, present=taken)
    assert done.returncode == 0, done.stderr
    assert asked[0] == f"{taken} -m venv .venv"
    assert asked[1].startswith(f"{taken} -m pip install -q -c constraints.txt")


def test_another_python_makes_the_environment_anew(tmp_path):
    asked, _ = made(tmp_path, {"python3": "3.13.0"}, present="3.11.7")
    assert asked[0] == "3.13.0 -m venv --clear .venv"


def test_make_takes_what_it_is_told(tmp_path):
    interpreters = {"python3": "3.11.7", "python3.12": "3.12.1"}
    asked, _ = made(tmp_path, interpreters, "PYTHON=python3.12", present="3.12.1")
    assert asked[0] == "3.12.1 -m venv .venv"


@pytest.mark.parametrize("interpreters", [{}, {"python3": "3.10.4", "python3.11": "3.9.1"}])
def test_make_says_what_it_needs(tmp_path, interpreters):
    asked, done = made(tmp_path, interpreters)
    assert done.returncode and not asked
    assert "Python 3.11 or newer" in done.stderr and "make PYTHON=" in done.stderr


def test_metadata_name_the_pythons():
    stated = settings["pythons"].split()
    assert stated[0] == settings["min_python"] == "3.11"
    assert {"3.11", "3.12", "3.13"} <= set(stated)
    classifiers = metadata("gpovae").get_all("Classifier") or []
    prefix = "Programming Language :: Python :: "
    assert {c.removeprefix(prefix) for c in classifiers if c.startswith(prefix)} == set(stated), (
        "run make again: settings.ini changed"
    )
    assert metadata("gpovae")["Requires-Python"] == ">=3.11"


def test_every_python_has_one_exact_version_of_each_requirement():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    wanted = {canonicalize_name(Requirement(r).name) for r in settings["requirements"].split()}
    assert "torch==2.13.0" in lines
    for python in settings["pythons"].split():
        here = dict(python_version=python)
        for name in wanted:
            exact = [p for p in pins if canonicalize_name(p.name) == name and holds(p.marker, here)]
            assert len(exact) == 1, f"{name} on Python {python}"


def holds(marker: Marker | None, environment):
    return marker is None or marker.evaluate(environment)


def test_workflow():
    "GitHub runs what make runs, on every Python that the metadata name."
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    flow = yaml.safe_load(text)
    assert set(flow["jobs"]) == {"test", "lint", "docs", "wheel"}
    matrix = flow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == settings["pythons"].split()
    targets = re.findall(r"^\s*- run: make (\w+)", text, re.M)
    rules = re.findall(r"^(\w[\w ]*):", (ROOT / "Makefile").read_text(), re.M)
    assert {"test", "lint", "docs"} <= set(targets) <= set(" ".join(rules).split())
    assert "://" not in text.replace("https://github.com", "")
    for job in flow["jobs"].values():
        assert job["steps"][0]["uses"].startswith("actions/checkout@")


@pytest.mark.parametrize("missing", [[], ["3.12"], ["3.11", "3.12", "3.13"]])
def test_versions_say_which_python_is_missing(tmp_path, monkeypatch, missing):
    import versions

    for v in settings["pythons"].split():
        if v not in missing:
            pretend(tmp_path / f"python{v}", f"{v}.0", tmp_path / "log")
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    here, absent = versions.pythons(settings["pythons"].split())
    assert absent == missing
    assert list(here) == [v for v in settings["pythons"].split() if v not in missing]


def test_lowest_versions_are_those_of_the_python():
    "numpy 2.0 was never built for Python 3.13: its bound is another there."
    import versions

    numpy = [versions.lowest(v)["numpy"] for v in ("3.11", "3.12", "3.13")]
    assert numpy == ["2", "2", "2.1"]
    assert "torch" not in versions.lowest("3.11")
    assert versions.pins("newest", "3.13") == []


@pytest.mark.parametrize(
    ["output", "number"],
    [
        ("..F\n1 failed, 3 passed, 2 skipped in 3.2s", (3, 1, 2)),
        ("5 passed, 1 warning in 3.2s\n", (5, 0, 0)),
        ("2 passed, 2 errors in 3.2s", (2, 2, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_counts_of_the_last_line(output, number):
    import versions

    assert tuple(versions.counted(output).values()) == number


def test_a_new_row_takes_the_place_of_the_old(tmp_path, monkeypatch):
    import versions

    monkeypatch.setattr(versions, "RECORD", tmp_path / "versions.json")
    for python, torch, tests in [("3.13", "2.1", 1), ("3.9", "2.1+cpu", 1), ("3.9", "2.1", 2)]:
        row = dict(python=python, versions="newest", installed=dict(torch=torch), tests=tests)
        versions.record(row, "python tools/versions.py")
    rows = json.loads(versions.RECORD.read_text())["rows"]
    assert [(r["python"], r["tests"]) for r in rows] == [("3.9", 2), ("3.13", 1)]


def test_contributing_shows_what_is_recorded():
    import versions

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"<!-- versions -->\n{versions.table()}\n<!-- end -->" in text, (
        "python tools/versions.py table"
    )


def test_the_first_page_names_every_extra():
    extras = [k.removesuffix("_requirements") for k in settings if k.endswith("_requirements")]
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    table = text.partition("| brings |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(extras) - {"dev", "docs"}
