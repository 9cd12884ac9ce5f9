"""The order of cells and genes in a file decides nothing.

Sorted otherwise, it is prepared alike.
"""

import numpy as np
import pandas as pd
import pytest

from gpovae.data import datasets
from gpovae.data.doublets import find_doublets
from gpovae.data.order import hashed_order
from gpovae.data.prepare import prepare
from gpovae.data.register import register
from gpovae.data.responses import Responses
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.split import split_cells
from gpovae.data.verdict import perturbation_table

from places import DATA, needs

CELLS = (Key.perturbation, Key.library_size, Key.batch, Key.fail, Key.doublet, Key.split)


def shuffled(adata, seed=0):
    "The same screen, cells and genes in random order."
    rng = np.random.default_rng(seed)
    cells = adata[rng.permutation(adata.n_obs)].copy()
    return cells[:, rng.permutation(adata.n_vars)].copy()


ORDERS = dict(cells=lambda a: a[::-1].copy(), genes=lambda a: a[:, ::-1].copy(), both=shuffled)


def matched_names(adata, cells):
    "Names of the matched controls of some cells."
    names = adata.obs_names.to_numpy(object)
    match = adata.obsm[Key.match]
    table = np.where(match < 0, "", names[match])
    return pd.DataFrame(table, index=names).loc[cells]


def assert_same_preparation(a, b):
    "All annotations of two prepared files, whatever their order."
    there = b[a.obs_names, a.var_names]
    for key in CELLS:
        assert (there.obs[key].to_numpy() == a.obs[key].to_numpy()).all(), key
    for key in (Key.gene, Key.size_factor):
        assert (there.var[key] == a.var[key]).all(), key
    assert (matched_names(a, a.obs_names) == matched_names(b, a.obs_names)).all(axis=None)
    np.testing.assert_allclose(there.obs[Key.effective], a.obs[Key.effective], rtol=1e-5)

    pd.testing.assert_frame_equal(
        Screen(a).nodes[["perturbed"]], Screen(b).nodes[["perturbed"]], check_exact=True
    )
    one, other = Responses.read(a), Responses.read(b)
    assert list(one.perturbations) == list(other.perturbations)
    assert list(one.cells) == list(other.cells)
    for values in ("lfc", "se"):
        np.testing.assert_allclose(getattr(one, values), getattr(other, values), rtol=1e-6)
    pd.testing.assert_frame_equal(
        a.uns[Key.perturbations], b.uns[Key.perturbations], rtol=1e-6, atol=1e-9
    )


@pytest.fixture(scope="module")
def raw():
    "Two batches, guides, names that are not in the order of the file."
    adata = simulated(n_cells=700, n_genes=90, n_perturbations=5, n_batches=2, seed=0)
    rng = np.random.default_rng(0)
    guide = rng.integers(1, 3, adata.n_obs).astype(str)
    adata.obs["which"] = adata.obs["gene"].astype(str) + "_" + guide
    return adata


def prepared(adata, **options):
    adata = adata.copy()
    prepare(adata, "gene", "non-targeting", progress=False, **options)
    return adata


@pytest.fixture(scope="module")
def first(raw):
    return prepared(raw, batch_key="batch", guide_key="which")


@pytest.mark.parametrize("order", ORDERS)
def test_a_file_sorted_otherwise_is_prepared_alike(raw, first, order):
    sorted_otherwise = ORDERS[order](raw)
    assert_same_preparation(first, prepared(sorted_otherwise, batch_key="batch", guide_key="which"))


def test_names_decide_the_split(raw):
    "Cells that others join or leave stay together with their names; the seed decides, too."
    adata = raw.copy()
    register(adata, "gene", "non-targeting")
    split_cells(adata, held_out=0.4)
    held = set(adata.obs["gene"][adata.obs[Key.split] == "test"])
    other = shuffled(adata)
    del other.obs[Key.split]
    other.uns[Key.prepare] = {}
    split_cells(other, held_out=0.4)
    assert (other.obs[Key.split][adata.obs_names] == adata.obs[Key.split]).all()
    assert held == set(other.obs["gene"][other.obs[Key.split] == "test"])
    split_cells(other, seed=1)
    assert (other.obs[Key.split][adata.obs_names] != adata.obs[Key.split]).mean() > 0.2


def test_doublets_in_several_groups(raw, monkeypatch):
    "Who is looked at together does not follow the file; dense counts as sparse ones."
    register(raw, "gene", "non-targeting")
    monkeypatch.setattr("gpovae.data.doublets._MOST_CELLS", 300)
    dense = raw.copy()
    dense.X = dense.X.toarray()
    other = shuffled(dense)
    groups = []

    def high_counts(counts, seed):
        groups.append(counts.shape)
        total = np.asarray(counts[:, :9].sum(1)).ravel()
        return total > np.median(total)

    monkeypatch.setattr("gpovae.data.doublets._scrublet", high_counts)
    called = pd.Series(find_doublets(Screen(raw)), raw.obs_names)
    assert len(groups) == 3 and 0 < called.mean() < 1
    there = pd.Series(find_doublets(Screen(other)), other.obs_names)
    assert (there[raw.obs_names] == called).all()


def test_few_targets_are_compared_by_components(raw):
    "Principal components of all genes, where fewer than ten targets are measured."
    assert len(set(raw.obs["gene"])) - 1 < 10
    adata = prepared(raw, doublets=False)
    other = prepared(shuffled(raw, 3), doublets=False)
    assert (matched_names(adata, raw.obs_names) == matched_names(other, raw.obs_names)).all(
        axis=None
    )
    one, two = perturbation_table(adata, "which"), perturbation_table(other, "which")
    pd.testing.assert_frame_equal(one, two, rtol=1e-6, atol=1e-9)


def test_equally_strong_genes_are_chosen_by_name(monkeypatch):
    from gpovae.data import nodes

    adata = simulated(n_cells=300, n_genes=60, n_perturbations=3, seed=0)
    for a in (adata, other := adata[:, ::-1].copy()):
        register(a, "gene", "non-targeting")
        split_cells(a)
        a.obs[Key.fail] = False
        everyone = pd.Series(1.0, Screen(a).genes)
        monkeypatch.setattr(nodes, "_responders", lambda *_, e=everyone: e)
        nodes.graph_nodes(a, max_extended=7)
    names, there = (list(Screen(a).nodes.index[3:]) for a in (adata, other))
    assert names == there == sorted(adata.var_names)[:7]


def test_the_order_is_random_and_follows_the_names():
    names = np.array([f"cell {i}" for i in range(2000)])
    order = hashed_order(names, 0, "a")
    assert sorted(order) == list(range(2000))
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1
    assert list(names[order]) == list(names[::-1][hashed_order(names[::-1], 0, "a")])
    place = np.argsort(order)
    for other in ((1, "a"), (0, "b"), (0,)):
        there = np.argsort(hashed_order(names, *other))
        assert abs(np.corrcoef(place, there)[0, 1]) < 0.1


@needs(DATA / "schraivogel2020_tapseq")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tap_seq_sorted_otherwise(monkeypatch):
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    raw = datasets.schraivogel2020()[::5].copy()
    options = datasets.prepare_arguments("schraivogel2020")
    screens = [raw, ORDERS["both"](raw)]
    for adata in screens:
        prepare(adata, progress=False, **options)
    assert_same_preparation(*screens)
