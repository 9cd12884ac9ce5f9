"""Networks against the truth.

AUPRC, signs and calibration of known answers, and intervals of their differences.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from gpovae.core.errors import GpovaeError
from gpovae.data.prepare import prepare
from gpovae.data.screen import Key
from gpovae.data.simulate import simulated
from gpovae.evaluate.networks import network_scores
from gpovae.evaluate.rankings import mean_difference, networks, random_edges, z_score
from gpovae.evaluate.truth import calibration, compare_truth, true_effects, truth_scores


def network(pairs, weight=1.0, probability=1.0):
    return pd.DataFrame(
        [(s, t, weight, probability) for s, t in pairs],
        columns=["source", "target", "weight", "probability"],
    )


def test_compare_truth(known):
    rng = np.random.default_rng(0)
    true = known["direct"] != 0
    good = every_pair(known, rng.random((40, 40)) + 0.6 * true)
    poor = every_pair(known, rng.random((40, 40)))
    tied = every_pair(known, rng.integers(1, 4, (40, 40)) + 1.0 * true)
    c = compare_truth(
        {
            "good": good,
            "poor": poor,
            "good again": good.iloc[::-1],
            "tied": tied,
            "short": good.head(30),
            "empty": good.head(0),
        },
        known,
    )
    auprc = {
        k: truth_scores(e, known)["auprc"]
        for k, e in dict(
            good=good, poor=poor, tied=tied, short=good.head(30), empty=good.head(0)
        ).items()
    }
    for k in ("poor", "tied", "short", "empty"):
        assert c.difference[k] == pytest.approx(auprc["good"] - auprc[k], abs=1e-9)
    assert c["from"]["poor"] > 0 and c.loc["good again"].tolist() == [0, 0, 0]
    total = compare_truth({"a": good, "b": poor}, known, "total")
    assert total.difference["b"] == pytest.approx(
        truth_scores(good, known, "total")["auprc"] - truth_scores(poor, known, "total")["auprc"],
        abs=1e-9,
    )
    luck = [
        compare_truth(
            {
                "a": every_pair(known, rng.random((40, 40))),
                "b": every_pair(known, rng.random((40, 40))),
            },
            known,
            n=100,
        ).loc["b"]
        for _ in range(40)
    ]
    assert np.mean([i["from"] <= 0 <= i["to"] for i in luck]) > 0.85


def test_compare_truth_draws_regulators():
    "A draw in which regulator 0 counts twice is scikit-learn's AUPRC with the weights."
    from gpovae.evaluate.truth import _average_precision

    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(9), 20)
    score = rng.integers(0, 12, 180)
    y = rng.random(180) < 0.2
    draws = rng.multinomial(9, np.full(9, 1 / 9), 30)
    np.testing.assert_allclose(
        _average_precision(score, y, row, draws),
        [average_precision_score(y, score, sample_weight=w[row]) for w in draws],
    )


def test_same_universe(known):
    "Regulators that were held out take no part where `sources` says so."
    names = list(known["genes"][:30])
    seen = oracle(known).query("source in @names")
    assert (
        truth_scores(seen, known)["auprc"]
        < 0.9
        < truth_scores(seen, known, sources=names)["auprc"]
        == pytest.approx(1)
    )
    assert (
        calibration(seen, known, sources=names)["brier_skill"]
        == 1
        > calibration(seen, known)["brier_skill"]
    )
    assert (
        truth_scores(seen, known, sources=names)["true_edges"] == len(seen)
        and true_effects(known, sources=names[::-1]).index.tolist() == names
    )
    whole = compare_truth({"truth": oracle(known), "seen": seen}, known)
    same = compare_truth({"truth": oracle(known), "seen": seen}, known, sources=names)
    assert whole.difference["seen"] > 0.1 and same.difference["seen"] == pytest.approx(0)
    for f in (truth_scores, calibration):
        with pytest.raises(GpovaeError, match="None of the sources is among"):
            f(seen, known, sources=["nobody"])


# ---- known answers against the truth


def oracle(truth, kind="direct"):
    E = true_effects(truth, kind)
    return pd.DataFrame(
        [(a, b, w, 1.0) for a, row in E.iterrows() for b, w in row.items() if w and a != b],
        columns=["source", "target", "weight", "probability"],
    )


@pytest.fixture(scope="module")
def known():
    "Forty genes, all perturbed, random signed edges."
    rng = np.random.default_rng(5)
    n = 40
    W = np.where(rng.random((n, n)) < 0.08, rng.choice([-0.3, 0.2, 0.3], (n, n)), 0)
    np.fill_diagonal(W, 0)
    return dict(
        genes=np.array([f"g{i}" for i in range(n)]),
        direct=W,
        total=np.linalg.inv(np.eye(n) - W),
        knockdown=-np.ones(n),
    )


def every_pair(known, score, sign=None):
    g = known["genes"]
    i, j = np.nonzero(~np.eye(len(g), dtype=bool))
    return pd.DataFrame(
        dict(
            source=g[i],
            target=g[j],
            weight=score[i, j] * (1 if sign is None else sign[i, j]),
            probability=np.nan,
        )
    )


@pytest.mark.parametrize("kind", ["direct", "total"])
def test_truth_is_perfect_and_its_complement_worst(known, kind):
    E = true_effects(known, kind).to_numpy()
    best = truth_scores(oracle(known, kind), known, kind)
    assert [best[k] for k in ("auprc", "early_precision", "sign_accuracy")] == [1, 1, 1] and best[
        "found"
    ] == best["true_edges"]
    worst = truth_scores(every_pair(known, np.where(E == 0, 2.0, 1.0)), known, kind)
    # the truth last, in one tie
    assert (
        worst["auprc"] == pytest.approx(worst["chance"])
        and worst["early_precision"] == 0
        and worst["sign_accuracy"] is None
    )
    rng = np.random.default_rng(0)
    lowest = truth_scores(
        every_pair(known, np.where(E == 0, 2.0, rng.random(E.shape))), known, kind
    )["auprc"]
    assert lowest < best["chance"]  # and below chance where that tie is broken


def test_truth_scores_know_ranks_alone(known):
    rng = np.random.default_rng(1)
    e = every_pair(
        known, rng.random((40, 40)) + 0.4 * (known["direct"] != 0), rng.choice([-1, 1], (40, 40))
    )
    first = truth_scores(e, known)
    for change in (lambda w: 7 * w, lambda w: w**3, lambda w: np.sign(w) * np.expm1(np.abs(w))):
        other = truth_scores(e.assign(weight=change(e.weight)), known)
        assert {k: other[k] for k in other if k != "curve"} == {
            k: first[k] for k in first if k != "curve"
        }
    assert truth_scores(e.assign(weight=-e.weight), known)["sign_accuracy"] == pytest.approx(
        1 - first["sign_accuracy"]
    )
    as_probability = truth_scores(e.assign(probability=e.weight.abs() / 2), known)
    assert as_probability["auprc"] == first["auprc"]


def test_shuffled_names_destroy_truth_scores(known):
    e = oracle(known)
    found = []
    for seed in range(30):
        rename = dict(zip(known["genes"], np.random.default_rng(seed).permutation(known["genes"])))
        found.append(
            truth_scores(e.assign(source=e.source.map(rename), target=e.target.map(rename)), known)
        )
    mean = (
        pd.DataFrame(found)[["auprc", "early_precision", "chance", "sign_accuracy"]]
        .astype(float)
        .mean()
    )
    assert (
        mean.early_precision == pytest.approx(mean.chance, abs=0.02)
        and mean.auprc == pytest.approx(mean.chance, abs=0.02)
        and 0.2 < mean.sign_accuracy < 0.8
    )


def test_edges_outside_the_known_network_do_not_count(known):
    e = oracle(known)
    more = pd.concat(
        [
            network(
                [("nobody", "g1"), ("g1", "nobody"), ("g1", "g1")], probability=1.0, weight=9.0
            ),
            e,
        ]
    )
    a = truth_scores(e, known)
    b = truth_scores(more, known)
    assert (a["auprc"], a["early_precision"]) == (b["auprc"], b["early_precision"])


def test_truth_scores_ignore_how_ties_are_ordered(small):
    truth = small.uns[Key.truth]
    e = mean_difference(small).assign(weight=1.0, probability=0.5)
    a = truth_scores(e, truth)
    b = truth_scores(e.iloc[::-1], truth)
    assert (
        a["auprc"] == b["auprc"]
        and a["early_precision"] == b["early_precision"]
        and a["found"] == b["found"]
    )
    # all listed, all tied: the share of true ones among them
    assert truth_scores(e, truth)["early_precision"] == pytest.approx(4 / len(e))


def test_truth_scores_total_effects(small):
    truth = small.uns[Key.truth]
    total = truth_scores(mean_difference(small), truth, "total")
    assert total["true_edges"] == 5  # the four edges and g0 -> g1 -> g6
    assert (
        truth_scores(oracle(truth, "total"), truth, "total")["auprc"] == 1
        and truth_scores(oracle(truth, "total"), truth, "direct")["auprc"] < 1
    )


def test_truth_without_edges(known):
    with pytest.raises(GpovaeError, match="nothing to find"):
        truth_scores(oracle(known), known | dict(direct=np.zeros((40, 40))))
    with pytest.raises(GpovaeError, match="nothing to tell apart"):
        calibration(oracle(known), known | dict(direct=np.zeros((40, 40))))


# ---- calibration


@pytest.fixture(scope="module")
def odds():
    "A known network drawn from known probabilities."
    rng = np.random.default_rng(0)
    n = 70
    p = rng.beta(0.4, 2, (n, n))
    np.fill_diagonal(p, 0)
    y = (rng.random((n, n)) < p).astype(float)
    return p, dict(
        genes=np.array([f"g{i}" for i in range(n)]),
        direct=y,
        total=np.eye(n),
        knockdown=-np.ones(n),
    )


def says(truth, p):
    return every_pair(truth, np.ones(p.shape)).assign(probability=p[~np.eye(len(p), dtype=bool)])


def test_calibration_of_the_truth_and_its_opposite(odds):
    p, truth = odds
    y = truth["direct"]
    best = calibration(says(truth, y), truth)
    worst = calibration(says(truth, 1 - y), truth)
    assert (best["ece"], best["brier_skill"]) == (0, 1)
    d = y[~np.eye(70, dtype=bool)].mean()
    assert worst["ece"] == 1 and worst["brier_skill"] == pytest.approx(1 - 1 / (d * (1 - d)))
    assert (
        calibration(network([]), truth)["brier_skill"] == pytest.approx(-d / (1 - d))
        and calibration(network([]), truth)["ece"] is None
    )


def test_a_constant_does_not_pass(odds):
    p, truth = odds
    off = ~np.eye(70, dtype=bool)
    d = truth["direct"][off].mean()
    at = {
        c: calibration(says(truth, np.full(p.shape, c)), truth)
        for c in (d, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0)
    }
    assert (
        all(m["brier_skill"] <= 1e-9 for m in at.values())
        and at[d]["brier_skill"] == pytest.approx(0, abs=1e-9)
        and at[d]["ece"] == pytest.approx(0, abs=1e-9)
    )
    assert (
        all(m["ece"] == pytest.approx(abs(c - d)) for c, m in at.items() if c >= 0.1)
        and at[0.05]["ece"] is None
    )
    assert all(len(m["curve"]) == 1 for c, m in at.items() if c >= 0.1)  # one tie, one bin


def test_honest_overconfident_timid_shuffled(odds):
    p, truth = odds
    logit = np.log(np.clip(p, 1e-9, 1) / (1 - p))

    def bent(f):
        return 1 / (1 + np.exp(-f * logit))

    honest, over, timid = (calibration(says(truth, bent(f)), truth) for f in (1, 3, 0.4))
    assert (
        honest["ece"] < 2 * honest["ece_by_luck"]
        and over["ece"] > 3 * over["ece_by_luck"]
        and timid["ece"] > 3 * timid["ece_by_luck"]
    )
    assert honest["brier_skill"] > max(over["brier_skill"], timid["brier_skill"])
    rng = np.random.default_rng(0)
    shuffled = p.copy()
    off = ~np.eye(70, dtype=bool)
    shuffled[off] = rng.permutation(p[off])
    lost = calibration(says(truth, shuffled), truth)
    assert lost["brier_skill"] < 0 and lost["ece"] > 3 * lost["ece_by_luck"]


def test_reliability_curve(odds):
    p, truth = odds
    m = calibration(says(truth, p), truth)
    c = m["curve"]
    assert (
        len(c) == 10
        and c.pairs.sum() == m["believed"] == (p[~np.eye(70, dtype=bool)] >= 0.1).sum()
        and c.pairs.max() - c.pairs.min() <= 1
    )
    assert (
        c.probability.is_monotonic_increasing
        and (c["from"] >= 0.1).all()
        and (c["to"].iloc[:-1].to_numpy() <= c["from"].iloc[1:].to_numpy()).all()
    )
    assert m["ece"] == pytest.approx(
        np.average(np.abs(c.probability - c.true_share), weights=c.pairs)
    )
    # draws matter to luck alone
    assert calibration(says(truth, p), truth, seed=1)["ece"] == m["ece"]
    listed = says(truth, p).query("probability >= .1")  # what is not listed has probability 0
    assert (
        calibration(listed, truth)["ece"] == m["ece"]
        and calibration(listed, truth)["brier_skill"] != m["brier_skill"]
    )


def test_calibration_without_probabilities(small):
    for name, e in networks(small, slow=False).items():
        m = calibration(e, small.uns[Key.truth])
        assert (
            m["ece"] is m["brier_skill"] is m["ece_by_luck"] is m["believed"] is None
            and len(m["curve"]) == 0
        ), name
    one = calibration(network([("g0", "g1")], probability=0.8), small.uns[Key.truth])
    assert one["ece"] == pytest.approx(0.2) and one["believed"] == 1
    with pytest.raises(GpovaeError, match="g0 -> g1 has probability -0.2"):
        calibration(network([("g0", "g1")], probability=-0.2), small.uns[Key.truth])
    assert calibration(network([("g0", "g1")], probability=0.8), small.uns[Key.truth], "total")[
        "ece"
    ] == pytest.approx(0.2)


# ---- a simulated screen


def test_rivals_on_a_simulated_screen():
    """Each metric moves the right way.

    The truth before shifts, shifts before correlations in controls, these beside chance.
    """
    a = simulated(2500, 90, 12, seed=3)
    prepare(a, "gene", "non-targeting", progress=False)
    truth = a.uns[Key.truth]
    found = networks(a)
    auprc = {name: truth_scores(e, truth)["auprc"] for name, e in found.items()} | dict(
        truth=truth_scores(oracle(truth), truth)["auprc"]
    )
    assert auprc["truth"] == 1 > auprc["z-score"] > 2 * auprc["random"] and auprc["z-score"] > max(
        auprc["correlation in controls"], auprc["gradient boosting"]
    )
    size = len(oracle(truth, "total"))
    total = network_scores(a, oracle(truth, "total"))
    chance = network_scores(a, random_edges(a).head(size))
    assert (
        total["mean_wasserstein"] > 1.2 * chance["mean_wasserstein"]
        and total["true_positive_share"] > 1.2 * chance["true_positive_share"]
    )
    shuffled = a.copy()
    shuffled.obs[Key.perturbation] = np.random.default_rng(0).permutation(
        shuffled.obs[Key.perturbation].to_numpy()
    )
    assert (
        network_scores(shuffled, z_score(a).head(40))["true_positive_share"]
        < 0.2
        < network_scores(a, z_score(a).head(40))["true_positive_share"]
    )
