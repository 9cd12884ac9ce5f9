"""Counterfactual partners: equal to numpy's gene-wise lower median for the same drawn cells, to a
plain mean of compositions, in memory and on disk.
"""

import numba
import numpy as np
import pytest
import scipy.sparse as sp

import gpovae
from gpovae.data.minibatch import Cells
from gpovae.data.partners import mean_shares, median_profiles
from gpovae.data.screen import Key, Screen


class OnDisk:
    """What a screen on disk gives for counts.

    A shape, and rows as CSR. It never gives everything at once.
    """

    def __init__(self, X):
        self._X = sp.csr_matrix(X)
        self.shape = X.shape
        self.rows_read = 0

    def __getitem__(self, rows):
        assert isinstance(rows, (slice, np.ndarray))
        part = self._X[rows]
        self.rows_read = max(self.rows_read, part.shape[0])
        return part


def counts(n_cells, n_genes, largest, seed, dtype=np.float32):
    "Negative binomial genes of very different levels, some silent, one gene reaching `largest`."
    rng = np.random.default_rng(seed)
    X = rng.poisson(rng.gamma(2, rng.lognormal(-1, 2, n_genes) / 2, (n_cells, n_genes)))
    X = np.minimum(X, largest)
    X[:, rng.random(n_genes) < 0.1] = 0
    X[:, rng.integers(n_genes)] = rng.integers(0, largest + 1, n_cells)
    X[rng.integers(n_cells), X.any(0).argmax()] = largest
    return X.astype(dtype)


def sorted_medians(pool, n_cells, rng, draws):
    "numpy's lower median, all draws made by one call."
    return np.sort(np.asarray(pool)[rng.integers(0, len(pool), (n_cells, draws))], axis=1)[
        :, (draws - 1) // 2
    ]


@pytest.fixture(scope="module")
def prepared():
    "Cells of eight perturbations; no cell of the third fails."
    s = gpovae.prepare(
        gpovae.datasets.simulated(n_cells=900, n_genes=90, n_perturbations=8, seed=3),
        perturbation_key="gene",
        control="non-targeting",
        doublets=False,
        progress=False,
    )
    s.adata.obs[Key.fail] = (np.random.default_rng(0).random(s.adata.n_obs) < 0.3) & (
        s.labels != s.perturbations[2]
    )
    return Screen(s.adata)


@pytest.mark.parametrize("draws", [50, 49, 1, 2, 255, 256, 300])
def test_any_number_of_draws(draws):
    pool = counts(23, 40, 90, seed=draws)
    assert np.array_equal(
        median_profiles(pool, 9, np.random.default_rng(5), draws).toarray(),
        sorted_medians(pool, 9, np.random.default_rng(5), draws),
    )


@pytest.mark.parametrize("largest", [1, 7, 255, 256, 65_535, 65_536, 1_000_000, 2**24])
def test_any_size_of_counts(largest):
    for seed in range(3):
        pool = counts(12, 30, largest, seed)
        assert pool.max() == largest
        assert np.array_equal(
            median_profiles(pool, 20, np.random.default_rng(seed)).toarray(),
            sorted_medians(pool, 20, np.random.default_rng(seed), 50),
        )


@pytest.mark.parametrize("n_genes", [1, 2, 255, 256, 257, 600])
@pytest.mark.parametrize("n_cells", [1, 63, 64, 65, 200])
def test_any_number_of_genes_and_profiles(n_genes, n_cells):
    pool = counts(31, n_genes, 300, seed=n_genes)
    assert np.array_equal(
        median_profiles(pool, n_cells, np.random.default_rng(0)).toarray(),
        sorted_medians(pool, n_cells, np.random.default_rng(0), 50),
    )


@pytest.mark.parametrize("n_pool", [1, 2, 3, 300, 1500])
def test_any_size_of_pool(n_pool):
    pool = counts(n_pool, 50, 500, seed=n_pool)
    found = median_profiles(pool, 30, np.random.default_rng(0))
    assert np.array_equal(found.toarray(), sorted_medians(pool, 30, np.random.default_rng(0), 50))
    if n_pool == 1:
        assert (found.toarray() == pool).all()  # nothing else to draw


def test_any_layout_gives_the_same_sparse_profiles():
    pool = counts(25, 70, 400, seed=0)
    whole = median_profiles(pool, 80, np.random.default_rng(2))
    assert whole.has_canonical_format and whole.dtype == np.float32 and (whole.data > 0).all()
    for other in (
        pool.astype(np.int64),
        pool.astype(np.uint16),
        sp.csr_matrix(pool),
        sp.csc_matrix(pool),
        sp.csr_array(pool.astype(np.int32)),
    ):
        assert (median_profiles(other, 80, np.random.default_rng(2)) != whole).nnz == 0


def test_pools_without_cells_or_counts():
    rng = np.random.default_rng(0)
    empty = median_profiles(sp.csr_matrix((0, 7)), 4, rng)
    assert empty.shape == (4, 7) and not empty.nnz
    # nothing was drawn
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    assert not median_profiles(np.zeros((5, 7)), 4, rng).nnz and median_profiles(
        np.ones((5, 7)), 0, rng
    ).shape == (0, 7)


def test_draws_are_those_of_one_call():
    pool = counts(17, 20, 50, seed=0)
    ours = np.random.default_rng(4)
    theirs = np.random.default_rng(4)
    for n in (3, 130, 64):
        assert np.array_equal(
            median_profiles(pool, n, ours).toarray(), sorted_medians(pool, n, theirs, 50)
        )
    assert ours.bit_generator.state == theirs.bit_generator.state


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(monkeypatch, threads):
    pool = counts(40, 300, 300, seed=1)
    expected = sorted_medians(pool, 500, np.random.default_rng(0), 50)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
    for _ in range(3):
        assert np.array_equal(
            median_profiles(pool, 500, np.random.default_rng(0)).toarray(), expected
        )


def drawn_partners(cells, seed):
    """The median partner of every cell, by numpy.

    Perturbations in order, one call for the draws of each.
    """
    X = cells.X[:].toarray()
    rng = np.random.default_rng(seed)
    out = np.zeros_like(X)
    for g in np.unique(cells.label):
        at = cells.order[cells.label[cells.order] == g]
        pool = at[cells.fail[at]]
        if len(pool):
            out[at] = sorted_medians(X[pool], len(at), rng, 50)
    return out


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_every_cell_gets_its_median_partner(prepared, seed):
    cells = Cells(prepared, "train", partner="median", seed=seed)
    expected = drawn_partners(cells, seed)
    order = np.random.default_rng(0).permutation(len(cells))
    batch = cells[order]
    assert np.array_equal(batch.partner, expected[order]) and np.array_equal(
        batch.paired, expected[order].any(1)
    )
    # no failing cell, no partner
    assert not cells.paired[cells.label == 2].any() and cells.paired[cells.label != 2].all()
    assert np.array_equal(
        Cells(prepared, "train", partner="median", seed=seed)[order].partner, batch.partner
    )
    assert not np.array_equal(
        Cells(prepared, "train", partner="median", seed=seed + 1)[order].partner, batch.partner
    )


def test_every_cell_gets_its_mean_partner(prepared):
    cells = Cells(prepared, "train")
    X = cells.X[:].toarray().astype(float)
    batch = cells[np.arange(len(cells))]
    for i in range(0, len(cells), 20):
        pool = (cells.label == cells.label[i]) & (cells.fail != cells.fail[i])
        assert cells.paired[i] == pool.any()
        if pool.any():
            np.testing.assert_allclose(
                batch.partner[i],
                cells.library[i] * (X[pool] / cells.library[pool, None]).mean(0),
                rtol=1e-5,
            )
        else:
            assert not batch.partner[i].any()


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix, OnDisk])
def test_mean_shares_reads_blocks(monkeypatch, layout):
    X = counts(500, 30, 300, seed=2)
    group = np.random.default_rng(0).integers(0, 6, 500) * 2  # odd pools stay empty
    library = X.sum(1) + 1
    given = layout(X)
    expected = np.stack(
        [
            (
                (X[group == g].astype(float) / library[group == g, None]).mean(0)
                if (group == g).any()
                else np.zeros(30)
            )
            for g in range(12)
        ]
    )
    for block in (1, 30 * 70, 2**24):  # one cell, 70 cells, all cells
        monkeypatch.setattr("gpovae.data.blocks.BLOCK", block)
        found = mean_shares(given, library, group, 12)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        if layout is OnDisk:
            assert given.rows_read == max(1, min(500, block // 30))
            given.rows_read = 0
        assert found.dtype == np.float32


@pytest.mark.parametrize("split", ["train", "validation", None])
@pytest.mark.parametrize("partner", ["median", "mean"])
def test_counts_on_disk(prepared, monkeypatch, split, partner):
    memory = Cells(prepared, split, partner=partner, seed=1)
    disk = OnDisk(prepared.counts)
    monkeypatch.setattr(Screen, "counts", property(lambda self: disk))
    cells = Cells(prepared, split, partner=partner, seed=1)
    order = np.random.default_rng(0).permutation(len(memory))[:64]
    for name, a, b in zip(memory[order]._fields, memory[order], cells[order], strict=True):
        assert a is b is None or np.array_equal(a, b), name
