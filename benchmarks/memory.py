"""What the commands take at their peak, beside what was estimated from the header of the file.

    python benchmarks/memory.py [--shapes NAME ...]       writes benchmarks/memory.json

Every command runs in a process of its own, with the counts in memory and with the counts on disk,
on simulated screens of several shapes. Measured is by how much the process grows after its imports
(VmHWM of Linux). Takes about ten minutes and 2 GB of disk, in --scratch or a temporary folder.
"""

import argparse
import contextlib
import datetime
import io
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "small": dict(n_cells=3000, n_genes=500, n_perturbations=20, n_batches=2),
    "many genes": dict(n_cells=4000, n_genes=8000, n_perturbations=40, n_batches=2, depth=8000),
    "many cells": dict(n_cells=50000, n_genes=500, n_perturbations=40, n_batches=4, depth=1000),
}
TASKS = ["prepare", "train", "evaluate", "report", "network"]


def status(line: str) -> int:
    "Bytes of a line of /proc/self/status."
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{line}:\s+(\d+)", text)[1])


def run_cells(name: str, run: Path) -> None:
    "The cells of a report, as its kernel runs them."
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    from gpovae.app.reports import notebook

    shell = InteractiveShell.instance()
    cells = nbformat.read(notebook(name), 4).cells
    for cell in (c for c in cells if c.cell_type == "code"):
        with contextlib.redirect_stdout(io.StringIO()):
            shell.run_cell(cell.source).raise_error()
        if cell.source.startswith("run: str"):
            shell.user_ns["run"] = str(run)


def measure(task: str, place: str, folder: Path) -> None:
    "Run a command here, and print by how much this process grew."
    import matplotlib

    matplotlib.use("agg")
    import gpovae.api  # noqa: F401
    from gpovae.app.cli import main
    from gpovae.train import memory, run

    choose = memory.choose
    seen = []

    def choose_place(what, needs, free, on_disk=None):
        seen.append(needs)
        free = free._replace(bytes=2**50)
        return choose(what, needs, free, place == "on disk")

    memory.choose = run.choose = choose_place
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = status("VmRSS")
    if task in ("prepare", "train"):
        prepare = [folder / "raw.h5ad", folder / "prepared.h5ad"]
        prepare += ["--perturbation-key", "gene", "--control", "non-targeting"]
        train = [folder / "prepared.h5ad", "--out", folder / "run", "--max-epochs", 1]
        words = dict(prepare=[*prepare, "--batch-key", "batch"], train=train)[task]
        main([task, *map(str, words), "--force", "--quiet"], standalone_mode=False)
    else:
        run_cells(task, folder / "run")
    growth = status("VmHWM") - begin
    needs = seen[-1] if seen else None
    estimate = needs and (needs.on_disk if place == "on disk" else needs.in_memory)
    result = dict(measured=growth, estimate=estimate, compiling=memory.COMPILING)
    print(json.dumps(result))


def rows_of(name: str, folder: Path) -> list[dict]:
    "All commands on a screen of one shape."
    from gpovae.data.simulate import simulated

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "raw.h5ad").exists():
        simulated(path=folder / "raw.h5ad", seed=0, **SHAPES[name]).X.group.file.close()
    rows = []
    for task in TASKS:
        for place in ("on disk",) if task == "prepare" else ("on disk", "in memory"):
            command = [sys.executable, __file__, "--measure", task, place, str(folder)]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                sys.exit(f"{shlex.join(command)}:\n{said.stderr[-3000:]}")
            result = json.loads(said.stdout.splitlines()[-1])
            rows.append(dict(shape=name, task=task, place=place) | result)
            print(
                {
                    k: round(v / 2**20) if isinstance(v, float | int) else v
                    for k, v in rows[-1].items()
                },
                flush=True,
            )
    return rows


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--scratch", type=Path, help="folder for the screens, which are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/memory.json")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        task, place, folder = options.measure
        return measure(task, place, Path(folder))

    temporary = nullcontext(options.scratch) if options.scratch else tempfile.TemporaryDirectory()
    with temporary as folder:
        rows = [row for name in options.shapes for row in rows_of(name, Path(folder) / name)]
    record = dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "benchmarks/memory.py", *arguments]),
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores,"
        f" {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}",
        shapes={name: SHAPES[name] for name in options.shapes},
        rows=rows,
    )
    options.out.write_text(json.dumps(record, indent=1))
    print(options.out)


if __name__ == "__main__":
    main(*sys.argv[1:])
