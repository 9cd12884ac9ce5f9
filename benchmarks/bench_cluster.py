"""Throughput of what a cluster computes, and of what stays in one process: cluster.json.

    python benchmarks/bench_cluster.py [CELLS GENES]

A screen with the genes and the density of a real one is prepared in this process. Every pass over
cells that a worker would do is timed apart, in processor seconds; the rest is what a cluster does
not take over. The chapter *On several machines* makes its table of these figures.
"""

import json
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np

from gpovae.core import cluster
from gpovae.data import expression, parts, quality, rank_sum, size_factor
from gpovae.data.files import open_screen
from gpovae.data.prepare import prepare_file
from gpovae.data.screen import Screen
from gpovae.data.simulate import simulated
from gpovae.evaluate.effects import effects_in, mean_variance

FIGURES = Path(__file__).with_name("cluster.json")


class Clock:
    "Processor seconds and cells of each pass, by the name of its function."

    def __init__(self):
        self.seconds = defaultdict(float)
        self.cells = defaultdict(int)

    def wrap(self, function):
        def timed(pass_over, X, rows, *rest, **more):
            start = time.process_time()
            result = function(pass_over, X, rows, *rest, **more)
            name = pass_over.__name__.strip("_")
            self.seconds[name] += time.process_time() - start
            self.cells[name] += X.shape[0] if rows is None else len(rows)
            return result

        return timed


def timed(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def adding(groups: int, genes: int) -> float:
    "Bytes of sums that a worker adds in a second."
    pair = [np.ones((2, groups, genes)) for _ in range(2)]
    return pair[0].nbytes / timed(lambda: cluster.added(*pair))


def measure(n_cells: int, n_genes: int) -> dict:
    "All figures of one screen."
    clock = Clock()
    expression.sum_over_cells = clock.wrap(parts.sum_over_cells)
    for chapter in (quality, size_factor):
        chapter.for_each_cell = clock.wrap(parts.for_each_cell)
    test = rank_sum._statistic
    timed_test = clock.wrap(lambda _, *arguments: test(*arguments))
    rank_sum._statistic = lambda *arguments: timed_test(test, *arguments)
    with tempfile.TemporaryDirectory() as folder:
        raw, prepared = Path(folder) / "raw.h5ad", Path(folder) / "prepared.h5ad"
        simulated(n_cells, n_genes, 40, seed=0).write_h5ad(raw)
        # compiled before the clock starts
        small = Path(folder) / "small.h5ad"
        simulated(600, 60, 6, seed=0).write_h5ad(small)
        prepare_file(small, Path(folder) / "p.h5ad", progress=False, doublets=False)
        clock.seconds.clear()
        clock.cells.clear()

        whole = timed(lambda: prepare_file(raw, prepared, progress=False, doublets=False))
        inside = dict(clock.seconds)
        with h5py.File(prepared) as f:
            per_cell = len(f["X/data"]) / n_cells
        screen = Screen(open_screen(prepared))
        rows = screen.rows("train", fail=False)
        effects_in(screen, rows)
        mean_variance(screen, rows)

    passes = {
        name: dict(cells=clock.cells[name], seconds=round(clock.seconds[name], 3))
        for name in clock.cells
    }
    return dict(
        cells=n_cells,
        genes=n_genes,
        counts_per_cell=round(per_cell),
        prepare_seconds=round(whole, 2),
        prepare_on_workers=round(sum(inside.values()), 2),
        passes=passes,
        added_bytes_per_second=round(adding(200, n_genes)),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    size = [int(x) for x in sys.argv[1:3]] or [6000, 2000]
    figures = measure(*size)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
