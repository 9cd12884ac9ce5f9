"""The whole way of a screen of real size, as its user goes it: from raw counts to the report.

    python benchmarks/full.py [--cells N ...] [--scratch FOLDER]     writes benchmarks/full.json

A raw screen of the shape of K562-essential (8,563 genes, 37 % of all entries above zero, 2,057
perturbations, 48 gem groups) is simulated and written to disk. Then every command of the shell
runs in a process of its own: prepare, train, evaluate, network, report. Of each are noted the
seconds, the processor seconds and the peak memory, as the system counts them.

At 310,000 cells this takes some hours and 25 GB of disk. A raw screen and a run that lie in
--scratch are used again, and what was interrupted goes on.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch

from gpovae.data.files import open_screen
from gpovae.data.simulate import simulated

ROOT = Path(__file__).resolve().parents[1]
GPOVAE = str(Path(sys.executable).with_name("gpovae"))
# depth: 37 % of the entries are above zero, as in K562
SHAPE = dict(n_genes=8563, n_perturbations=2057, n_batches=48, depth=8200, control_share=0.05)
PREPARE = ["--perturbation-key", "gene", "--control", "non-targeting", "--batch-key", "batch"]


def measured(command: list[str], folder: Path) -> dict:
    "Run a command; what it took, and the end of what it said."
    said = folder / "said.txt"
    start = time.perf_counter()
    with said.open("w") as file:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), n) for n in (1, 2)],
        )
        _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{shlex.join(command)} ended with {code}:\n{said.read_text()[-3000:]}")
    # what overwrites a line is progress
    lines = [line.rpartition("\r")[2] for line in said.read_text().splitlines()]
    return dict(
        seconds=seconds,
        processor_seconds=used.ru_utime + used.ru_stime,
        peak_gib=used.ru_maxrss / 2**20,
        said=[line for line in lines if line and "%|" not in line][-8:],
    )


def write_screen(n_cells: int, path: Path, shape: dict) -> None:
    "A raw screen, written block by block."
    simulated(n_cells, path=path, **shape).X.group.file.close()


def whole_way(n_cells: int, folder: Path, options) -> dict:
    "All commands on a screen of so many cells."
    raw = folder / f"raw{n_cells}.h5ad"
    prepared = folder / f"prepared{n_cells}.h5ad"
    run = folder / f"run{n_cells}"
    shape = SHAPE | dict(n_genes=options.genes, n_perturbations=options.perturbations)
    if not raw.exists():
        write_screen(n_cells, raw, shape)

    limits = ["--max-epochs", str(options.max_epochs)] if options.max_epochs else []
    limits += ["--max-time", options.max_time] if options.max_time else []
    commands = dict(
        prepare=["prepare", raw, prepared, *PREPARE],
        train=["train", prepared, "--out", run, *limits],
        evaluate=["evaluate", run],
        network=["network", run],
        report=["report", run],
    )
    steps = {}
    for name, command in commands.items():
        steps[name] = measured([GPOVAE, *map(str, command)], folder)
        took = {k: round(v, 2) for k, v in steps[name].items() if k != "said"}
        print(f"{n_cells:,} cells: {name}: {took}", flush=True)

    history = json.loads((run / "settings.json").read_text())["ended"]
    adata = open_screen(prepared)
    counts = int(adata.X.group["data"].shape[0])
    nodes = len(adata.uns["gpovae_nodes"]["names"])
    adata.X.group.file.close()
    return dict(
        cells=n_cells,
        **shape,
        counts=counts,
        nodes=nodes,
        raw_gib=raw.stat().st_size / 2**30,
        report_mib=(run / "report.html").stat().st_size / 2**20,
        ended=history,
        steps=steps,
    )


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[60_000, 310_385])
    parser.add_argument("--genes", type=int, default=SHAPE["n_genes"])
    parser.add_argument("--perturbations", type=int, default=SHAPE["n_perturbations"])
    parser.add_argument("--max-epochs", type=int, help="of training (default: the preset's)")
    parser.add_argument("--max-time", help="of training, such as 1h (default: none)")
    parser.add_argument("--scratch", type=Path, help="folder for the large files, which are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/full.json")
    options = parser.parse_args(arguments)

    temporary = nullcontext(options.scratch) if options.scratch else tempfile.TemporaryDirectory()
    with temporary as folder:
        runs = [whole_way(n, Path(folder), options) for n in options.cells]
    memory = psutil.virtual_memory().total / 2**30
    record = dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "benchmarks/full.py", *arguments]),
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python"
        f" {platform.python_version()}, torch {torch.__version__}",
        load=os.getloadavg()[2],
        runs=runs,
    )
    options.out.write_text(json.dumps(record, indent=1))
    print(options.out)


if __name__ == "__main__":
    main(*sys.argv[1:])
