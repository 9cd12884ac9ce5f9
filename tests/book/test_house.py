"""The house rules: notebooks in step with the package, floors, links, one version, quick start."""

import ast
import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpovae

import book

ROOT = book.ROOT
LONGEST_CELL = 45  # lines of an exported cell
settings = configparser.ConfigParser()
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]


def same(a: Path, b: Path):
    "Paths that differ between two folders."
    c = filecmp.dircmp(a, b, ignore=["__pycache__", ".ipynb_checkpoints"])
    stack = [c]
    bad = []
    while stack:
        d = stack.pop()
        bad += [
            f"{d.left}/{n}"
            for n in (
                d.left_only
                + d.right_only
                + d.funny_files
                + filecmp.cmpfiles(d.left, d.right, d.common_files, shallow=False)[1]
            )
        ]
        stack += d.subdirs.values()
    return bad


def test_export_and_clean_change_nothing(tmp_path):
    for name in ("nbs", "gpovae"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    for command in ("nbdev-clean", "nbdev-export"):
        subprocess.run(
            [Path(sys.executable).with_name(command)], cwd=tmp_path, check=True, capture_output=True
        )
    assert not same(ROOT / "nbs", tmp_path / "nbs"), "not clean: run nbdev-clean"
    assert not same(ROOT / "gpovae", tmp_path / "gpovae"), (
        "package and notebooks out of step: run nbdev-export"
    )


PACKAGES = "core data network model train evaluate plots api experiments app".split()


def modules():
    "Module of gpovae -> (floor of its package, number of its chapter), as in reading order."
    floors = {}
    for path in book.chapters():
        if module := book.module(path):
            number = int(path.stem.partition("_")[0])
            floors[module] = (PACKAGES.index(module.partition(".")[0]), number)
    return floors


def imported(file, module):
    "(module, name) pairs that a file of the package imports from gpovae, anywhere in it."
    package = ["gpovae", *module.split(".")]
    if file.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gpovae."):
                    yield alias.name.removeprefix("gpovae."), ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) + 1 - node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "gpovae" or base.startswith("gpovae."):
                for alias in node.names:
                    yield base.removeprefix("gpovae").lstrip("."), alias.name


def source_of(module):
    "The file of a module."
    path = ROOT / "gpovae" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def violations(floors, imports):
    "Imports that go up: to a later package, or to a later chapter of the same one."
    bad = []
    for module, pairs in imports.items():
        for base, name in pairs:
            target = next((m for m in (f"{base}.{name}".strip("."), base) if m in floors), None)
            if target and target != module and floors[target] >= floors[module]:
                bad.append(f"{module} imports {target}")
    return bad


def test_floors():
    "A package imports only from packages above it, a chapter from those with a smaller number."
    floors = modules()
    assert len(floors) > 50
    imports = {m: list(imported(source_of(m), m)) for m in floors}
    assert sum(map(len, imports.values())) > 300
    assert not violations(floors, imports)


def test_floors_can_fail(tmp_path):
    file = tmp_path / "nodes.py"
    file.write_text(
        "from ..api import GPOVAE\nfrom .. import cli\nimport gpovae.app.reports\n"
        "def f():\n    from .screen import Screen\n"
    )
    found = list(imported(file, "data.nodes"))
    assert found == [("api", "GPOVAE"), ("", "cli"), ("app.reports", ""), ("data.screen", "Screen")]
    floors = {"data.screen": (1, 10), "data.nodes": (1, 20), "api": (7, 10), "app.reports": (9, 10)}
    bad = violations(floors, {"data.nodes": found})
    assert bad == ["data.nodes imports api", "data.nodes imports app.reports"]


def test_no_private_name_crosses_modules():
    bad = [
        f"{module} imports {base}.{name}"
        for module in modules()
        for base, name in imported(source_of(module), module)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not bad


def test_chapters_have_a_title_a_claim_and_their_place():
    listed = (book.NBS / "index.ipynb").read_text(encoding="utf-8")
    for path in book.chapters():
        if path.stem == "index":
            continue
        first = nbformat.read(path, 4).cells[0].source
        assert re.match(r"# .+\n\n> ", first), f"{path.name}: a title and a claim come first"
        module = book.module(path)
        if module:
            assert book.name(path) == module, f"{path} exports {module}"
        where = path.relative_to(book.NBS).as_posix()
        assert f"({where})" in listed, f"index.ipynb does not list {where}"


def test_numbers_of_chapters():
    "Two digits, all different within a folder, without letters."
    for folder in {p.parent for p in book.chapters()} - {book.NBS}:
        names = [p.stem for p in book.chapters() if p.parent == folder]
        assert all(re.match(r"\d\d_[a-z_]+$", n) for n in names), folder
        assert len({n[:2] for n in names}) == len(names), folder


def test_links_lead_somewhere():
    "Every link of a chapter, and of the pages beside the book, that is no address of the web."
    pages = {
        p: "\n".join(c.source for c in nbformat.read(p, 4).cells if c.cell_type == "markdown")
        for p in book.chapters()
    }
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        pages[ROOT / name] = (ROOT / name).read_text(encoding="utf-8")
    links = [
        (page, target)
        for page, text in pages.items()
        for target in re.findall(r"\]\((?!\w+://|mailto:|#)([^)\s]+)\)", text)
    ]
    assert len(links) > 100
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page, target in links
        if not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not broken


def test_exported_cells_are_short():
    for path in book.chapters():
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and book.has(cell, "export", "exporti"):
                if all(
                    isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(cell.source).body
                ):
                    continue
                lines = [x for x in cell.source.splitlines() if x.strip() and x[:2] != "#|"]
                assert len(lines) <= LONGEST_CELL, f"{path.name}: {cell.source[:80]}"


def test_readme_is_derived():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == book.readme(), (
        "run python tools/book.py readme"
    )


def test_one_version_and_one_layout():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]
    assert settings["version"] == gpovae.__version__
    assert re.search(
        rf"^version: {re.escape(gpovae.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M
    )
    assert (config["lib_path"], config["nbs_path"]) == (settings["lib_path"], settings["nbs_path"])


def test_constraints_cover_requirements():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pinned = {canonicalize_name(Requirement(x).name): Requirement(x) for x in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", x) for x in lines)
    for line in (" ".join(settings[k] for k in settings if k.endswith("requirements"))).split():
        wanted = Requirement(line)
        exact = next(iter(pinned[canonicalize_name(wanted.name)].specifier)).version
        assert wanted.specifier.contains(exact), f"{line} and {exact}"


def test_requirements_are_installed_as_stated():
    stated = {str(Requirement(r)) for r in settings["requirements"].split()}
    assert stated == {str(Requirement(r)) for r in requires("gpovae") if "extra ==" not in r}, (
        "run make again: settings.ini changed"
    )


def test_import_is_lazy():
    heavy = "torch scanpy anndata pandas pytorch_lightning papermill matplotlib".split()
    for does in (
        "import gpovae, gpovae.app.cli",
        "from gpovae.app.cli import main; main(['--help'], standalone_mode=False)",
        "from gpovae.app.cli import main; main(['train', '--help'], standalone_mode=False)",
    ):
        code = f"import sys; {does}; print(sorted(set({heavy!r}) & set(sys.modules)))"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            .stdout.strip()
            .endswith("[]")
        ), does
    with pytest.raises(AttributeError):
        _ = gpovae.nothing


@pytest.mark.parametrize(
    "command, most",
    [
        ((Path(sys.executable).with_name("gpovae"), "--help"), 1),
        ((sys.executable, "-c", "import gpovae"), 1),
    ],
    ids=["help", "import"],
)
def test_start_is_quick(command, most):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < most:
            return
    assert min(seconds) < most, seconds


def test_imports_are_declared():
    "What the package and its reports import is among the requirements."
    of_a_user = [k for k in settings if k.endswith("requirements")]
    of_a_user = [k for k in of_a_user if k not in ("dev_requirements", "docs_requirements")]
    wanted = " ".join(settings[k] for k in of_a_user).split()
    declared = {canonicalize_name(Requirement(r).name) for r in wanted}
    of = packages_distributions()
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "gpovae").rglob("*.py")] + [
        "\n".join(c.source for c in nbformat.read(p, 4).cells if c.cell_type == "code")
        for p in (ROOT / "nbs/reports").glob("*.ipynb")
    ]
    for node in (n for s in sources for n in ast.walk(ast.parse(s))):
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        ):
            name = name.split(".")[0]
            assert (
                name in sys.stdlib_module_names
                or name == "gpovae"
                or {canonicalize_name(d) for d in of[name]} & declared
            ), name


@pytest.mark.parametrize(
    "module, extra, use",
    [
        (
            "openpyxl",
            "excel",
            "from gpovae.data.summary import read_summary; read_summary('table.xlsx')",
        ),
        ("rdata", "r", "from gpovae.data.readers import read_r; read_r('table.xlsx')"),
    ],
)
def test_what_is_rare_is_an_extra_that_is_named(module, extra, use, tmp_path):
    import pandas as pd

    pd.DataFrame(dict(a=[1])).to_excel(tmp_path / "table.xlsx")
    code = f"import sys; sys.modules[{module!r}] = None\n{use}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        "GpovaeError: table.xlsx" in done.stderr
        and f"pip install 'gpovae[{extra}]'" in done.stderr
        and extra in metadata("gpovae").get_all("Provides-Extra")
    ), done.stderr


def test_no_large_file():
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("not a git checkout")
    large = [
        f
        for f in git.stdout.split("\0")
        if f and (ROOT / f).exists() and (ROOT / f).stat().st_size > 2 << 20
    ]
    assert not large


PLACES = "|".join(f"/{folder}/" for folder in ("tmp", "work", "root", "home", "opt"))


def test_no_place_of_one_machine():
    "No tracked text names a folder that only one machine has."
    command = ["git", "grep", "-nIE", PLACES, "--", ".", ":!gpovae/static"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if git.returncode > 1:
        pytest.skip("not a git checkout")
    assert not git.stdout


def test_printed_places_are_taken_out(tmp_path):
    import tempfile

    place = f"{tempfile.gettempdir()}/tmpx_1/file"
    text = f"{place}: {ROOT}/nbs, {ROOT}/.venv/lib/site-packages/anndata/io.py:44"
    assert book.without_places(text) == "FOLDER/file: gpovae/nbs, anndata/io.py:44"


def test_readme_figures_are_those_measured():
    measured = {
        name: json.loads((book.ROOT / f"benchmarks/{name}.json").read_text())
        for name in ("demo", "claim")
    }
    demo = measured["demo"]
    claim = measured["claim"]
    rho = {k: v["ate_rho"] for k, v in demo["scores"]["response"].items()}
    mean = {r["method"]: r["ate_rho"] for r in claim["summary"] if r["screen"] == "schraivogel2020"}
    methods = ("model", "training mean", "shrunken training mean")
    auprc = demo["truth"]["auprc"]
    rows = [
        [f"{rho[m]:.2f}" for m in methods] + [f"{demo['scores']['ceiling']['ceiling']:.2f}"],
        [f"{mean[m]:.3f}" for m in ("corrected", *methods[1:], "ceiling")],
        [f"{auprc[m]:.2f}" for m in ("gpovae", "mean difference", "inverse x z-score")]
        + [f"{demo['truth']['chance']:.2f}"],
    ]
    text = (book.ROOT / "README.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {' | '.join(row)} |" in text, row
    assert all(
        set(r["first_edges"]) == {"HBE1", "HBD", "HBB"}
        for r in claim["enhancer"]
        if r["method"] == "corrected"
    )
    assert f"ahead by {abs(mean['shrunken training mean'] - mean['corrected']):.3f}" in text


def test_a_group_of_tests_runs_in_one_worker(tmp_path):
    "What a group shares is made once; pytest 9.2 does not see the groups of pytest-xdist 3.8."
    (tmp_path / "test_group.py").write_text(
        "import pathlib, pytest\n"
        "@pytest.mark.xdist_group('one')\n"
        "@pytest.mark.parametrize('i', range(12))\n"
        "def test_worker(i, worker_id):\n"
        "    pathlib.Path(f'{worker_id}.{i}').touch()\n"
    )
    options = ["-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "."]
    command = [sys.executable, "-m", "pytest", *options]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    workers = {path.stem for path in tmp_path.glob("gw*.*")}
    assert len(workers) == 1
