"A preparation reads a file a promised number of times, and says how often."

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from gpovae.data import rank_sum
from gpovae.data.files import open_screen
from gpovae.data.prepare import prepare_file, record_table
from gpovae.data.register import register
from gpovae.data.simulate import simulated

# a pass for library sizes, metrics and doublets, moments, the test and its moments, ...
PASSES = dict(register=1, quality=2, size_factor=2.1, nodes=2, responses=1)


@pytest.fixture(scope="module")
def raw():
    adata = simulated(seed=0)
    adata.obs = adata.obs[["gene"]].copy()
    batches = [f"b{i}" for i in range(8)]
    adata.obs["batch"] = np.random.default_rng(0).choice(batches, adata.n_obs)
    return adata


def test_passes_and_bytes_are_in_the_record(raw, tmp_path):
    raw.write_h5ad(tmp_path / "raw.h5ad")
    target = tmp_path / "prepared.h5ad"
    prepare_file(tmp_path / "raw.h5ad", target, batch_key="batch", doublets=False, progress=False)
    reading = record_table(open_screen(target), "reading")["value"].unstack()
    assert set(PASSES) <= set(reading.index)
    for name, most in PASSES.items():
        # what is checked on some cells, such as the fingerprint, is a small part of a pass
        assert 0 < reading.loc[name, "passes"] <= most + 0.05, name
        # a float32 count and an index of at least four bytes
        least = 8 * raw.X.nnz * reading.loc[name, "passes"]
        assert 0.5 * least < reading.loc[name, "bytes"] < 2 * least, name


def test_the_rank_sum_test_reads_every_count_once(raw, monkeypatch):
    screen = register(raw.copy(), "gene", "non-targeting", batch_key="batch")
    cells = []
    old = rank_sum.blocks
    monkeypatch.setattr(
        rank_sum, "blocks", lambda *a: (cells.append(len(b[0])) or b for b in old(*a))
    )
    monkeypatch.setattr(rank_sum, "BLOCK", 2**14)  # genes come back in many groups
    p = rank_sum.rank_sum_test(screen, np.arange(raw.n_obs))
    assert sum(cells) == raw.n_obs and p.shape == (len(screen.perturbations), raw.n_vars)


def test_the_turned_counts_give_the_values_of_scipy(raw, monkeypatch):
    screen = register(raw.copy(), "gene", "non-targeting")
    monkeypatch.setattr(rank_sum, "BLOCK", 2**14)
    p = rank_sum.rank_sum_test(screen, np.arange(raw.n_obs))
    y = raw.X.toarray().astype(float) / screen.library_size.astype(float)[:, None]
    control = y[screen.is_control]
    name = screen.perturbations[0]
    mine = y[screen.labels == name]
    wanted = mannwhitneyu(mine, control, use_continuity=False, method="asymptotic").pvalue
    np.testing.assert_allclose(p[0], wanted, rtol=1e-6)
