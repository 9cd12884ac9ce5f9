"""Comparisons of many runs: pairing, intervals, ranks and verdicts with known answers.

How runs are found and told apart; the published figures.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpovae.core.errors import GpovaeError
from gpovae.experiments import ablation as studies
from gpovae.experiments import comparison as compare
from gpovae.experiments import published, scoring
from gpovae.experiments.runs import find_runs, read_runs
from gpovae.train.run import checksum


def table(**methods):
    """Rows as `score_screen` gives them.

    Method=dict((screen, seed) -> ate_rho), seed None where there is no training.
    """
    return pd.DataFrame(
        [
            dict(screen=s, method=m, seed=np.nan if i is None else i, ate_rho=v)
            for m, values in methods.items()
            for (s, i), v in values.items()
        ]
    )


def test_interval_is_students():
    x = np.array([0.3, 0.5, 0.9, 0.4])
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    np.testing.assert_allclose(studies.interval([*x, np.nan]), (x.mean(), *expected))
    assert (
        studies.interval([0.4])[0] == 0.4
        and np.isnan(studies.interval([0.4])[1:]).all()
        and np.isnan(studies.interval([])).all()
    )


def test_pairs_are_of_the_same_screen_and_seed():
    t = table(
        a={("x", 0): 0.1, ("x", 1): 0.2, ("y", 0): 0.3},
        b={("y", 0): 0.6, ("x", 1): 0.4},
        mean={("x", None): 0.5, ("y", None): 0.7},
    )
    wide = compare.paired(t, "ate_rho")
    assert list(wide) == ["a", "b", "mean"]
    assert wide["mean"].to_dict() == {("x", 0): 0.5, ("x", 1): 0.5, ("y", 0): 0.7} and np.isnan(
        wide.loc[("x", 0), "b"]
    )
    d = compare.differences(t).set_index(["a", "b"])
    assert (
        d.loc[("a", "b"), "difference"] == pytest.approx(((0.2 - 0.4) + (0.3 - 0.6)) / 2)
        and d.loc[("a", "b"), "n"] == 2
    )
    # seeds averaged within x first
    assert d.loc[("a", "mean"), "difference"] == pytest.approx(((0.15 - 0.5) + (0.3 - 0.7)) / 2)


def test_seeds_are_no_screens():
    """However many seeds, two screens give one degree of freedom.

    A paired test over screens is what the interval must be.
    """
    rng = np.random.default_rng(0)
    screens = dict(x=0.05, y=0.15)
    noise = rng.normal(0, 0.001, (2, 20))
    t = table(
        a={
            (s, i): 0.5 + d + noise[k, i]
            for k, (s, d) in enumerate(screens.items())
            for i in range(20)
        },
        b={(s, i): 0.5 for s in screens for i in range(20)},
    )
    d = compare.differences(t).iloc[0]
    means = [d_ + noise[k].mean() for k, d_ in enumerate(screens.values())]
    assert (d["n"], d["over"], d["sure"]) == (2, "screens", 0)
    np.testing.assert_allclose(
        d[["difference", "from", "to"]].astype(float),
        [np.mean(means), *stats.ttest_1samp(means, 0).confidence_interval(0.95)],
    )
    alone = compare.differences(t[t.screen == "x"]).iloc[0]
    assert (alone["n"], alone["over"], alone["sure"]) == (20, "seeds", 1)


def test_without_a_difference_five_percent_are_sure():
    rng = np.random.default_rng(0)
    n = 600
    sure = []
    for _ in range(n):
        level = rng.normal(0, 1, 5)  # screens differ far more than methods do
        t = table(
            a={(str(s), 0): level[s] + rng.normal(0, 0.1) for s in range(5)},
            b={(str(s), 0): level[s] + rng.normal(0, 0.1) for s in range(5)},
        )
        sure.append(compare.differences(t)["sure"].iloc[0])
    share = np.mean(np.abs(sure))
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / n)


def test_sure_needs_every_interval():
    t = table(a={("x", 0): 0.50, ("x", 1): 0.51}, b={("x", 0): 0.40, ("x", 1): 0.41})

    def drawn(low, high):
        return pd.DataFrame([dict(metric="ate_rho", a="a", b="b", drawn_from=low, drawn_to=high)])

    assert [
        compare.differences(t, d)["sure"].iloc[0]
        for d in (None, drawn(0.02, 0.2), drawn(-0.02, 0.2), drawn(-0.2, -0.02))
    ] == [1, 1, 0, 0]
    one = t[t.seed == 0]
    assert [
        compare.differences(one, d)["sure"].iloc[0]
        for d in (None, drawn(0.02, 0.2), drawn(-0.2, -0.02))
    ] == [0, 1, -1]  # one run each: perturbations alone decide


def test_baselines_have_no_seeds():
    t = table(
        a={("x", i): 0.5 + i / 100 for i in range(5)},
        mean={("x", None): 0.3},
        shrunken={("x", None): 0.4},
    )
    d = compare.differences(t).set_index(["a", "b"])
    # five equal differences are one
    assert d.loc[("mean", "shrunken"), "n"] == 1 and d.loc[("mean", "shrunken"), "sure"] == 0
    assert d.loc[("a", "shrunken"), "n"] == 5 and d.loc[("a", "shrunken"), "sure"] == 1
    s = compare.summary(t)
    assert s.loc[("mean", "ate_rho"), "n"] == 1 and np.isnan(s.loc[("mean", "ate_rho"), "from"])


@pytest.mark.parametrize("metric", [m for m in scoring.SCORED if scoring.BEST[m] < 0])
def test_less_is_better(metric):
    t = table(
        low={("x", i): 0.2 + i / 1000 for i in range(3)}, high={("x", i): 0.3 for i in range(3)}
    ).rename(columns=dict(ate_rho=metric))
    d = compare.differences(t)
    s = compare.summary(t)
    assert d["difference"].iloc[0] < 0 and d["sure"].iloc[0] == 1
    assert compare.standing(d, s, metric) == dict(best="low", level=[], behind=["high"])
    assert compare.average_ranks(t).iloc[:, 0].to_dict() == dict(low=1, high=2)


def test_ranks_of_ties_gaps_and_ratios():
    t = table(
        a={("x", 0): 0.9, ("y", 0): 0.5},
        b={("x", 0): 0.9, ("y", 0): 0.4},
        c={("x", 0): 0.1, ("y", 0): 0.6},
        gap={("x", 0): 1.0},
    )
    r = compare.average_ranks(t)["ATE-rho"]
    assert (
        r.dropna().to_dict() == dict(a=(1.5 + 2) / 2, b=(1.5 + 3) / 2, c=(3 + 1) / 2)
        and "gap" not in r.dropna()
    )
    for ratio in (m for m in scoring.SCORED if scoring.BEST[m] == 0):  # one is best
        t = table(half={("x", 0): 0.5}, one={("x", 0): 1.1}, twice={("x", 0): 2.0}).rename(
            columns=dict(ate_rho=ratio)
        )
        assert compare.average_ranks(t).iloc[:, 0].to_dict() == dict(half=2, one=1, twice=3)
        assert compare.differences(t.rename(columns={ratio: "mae"}).assign(**{ratio: 1.0}))[
            "metric"
        ].unique().tolist() == ["mae"]


def test_verdict_says_what_is_known():
    t = table(
        a={("x", i): 0.8 + i / 1000 for i in range(3)},
        b={("x", i): 0.6 + i / 1000 for i in range(3)},
        mean={("x", None): 0.8},
    )
    words = compare.verdict(compare.differences(t), compare.summary(t))
    assert "a in 1 of 1, b in 0 of 1; without training: mean in 1 of 1 questions" in words
    assert "ATE-rho: a (0.801), which cannot be told apart from mean (0.800)." in words
    apart = t[t.method != "mean"]
    assert "ATE-rho: a (0.801), ahead of all others beyond doubt." in compare.verdict(
        compare.differences(apart), compare.summary(apart)
    )


def test_runs_are_found_once_and_named(tmp_path):
    for name in ("s/a", "s/b", "lr=0.1/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "settings.json").write_text("{}")

    def names(text):
        return [(n, str(p.relative_to(tmp_path))) for n, p in find_runs(text)]

    assert names(f"{tmp_path}/s/b,{tmp_path}/s") == [("", "s/b"), ("", "s/a")]
    # an equals sign in a folder that exists
    assert names(f"{tmp_path}/lr=0.1") == [("", "lr=0.1/a")]
    assert names(f" short = {tmp_path}/s/* ") == [("short", "s/a"), ("short", "s/b")]
    for text, message in (
        (f"{tmp_path}/nowhere", "no run at .*nowhere"),
        ("", "No run was named"),
        (f"x={tmp_path}/nowhere", "no run at"),
    ):
        with pytest.raises(GpovaeError, match=message):
            find_runs(text)


def test_what_cannot_be_used_is_named(run_folder, tmp_path):
    def copy(name, change=None, text=None):
        shutil.copytree(run_folder / "run", tmp_path / name)
        f = tmp_path / name / "settings.json"
        told = json.loads(f.read_text()) | (change or {})
        f.write_text(text if text is not None else json.dumps(told | dict(checksum=checksum(told))))

    copy("a")
    copy("again")
    copy("damaged", text="{")
    copy("empty", text="{}")
    copy("gone", dict(data="/nowhere.h5ad"))
    copy("never", dict(data=None))
    copy("other", dict(cells="0" * 16))
    copy("renamed")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/settings.json").write_text("[]")
    copy("text", dict(data=str(tmp_path / "notes/settings.json")))
    runs, out = read_runs(find_runs(f"{tmp_path}/[!r]*, second={tmp_path}/renamed"))
    assert runs[["method", "seed"]].to_numpy().tolist() == [
        ["corrected", 0],
        ["second", 0],
    ] and runs.screen.unique().tolist() == ["prepared"]
    why = {k.rsplit("/", 1)[1]: v for k, v in out.items()}
    assert sorted(why) == ["again", "damaged", "empty", "gone", "never", "notes", "other", "text"]
    assert (
        "screen is gone" in why["gone"]
        and "screen is gone" in why["never"]
        and "prepared anew" in why["other"]
        and "same screen, method and seed" in why["again"]
    )
    with pytest.raises(GpovaeError, match="None of the runs can be used. .*gone.*screen is gone"):
        read_runs([("", tmp_path / "gone")])


def test_baselines_are_scored_once_and_models_as_alone(run_folder):
    from gpovae import GPOVAE

    runs, _ = read_runs([("one", run_folder / "run"), ("two", run_folder / "run")])
    scored, drawn, screens = scoring.score_runs(runs, n=50)
    alone = GPOVAE.load(run_folder / "run").evaluate()
    wide = scored.set_index("method")
    assert wide.index.is_unique and (wide.loc["one", "ate_rho"] == wide.loc["two", "ate_rho"])
    for name, key in {"one": "model", "shrunken training mean": "shrunken training mean"}.items():
        for m in ("ate_rho", "discrimination", "mae"):
            assert wide.loc[name, m] == pytest.approx(alone.response.loc[key, m], abs=1e-6), (
                name,
                m,
            )
    assert screens.ceiling.iloc[0] == pytest.approx(alone.ceiling["ceiling"])
    d = compare.differences(scored, drawn).set_index(["metric", "a", "b"])
    same = d.loc[("ate_rho", "one", "two")]
    assert same["difference"] == 0 and same["sure"] == 0
    pair = d.loc[("ate_rho", "one", "no effect (control mean)")]
    assert pair["drawn_from"] <= pair["difference"] <= pair["drawn_to"] and np.isnan(pair["from"])


def test_published_figures_and_finding():
    assert published.PUBLISHED.loc["K562"].tolist() == [
        0.766,
        0.570,
        0.322,
        0.248,
        0.022,
        2888,
    ] and published.HELD_OUT.loc["Adamson"].tolist() == [0.747, 0.007, 0.814, 0.818]
    assert "Second hand" in published.SOURCE and "784cbec" in published.SOURCE

    def runs(d):
        return pd.DataFrame(
            [
                dict(
                    screen=s,
                    seed=i,
                    method=m,
                    cells="test",
                    ate_rho=0.5 + (v if m == "training mean" else 0),
                )
                for s, values in d.items()
                for i, v in enumerate(values)
                for m in ("paper", "training mean")
            ]
        )

    found = published.finding(
        runs(dict(RPE1=[0.1, 0.11, 0.12], K562=[-0.1, -0.11, -0.12], Adamson=[0.3]))
    )
    assert {k: f["word"] for k, f in found.items()} == dict(
        RPE1="reproduced", K562="refuted", Adamson="undecided", all="undecided"
    )
    words = published.finding_sentence(found)
    assert (
        "reproduced (+0.110, 95 % interval +0.085 to +0.135 over 3 seeds) on RPE1" in words
        and "one run, no interval) on Adamson" in words
    )
    t = published.finding(runs(dict(RPE1=[0.1, 0.2], K562=[0.1, 0.2])))
    # two screens that agree
    np.testing.assert_allclose([t["all"]["value"], t["all"]["from"]], [0.15, 0.15])


@pytest.mark.parametrize(
    "text, message",
    [
        ("HeLa=x.h5ad", "no data set 'HeLa' in the paper. There is: RPE1, K562, Adamson"),
        ("RPE1=nowhere.h5ad", "no such file"),
        ("nowhere.h5ad", "no data set"),
        ("RPE1", "no such file"),
    ],
)
def test_screens_of_the_paper_are_named(text, message):
    with pytest.raises(GpovaeError, match=message):
        published.named_screens(text)


def test_screens_of_the_paper_are_prepared_ones(run_folder):
    path = run_folder / "prepared.h5ad"
    assert published.named_screens(f"RPE1={path}, Adamson = {path}") == dict(
        RPE1=str(path), Adamson=str(path)
    )
    with pytest.raises(GpovaeError, match="named twice"):
        published.named_screens(f"RPE1={path},RPE1={path}")
    with pytest.raises(GpovaeError, match="was not prepared"):
        published.named_screens(f"RPE1={run_folder / 'raw.h5ad'}")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A screen and a run on it.

    Without one gene, and without one pair, both parts of which were trained.
    """
    import gpovae

    folder = tmp_path_factory.mktemp("held")
    adata = gpovae.datasets.simulated(n_cells=1500, n_genes=60, n_perturbations=6, seed=1)
    labels = adata.obs["gene"].astype(str).to_numpy()
    gene, a, b, c, *_ = sorted(set(labels) - {"non-targeting"})
    pair = f"{a}+{b}"
    rng = np.random.default_rng(0)
    for part, name in ((a, pair), (b, f"{b}+{c}")):
        labels[rng.permutation(np.flatnonzero(labels == part))[:80]] = name
    adata.obs["gene"] = labels
    gpovae.prepare(
        adata,
        perturbation_key="gene",
        control="non-targeting",
        held_out=[gene, pair],
        doublets=False,
        progress=False,
    )
    adata.write_h5ad(folder / "screen.h5ad")
    model = gpovae.GPOVAE(adata)
    model.train(max_epochs=2, progress=False)
    model.save(folder / "run", data=folder / "screen.h5ad")
    return folder, model, {gene, pair}


def test_held_out_perturbations_leave_the_comparison_as_they_leave_evaluate(held_out):
    folder, model, held = held_out
    runs, _ = read_runs(find_runs(str(folder / "run")))
    scored, _, screens = scoring.score_runs(runs, n=20)
    alone = model.evaluate(thorough=False)
    wide = scored.set_index("method")
    assert set(alone.evidence.index) == held == set(
        screens.skipped.iloc[0]
    ) and screens.perturbations.iloc[0] == len(model.labels)
    assert screens.ceiling.iloc[0] == pytest.approx(alone.ceiling["ceiling"], abs=1e-9)
    name = runs.method[0]
    for method, row in {
        name: "model",
        "shrunken training mean": "shrunken training mean",
        "ridge (low-rank linear)": "ridge (low-rank linear)",
    }.items():
        for m in scoring.METRICS:
            assert wide.loc[method, m] == pytest.approx(
                alone.response.loc[row, m], abs=1e-6, nan_ok=True
            ), (method, m)
    for method, row in {
        name: "model",
        "mean difference": "mean difference",
        "z-score": "z-score",
    }.items():
        for m in set(scoring.NETWORK) - {"auprc"}:
            assert wide.loc[method, m] == pytest.approx(alone.network.loc[row, m], abs=1e-9), (
                method,
                m,
            )
        assert wide.loc[method, "auprc"] == pytest.approx(alone.truth.loc[("direct", row), "auprc"])


def test_the_papers_table_of_a_screen_with_held_out_perturbations(held_out):
    folder, model, held = held_out
    runs = published.paper_runs(dict(RPE1={0: folder / "screen.h5ad"}), max_epochs=1)
    rows = runs.set_index(["method", "cells"])
    assert {"paper", "corrected", "training mean"} <= set(
        runs.method
    ) and runs.ate_rho.notna().all()
    assert rows.loc[("ceiling", "test"), "ate_rho"] == pytest.approx(
        model.evaluate(thorough=False).ceiling["ceiling"], abs=1e-9
    )


def test_folders_with_commas(tmp_path):
    for name in ("a,b", "a", "b", "c[1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text("{}")

    def names(text):
        return [(n, str(p.relative_to(tmp_path))) for n, p in find_runs(text)]

    assert names(f"{tmp_path}/a,b") == [("", "a,b")] and names(f"x = {tmp_path}/a,b") == [
        ("x", "a,b")
    ]
    assert names(f"{tmp_path}/a,{tmp_path}/b") == [("", "a"), ("", "b")]
    assert names(f"{tmp_path}/a,b\n{tmp_path}/b\n{tmp_path}/c[1]\n") == [
        ("", "a,b"),
        ("", "b"),
        ("", "c[1]"),
    ]
    with pytest.raises(GpovaeError, match="no run at .*nowhere"):
        # longer than a name may be
        find_runs(",".join([f"{tmp_path}/a"] * 200 + ["nowhere"]))
