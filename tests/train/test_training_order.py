"""A model does not know in what order the cells and genes of its file were: network and predictions
of a file sorted otherwise are equal to rounding.
"""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from gpovae import GPOVAE
from gpovae.data import datasets, stream
from gpovae.data.files import open_screen
from gpovae.data.prepare import prepare
from gpovae.data.responses import Responses
from gpovae.data.simulate import simulated
from gpovae.network.regression import fit_network
from gpovae.network.stability import half_of_cells

from places import DATA, FIXTURES, needs

SMALL = dict(latent=8, basal=(32, 1), embedding=(32, 2), decoder=(32, 2), batch_size=64)


def shuffled(adata, seed=0):
    rng = np.random.default_rng(seed)
    cells = adata[rng.permutation(adata.n_obs)].copy()
    return cells[:, rng.permutation(adata.n_vars)].copy()


def trained(adata, epochs=4, **settings):
    model = GPOVAE(adata, **SMALL | settings)
    model.train(max_epochs=epochs, seed=0, progress=False)
    return model


def assert_same_model(one, other, atol):
    "Predictions in log2 units; the history relative to its size."
    p, q = one.predict(), other.predict()
    q = q[p.obs_names, p.var_names]
    assert np.abs(p.X).max() > 0.5
    np.testing.assert_allclose(q.X, p.X, atol=atol)
    for layer in ("mean", "spread", "residual"):
        np.testing.assert_allclose(q.layers[layer], p.layers[layer], atol=atol)
    edges, found = (
        m.network(min_probability=0).set_index(["source", "target"]) for m in (one, other)
    )
    found = found.loc[edges.index]
    for column in ("probability", "weight"):
        np.testing.assert_allclose(found[column], edges[column], atol=1e-4)
    np.testing.assert_allclose(
        other.history.to_numpy(float), one.history.to_numpy(float), rtol=1e-5, atol=1e-3
    )


@pytest.fixture(scope="module")
def raw():
    return simulated(n_cells=700, n_genes=90, n_perturbations=5, seed=0)


def prepared(adata):
    adata = adata.copy()
    prepare(adata, "gene", "non-targeting", doublets=False, progress=False)
    return adata


@pytest.fixture(scope="module")
def first(raw):
    return trained(prepared(raw))


# measured: 0 where only cells are sorted otherwise; up to 2e-5 where sums over genes are
@pytest.mark.parametrize("cells, genes", [(True, False), (False, True), (True, True)])
def test_predictions_are_equal_to_rounding(raw, first, cells, genes):
    other = raw[::-1].copy() if cells else raw
    other = other[:, ::-1].copy() if genes else other
    assert_same_model(first, trained(prepared(other)), atol=1e-4 if genes else 1e-6)


def test_the_published_objective(raw):
    one = trained(prepared(raw), 2, preset="paper")
    other = trained(prepared(raw[::-1].copy()), 2, preset="paper")
    p, q = one.predict(), other.predict()
    np.testing.assert_allclose(q.X, p.X, atol=1e-6)
    pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-6)


def test_on_disk_as_in_memory(raw, first, tmp_path, monkeypatch):
    "A file that fits into one window gives the batches that memory gives, sorted as it may be."
    prepared(shuffled(raw)).write_h5ad(tmp_path / "a.h5ad")
    adata = open_screen(tmp_path / "a.h5ad")
    assert adata.n_obs and stream.WINDOW > ad.read_h5ad(tmp_path / "a.h5ad").X.nnz
    assert_same_model(first, trained(adata), atol=1e-4)


@pytest.fixture(scope="module")
def tapseq_table():
    "The table of responses of Schraivogel 2020, as 0.1.0 prepared it."
    table = np.load(FIXTURES / "v0.1.0" / "tapseq.npz", allow_pickle=False)
    nodes = pd.Index(table["nodes"])
    return Responses(table["lfc"], table["se"], table["cells"], table["perturbation"], nodes)


def test_a_table_sorted_otherwise_gives_the_same_network(tapseq_table):
    rng = np.random.default_rng(1)
    R, n = tapseq_table.lfc.shape
    rows, nodes = rng.permutation(R), rng.permutation(n)
    prior = np.full((n, n), np.nan)
    prior[rng.integers(n, size=30), rng.integers(n, size=30)] = 1
    perturbed = tapseq_table.is_target.any(0)
    options = dict(draws=40, copies=2, progress=False)
    one = fit_network(tapseq_table, prior=prior, regulators=perturbed, **options)
    other = fit_network(
        tapseq_table.take(rows, nodes),
        prior=prior[np.ix_(nodes, nodes)],
        regulators=perturbed[nodes],
        **options,
    )
    for name in ("probability", "effect", "std"):
        expected = getattr(one, name)[np.ix_(nodes, nodes)]
        np.testing.assert_array_equal(getattr(other, name), expected)
    assert (one.density, one.calibration) == (other.density, other.calibration)
    assert (one.probability > 0.5).any()


def test_noise_belongs_to_names(tapseq_table):
    rng = np.random.default_rng(1)
    R, n = tapseq_table.lfc.shape
    rows, nodes = rng.permutation(R), rng.permutation(n)
    sorted_otherwise = tapseq_table.take(rows, nodes)
    for make in (half_of_cells, Responses.with_noise):
        half = make(tapseq_table, np.random.default_rng(0)).take(rows, nodes)
        other = make(sorted_otherwise, np.random.default_rng(0))
        np.testing.assert_array_equal(other.lfc, half.lfc)


@needs(DATA / "schraivogel2020_tapseq")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tap_seq_sorted_otherwise(monkeypatch):
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    raw = datasets.schraivogel2020()[::5].copy()
    options = datasets.prepare_arguments("schraivogel2020") | dict(doublets=False)
    models = []
    for adata in (raw, shuffled(raw)):
        prepare(adata, progress=False, **options)
        models.append(trained(adata, 2, batch_size=512))
    assert_same_model(*models, atol=1e-4)
