"""Memory is a promise: splits share one matrix, and cutting a minibatch out of it stays quick."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpovae.data.files import write_screen
from gpovae.data.reorder import Source
from gpovae.data.screen import SPLITS, Key
from gpovae.data.stream import by_cell

CELLS, GENES, PER_CELL = 30_000, 2_000, 500  # 120 MB in memory


def matrix() -> sp.csr_matrix:
    "Random counts, so many a cell, the genes of each in ascending order."
    rng = np.random.default_rng(0)
    step = GENES // PER_CELL
    genes = np.arange(PER_CELL, dtype=np.int32) * step
    genes = (genes + rng.integers(0, step, (CELLS, PER_CELL), dtype=np.int32)).ravel()
    counts = rng.integers(1, 9, CELLS * PER_CELL).astype(np.float32)
    indptr = np.arange(CELLS + 1) * PER_CELL
    return sp.csr_matrix((counts, genes, indptr), shape=(CELLS, GENES))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    "A file with as much as minibatches need, laid out like those of `gpovae prepare`."
    obs = pd.DataFrame(
        {
            Key.split: pd.Categorical(np.resize(SPLITS, CELLS)),
            Key.perturbation: pd.Categorical(np.resize(["control", "A", "B"], CELLS)),
            Key.batch: pd.Categorical(np.resize(["all"], CELLS)),
            Key.fail: False,
            Key.library_size: np.ones(CELLS, np.float32),
        },
        index=[f"cell {i}" for i in range(CELLS)],
    )
    var = pd.DataFrame(index=[f"gene {i}" for i in range(GENES)])
    path = tmp_path_factory.mktemp("memory") / "screen.h5ad"
    uns = {Key.screen: dict(layer="")}
    write_screen(path, Source(obs, var, lambda: [matrix()], {}, uns))
    return path


_PROCESS = """
import re, sys
import numpy as np
from gpovae.data.files import open_screen, read_screen
from gpovae.data.minibatch import Cells
from gpovae.data.screen import SPLITS, Screen
screen = Screen((read_screen if sys.argv[2] == "memory" else open_screen)(sys.argv[1]))
cells = []
for split in SPLITS:
    # from disk a minibatch loads the same compiled code
    cells.append(Cells(screen, split))
    cells[-1].X[np.arange(64)]
# not ru_maxrss, which begins with the memory of the parent
status = open("/proc/self/status").read()
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]))
"""


def peak(path, place: str) -> int:
    "Bytes of a process that reads a screen into memory, or a few cells from disk."
    process = [sys.executable, "-c", _PROCESS, str(path), place]
    return int(subprocess.run(process, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux")
def test_reading_into_memory_takes_little_more_than_the_matrix(path):
    size = CELLS * (8 * PER_CELL + 8)
    assert peak(path, "memory") - peak(path, "disk") < 1.2 * size


def test_splits_share_a_matrix_and_give_its_cells():
    X = matrix()
    rows = np.arange(0, CELLS, 3)
    some = by_cell(X, rows)
    assert some.shape == (len(rows), GENES) and len(some) == len(rows)
    assert some.X is X
    i = np.array([5, 2, 2, 100])
    for positions in (i, slice(3, 9), np.arange(len(rows)) > len(rows) - 9):
        assert (some[positions].toarray() == X[rows[positions]].toarray()).all()
    dense = X[:100].toarray()
    assert (by_cell(dense, rows[:20])[i[:3]] == dense[rows[i[:3]]]).all()
    by_gene = by_cell(X.tocsc(), rows[:20])
    assert by_gene.format == "csr" and (by_gene.toarray() == X[rows[:20]].toarray()).all()


def test_a_minibatch_is_cut_as_quickly_as_from_a_copy():
    X = matrix()
    rows = np.arange(0, CELLS, 2)
    matrices = dict(shared=by_cell(X, rows), copied=X[rows])
    matrices["shared"][:2]  # compiled
    rng = np.random.default_rng(1)
    seconds = dict(shared=[], copied=[])
    for _ in range(100):
        i = rng.permutation(len(rows))[:512]
        for name, counts in matrices.items():  # side by side: other work slows both
            start = time.process_time()
            counts[i]
            seconds[name].append(time.process_time() - start)
    assert np.median(seconds["shared"]) < 1.3 * np.median(seconds["copied"])
