"""Response metrics.

Known answers metric by metric, one mechanism for values, intervals and strata, batch-wise
controls, baselines on real screens.

`truth` has no noise; the test cells it is held against do. What each metric must do with the
truth, with no effect, with the mean of all perturbed cells and with shuffled labels stands in
KNOWN.
"""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import r2_score

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.labels import CONTROL
from gpovae.data.register import register
from gpovae.data.screen import Key
from gpovae.data.split import hold_out, split_cells
from gpovae.evaluate.baselines import additive, baselines, ridge, training_mean
from gpovae.evaluate.ceiling import ceiling, share_of_way
from gpovae.evaluate.comparisons import compare_scores, strata
from gpovae.evaluate.effects import cells, halves, noise_variance, observed_effects
from gpovae.evaluate.metrics import discrimination, pearson_delta
from gpovae.evaluate.observed import Observed, observe, observe_cells, ranks
from gpovae.evaluate.response import BETTER, METRICS, contributions, pearson, scores, weighted

from places import DATA, FIXTURES

SHARED = DATA.parent
DATA = Path(os.environ.get("GPOVAE_DATA") or SHARED / "data")
NONE, MEAN = "no effect (control mean)", "mean of all perturbed cells"


def draw(seed=0, n_per=60, n_genes=150, n_perturbations=20, batches=1, split="test", *, controls=5):
    """Counts of a screen with fixed truth.

    `seed` draws the cells. Also the truth of perturbed and control expression, natural log.
    """
    rng = np.random.default_rng(3)
    names = [f"G{i}" for i in range(n_genes)]
    base = rng.normal(0, 1, n_genes)
    shift = np.zeros((n_perturbations + 1, n_genes))
    for p in range(n_perturbations):
        shift[p + 1, rng.choice(n_genes, 12, replace=False)] = rng.normal(0, 0.8, 12)
        shift[p + 1, p] = -1.5
    shift[1:, -12:] += 0.5 * np.tile([1, -1], 6)
    lane = rng.normal(0, 0.6, (batches, n_genes)) * (batches > 1)
    rng = np.random.default_rng([3, seed])
    kind = np.repeat(
        np.arange(n_perturbations + 1), [int(controls * n_per)] + [n_per] * n_perturbations
    )
    batch = rng.integers(batches, size=len(kind))
    if batches > 1:
        # perturbations are spread unevenly
        batch = np.where((kind > 0) & (rng.random(len(kind)) < 0.8), kind % batches, batch)
    mu = np.exp(base + shift[kind] + lane[batch])
    mu *= rng.lognormal(7, 0.3, (len(kind), 1)) / mu.sum(1, keepdims=True)
    a = ad.AnnData(
        sp.csr_matrix(rng.poisson(rng.gamma(2, mu / 2)).astype(np.float32)),
        obs=pd.DataFrame(
            dict(gene=np.array(["control"] + names)[kind], lane=batch.astype(str)),
            index=[f"{split}{i}" for i in range(len(kind))],
        ),
        var=pd.DataFrame(index=names),
    )
    register(a, min_cells=2, batch_key="lane" if batches > 1 else None)
    a.obs[Key.fail], a.obs[Key.split] = False, split
    return a


def joined(*parts):
    a = ad.concat(parts, merge="same")
    a.uns = parts[0].uns.copy()
    return a


@pytest.fixture(scope="module")
def screen():
    return joined(draw(), draw(1, 150, split="train"))


@pytest.fixture(scope="module")
def seen(screen):
    return observe(screen)


@pytest.fixture(scope="module")
def truth(seen):
    return observed_effects(draw(2, 1200)).loc[seen.effects.index, seen.effects.columns]


def shuffle(table, seed=0):
    "Every row moves."
    rng = np.random.default_rng(seed)
    while ((order := rng.permutation(len(table))) == np.arange(len(table))).any():
        pass
    return pd.DataFrame(table.to_numpy()[order], table.index, table.columns)


# ---- known answers


def R_(o):
    return o.effects.to_numpy()


G, TOP = 150, 20
# metric: (what perfection scores, what no effect scores in theory, tolerance, what shuffled labels
# leave: "nothing", "what is shared", "all")
KNOWN = {
    "ate_rho": (1, lambda o: 0, 1e-9, "what is shared"),
    "ate_r2": (1, lambda o: -(R_(o).mean() ** 2) / R_(o).var(), 1e-9, "nothing"),
    "ate_rho_top20": (1, lambda o: 0, 1e-9, "what is shared"),
    "ate_r2_top20": (
        1,
        lambda o: (lambda s: -(s.mean() ** 2) / s.var())(
            np.take_along_axis(R_(o), np.argsort(-np.abs(R_(o)), 1)[:, :TOP], 1)
        ),
        1e-9,
        "what is shared",
    ),
    "jaccard_20": (1, lambda o: 20 / (2 * G - 20), 0.05, "what is shared"),
    "jaccard_50": (1, lambda o: 50 / (2 * G - 50), 0.05, "what is shared"),
    "pearson_delta_perturbed_mean": (
        None,
        lambda o: np.mean([pearson(-o.shared, r - o.centre) for r in R_(o)]),
        1e-9,
        "nothing",
    ),
    "discrimination": (1, None, None, "nothing"),
    "discrimination_both": (1, lambda o: 0.5 + 1 / (2 * len(o.effects)), 0.03, "nothing"),
    "de_overlap": (
        None,
        lambda o: (o.q < 0.05).to_numpy().mean(1)[(o.q < 0.05).any(axis=1)].mean(),
        0.06,
        "what is shared",
    ),
    "mae": (0, lambda o: np.abs(R_(o)).mean(), 1e-9, "nothing"),
    "weighted_mse": (0, lambda o: (o.weights * R_(o) ** 2).sum(1).mean(), 1e-9, "nothing"),
    "variance_ratio": (None, lambda o: 0, 1e-9, "all"),
}


def test_every_metric_is_known():
    assert list(KNOWN) == list(METRICS) == list(BETTER)


@pytest.mark.parametrize("metric", METRICS)
def test_perfection(metric, seen):
    "The observed effects themselves, as a table; the observed cells themselves."
    assert (BETTER[metric] == 0) or scores(seen, seen)[metric] == pytest.approx(
        max(BETTER[metric], 0), abs=1e-9
    )
    perfect = KNOWN[metric][0]
    value = scores(seen.effects, seen)[metric]
    if perfect is not None:
        assert value == pytest.approx(perfect, abs=1e-9)
    elif metric == "de_overlap":  # |effect| is not the order of significance
        assert 0.8 < value < 0.95
        assert scores(seen.effects * 0 - np.log(seen.q.clip(lower=1e-300)), seen)[
            metric
        ] == pytest.approx(1)
    elif (
        metric == "pearson_delta_perturbed_mean"
    ):  # origins differ by their noise; cells bring their own
        assert 0.85 < value < 0.98
        assert scores(seen.effects - seen.centre + seen.shared, seen)[metric] == pytest.approx(1)
    else:  # the noise of the observed effects is taken off below the line only
        spread = R_(seen).var(0).mean()
        noise = (1 - 1 / len(seen.effects)) * seen.noise.to_numpy().mean()
        assert value == pytest.approx(spread / (spread - noise)) and 1.2 < value < 1.8


@pytest.mark.parametrize("metric", METRICS)
def test_noise_free_truth_is_better_than_everything_else(metric, seen, truth, screen):
    rng = np.random.default_rng(0)
    cast = {
        "truth": truth,
        "training mean": observed_effects(screen, "train"),
        "truth + noise": truth + rng.normal(0, 0.5, truth.shape),
        "shuffled": shuffle(truth),
        "mean": truth * 0 + seen.shared,
        "none": truth * 0,
    }
    found = {k: scores(p, seen)[metric] for k, p in cast.items()}

    def good(v):
        return -abs(v - 1) if BETTER[metric] == 0 else BETTER[metric] * v

    assert all(good(found["truth"]) >= good(v) - 0.025 for v in found.values()), found
    assert (
        good(found["truth"]) > good(found["none"])
        and good(found["truth"]) > good(found["truth + noise"]) - 1e-12
    )


@pytest.mark.parametrize("metric", [m for m in METRICS if KNOWN[m][1]])
def test_no_effect_scores_as_theory_says(metric, seen):
    value = np.mean([scores(seen.effects * 0, seen, seed=s)[metric] for s in range(20)])
    assert value == pytest.approx(KNOWN[metric][1](seen), abs=KNOWN[metric][2])


@pytest.mark.parametrize("metric", METRICS)
def test_shuffled_labels(metric, seen, truth):
    """What knows perturbations is destroyed, down to no effect or below.

    What measures what all share keeps at most that; the spread does not notice.
    """
    left = KNOWN[metric][3]
    some = np.mean([scores(shuffle(truth, s), seen)[metric] for s in range(10)])
    full, none, mean = (
        scores(p, seen)[metric] for p in (truth, truth * 0, truth * 0 + seen.shared)
    )
    share = (some - none) / (full - none)
    if left == "all":
        assert some == pytest.approx(full)
    elif left == "nothing":
        assert share < 0.06, share
    else:
        assert 0.1 < share < 0.75 and (
            metric in ("ate_r2_top20",) or BETTER[metric] * some < BETTER[metric] * mean + 0.05
        ), (share, some, mean)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_fall_as_noise_grows(metric, seen, truth):
    rng = np.random.default_rng(0)
    found = [
        np.mean([scores(truth + rng.normal(0, s, truth.shape), seen)[metric] for _ in range(3)])
        for s in (0, 0.3, 1, 3)
    ]
    good = [-abs(v - 1) if BETTER[metric] == 0 else BETTER[metric] * v for v in found]
    assert all(a >= b - 1e-9 for a, b in zip(good, good[1:])) and good[0] > good[-1], found


@pytest.mark.parametrize(
    "metric, blind",
    [
        ("ate_rho", "scale"),
        ("ate_rho_top20", "scale"),
        ("jaccard_20", "scale"),
        ("jaccard_50", "scale"),
        ("de_overlap", "scale"),
        ("jaccard_20", "sign"),
        ("jaccard_50", "sign"),
        ("de_overlap", "sign"),
        ("variance_ratio", "sign"),
    ],
)
def test_what_a_metric_cannot_see(metric, blind, seen, truth):
    assert scores(truth * (3 if blind == "scale" else -1), seen)[metric] == pytest.approx(
        scores(truth, seen)[metric]
    )


def test_variance_ratio_is_the_square_of_the_scale(seen, truth):
    one = scores(truth, seen)["variance_ratio"]
    assert one == pytest.approx(1, abs=0.1) and scores(truth * 2, seen)[
        "variance_ratio"
    ] == pytest.approx(4 * one)
    # a bare table: the noise of the observed effects cannot be taken off
    assert scores(truth, seen.effects)["variance_ratio"] < one


def test_constant_predictors_score_chance_on_pds(seen):
    """0.5 + 1/(2N).

    Exactly for whatever constant where all genes count; within the standard error where rows are
    tied.
    """
    R = seen.effects.to_numpy()
    N = len(seen.effects)
    rng = np.random.default_rng(0)
    none = np.full((N, 1), -1)
    chance = 0.5 + 1 / (2 * N)
    for _ in range(10):
        np.testing.assert_allclose(
            discrimination(R * 0 + rng.normal(0, 2, R.shape[1]), R, none, rng).mean(0), chance
        )
    tied = np.array(
        [discrimination(R * 0, R * 0 + 1, seen.target_positions, rng).mean(0) for _ in range(400)]
    )
    assert (np.abs(tied.mean(0) - chance) < 3 * tied.std(0) / 20).all()
    half = R.copy()
    half[1::2] = half[::2]  # rows tied in pairs: the right one is found, its twin as often
    found = np.array([discrimination(half, half, none, rng).mean(0) for _ in range(400)])
    assert (np.abs(found.mean(0) - (1 - 0.5 / N)) < 3 * found.std(0) / 20).all()


def test_leaving_the_own_target_out_flatters_nothing():
    """Rows of equal noise and one strong knockdown each.

    Published PDS of no effect is far above chance, with both targets left out it is at chance,
    within its standard error.
    """
    found = []
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(0, 0.2, (20, 60))
        noise[np.arange(20), np.arange(20)] -= 3
        e = pd.DataFrame(noise, [f"G{i}" for i in range(20)], [f"G{i}" for i in range(60)])
        found.append([scores(e * 0, e)[k] for k in ("discrimination", "discrimination_both")])
    mean = np.mean(found, 0)
    error = np.std(found, 0) / 30**0.5
    assert mean[0] > 0.9 and abs(mean[1] - 0.525) < 3 * error[1] and error[1] < 0.01


def test_scarce_controls_do_not_flatter_nothing():
    """Noise of the controls stands in both sides of the published Pearson-delta.

    An origin for each side takes it out.
    """
    o = observe(joined(draw(3, 40, controls=0.5), draw(4, 40, split="train", controls=0.5)))
    E = o.effects.to_numpy()
    assert (
        pearson_delta(E * 0, E, o.shared.to_numpy(), o.shared.to_numpy()).mean() > 0.25
        and abs(scores(o.effects * 0, o)["pearson_delta_perturbed_mean"]) < 0.08
    )


def test_pairs_leave_all_their_targets_out():
    e = pd.DataFrame(
        np.random.default_rng(0).normal(size=(4, 8)),
        ["A", "B", "A+B", "A+unmeasured"],
        list("ABCDEFGH"),
    )
    assert Observed.table(e).target_positions.tolist() == [[0, -1], [1, -1], [0, 1], [0, -1]]
    seen = e.copy()
    rng = np.random.default_rng(0)
    seen.loc["A+B", ["A", "B"]] -= 100
    seen.loc["A+unmeasured", "A"] -= 100
    assert scores(e, seen)["discrimination"] == scores(e, seen)["discrimination_both"] == 1
    one = Observed.table(e).target_positions.copy()
    one[2, 1] = -1
    for left_out, pds in (
        (np.full((4, 2), -1), [1, 1, 0.25, 0.5]),
        (one, [1, 1, 0.25, 1]),
    ):  # no target, the first alone
        np.testing.assert_allclose(
            discrimination(e.to_numpy(), seen.to_numpy(), left_out, rng)[:, 0], pds
        )


# ---- one mechanism


def test_weights_are_repeated_rows(seen, truth):
    "Correlation and R2 with integer weights are those of a table in which rows are repeated."
    w = np.random.default_rng(0).integers(0, 3, len(truth))
    R, P = (np.repeat(t.to_numpy(), w, 0).ravel() for t in (seen.effects, truth + 0.1))
    out = weighted(contributions(truth + 0.1, seen), w[None].astype(float))
    assert (
        out["ate_rho"][0] == pytest.approx(np.corrcoef(P, R)[0, 1])
        and out["ate_r2"][0] == pytest.approx(r2_score(R, P))
        and out["mae"][0] == pytest.approx(np.abs(P - R).mean())
    )


def test_what_cannot_be_scored_has_no_weight(seen, truth):
    q = seen.q.copy()
    q.iloc[0] = 1.0
    fewer = Observed(
        seen.effects,
        seen.control,
        seen.shared,
        seen.centre,
        seen.cells,
        seen.train_cells,
        q,
        seen.noise,
    )
    c = contributions(truth, fewer)["de_overlap"][:, 0]
    assert np.isnan(c[0]) and scores(truth, fewer)["de_overlap"] == pytest.approx(np.nanmean(c))
    q[:] = 1.0
    assert scores(truth, fewer)["de_overlap"] is None
    rows = compare_scores({"a": truth, "b": truth * 0}, fewer, n=50).xs(
        "de_overlap", level="metric"
    )
    assert rows.isna().all(axis=None)


def test_intervals(seen, truth, screen):
    a = {"truth": truth, "train": observed_effects(screen, "train"), "none": truth * 0}
    b = {"none": truth * 0, "truth": truth}
    one = compare_scores(a, seen, n=300)
    other = compare_scores(b, seen, n=300)
    assert list(one) == [
        "value",
        "from",
        "to",
        "difference",
        "difference_from",
        "difference_to",
    ] and one.index.names == ["method", "metric"]
    assert list(dict.fromkeys(one.index.get_level_values(0))) == list(a) and list(
        one.loc["truth"].index
    ) == list(METRICS)
    assert ((one["from"] <= one["value"] + 1e-9) & (one["value"] <= one["to"] + 1e-9)).drop(
        index=[("truth", "discrimination"), ("train", "discrimination")], errors="ignore"
    ).mean() > 0.9
    assert (one.loc["truth", ["difference", "difference_from", "difference_to"]] == 0).all(
        axis=None
    )
    x = one.loc["none"]
    y = other.loc["truth"]  # antisymmetric
    np.testing.assert_allclose(x.difference, -y.difference, atol=1e-12)
    np.testing.assert_allclose(x.difference_from, -y.difference_to, atol=1e-12)
    pd.testing.assert_frame_equal(one, compare_scores(a, seen, n=300))
    alone = compare_scores(a, observe(screen, "test", ["G3"]), n=50)
    # one perturbation has no interval
    assert np.isfinite(alone.loc[("truth", "mae"), "value"]) and alone["from"].isna().all()


@pytest.mark.parametrize("N", [3, 5, 10, 30])
def test_equally_good_predictions_are_seldom_called_different(N):
    """The observed effects with noise of the same size, twice.

    5 % is what an interval promises. Quantiles of the bootstrap as they are call 22, 18, 11 and 9
    % (MAE).
    """
    rng = np.random.default_rng(N)
    found = []
    metrics = ["mae", "ate_rho"]
    repeats = 400
    for _ in range(repeats):
        size = rng.gamma(2, 1, (N, 1))
        R = pd.DataFrame(
            rng.normal(size=(N, 8)) * size, [f"p{i}" for i in range(N)], [f"g{j}" for j in range(8)]
        )
        a, b = (R + rng.normal(size=R.shape) * (0.5 * size + 0.3) for _ in range(2))
        rows = compare_scores({"a": a, "b": b}, Observed.table(R), n=300).loc["b"].loc[metrics]
        found.append((rows.difference_from > 0) | (rows.difference_to < 0))
    rate = np.mean(found, 0)
    assert 0.025 <= rate[0] <= 0.08 and 0.025 <= rate[1] <= 0.1, rate


def test_intervals_count_the_perturbations_that_are_scored(seen, truth):
    """DES of three perturbations among twenty is as uncertain as DES of these three.

    And intervals stay within what a metric can be.
    """
    q = seen.q.copy()
    q.iloc[3:] = 1.0
    fewer = Observed(
        seen.effects,
        seen.control,
        seen.shared,
        seen.centre,
        seen.cells,
        seen.train_cells,
        q,
        seen.noise,
    )
    row = compare_scores({"a": truth, "b": truth * 0}, fewer, n=300).loc[("b", "de_overlap")]
    q.iloc[1:] = 1.0
    assert np.isnan(
        compare_scores({"a": truth}, fewer, n=50)
        .loc[("a", "de_overlap"), ["value", "from", "to"]]
        .to_numpy(float)
    ).tolist() == [False, True, True]
    d = (
        contributions(truth, seen)["de_overlap"][:3, 0]
        - contributions(truth * 0, seen)["de_overlap"][:3, 0]
    )
    assert row.difference_to - row.difference_from > 3 * 2 * d.std() / 3**0.5
    small = compare_scores(
        {"a": truth, "b": truth * 0 + seen.shared}, Observed.table(seen.effects.iloc[:3]), n=300
    )
    assert (
        (small["from"].dropna() >= -np.inf).all()
        and small["to"].drop(index=["mae", "variance_ratio"], level="metric").max() <= 1
        and small["from"]
        .drop(
            index=[
                "ate_r2",
                "ate_r2_top20",
                "ate_rho",
                "ate_rho_top20",
                "pearson_delta_perturbed_mean",
            ],
            level="metric",
        )
        .min()
        >= 0
    )


@pytest.mark.parametrize("N", [2, 3, 5, 20])
def test_variance_ratio_of_the_truth_is_one_for_few(N):
    "Deviations from a mean of N rows hold 1 - 1/N of the noise."
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(N)]
    v = 0.5
    found = []
    for _ in range(40):
        T = pd.DataFrame(rng.normal(size=(N, 200)), names)
        E = T + rng.normal(size=T.shape) * v**0.5
        found.append(
            scores(T, Observed(E, E.iloc[0] * 0, E.mean(), E.mean(), noise=E * 0 + v))[
                "variance_ratio"
            ]
        )
    assert np.mean(found) == pytest.approx(1, abs=0.03)


def test_a_lone_perturbation_has_no_degenerate_scores(screen, truth):
    "Nothing to be told from, nothing to deviate from: missing, not perfect."
    label = screen.obs[Key.perturbation].astype(str)
    o = observe(screen[((label == "G3") | (label == CONTROL)).to_numpy()].copy())
    found = scores(truth.loc[["G3"]], o)
    assert {m for m in METRICS if found[m] is None} == {
        "discrimination",
        "discrimination_both",
        "pearson_delta_perturbed_mean",
        "weighted_mse",
        "variance_ratio",
    }
    assert (
        np.isnan(o.weights).all()
        and compare_scores({"a": truth.loc[["G3"]]}, o, n=20).value.notna().sum()
        == len(METRICS) - 5
    )
    # others lie in the split: its effect is not the mean
    among = scores(truth, observe(screen, "test", ["G3"]))
    assert among["weighted_mse"] > 1e-4 and among["discrimination"] is None


def test_cells_that_cannot_be_scored(tmp_path):
    a = draw()
    X = np.log1p(a.X.toarray() / np.asarray(a.X.sum(1)).reshape(-1, 1) * 1e4)
    plain = ad.AnnData(
        sp.csr_matrix(X),
        obs=pd.DataFrame(
            dict(perturbation=a.obs["gene"].astype(str).to_numpy(object)), index=a.obs_names
        ),
        var=a.var[[]],
    )
    whole = observe_cells(plain, "perturbation", "control")
    for missing in (np.nan, None, "", " "):
        b = plain.copy()
        b.obs["perturbation"] = b.obs["perturbation"].astype(object)
        b.obs.iloc[[0, 9, 20], 0] = missing
        for c in (b, ad.AnnData(b.X, b.obs.astype("category"), b.var)):
            with pytest.raises(
                GpovaeError,
                match=rf"3 of the {a.n_obs} predicted cells have no label in obs\['perturbation'\]",
            ):
                observe_cells(c, "perturbation", "control", "predicted")
    with pytest.raises(GpovaeError, match="no predicted cells"):
        observe_cells(plain[:0], "perturbation", "control", "predicted")
    with pytest.raises(GpovaeError, match="no real genes"):
        observe_cells(plain[:, :0], "perturbation", "control")
    empty = plain.copy()
    empty.layers["lognorm"] = empty.X
    empty.X = None
    with pytest.raises(GpovaeError, match="X of the real cells is empty.*lognorm"):
        observe_cells(empty, "perturbation", "control")
    plain.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(
        observe_cells(
            ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"), "perturbation", "control"
        ).effects,
        whole.effects,
    )


def test_intervals_cover():
    "Of 95 % intervals of a paired difference over 40 perturbations, about 95 % hold the true one."
    rng = np.random.default_rng(0)
    held = 0
    genes = [f"g{j}" for j in range(6)]
    for _ in range(200):
        # perturbations differ in strength: MAE = size x mean |normal|
        size = rng.gamma(2, 1, (40, 1))
        R = pd.DataFrame(rng.normal(size=(40, 6)) * size, [f"p{i}" for i in range(40)], genes)
        row = compare_scores({"none": R * 0, "half": R / 2}, Observed.table(R), n=200).loc[
            ("half", "mae")
        ]
        held += row.difference_from <= 0.5 * 2 * (2 / np.pi) ** 0.5 <= row.difference_to
    assert 0.88 <= held / 200 <= 0.99, held


def test_strata_add_up(seen, truth):
    table = strata({"truth": truth, "none": truth * 0}, seen)
    assert table.index.names == ["by", "stratum", "method"] and list(table) == ["n", *METRICS]
    whole = scores(truth, seen)
    for by in ("effect size", "cells"):
        rows = table.loc[by].xs("truth", level="method")
        assert rows.n.sum() == len(truth) and (
            rows.n * rows.mae
        ).sum() / rows.n.sum() == pytest.approx(whole["mae"])
    sizes = table.loc["effect size"].xs("none", level="method").mae
    assert sizes.is_monotonic_increasing and len(sizes) == 3  # the error of nothing is the effect


def test_a_bare_table_is_scored_too(seen, truth):
    bare = scores(truth, seen.effects, seen.shared)
    full = scores(truth, seen)
    assert {k for k, v in bare.items() if v is None} == {"de_overlap", "weighted_mse"}
    assert {k: v for k, v in bare.items() if v is not None and k != "variance_ratio"} == {
        k: full[k] for k, v in bare.items() if v is not None and k != "variance_ratio"
    }


def test_share_of_way():
    response = pd.DataFrame(
        dict(ate_rho=[0.0, 0.4, 0.8], mae=[0.3, 0.2, 0.1], variance_ratio=[0.0, 1.0, 2.0]),
        index=[NONE, "half", "ceiling"],
    )
    out = share_of_way(
        response, dict(ceiling=0.8, reference=dict(ate_rho=0.7, mae=0.1, variance_ratio=1.2))
    )
    np.testing.assert_allclose(out, [[0, 0], [0.5, 0.5], [1, 1]])
    # halves no better than nothing
    nowhere = share_of_way(
        response, dict(ceiling=0.8, reference=dict(ate_rho=0.7, mae=0.2999, variance_ratio=1.2))
    )
    assert nowhere.mae.isna().all() and nowhere.ate_rho.tolist() == out.ate_rho.tolist()


def test_ties_are_not_broken_by_order():
    D = np.zeros((1, 12))
    rng = np.random.default_rng(0)
    assert len({int(ranks(D, rng)[0].argmin()) for _ in range(200)}) == 12


# ---- what was observed


def test_controls_of_the_same_batches():
    """Batches that shift 150 genes by 0.6 natural log, perturbations spread unevenly.

    The pooled controls credit perturbations with their batch.
    """
    a = draw(5, 90, batches=3)
    truth = observed_effects(draw(2, 1200))
    pooled = a.copy()
    pooled.obs[Key.batch] = "all"

    def error(e):
        return float(((e - truth.loc[e.index, e.columns]) ** 2).to_numpy().mean() ** 0.5)

    assert error(observed_effects(a)) < 0.75 * error(observed_effects(pooled))
    assert observe(a).effects.equals(observed_effects(a))
    one = a[a.obs["lane"] == "1"].copy()
    # one batch: the same
    pd.testing.assert_frame_equal(
        observed_effects(one), observed_effects(pooled[a.obs["lane"] == "1"].copy())
    )


def test_batches_without_controls():
    a = draw(5, 60, batches=3)
    control = (a.obs[Key.perturbation] == CONTROL).to_numpy()
    lane = a.obs[Key.batch].astype(str).to_numpy()
    label = a.obs[Key.perturbation].astype(str).to_numpy()
    a = a[~(control & (lane == "2"))].copy()
    lane, label, control = (v[~(control & (lane == "2"))] for v in (lane, label, control))
    Y = np.log2(1 + 1e4 * a.X.toarray() / a.obs[Key.library_size].to_numpy()[:, None].astype(float))
    mean = {b: Y[control & (lane == b)].mean(0) for b in "01"}
    n = pd.Series(lane[label == "G0"]).value_counts()
    # only cells beside controls count
    beside = Y[(label == "G0") & (lane != "2")]
    want = beside.mean(0) - (n["0"] * mean["0"] + n["1"] * mean["1"]) / (n["0"] + n["1"])
    np.testing.assert_allclose(observed_effects(a).loc["G0"], want, atol=1e-5)
    lost = a[(label != "G2") | (lane == "2")].copy()  # G2 in that batch only
    np.testing.assert_allclose(
        observed_effects(lost).loc["G2"],
        Y[(label == "G2") & (lane == "2")].mean(0) - Y[control].mean(0),
        atol=1e-5,
    )


def test_halves_keep_batches_apart():
    a = draw(5, 60, batches=3)
    x, y = next(halves(a))
    assert pearson(x, y) > 0.3 and np.isfinite(x.to_numpy()).all()
    np.testing.assert_allclose(((x + y) / 2 - observed_effects(a)).to_numpy(), 0, atol=0.4)
    noise = (x - y).to_numpy().std() / 2
    # the controls' share is small
    assert noise == pytest.approx(
        np.sqrt(noise_variance(a, "test").drop(CONTROL).to_numpy().mean()), rel=0.25
    )


def test_significance_equals_scipy(seen):
    a = draw()
    Y = a.X.toarray() / a.obs[Key.library_size].to_numpy()[:, None]
    label = a.obs[Key.perturbation].astype(str).to_numpy()
    for p in ("G0", "G7"):
        pv = mannwhitneyu(
            Y[label == p], Y[label == CONTROL], use_continuity=False, method="asymptotic"
        ).pvalue
        np.testing.assert_allclose(seen.q.loc[p], false_discovery_control(pv), rtol=1e-5)


def test_observed_of_held_out_perturbations(screen):
    a = screen.copy()
    a.obs.loc[a.obs[Key.perturbation] == "G4", Key.split] = "test"
    o = observe(a, "test", ["G4", "G1"])
    assert (
        list(o.effects.index) == ["G1", "G4"]
        and o.train_cells.to_dict() == {"G1": 150, "G4": 0}
        and o.cells["G4"] == 210
    )
    train, n = observed_effects(a, "train"), cells(a, "train").drop(CONTROL)
    np.testing.assert_allclose(o.shared, np.average(train, axis=0, weights=n[train.index]))
    assert "G4" not in train.index


def test_observe_without_training_cells():
    o = observe(draw())
    np.testing.assert_allclose(o.shared, o.effects.mean())
    assert (o.train_cells == 0).all()


def test_ceiling_is_what_the_truth_reaches(screen, seen, truth):
    best = ceiling(screen)
    assert (
        best["ceiling"] == pytest.approx(pearson(truth, seen.effects), abs=0.02)
        and best["half_test"] < best["ceiling"] - 0.1
    )
    assert (
        list(best["reference"]) == list(METRICS)
        and best["half_train"] == best["reference"]["ate_rho"]
        and all(v is not None for v in best["reference"].values())
    )


@pytest.mark.skipif(
    not (SHARED / "conformance").exists(),
    reason=f"{SHARED}/conformance is not here: the copy in tests/data cannot be compared with it",
)
def test_published_numbers_are_those_recorded():
    """tests/data/metrics_published.npz, which test_evaluate.py uses, holds the recorded numbers
    unchanged.
    """
    here, there = (
        np.load(p, allow_pickle=False)
        for p in (FIXTURES / "metrics_published.npz", SHARED / "conformance/metrics.npz")
    )
    keys = [k for k in there.files if k.startswith(("atemetric.", "dataate."))]
    assert keys
    for k in set(keys) & set(here.files):
        np.testing.assert_array_equal(here[k], there[k], err_msg=k)
    assert set(k for k in keys if k.startswith("atemetric.")) <= set(here.files)


# ---- baselines


def test_sums_and_unknown_parts():
    train = pd.DataFrame(
        np.random.default_rng(0).normal(size=(3, 5)), ["A", "A+B", "B"], list("ABXYZ")
    )
    n = pd.Series([10, 20, 30], train.index)
    shared = np.average(train, axis=0, weights=n)
    np.testing.assert_allclose(
        additive(train, n, ["A+B", "A+C", "C", "A"]),
        [train.loc["A"] + train.loc["B"], train.loc["A"] + shared, shared, train.loc["A"]],
    )
    np.testing.assert_allclose(
        training_mean(train, n, ["A+B", "A+C", "C"]),
        [train.loc["A+B"], train.loc["A"] + shared, shared],
    )


def test_ridge_finds_a_linear_truth():
    """Effects that are linear in the embedding of the target are predicted for perturbations that
    were never made; for unmeasured targets, and from few perturbations, it is the mean.
    """
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(80)]
    E = rng.normal(size=(80, 3))
    B = rng.normal(size=(3, 3))
    Y = pd.DataFrame(E @ B @ E.T + 0.5, genes, genes)
    n = pd.Series(10, Y.index)
    seen = genes[:60]
    new = genes[60:]
    found = ridge(Y.loc[seen], n[seen], new + ["NOWHERE"])
    mean = Y.loc[seen].mean()
    assert ((found.loc[new] - Y.loc[new]) ** 2).to_numpy().mean() < 0.3 * (
        (Y.loc[new] - mean) ** 2
    ).to_numpy().mean()
    np.testing.assert_allclose(found.loc["NOWHERE"], mean)
    np.testing.assert_allclose(
        ridge(Y.loc[seen[:5]], n[seen], new), np.repeat([Y.loc[seen[:5]].mean()], 20, 0)
    )


def test_ridge_chooses_by_training_cells(screen):
    changed = screen.copy()
    changed.X = changed.X.copy()
    X = changed.X.toarray()
    X[(changed.obs[Key.split] == "test").to_numpy()] = 1
    changed.X = sp.csr_matrix(X)
    for (name, a), b in zip(baselines(screen).items(), baselines(changed).values()):
        pd.testing.assert_frame_equal(a, b, obj=name)
    assert list(baselines(screen, ["G1", "G2+G3"])) == [
        NONE,
        MEAN,
        "training mean",
        "shrunken training mean",
        "additive (sum of single effects)",
        "ridge (low-rank linear)",
    ]
    assert "additive (sum of single effects)" not in baselines(screen)


# genes that perturbations move so much that they would move the library size
PROGRAMMES = dict(
    schraivogel2020=["HBB", "HBD", "HBE1"], norman2019_small=["AVP", "HBG2", "HBZ", "TMSB4X"]
)


def real(name):
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here: the screen would have to be downloaded (set GPOVAE_DATA)")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("GPOVAE_DATA", str(DATA))
        a = gpovae.datasets.load(name)
    with pytest.warns(UserWarning, match="not among the measured"):
        arguments = gpovae.datasets.prepare_arguments(name)
        register(a, **arguments, size_factor_exclude=PROGRAMMES[name])
    a.obs[Key.fail] = False
    split_cells(a, seed=0)
    return a


@pytest.fixture(scope="module")
def tap():
    return observe(a := real("schraivogel2020")), baselines(a)


def test_tap_seq_baselines(tap):
    "The TAP-seq screen, 14 targets and 72 genes, seed 0."
    o, base = tap
    table = compare_scores(base, o, n=200)["value"].unstack("metric")
    assert table.discrimination[NONE] == pytest.approx(
        0.699, abs=0.01
    ) and table.discrimination_both[NONE] == pytest.approx(0.536, abs=0.01)  # chance is 0.536
    assert (
        table.ate_rho["shrunken training mean"]
        > table.ate_rho["training mean"]
        > table.ate_rho["ridge (low-rank linear)"]
        > table.ate_rho[MEAN]
    )
    assert table.variance_ratio["training mean"] == pytest.approx(
        1, abs=0.25
    ) and table.variance_ratio[MEAN] == pytest.approx(0, abs=1e-9)


def test_pairs_that_were_held_out():
    """Norman et al., 500 genes, five pairs held out.

    The sum of single effects beats the mean of all perturbed cells and no effect, which one
    origin for both sides would hide.
    """
    a = real("norman2019_small")
    pairs = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    hold_out(a, pairs)
    base = baselines(a, pairs)
    o = observe(a, "test", pairs)
    rows = compare_scores(
        {"additive": base.pop("additive (sum of single effects)")} | base, o, n=300
    )["value"].unstack("metric")
    # nothing else is known about them
    pd.testing.assert_series_equal(
        rows.loc["additive"], rows.loc["training mean"], check_names=False
    )
    delta = rows.pearson_delta_perturbed_mean
    assert (
        delta["additive"] == pytest.approx(0.60, abs=0.03)
        and delta[NONE] == pytest.approx(0.0, abs=0.03)
        and delta[MEAN] == 0
        and rows.ate_rho["additive"] > 0.2 > rows.ate_rho[MEAN]
    )

    def published(p):
        return pearson_delta(
            p.loc[pairs].to_numpy(),
            o.effects.loc[pairs].to_numpy(),
            o.shared.to_numpy(),
            o.shared.to_numpy(),
        ).mean()

    assert published(base[NONE]) == pytest.approx(0.39, abs=0.03) and published(
        base["training mean"]
    ) == pytest.approx(0.33, abs=0.03)


def test_scarce_controls_in_a_real_screen():
    """Norman et al., split by cell.

    With one origin for both sides no effect scores like the training mean; with an origin for
    each side it scores nothing.
    """
    o = observe(a := real("norman2019_small"))
    base = baselines(a)
    E = o.effects.to_numpy()
    m = o.shared.to_numpy()
    for name, one, two in ((NONE, 0.31, 0.01), ("training mean", 0.34, 0.43)):
        P = base[name].loc[o.effects.index].to_numpy()
        assert pearson_delta(P, E, m, m).mean() == pytest.approx(one, abs=0.02) and scores(
            base[name], o
        )["pearson_delta_perturbed_mean"] == pytest.approx(two, abs=0.02)
