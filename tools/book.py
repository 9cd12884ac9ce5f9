"""The book's upkeep: README, links, and chapters that print what is stored in them.

    python tools/book.py readme              derive README.md from nbs/index.ipynb
    python tools/book.py execute [NB ...]    run chapters, store their outputs (default: all)
    python tools/book.py check [NB ...]      run them in memory, compare with the stored outputs
    python tools/book.py links               turn links such as (nb:data.screen) into paths

A cell that begins with `#| slow` or `#| eval: false` is not run and keeps its stored output.
The numbers that a cell prints must be those that are stored, within tolerance, durations
(`3.1 s`, `20 ms`) aside. `#| timing` in a cell says that other numbers of it depend on the
machine, `#| real data` that it shows more where a published screen is at hand: such a cell is
compared only where it prints as many numbers as are stored. Figures, HTML and standard error are
not compared.
"""

import copy
import math
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import forked

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
RTOL, ATOL = 2e-2, 2e-3


def chapters() -> list[Path]:
    "All chapters in reading order; reports are run by other tests."
    return [
        p
        for p in sorted(NBS.rglob("*.ipynb"))
        if "reports" not in p.parts and ".ipynb_checkpoints" not in p.parts
    ]


def package(path: Path) -> str:
    "The folder of a chapter: core, data, ... ; empty for the index."
    return path.parent.name if path.parent != NBS else ""


def name(path: Path) -> str:
    "What a chapter is called in links: data.screen, start/quickstart, index."
    stem = path.stem.partition("_")[2] or path.stem
    exported = package(path) not in ("", "start", "studies")
    if path.stem == "index" or not package(path):
        return path.stem
    if package(path) == stem:
        return stem
    return f"{package(path)}.{stem}" if exported else f"{package(path)}/{stem}"


def module(path: Path) -> str | None:
    "The module that a chapter exports."
    cells = nbformat.read(path, 4).cells
    source = "\n".join(c.source for c in cells if c.cell_type == "code")
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M)
    return found and found[1].removesuffix(".__init__")


def find(wanted: str) -> Path:
    "The notebook of a module (data.screen) or of a chapter that exports nothing (studies/errata)."
    found = [p for p in chapters() if name(p) == wanted]
    if len(found) != 1:
        raise LookupError(f"{wanted!r} names {len(found)} chapters.")
    return found[0]


def resolve_links(path: Path) -> int:
    "Turn (nb:data.screen) into the relative path of that chapter; the number of links turned."
    nb = nbformat.read(path, 4)
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "markdown" or "(nb:" not in cell.source:
            continue
        cell.source, n = re.subn(
            r"\]\(nb:([\w./]+)(#[^)]*)?\)",
            lambda m: f"]({os.path.relpath(find(m[1]), path.parent)}{m[2] or ''})",
            cell.source,
        )
        count += n
    if count:
        nbformat.write(nb, path)
    return count


def has(cell, *directives) -> bool:
    "Does the source carry one of these `#|` directives?"
    found = {re.sub(r"\s+", "", d) for d in re.findall(r"^\s*#\|\s*(.+?)\s*$", cell.source, re.M)}
    return any(re.sub(r"\s+", "", d) in found for d in directives)


def skipped(cell) -> bool:
    "Is this cell left as it is stored?"
    return has(cell, "slow", "eval: false") or (has(cell, "real data") and not real_data())


def real_data() -> bool:
    """Are the files of the real screen at hand? Points GPOVAE_DATA at the shared folder where it is
    not set.
    """
    from gpovae.data.datasets import available

    if "GPOVAE_DATA" not in os.environ and (shared := ROOT.parent / "shared/data").is_dir():
        os.environ["GPOVAE_DATA"] = str(shared)
    return bool(available().at_hand["schraivogel2020"])


NOT_IN_README = "<!-- not in the README -->"


def readme() -> str:
    "README.md: prose and code of nbs/index.ipynb without outputs; links from the root."
    parts = []
    for cell in nbformat.read(NBS / "index.ipynb", 4).cells:
        if cell.cell_type == "markdown" and not cell.source.startswith(NOT_IN_README):
            parts.append(re.sub(r"\]\((?!\w+:|#)([^)]+)\)", _from_root, cell.source))
        elif cell.cell_type == "code" and not has(cell, "hide"):
            parts.append(f"```python\n{cell.source}\n```")
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    return f"<!-- derived from nbs/index.ipynb by tools/book.py readme -->\n\n{text}\n"


def _from_root(link) -> str:
    return f"]({posixpath.normpath('nbs/' + link[1])})"


def run(path: Path, kernel: bool = False):
    "The notebook as stored, and as it comes out of a fresh process, or of a fresh kernel."
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    stored = nbformat.read(path, 4)
    todo = copy.deepcopy(stored)
    todo.cells = [c for c in todo.cells if not skipped(c)]
    if kernel:
        _run_in_kernel(todo, path.parent)
    else:
        todo = forked.execute(todo, path.parent)
    done = {c.id: c for c in todo.cells}
    fresh = copy.deepcopy(stored)
    fresh.cells = [done.get(c.id, c) for c in fresh.cells]
    return stored, fresh


def without_places(text: str) -> str:
    "Printed text without the folders of the machine that ran the chapter."
    text = re.sub(r"\S*/site-packages/", "", text)
    text = text.replace(str(ROOT), "gpovae")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[\w.-]+", "FOLDER", text)


def _run_in_kernel(nb, folder: Path) -> None:
    "As a reader runs it; figures and tables are kept."
    from gpovae.app.reports import ThisInterpreter

    where = {"metadata": {"path": str(folder)}}
    options = dict(timeout=3600, kernel_manager_class=ThisInterpreter, resources=where)
    NotebookClient(nb, **options).execute()
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = without_places(output.text)


def numbers(cell) -> list[float]:
    """Every number that a cell prints or shows as plain text; memory addresses, colours, durations,
    versions, and the progress of what took over two seconds are left out.
    """
    texts = [
        (
            o.get("text", "")
            if o.output_type == "stream" and o.get("name") == "stdout"
            else o.get("data", {}).get("text/plain", "")
        )
        for o in cell.get("outputs", [])
    ]
    left_out = (
        r"(?m:^.* gone, .* left.*$)",  # progress
        r"0x[0-9a-fA-F]+",  # address
        r"\x1b\[[0-9;]*m",  # colour
        r"\d[\d.]* ?(?:s|ms|min)\b",  # duration
        r"\b\d+\.\d+\.\d+[\w.+]*",  # version
    )
    text = re.sub("|".join(left_out), "", "\n".join(texts))
    return [
        float(t)
        for t in re.findall(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w])", text)
    ]


def differences(stored, fresh) -> list[str]:
    "One line for every cell whose numbers are not those stored."
    found = []
    for old, new in zip(stored.cells, fresh.cells):
        if old.cell_type != "code" or not old.outputs or skipped(old) or has(old, "timing"):
            continue
        a = numbers(old)
        b = numbers(new)
        off = [(x, y) for x, y in zip(a, b) if not math.isclose(x, y, rel_tol=RTOL, abs_tol=ATOL)]
        if len(a) != len(b) and has(old, "real data"):
            continue
        if len(a) != len(b):
            found.append(
                f"{len(a)} numbers stored, {len(b)} computed, in the cell:\n{old.source[:300]}"
            )
        elif off:
            found.append(
                f"stored {off[0][0]:g}, computed {off[0][1]:g} ({len(off)} of {len(a)} numbers"
                f" differ), in the cell:\n{old.source[:300]}"
            )
    return found


def main(what="", *names):
    paths = [Path(n).resolve() for n in names] or chapters()
    if what == "readme":
        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    elif what == "execute":
        for p in paths:
            nbformat.write(run(p, kernel=True)[1], p)
            subprocess.run(
                [Path(sys.executable).with_name("nbdev-clean"), "--fname", p], check=True, cwd=ROOT
            )
            print(p.name, flush=True)
    elif what == "links":
        print(sum(map(resolve_links, paths)), "links")
    elif what == "check":
        bad = {p.name: d for p in paths if (d := differences(*run(p)))}
        for name, lines in bad.items():
            print(name, *lines, sep="\n")
        sys.exit(bool(bad))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
