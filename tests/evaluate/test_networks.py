"""Scores of networks.

SciPy pair by pair, figures of the published implementation, and known answers, metric by
metric.

tests/data/metrics_published.npz (stat.*) holds random log expression and what the published
implementation computes from it (its code: CC BY-NC 4.0; only its inputs and outputs are kept
here, no code): every statistic of every pair, and every network that its evaluation looked at.
"""

import json
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu, norm, rankdata, wasserstein_distance

from gpovae.core.errors import GpovaeError
from gpovae.data.expression import log_normalised
from gpovae.data.labels import CONTROL
from gpovae.data.register import register
from gpovae.data.screen import Key, Screen
from gpovae.evaluate.networks import compare_networks, connected, network_scores
from gpovae.evaluate.pairs import compare_samples, pair_statistics
from gpovae.evaluate.rankings import (
    boosted_edges,
    control_correlation,
    invert_effects,
    mean_difference,
    networks,
    ranked,
)
from gpovae.evaluate.truth import calibration, truth_scores

from places import FIXTURES
from screens import screen

DATA = FIXTURES


def network(pairs, weight=1.0, probability=1.0):
    return pd.DataFrame(
        [(s, t, weight, probability) for s, t in pairs],
        columns=["source", "target", "weight", "probability"],
    )


def scipy_pair(u, v):
    p = mannwhitneyu(u, v, method="asymptotic").pvalue
    return wasserstein_distance(u, v), 1.0 if np.isnan(p) else p


# ---- pair by pair


@pytest.mark.parametrize("seed", range(12))
def test_compare_equals_scipy(seed):
    "Counts with many ties, zeros, different sizes, different kinds."
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 80)
    m = rng.integers(2, 80)
    G = 15
    mean = rng.gamma(0.5, 2, G)
    kinds = [
        lambda n: rng.poisson(mean, (n, G)),
        lambda n: np.log1p(
            rng.negative_binomial(1, 1 / (1 + mean), (n, G)) * 1e4 / rng.integers(3, 5, (n, 1))
        ),
        lambda n: rng.normal(size=(n, G)),
        lambda n: rng.integers(0, 2, (n, G)),
        lambda n: np.where(rng.random((n, G)) < 0.9, 0, rng.gamma(2, 1, (n, G))),
    ]
    for kind in kinds:
        U, V = (np.asarray(kind(k), float) for k in (n, m))
        d, p = compare_samples(U, V)
        expected = np.array([scipy_pair(u, v) for u, v in zip(U.T, V.T)])
        np.testing.assert_allclose(d, expected[:, 0], atol=1e-12, rtol=1e-12)
        np.testing.assert_allclose(p, expected[:, 1], rtol=1e-9)


@pytest.mark.parametrize("n, m", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_compare_few_cells(n, m):
    rng = np.random.default_rng(n)
    U = rng.poisson(1, (n, 30)).astype(float)
    V = rng.poisson(1, (m, 30)).astype(float)
    expected = np.array([scipy_pair(u, v) for u, v in zip(U.T, V.T)])
    np.testing.assert_allclose(
        np.column_stack(compare_samples(U, V)), expected, rtol=1e-9, atol=1e-12
    )


def test_compare_known_answers():
    rng = np.random.default_rng(0)
    U = rng.gamma(2, 1, (200, 5))
    V = rng.gamma(2, 1.5, (90, 5))
    d, p = compare_samples(U, V)
    assert (compare_samples(U, U)[0] == 0).all() and (
        compare_samples(U, U)[1] == 1
    ).all()  # the same cells twice
    np.testing.assert_allclose(
        compare_samples(V, U), (d, p), rtol=1e-9
    )  # neither sample comes first
    # the distance has units, the test has none
    np.testing.assert_allclose(compare_samples(3 * U, 3 * V), (3 * d, p), rtol=1e-9)
    np.testing.assert_allclose(compare_samples(U + 2, V + 2), (d, p), rtol=1e-9)
    np.testing.assert_allclose(
        compare_samples(np.exp(U), np.exp(V))[1], p, rtol=1e-9
    )  # ranks alone
    np.testing.assert_allclose(
        compare_samples(np.full((9, 2), 3.0), np.full((4, 2), [3.0, 5.0]))[0], [0, 2], atol=1e-12
    )
    assert compare_samples(np.zeros((9, 1)), np.zeros((4, 1)))[1] == 1  # a silent gene
    far = np.zeros(400)
    none = np.ones(90)
    assert compare_samples(far[:, None], none[:, None])[1][0] / mannwhitneyu(
        far, none, method="asymptotic"
    ).pvalue == pytest.approx(1, rel=1e-6)  # 1e-107


@pytest.fixture(
    scope="module", params=[sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"]
)
def mixed(request):
    """Three perturbations of 40, 7 and 1 test cells, failing and training cells between them.

    A silent and a constant gene; explicit zeros where sparse.
    """
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(["control", "g0", "g1", "g2"], [300, 60, 20, 4]))
    X = rng.poisson(rng.gamma(0.6, 2, 25) * rng.lognormal(0, 0.4, (len(labels), 1))).astype(
        np.float32
    )
    X[:, 5] = 0
    X[:, 0] += 1
    M = request.param(X)
    if sp.issparse(M):
        M.data[::50] = 0
    a = screen(M, labels)
    a.obs[Key.split] = np.where(rng.random(len(labels)) < 0.7, "test", "train")
    a.obs[Key.fail] = rng.random(len(labels)) < 0.1
    one = np.flatnonzero(labels == "g2")
    a.obs.iloc[one, a.obs.columns.get_indexer([Key.split])] = ["test", "train", "train", "train"]
    a.obs.iloc[one, a.obs.columns.get_indexer([Key.fail])] = False
    return a


@pytest.mark.parametrize("genes_at_a_time", [None, 3])
def test_pair_statistics_equal_scipy(mixed, genes_at_a_time, monkeypatch):
    "Every pair of a screen, in shuffled order, some twice, whatever the layout and the blocks."
    if genes_at_a_time:
        monkeypatch.setattr("gpovae.evaluate.pairs.BLOCK", 500)
    s = Screen(mixed)
    rows = {label: s.rows("test", label, fail=False) for label in (CONTROL, "g0", "g1", "g2")}
    pairs = pd.DataFrame(
        [(p, g) for p in ("g0", "g1", "g2") for g in s.genes], columns=["source", "target"]
    )
    pairs = pd.concat([pairs, pairs.head(5)]).sample(frac=1, random_state=0)
    found = pair_statistics(mixed, pairs)
    assert found.index.equals(pairs.index) and len(rows["g2"]) == 1
    expected = [
        scipy_pair(
            *(
                log_normalised(s, rows[label], [s.genes.get_loc(t)])[:, 0].astype(float)
                for label in (CONTROL, p)
            )
        )
        for p, t in pairs.to_numpy()
    ]
    np.testing.assert_allclose(found.wasserstein, [e[0] for e in expected], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.p, [e[1] for e in expected], rtol=1e-6)
    assert (
        found.p[pairs.target == "g5"].eq(1).all()
        and found.wasserstein[pairs.target == "g5"].eq(0).all()
    )


def test_pair_statistics_of_nothing(mixed):
    assert len(pair_statistics(mixed, pd.DataFrame(dict(source=[], target=[])))) == 0


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("g9", "g1", "'g9' has no passing cell in the test"),
        ("g0", "nix", "Gene 'nix' is not measured"),
    ],
)
def test_pair_statistics_refuse(mixed, source, target, message):
    with pytest.raises(GpovaeError, match=message):
        pair_statistics(mixed, pd.DataFrame(dict(source=[source], target=[target])))


def test_hundred_thousand_pairs():
    "100,000 pairs at 1,500 control and 300 perturbed cells: under 60 s, on one core as on two."
    rng = np.random.default_rng(0)
    labels = np.repeat([CONTROL] + [f"g{i}" for i in range(100)], [1500] + [300] * 100)
    X = sp.csr_matrix(rng.poisson(rng.gamma(0.5, 2, 100), (len(labels), 100)).astype(np.float32))
    a = screen(sp.hstack([X] * 10, format="csr"), labels)
    pairs = pd.DataFrame(
        [(p, g) for p in a.var_names[:100] for g in a.var_names], columns=["source", "target"]
    )
    start = time.perf_counter()
    found = pair_statistics(a, pairs)
    seconds = time.perf_counter() - start
    assert len(found) == 100_000 and seconds < 60
    np.testing.assert_array_equal(found.p[:100], found.p[100:200])  # the same hundred columns again
    Y = log_normalised(Screen(a), np.arange(len(labels)), np.arange(100)).astype(float)
    is_control = labels == CONTROL
    check = rng.choice(100, (40, 2))
    for i, j in check:
        assert tuple(found.iloc[1000 * i + j]) == pytest.approx(
            scipy_pair(Y[is_control, j], Y[labels == f"g{i}", j]), rel=1e-6
        )


# ---- batches


def batched(seed, knockdowns=10, genes=30, cells=100, controls=300, levels=0.3):
    """Nothing is perturbed.

    Three batches differ in every gene; seven tenths of the cells of each perturbation lie in one
    of them.
    """
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(genes)]
    kind = np.repeat(np.arange(knockdowns + 1), [controls] + [cells] * knockdowns)
    batch = np.where(
        (kind > 0) & (rng.random(len(kind)) < 0.7), kind % 3, rng.integers(0, 3, len(kind))
    )
    a = screen(
        sp.csr_matrix(
            rng.poisson(5 * np.exp(rng.normal(0, levels, (3, genes)))[batch]).astype(np.float32)
        ),
        np.array(["control", *names])[kind],
    )
    a.obs[Key.batch] = pd.Categorical(batch.astype(str))
    a.uns[Key.nodes] = dict(names=np.array(names), perturbed=np.arange(genes) < knockdowns)
    return a, pd.DataFrame(
        [(s, t) for s in names[:knockdowns] for t in names if s != t], columns=["source", "target"]
    )


def test_confounded_batches_confirm_nothing():
    """Share of random edges with p < 0.05.

    The nominal level, where pooled batches gave more than a third.
    """
    shares = []
    pooled = []
    for seed in range(8):
        a, pairs = batched(seed)
        edges = pairs.assign(weight=1.0, probability=np.nan)
        shares.append(network_scores(a, edges)["true_positive_share"])
        a.obs[Key.batch] = "all"
        pooled.append(network_scores(a, edges)["true_positive_share"])
    assert np.mean(shares) == pytest.approx(0.05, abs=0.01) and np.mean(pooled) > 0.33


def by_hand(Y, labels, batch, source, j):
    "Sum of U and of its variance over batches; SciPy's distance to weighted controls."
    u = v = 0
    values = []
    weights = []
    shared = [
        b
        for b in np.unique(batch)
        if ((labels == source) & (batch == b)).any() and ((labels == CONTROL) & (batch == b)).any()
    ]
    mine = (labels == source) & np.isin(batch, shared)
    for b in shared:
        x, y = (Y[(labels == label) & (batch == b), j] for label in (CONTROL, source))
        n = len(x)
        m = len(y)
        N = n + m
        u += rankdata(np.r_[x, y])[n:].sum() - m * (m + 1) / 2 - n * m / 2
        _, t = np.unique(np.r_[x, y], return_counts=True)
        v += n * m / 12 * (N + 1 - (t**3 - t).sum() / max(N * (N - 1), 1))
        values.append(x)
        weights.append(np.full(n, m / mine.sum() / n))
    return wasserstein_distance(np.concatenate(values), Y[mine, j], np.concatenate(weights)), (
        min(1.0, 2 * norm.sf((abs(u) - 0.5) / np.sqrt(v))) if v else 1.0
    )


@pytest.mark.parametrize("seed", range(4))
def test_within_batches_by_hand(seed):
    """Sparse counts with ties and silent genes, batches without controls or without the
    perturbation, batches of one cell.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat([CONTROL, "g0", "g1", "g2"], [150, 40, 30, 3])
    batch = rng.choice(list("abcd"), len(labels), p=[0.5, 0.3, 0.15, 0.05])
    batch[(labels == CONTROL) & (batch == "c")] = "a"
    batch[(labels == "g1") & (batch == "b")] = "a"
    batch[np.flatnonzero(labels == "g2")] = ["a", "b", "c"]
    X = rng.poisson(rng.gamma(0.5, 2, 12) * rng.lognormal(0, 0.4, (len(labels), 1))).astype(
        np.float32
    )
    X[:, 5] = 0
    X[:, 6] += 1
    a = screen(sp.csr_matrix(X), np.where(labels == CONTROL, "control", labels))
    a.obs[Key.batch] = batch
    pairs = pd.DataFrame(
        [(p, g) for p in ("g0", "g1", "g2") for g in a.var_names], columns=["source", "target"]
    )
    Y = log_normalised(Screen(a), np.arange(len(labels)), np.arange(12)).astype(float)
    expected = np.array([by_hand(Y, labels, batch, p, int(g[1:])) for p, g in pairs.to_numpy()])
    found = pair_statistics(a, pairs)
    np.testing.assert_allclose(found.wasserstein, expected[:, 0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.p, expected[:, 1], rtol=1e-6)


def test_batches_that_say_nothing():
    """One batch, whatever its name, or controls in another batch than every cell of a perturbation:
    all controls.
    """
    a, pairs = batched(0)
    pooled = a.copy()
    pooled.obs[Key.batch] = "x"
    pooled = pair_statistics(pooled, pairs)
    apart = a.copy()
    apart.obs[Key.batch] = np.where(a.obs[Key.perturbation] == CONTROL, "x", "y")
    pd.testing.assert_frame_equal(pair_statistics(apart, pairs), pooled)
    far = a.copy()
    # g0 alone; the others as if pooled
    far.obs[Key.batch] = np.where(a.obs[Key.perturbation] == "g0", "y", "x")
    pd.testing.assert_frame_equal(pair_statistics(far, pairs), pooled)


def test_within_batches_finds_what_moves():
    "The power of the pooled test where batches do not differ, and the same distance."
    a, pairs = batched(1, levels=0)
    X = a.X.toarray()
    X[np.ix_(a.obs[Key.perturbation] == "g3", [20])] *= 2
    a.X = sp.csr_matrix(X)
    one = pairs.query("source == 'g3' and target == 'g20'")
    within = pair_statistics(a, one).iloc[0]
    a.obs[Key.batch] = "x"
    pooled = pair_statistics(a, one).iloc[0]
    assert within.p < 1e-12 and within.wasserstein == pytest.approx(pooled.wasserstein, rel=0.1)


# ---- the published figures


@pytest.fixture(autouse=True)
def expression_is_no_count(monkeypatch):
    "The published statistics are of expression, in the place of counts."
    monkeypatch.setattr("gpovae.data.screen.refuse_changed", lambda *_: None)


@pytest.fixture(scope="module")
def published():
    """The published example as a screen.

    Counts whose log expression is the stored one, all cells of one depth; their networks with
    their numbers. A network: edges (source, target), true positives, false positives, distances.
    """
    if not (DATA / "metrics_published.npz").exists():
        pytest.skip("tests/data/metrics_published.npz is not here")
    z = np.load(DATA / "metrics_published.npz", allow_pickle=False)
    genes = list(z["stat.genes"])
    told = json.loads(str(z["stat.json"]))
    a = ad.AnnData(
        np.ones(z["stat.expression"].shape, np.float32),
        obs=pd.DataFrame(dict(gene=z["stat.label"]), index=[f"c{i}" for i in range(100)]),
        var=pd.DataFrame(index=genes),
    )
    register(a)
    a.X = np.expm1(z["stat.expression"].astype(float))
    a.obs[Key.library_size] = np.float32(1e4)
    a.obs[Key.fail] = False
    a.obs[Key.split] = "test"
    a.uns[Key.nodes] = dict(names=np.array(genes), perturbed=np.arange(7) < 5)

    def name(i):
        return i if isinstance(i, str) and i.startswith(("G", "X")) else genes[int(i)]

    calls = [
        ([(name(i), name(j)) for i, js in edges for j in js], *rest)
        for edges, *rest in told["calls"]
    ]
    return dict(
        adata=a,
        genes=genes,
        z=z,
        calls=calls,
        result=told["result"],
        drawn=[(genes[i], genes[j]) for i, j in told["for_sampled_pairs"]],
        edges=network([(genes[i], genes[j]) for i, j in z["stat.edges"]]),
    )


def test_every_published_pair(published):
    z = published["z"]
    a = published["adata"]
    X = z["stat.expression"]
    label = z["stat.label"]
    pairs = pd.DataFrame(
        [(s, t) for s in published["genes"][:5] for t in published["genes"]],
        columns=["source", "target"],
    )
    s = pair_statistics(a, pairs)
    # theirs is computed in single precision
    np.testing.assert_allclose(s.p.to_numpy().reshape(5, 7), z["stat.mannwhitney_p"], rtol=1e-5)
    np.testing.assert_allclose(
        s.wasserstein.to_numpy().reshape(5, 7), z["stat.wasserstein"], rtol=1e-5
    )
    for i, gene in enumerate(published["genes"][:5]):
        d, p = compare_samples(X[label == "non-targeting"], X[label == gene])
        np.testing.assert_allclose(
            p,
            [
                mannwhitneyu(x, y).pvalue
                for x, y in zip(
                    X[label == "non-targeting"].astype(float).T, X[label == gene].astype(float).T
                )
            ],
            rtol=1e-9,
        )
        np.testing.assert_allclose(p, z["stat.mannwhitney_p"][i], rtol=1e-5)
        np.testing.assert_allclose(d, z["stat.wasserstein"][i], rtol=1e-6)


@pytest.mark.parametrize(
    "call", range(4), ids=["edges", "paths of two", "paths of three", "drawn pairs"]
)
def test_every_published_network(published, call):
    pairs, true, false, distances = published["calls"][call]
    s = pair_statistics(published["adata"], pd.DataFrame(pairs, columns=["source", "target"]))
    assert [(s.p < 0.05).sum(), (s.p >= 0.05).sum()] == [true, false]
    np.testing.assert_allclose(np.sort(s.wasserstein), np.sort(distances), rtol=1e-5)
    told = [published["result"]["output_graph"], *published["result"]["all_path_results"], None][
        call
    ]
    mean = (
        published["result"]["negative_mean_wasserstein"]
        if told is None
        else told["wasserstein_distance"]["mean"]
    )
    assert s.wasserstein.mean() == pytest.approx(mean, rel=1e-5)
    assert told is None or [told["true_positives"], told["false_positives"]] == [true, false]


def test_published_network_scores(published):
    """The whole evaluation of their network.

    As theirs but for the self-edge (errata 11) and the edges whose source was not perturbed.
    """
    out = network_scores(published["adata"], published["edges"])
    own = pair_statistics(published["adata"], pd.DataFrame(dict(source=["G2"], target=["G2"])))
    theirs = published["result"]["output_graph"]
    n = 7
    # 4 -> X0 is scored here (X0 is measured), G2 -> G2 is not
    assert own.p[0] < 0.05 and (out["n_edges"], out["scored"]) == (10, 7)
    s = pair_statistics(
        published["adata"],
        published["edges"].query("source.str.startswith('G') and source != target"),
    )
    assert (
        out["mean_wasserstein"] == pytest.approx(s.wasserstein.mean())
        and out["true_positive_share"] == (s.p < 0.05).mean()
    )
    x0 = pair_statistics(published["adata"], pd.DataFrame(dict(source=["G4"], target=["X0"])))
    assert out["mean_wasserstein"] * n == pytest.approx(
        theirs["wasserstein_distance"]["mean"] * n - own.wasserstein[0] + x0.wasserstein[0],
        rel=1e-5,
    )


def test_published_false_omission_rate_and_ours(published):
    """Theirs: significant pairs among those drawn, predicted ones included, over all draws, skipped
    ones included (errata 8). Ours: the pairs that the network does not connect, over their
    number.
    """
    a = published["adata"]
    edges = published["edges"]
    pairs, true, false, _ = published["calls"][3]
    usable = [p for p in published["drawn"] if p[0].startswith("G") and p[1].startswith("G")]
    # drawn with replacement, counted once
    assert set(pairs) == set(usable) and len(usable) > len(set(usable)) == true + false == 8
    size = round(true / published["result"]["false_omission_rate"])
    assert (true, size) == (1, 20) and size > true + false  # the denominator is not what was tested
    reach = pd.DataFrame(
        connected(edges, pd.Index(published["genes"])), published["genes"], published["genes"]
    )
    predicted = [p for p in pairs if reach.loc[p]]
    # pairs that the network does predict were among them
    assert predicted and {p for p in pairs if p in set(zip(edges.source, edges.target))}
    apart = [
        (s, t)
        for s in published["genes"][:5]
        for t in published["genes"][:5]
        if s != t and not reach.loc[s, t]
    ]
    out = network_scores(a, edges)
    assert out["omitted"] == len(apart)
    if apart:
        assert (
            out["false_omission_rate"]
            == (
                pair_statistics(a, pd.DataFrame(apart, columns=["source", "target"])).p < 0.05
            ).mean()
        )
    else:
        assert np.isnan(out["false_omission_rate"])
    some = edges[edges.target != "G4"]  # a smaller network of theirs leaves pairs to test
    reach = pd.DataFrame(
        connected(some, pd.Index(published["genes"])), published["genes"], published["genes"]
    )
    apart = [
        (s, t)
        for s in published["genes"][:5]
        for t in published["genes"][:5]
        if s != t and not reach.loc[s, t]
    ]
    out = network_scores(a, some)
    assert (
        out["omitted"] == len(apart) > 0
        and out["false_omission_rate"]
        == (pair_statistics(a, pd.DataFrame(apart, columns=["source", "target"])).p < 0.05).mean()
    )


# ---- known answers on test cells

NAMES = [f"{c}{i}" for c in "AB" for i in range(1, 5)]


@pytest.fixture(scope="module")
def camps():
    """Eight knockdowns in two camps.

    Every ordered pair moves but those from A to B. 150 cells each, 600 controls, 300 quiet genes
    that hold the depth.
    """
    rng = np.random.default_rng(0)
    moves = np.array([[a == b or (a[0], b[0]) != ("A", "B") for b in NAMES] for a in NAMES])
    kind = np.repeat(np.arange(9), [600] + [150] * 8)
    shift = np.zeros((9, 308))
    shift[1:, :8] = np.where(moves, 0.6, 0)
    return screen(
        sp.csr_matrix(rng.poisson(8 * np.exp(shift[kind])).astype(np.float32)),
        np.array(["control", *NAMES])[kind],
        genes=NAMES + [f"q{i}" for i in range(300)],
        **{Key.nodes: dict(names=np.array(NAMES), perturbed=np.ones(8, bool))},
    )


TRUE = [(a, b) for a in NAMES for b in NAMES if a != b and (a[0], b[0]) != ("A", "B")]
FALSE = [(a, b) for a in NAMES for b in NAMES if (a[0], b[0]) == ("A", "B")]


def test_true_network_and_complement(camps):
    true = network_scores(camps, network(TRUE))
    false = network_scores(camps, network(FALSE))
    assert (
        true["true_positive_share"] == true["true_positive_share_bh"] == 1
        and true["mean_wasserstein"] > 4 * false["mean_wasserstein"]
    )
    assert false["true_positive_share"] <= 3 / 16 and false["true_positive_share_bh"] == 0
    assert (true["omitted"], false["omitted"]) == (16, 40)
    # the floor is the test's own error; everything omitted is true
    assert (
        true["false_omission_rate"] == false["true_positive_share"]
        and false["false_omission_rate"] == 1
    )


def test_false_omission_rate_at_its_floor():
    "Over many draws of two camps, what the true network omits is significant in 5 % of the cases."
    rates = []
    for seed in range(6):
        rng = np.random.default_rng(seed + 10)
        kind = np.repeat(np.arange(21), [400] + [60] * 20)
        X = rng.poisson(8, (len(kind), 320)).astype(np.float32)
        names = [f"g{i}" for i in range(20)]
        a = screen(
            sp.csr_matrix(X),
            np.array(["control", *names])[kind],
            **{Key.nodes: dict(names=np.array(names), perturbed=np.ones(20, bool))},
        )
        out = network_scores(a, network([]))
        assert out["omitted"] == 380
        rates.append(out["false_omission_rate"])
    assert np.mean(rates) == pytest.approx(0.05, abs=0.015)


def test_empty_and_full_network(camps):
    s = pair_statistics(camps, pd.DataFrame(TRUE + FALSE, columns=["source", "target"]))
    empty = network_scores(camps, network([]))
    full = network_scores(camps, network(TRUE + FALSE))
    assert (
        empty["n_edges"],
        empty["scored"],
        empty["mean_wasserstein"],
        empty["true_positive_share"],
        empty["omitted"],
    ) == (0, 0, pytest.approx(np.nan, nan_ok=True), pytest.approx(np.nan, nan_ok=True), 56)
    assert empty["false_omission_rate"] == (s.p < 0.05).mean()  # the base rate
    assert (
        np.isnan(full["false_omission_rate"])
        and full["omitted"] == 0
        and full["true_positive_share"] == (s.p < 0.05).mean()
    )


def test_shuffled_labels_destroy_every_score(camps):
    """Perturbation labels dealt anew among the cells.

    Nothing is left but the test's error and the distance of finite samples.
    """
    true = network_scores(camps, network(TRUE))
    wrong = []
    for seed in range(4):
        a = camps.copy()
        a.obs[Key.perturbation] = np.random.default_rng(seed).permutation(
            a.obs[Key.perturbation].to_numpy()
        )
        wrong.append(
            network_scores(a, network(TRUE))
            | dict(base=network_scores(a, network([]))["false_omission_rate"])
        )
    wrong = (
        pd.DataFrame(wrong)[
            [
                "mean_wasserstein",
                "true_positive_share",
                "true_positive_share_bh",
                "false_omission_rate",
                "base",
            ]
        ]
        .astype(float)
        .mean()
    )
    assert (
        wrong.mean_wasserstein < true["mean_wasserstein"] / 4
        and wrong.true_positive_share < 0.12
        and wrong.true_positive_share_bh < 0.05
    )
    assert wrong.false_omission_rate < 0.15 and wrong.base < 0.12


def test_omissions_are_drawn_with_a_seed(camps, monkeypatch):
    monkeypatch.setattr("gpovae.evaluate.networks.N_OMITTED", 12)
    one = network(TRUE[:1])
    rates = {s: network_scores(camps, one, seed=s)["false_omission_rate"] for s in range(6)}
    assert (
        network_scores(camps, one, seed=3)["false_omission_rate"] == rates[3]
        and len(set(rates.values())) > 1
    )
    assert network_scores(camps, one)["omitted"] == 12


def test_paths_of_four_do_not_connect():
    rng = np.random.default_rng(0)
    for _ in range(20):
        A = rng.random((7, 7)) < 0.2
        np.fill_diagonal(A, False)
        names = pd.Index(list("abcdefg"))
        i, j = np.nonzero(A)
        B = A.astype(int)
        expected = (B + B @ B + B @ B @ B) > 0
        np.testing.assert_array_equal(connected(network(zip(names[i], names[j])), names), expected)
    assert not connected(network([]), names).any()


def test_only_single_perturbations_are_sources_and_candidates(camps):
    "Cells of A1+B1 are neither a source of edges nor of omitted pairs."
    a = camps.copy()
    labels = a.obs[Key.perturbation].astype(str).to_numpy()
    labels[np.flatnonzero(labels == "B4")] = "A1+B1"
    a.obs[Key.perturbation] = labels
    out = network_scores(a, network([("A1+B1", "A2"), ("A1", "A2")]))
    assert out["scored"] == 1 and network_scores(a, network([]))["omitted"] == 7 * 6


def test_curve_counts_what_can_be_scored(camps):
    """Edges without a perturbed source or a measured target take their place in the ranking and are
    not scored.
    """
    e = pd.concat(
        [
            network([("q1", "q2"), ("A1", "nobody"), ("A1", "A1")], probability=0.9),
            network(TRUE, probability=0.5),
        ]
    )
    curve = network_scores(camps, e)["curve"]
    assert (
        curve.k.iloc[-1] == len(TRUE) + 3
        and (curve.k - curve.scored == 3).all()
        and curve.true_positive_share.eq(1).all()
    )
    assert network_scores(camps, e.head(3))["curve"].scored.tolist() == [0]
    nothing = network_scores(camps, e.head(3))  # none can be scored: no number, no crash
    assert (
        all(
            np.isnan(nothing[k])
            for k in ("mean_wasserstein", "true_positive_share", "true_positive_share_bh")
        )
        and nothing["scored"] == 0
        and 0 < nothing["false_omission_rate"] < 1
    )


def test_ties_are_not_broken_by_the_order_of_rows(camps):
    e = network(FALSE + TRUE, probability=0.5)
    a, b = (network_scores(camps, t)["curve"] for t in (e, e[::-1]))
    pd.testing.assert_frame_equal(a, b)
    assert (
        0 < a.true_positive_share.iloc[0] <= 1
        and ranked(e, 0).source.tolist() != ranked(e, 1).source.tolist()
    )
    shares = [
        network_scores(camps, network(TRUE + FALSE, probability=0.5), seed=s)[
            "curve"
        ].true_positive_share.iloc[0]
        for s in range(20)
    ]
    # the first ten of a tie are a sample of it
    assert np.mean(shares) == pytest.approx(len(TRUE) / (len(TRUE) + len(FALSE)), abs=0.1)


def test_strongest_first_ranks_best(camps):
    "Ranking by what moves gives the best curve, the reverse the worst; both end in the same place."
    s = pair_statistics(camps, pd.DataFrame(TRUE + FALSE, columns=["source", "target"]))
    e = network(TRUE + FALSE).assign(probability=s.wasserstein / s.wasserstein.max())
    best = network_scores(camps, e)["curve"]
    worst = network_scores(camps, e.assign(probability=1 - e.probability))["curve"]
    assert (
        best.mean_wasserstein.is_monotonic_decreasing
        and (best.mean_wasserstein >= worst.mean_wasserstein - 1e-12).all()
        and best.mean_wasserstein.iloc[0] > 2 * worst.mean_wasserstein.iloc[0]
    )
    assert best.mean_wasserstein.iloc[-1] == pytest.approx(worst.mean_wasserstein.iloc[-1])


# ---- which of two


def test_compare_networks(camps):
    true = network(TRUE[:16])
    false = network(FALSE)
    c = compare_networks(
        camps,
        {
            "true": true,
            "same": true.iloc[::-1],
            "false": false,
            "nothing": network([]),
            "not scored": network([("q1", "A1")]),
        },
    )
    assert list(c.columns) == ["difference", "from", "to"] and c.index.tolist() == [
        "same",
        "false",
        "nothing",
        "not scored",
    ]
    assert (
        c.loc["same"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
        and c["from"]["false"] > 0
        and c.loc[["nothing", "not scored"]].isna().all(axis=None)
    )
    means = [network_scores(camps, e)["mean_wasserstein"] for e in (true, false)]
    assert (
        c.difference["false"] == pytest.approx(means[0] - means[1])
        and c["from"]["false"] < c.difference["false"] < c["to"]["false"]
    )
    back = compare_networks(camps, {"false": false, "true": true}).loc["true"]
    assert back.difference == pytest.approx(-c.difference["false"]) and back["to"] < 0
    pd.testing.assert_frame_equal(
        compare_networks(camps, {"t": true, "f": false}, seed=1),
        compare_networks(camps, {"t": true, "f": false}, seed=1),
    )
    one = compare_networks(camps, {"a": network([("A1", "A2")]), "b": network([("A1", "B2")])}).loc[
        "b"
    ]
    # one perturbation: no interval
    assert one.difference > 0 and np.isnan(one["from"]) and np.isnan(one["to"])
    assert len(compare_networks(camps, {"true": true})) == 0


def test_intervals_of_equal_networks_hold_zero():
    """Two random networks of the same size, on screens in which every gene's effect is drawn.

    95 % of the intervals hold 0, few sources or more.
    """
    rng = np.random.default_rng(0)
    held = {4: [], 12: []}
    for S, out in held.items():
        for t in range(60):
            kind = np.repeat(np.arange(S + 1), [80] + [20] * S)
            names = [f"g{i}" for i in range(40)]
            shift = np.zeros((S + 1, 40))
            shift[1:] = rng.normal(0, 0.5, (S, 1)) * rng.random((S, 40))
            a = screen(
                sp.csr_matrix(rng.poisson(6 * np.exp(shift[kind])).astype(np.float32)),
                np.array(["control", *names])[kind],
            )
            pairs = rng.permutation([(s, g) for s in names[:S] for g in names[S:]])
            i = compare_networks(
                a, {"a": network(pairs[: 3 * S]), "b": network(pairs[3 * S : 6 * S])}, n=200, seed=t
            ).loc["b"]
            out.append(i["from"] <= 0 <= i["to"])
    assert all(np.mean(h) > 0.87 for h in held.values()), {S: np.mean(h) for S, h in held.items()}


# ---- networks that need no model


def test_networks(small):
    edges = network([("g0", "g1"), ("g1", "g6")], probability=0.7)
    found = networks(small, edges)
    assert list(found) == [
        "model",
        "mean difference",
        "z-score",
        "inverse x z-score",
        "correlation in controls",
        "gradient boosting",
        "random",
    ]
    assert len(found.pop("model")) == 2 and list(networks(small, slow=False)) == [
        k for k in found if k != "gradient boosting"
    ]
    for name, e in found.items():
        assert (
            {"source", "target", "weight", "probability", "sign"} == set(e)
            and (e.source != e.target).all()
            and not e.duplicated(["source", "target"]).any()
        ), name
        assert (
            e.weight.abs().is_monotonic_decreasing
            and e.probability.isna().all()
            and (e.sign == np.sign(e.weight)).all()
            and "enh" not in set(e.target)
        ), name
        from_controls = name in ("correlation in controls", "gradient boosting")
        assert ("enh" in set(e.source)) != from_controls and len(e) == (
            4 * 6 if from_controls else 5 * 7 - 4
        ), name  # a row but no column: no control cell shows it
    signs = mean_difference(small).set_index(["source", "target"]).sign
    # signed like W
    assert (signs["g0", "g1"], signs["g0", "g5"], signs["g1", "g6"], signs["enh", "g7"]) == (
        1,
        -1,
        1,
        1,
    )


def test_held_out_perturbations_are_nobodys_source(small):
    """A perturbation without a passing training cell.

    Not in the table of shifts, so no other network may list it either.
    """
    a = small.copy()
    g1 = (a.obs[Key.perturbation] == "g1").to_numpy()
    a.obs[Key.split] = np.where(
        g1 & (np.arange(a.n_obs) % 2 == 0), "test", a.obs[Key.split].astype(str)
    )
    a.obs[Key.fail] = a.obs[Key.fail] | g1 & (a.obs[Key.split] == "train")
    s = dict(a.uns[Key.responses])
    keep = np.asarray(s["perturbation"]) != "g1"
    a.uns[Key.responses] = {k: np.asarray(v)[keep] for k, v in s.items()}
    found = {name: set(e.source) for name, e in networks(a).items()}
    assert found["mean difference"] == found["random"] == {"enh", "g0", "g2", "g3"} and found[
        "correlation in controls"
    ] == found["gradient boosting"] == {"g0", "g2", "g3"}
    assert all("g1" in set(e.target) for e in networks(a, slow=False).values())


def test_rivals_see_training_cells_only(small):
    changed = small.copy()
    X = changed.X.toarray()
    X[(changed.obs[Key.split] == "test").to_numpy()] = 1
    changed.X = sp.csr_matrix(X)
    for (name, a), b in zip(networks(small).items(), networks(changed).values()):
        pd.testing.assert_frame_equal(a, b, obj=name)


def test_inverse_knows_direct_from_indirect():
    """a -> b -> c.

    The total effect a -> c is as strong as others, the direct one is 0; feedback is undone.
    """
    W = np.zeros((4, 4))
    W[0, 1] = 0.9
    W[1, 2] = 0.9
    W[2, 0] = -0.3
    W[2, 3] = 0.7
    T = np.linalg.inv(np.eye(4) - W)
    np.testing.assert_allclose(invert_effects((T / np.diag(T)[:, None])[:3]), W[:3], atol=1e-12)


def controls_only(n=500, seed=0):
    "Controls in which R drives T and inhibits U; S is a gene of its own; Z is silent."
    rng = np.random.default_rng(seed)
    r, s = rng.normal(0, 0.6, (2, n))
    mean = np.exp(np.column_stack([r, s, r, -r, np.full((n, 40), 0.0)])) * 20
    X = np.column_stack([rng.poisson(mean), np.zeros(n)]).astype(np.float32)
    a = screen(
        X,
        np.r_[list("RRSS"), ["control"] * (n - 4)],
        split="train",
        genes=["R", "S", "T", "U"] + [f"g{i}" for i in range(40)] + ["Z"],
    )
    a.uns[Key.nodes] = dict(
        names=np.array(["R", "S", "T", "U", "Z"]),
        perturbed=np.array([True, True, False, False, False]),
    )
    return a


def test_gradient_boosting_finds_what_controls_show():
    a = controls_only()
    e = boosted_edges(a).set_index(["source", "target"])
    assert set(e.index[:2]) == {("R", "T"), ("R", "U")} and (
        e.sign["R", "T"],
        e.sign["R", "U"],
    ) == (1, -1)
    assert e.weight.abs()["R", "T"] > 10 * e.weight.abs()["S", "T"] and e.weight["R", "Z"] == 0
    pd.testing.assert_frame_equal(boosted_edges(a, seed=2), boosted_edges(a, seed=2))
    assert len(boosted_edges(a, n_cells=50)) == len(e) and not boosted_edges(a, n_cells=50).equals(
        boosted_edges(a)
    )
    shuffled = a.copy()
    rng = np.random.default_rng(0)
    shuffled.X = np.column_stack([rng.permutation(c) for c in a.X.T])
    assert boosted_edges(shuffled).weight.abs().max() < e.weight.abs().iloc[0] / 5


def test_too_few_controls():
    a = controls_only()
    a.obs.loc[
        (a.obs[Key.perturbation] == CONTROL).to_numpy() & (np.arange(a.n_obs) > 4), Key.fail
    ] = True
    for f in (control_correlation, boosted_edges):
        with pytest.raises(GpovaeError, match=r"has 1 control cell\(s\)"):
            f(a)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.drop(columns="weight"), "no column 'weight'"),
        (lambda e: pd.concat([e, e]), "occurs twice"),
    ],
)
def test_bad_tables_of_edges(small, change, message):
    for f in (
        lambda e: network_scores(small, e),
        lambda e: truth_scores(e, small.uns[Key.truth]),
        lambda e: calibration(e, small.uns[Key.truth]),
        lambda e: networks(small, e),
    ):
        with pytest.raises(GpovaeError, match=message):
            f(change(mean_difference(small)))
