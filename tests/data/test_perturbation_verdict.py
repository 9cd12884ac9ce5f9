"""gpovae.data.energy, verdict and guides: the energy test, the table, the verdict."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import gpovae.data.energy as module
import gpovae.data.verdict as verdict_module
from gpovae.core.errors import GpovaeError
from gpovae.data.energy import (
    Comparison,
    coordinates,
    energy_distance,
    energy_test,
    own_genes,
    permuted,
    samples,
)
from gpovae.data.files import open_screen
from gpovae.data.guides import guide_agreement
from gpovae.data.nodes import graph_nodes
from gpovae.data.quality import quality_labels
from gpovae.data.register import register
from gpovae.data.responses import fold_changes, node_responses
from gpovae.data.screen import Key, Screen
from gpovae.data.split import split_cells
from gpovae.data.strong import strong_cells
from gpovae.data.summary import summary_from_data
from gpovae.data.verdict import own_target, perturbation_table, verdict

from annotated import annotated, raw

warnings.filterwarnings("ignore", category=FutureWarning)


@pytest.fixture(scope="module")
def screen():
    return annotated(raw(n_batches=2), batch_key="batch")


@pytest.fixture(scope="module")
def whole_table(screen):
    return perturbation_table(screen, "guide")


# the energy test


def test_energy_test_is_the_energy_distance_and_counts_what_permutations_exceed():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 3))
    Y = rng.normal(0.5, size=(20, 3))
    e, p = energy_test(X, Y, np.zeros(32), np.random.default_rng(1))
    assert e == pytest.approx(energy_distance(X, Y), abs=1e-10)
    Z = np.r_[X, Y]
    draws = []
    for _ in range(2000):
        i = rng.permutation(32)
        draws.append(energy_distance(Z[i[:12]], Z[i[12:]]))
    assert abs(p - np.mean(np.array(draws) >= e)) < 0.06


def test_labels_are_permuted_within_strata_only():
    """Where every stratum has cells of one kind, no permutation changes anything.

    P = 1, however large the distance.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(15, 2))
    Y = rng.normal(9, size=(15, 2))
    assert energy_test(X, Y, np.repeat([1, 0], 15), rng)[1] == 1
    assert energy_test(X, Y, np.zeros(30), rng)[1] < 0.01


def test_p_is_uniform_under_batch_effects():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        stratum = np.r_[rng.choice(3, 20, p=[0.7, 0.2, 0.1]), rng.choice(3, 60)]
        p.append(
            energy_test(*np.split(rng.normal(size=(80, 4)) + stratum[:, None], [20]), stratum, rng)[
                1
            ]
        )
    assert 0.15 < np.mean(np.array(p) < 0.25) < 0.35 and np.mean(np.array(p) < 0.01) < 0.04


@pytest.mark.parametrize("n, m", [(0, 5), (1, 5), (5, 1)])
def test_too_few_cells_give_no_distance(n, m):
    assert np.isnan(
        energy_test(np.zeros((n, 2)), np.ones((m, 2)), np.zeros(n + m), np.random.default_rng(0))
    ).all()


# the table


def test_table_has_a_row_per_perturbation_and_survives_a_file(screen, whole_table, tmp_path):
    table = whole_table
    assert list(table.index) == Screen(screen).perturbations
    assert list(table) == [
        "cells",
        "passing",
        "train",
        "kind",
        "change",
        "z",
        "responders",
        "chance",
        "target_p",
        "response_p",
        "energy",
        "energy_p",
        "agreement_p",
        "others_p",
        "guides",
        "agreement",
        "agreement_halves",
        "by",
        "worked",
    ]
    assert all(
        table[c].dtype.kind == "i" for c in ("cells", "train", "responders", "guides")
    ) and set(table.worked) <= {"yes", "no", "too few cells", "held out"}
    labels = Screen(screen).labels
    s = Screen(screen)
    for p in table.index[:3]:
        assert (
            table.cells[p] == (labels == p).sum()
            and table.train[p] == len(s.rows("train", p, False))
            and table.passing[p] == pytest.approx(1 - s.fail[labels == p].mean())
        )
    a = screen.copy()
    a.uns["t"] = table
    a.write_h5ad(tmp_path / "t.h5ad")
    pd.testing.assert_frame_equal(
        ad.read_h5ad(tmp_path / "t.h5ad").uns["t"],
        table,
        check_dtype=False,
        check_categorical=False,
    )


def test_same_table_from_dense_sparse_and_disk(screen, whole_table, tmp_path):
    table = whole_table
    dense = screen.copy()
    dense.X = dense.X.toarray()
    screen.write_h5ad(tmp_path / "s.h5ad")
    for other in (dense, open_screen(tmp_path / "s.h5ad")):
        pd.testing.assert_frame_equal(
            perturbation_table(other, "guide"), table, rtol=1e-4, atol=1e-6
        )


def test_counts_are_read_in_small_parts(screen, monkeypatch):
    "No read is larger than the pool block or one perturbation."
    reads = []
    counts = Screen(screen).counts

    class Recorded:
        shape = counts.shape

        def __getitem__(self, rows):
            block = counts[rows]
            reads.append(block.shape[0])
            return block

    monkeypatch.setattr(Screen, "counts", property(lambda self: Recorded()))
    monkeypatch.setattr(module, "POOL", 40)
    monkeypatch.setattr("gpovae.data.blocks.BLOCK", 120 * 50)
    list(samples(Comparison(Screen(screen))))
    assert reads and max(reads) <= 50
    reads.clear()
    guide_agreement(screen, "guide")
    strong_cells(screen, summary_from_data(screen).assign(degs=99), min_kept=0)
    assert max(reads) < screen.n_obs


def test_controls_come_in_the_batches_of_the_perturbation():
    a = raw(n_batches=2, n_cells=2000)
    first = a.obs.batch == "batch1"
    a = annotated(
        a[~((a.obs.gene == "MYC") & ~first & (np.arange(a.n_obs) % 4 > 0))].copy(),
        batch_key="batch",
    )
    for whole, part in samples(Comparison(Screen(a))):
        for sample in (whole, part):
            cells = np.bincount(sample.stratum[sample.is_perturbed]) / len(sample.cells)
            controls = np.bincount(sample.stratum[~sample.is_perturbed]) / len(sample.drawn)
            assert np.abs(cells - controls).max() < 0.02
            assert sample.label != "MYC" or cells[0] > 0.65


def test_one_batch_and_batches_without_enough_controls():
    for key in (None, "batch"):
        # about 6 training controls in a batch: all are compared with all
        a = raw(n_cells=700, n_batches=12)
        table = perturbation_table(annotated(a, batch_key=key))
        assert table.energy_p.between(0, 1).all() and (table.z < -3).mean() > 0.7


def test_few_measured_targets_use_all_genes():
    a = annotated(raw(n_perturbations=4, unmeasured=1, n_cells=900))
    comparison = Comparison(Screen(a))
    assert coordinates(comparison).sum() == 120
    # the own target is left out, where it is measured
    own = {own_genes(comparison, p).sum() for p in Screen(a).perturbations}
    assert own == {0, 1}
    table = perturbation_table(a)
    assert (
        table.z.isna().sum() == 1 and np.isfinite(table.energy).all() and (table.energy_p > 0).all()
    )


@pytest.mark.parametrize("n_perturbations", [4, 14])
def test_p_is_honest_where_nothing_happened(n_perturbations):
    """Controls under ten other names.

    (In principal components of the controls, half of them would have p < 0.05.)
    """
    a = raw(n_perturbations=n_perturbations, n_cells=2500, control_share=0.6)
    label = a.obs.gene.astype(str).to_numpy()
    control = np.random.default_rng(0).permutation(np.flatnonzero(label == "non-targeting"))
    for k in range(10):
        label[control[k * 60 : (k + 1) * 60]] = f"NOTHING{k}"
    a.obs["gene"] = label
    table = perturbation_table(annotated(a))
    nothing = table.index.str.startswith("NOTHING")
    assert (
        (table.energy_p[nothing] < 0.05).mean() <= 0.2
        and table.energy_p[nothing].mean() > 0.3
        and (table.worked[nothing] == "no").mean() > 0.8
    )


def test_at_most_so_many_coordinates(screen, monkeypatch):
    monkeypatch.setattr(module, "MOST_GENES", 6)
    comparison = Comparison(Screen(screen))
    # every target, and six genes
    assert set(Screen(screen).targets) < set(comparison.genes)
    assert comparison.values.shape[1] <= len(Screen(screen).targets) + 6


def test_held_out_perturbations_have_no_verdict_but_a_row():
    a = raw()
    register(a, "gene", "non-targeting")
    quality_labels(a, doublets=False)
    split_cells(a)
    a.obs[Key.split] = a.obs[Key.split].where(a.obs.gene != "MYC", "test")
    graph_nodes(a)
    node_responses(a)
    row = perturbation_table(a, "guide").loc["MYC"]
    assert (
        (row.train, row.worked, row.guides) == (0, "held out", 0)
        and np.isnan(row.energy)
        and row.cells > 20
    )


def test_pairs_average_their_targets():
    a = raw(n_cells=1500)
    names = [g for g in a.obs.gene.unique() if g != "non-targeting"]
    label = a.obs.gene.astype(str).to_numpy()
    i = np.flatnonzero(label == names[0])
    label[i] = f"{names[0]}+{names[1]}"
    a.obs["gene"] = label
    annotated(a)
    s = Screen(a)
    p = next(q for q in s.perturbations if "+" in q)
    row = perturbation_table(a).loc[p]
    shifts = a.uns[Key.responses]
    at = [list(s.nodes.index).index(t) for t in p.split("+")]
    r = list(shifts["perturbation"]).index(p)
    assert row.change == pytest.approx(np.expm1(shifts["mean"][r, at].mean()), rel=1e-5)
    assert row.z == pytest.approx(
        shifts["mean"][r, at].mean() / (np.sqrt((shifts["se"][r, at] ** 2).sum()) / 2), rel=1e-5
    )
    z = np.delete(shifts["mean"][r] / shifts["se"][r], at)
    assert row.responders == (np.abs(z) > 4).sum()


@pytest.mark.parametrize(
    "kind, target_p, others_p, by, worked",
    [
        ("knockdown", 0.0009, 0.4, "target down", "yes"),
        ("knockdown", 0.0009, 0.0009, "both", "yes"),
        ("knockdown", 0.0015, 0.0015, "nothing", "no"),
        ("knockdown", 0.999, 0.0009, "others changed", "yes"),
        ("knockdown", np.nan, 0.0015, "others changed", "yes"),
        ("knockdown", np.nan, np.nan, "nothing", "no"),
        ("activation", 0.0009, 0.4, "target up", "yes"),
        ("knockout", 0.0009, 0.4, "target down", "no"),
        ("knockout", 0.9, 0.0015, "others changed", "yes"),
        ("knockout", 0.0009, 0.0015, "both", "yes"),
        ("knockout", 0.9, 0.003, "nothing", "no"),
    ],
)
def test_verdict_by_kind(kind, target_p, others_p, by, worked):
    row = dict(held_out=False, train=50, kind=kind, target_p=target_p, others_p=others_p)
    few = row | dict(train=9)
    held_out = row | dict(held_out=True, train=0)
    answer = verdict(pd.DataFrame([row, few, held_out]))
    assert answer.by.tolist() == [by, "not enough cells", "held out"]
    assert answer.worked.tolist() == [worked, "too few cells", "held out"]


def test_a_few_genes_that_moved_are_enough_where_the_target_is_not_measured():
    "An enhancer of three genes among many: the whole profile hardly differs."
    a = raw(n_cells=2500, n_perturbations=14, control_share=0.6)
    label = a.obs.gene.astype(str).to_numpy()
    own = [g for g in pd.unique(label) if g in a.var_names]
    cells = np.random.default_rng(0).permutation(np.flatnonzero(label == "non-targeting"))[:200]
    X = a.X.toarray()
    for p, part in zip(("ENHANCER", "NOTHING"), np.split(cells, 2), strict=True):
        label[part] = p
    at = a.var_names.get_indexer(own[:3])
    X[np.ix_(cells[:100], at)] = np.random.default_rng(0).binomial(
        X[np.ix_(cells[:100], at)].astype(int), 0.1
    )
    a.X = type(a.X)(X.astype(np.float32))
    a.obs["gene"] = label
    table = perturbation_table(annotated(a)).loc[["ENHANCER", "NOTHING"]]
    assert (
        table.z.isna().all()
        and table.worked.tolist() == ["yes", "no"]
        and table.response_p["ENHANCER"] == 1 / 2000
        and table.response_p["NOTHING"] > 0.01
    )


def test_relabelled_controls_are_called_no():
    called = []
    for seed in range(3):
        a = raw(seed, n_cells=1500)
        label = a.obs.gene.astype(str).to_numpy()
        gene = [g for g in a.var_names[a.var.true_role == "downstream"]][0]
        label[np.flatnonzero(label == "non-targeting")[::4]] = gene
        a.obs["gene"] = label
        table = perturbation_table(annotated(a))
        called.append(table.worked[gene])
        assert (table.worked.drop(gene) == "yes").mean() > 0.8
    assert called == ["no"] * 3


# guides


def test_a_value_of_several_guides_is_a_guide_of_its_own_and_unknown_ones_take_no_part(screen):
    a = screen.copy()
    p = a.obs.loc[~Screen(a).is_control, "gene"].value_counts().index[0]
    guide = a.obs.guide.astype(str)
    of = np.flatnonzero(Screen(a).labels == p)
    guide.iloc[of[: len(of) // 3]] = f"{p}_1;{p}_2"
    a.obs["guide"] = guide
    assert guide_agreement(a, "guide").guides[p] == 3
    a.obs["guide"] = guide.where(Screen(a).labels != p)
    row = guide_agreement(a, "guide").loc[p]
    assert row.guides == 0 and np.isnan(row.agreement)


def test_agreement_is_the_weighted_correlation(screen):
    "By hand, from the shifts of every guide as a perturbation of its own."
    a = screen
    s = Screen(screen)
    p = s.perturbations[0]
    rows = s.rows("train", fail=False)
    label = s.labels[rows]
    guide = a.obs.guide.to_numpy()[rows]
    b = a[rows].copy()
    b.obs[Key.perturbation] = pd.Categorical(np.where(label == p, guide, "control"))
    b = b[(label == p) | (label == "control")].copy()
    at = s.nodes.position.to_numpy()
    at = at[(at >= 0) & (s.nodes.index != p)]
    scale = np.median(s.library_size) / np.median(Screen(b).library_size)
    b.obs[Key.library_size] = (b.obs[Key.library_size] * 1.0).astype(np.float32)
    names, shift, se, _ = fold_changes(Screen(b), np.arange(b.n_obs), at)
    assert len(names) == 2 and abs(
        np.corrcoef(shift / se)[0, 1] - guide_agreement(a, "guide").agreement[p]
    ) < 0.02 + 0.02 * abs(scale - 1)


def test_missing_guide_key_is_named(screen):
    with pytest.raises(GpovaeError, match="guide_key 'sgRNA' not found.*gene.*guide"):
        guide_agreement(screen, "sgRNA")


def test_own_target_of_nothing_measured():
    t = own_target(
        pd.DataFrame([[np.nan, 0.1]], ["A"], ["A", "B"]),
        pd.DataFrame([[np.nan, 0.01]], ["A"], ["A", "B"]),
        [20],
    )
    assert (
        np.isnan(t.change["A"])
        and np.isnan(t.z["A"])
        and t.responders["A"] == 1
        and 0 < t.chance["A"] < 1e-3
    )


def test_cube_roots_of_far_genes_alone_give_the_same_statistics():
    "Response and excess of sums, many and few genes, some of them very skewed."
    rng = np.random.default_rng(0)
    for genes in (3, 400):
        skewness = rng.normal(0, 1, genes) * rng.choice([0, 0.01, 0.3, 2], genes)
        z = rng.normal(0, 0.4 if genes == 3 else 1.5, (50, genes)).astype(np.float32)
        response, excess = verdict_module.far_scores(z, skewness)
        score = np.abs(verdict_module.normal_score(z.astype(float), skewness))
        np.testing.assert_allclose(response, score.max(1), rtol=1e-12)
        wanted = (np.maximum(score - 2, 0) ** 2).sum(1)
        np.testing.assert_allclose(excess, wanted, rtol=1e-9, atol=1e-12)


def test_permutations_in_blocks_are_those_of_one_draw():
    group = np.r_[np.ones(9, int), np.zeros(21, int)]
    stratum = np.random.default_rng(1).integers(0, 3, 30)
    blocks = list(permuted(group, stratum, 599, np.random.default_rng(2)))
    assert [len(block) for block in blocks] == [250, 250, 100]
    shuffled = np.argsort(stratum + np.random.default_rng(2).random((599, 30)), axis=1)
    wanted = np.empty((599, 30), int)
    np.put_along_axis(wanted, shuffled, group[np.argsort(stratum, kind="stable")][None], axis=1)
    np.testing.assert_array_equal(np.concatenate(blocks), np.r_[group[None], wanted])
