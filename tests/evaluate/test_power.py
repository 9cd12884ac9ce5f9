"""What is promised is achieved, more cells see more, and the shell says the same."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import false_discovery_control, mannwhitneyu

import gpovae
from gpovae import GpovaeError
from gpovae.app.cli import main
from gpovae.core.progress import Bar
from gpovae.data.nodes import responding
from gpovae.data.planned import PowerOptions
from gpovae.data.rank_sum import rank_sum_test
from gpovae.data.responses import comparable
from gpovae.data.screen import Screen
from gpovae.data.simulate import true_lfc
from gpovae.evaluate.power import Plan, read_pilot
from gpovae.evaluate.rank_power import EFFECTS, Design, moments_of, normal_of, responds, significant

QUIET = dict(progress=False)


@cache
def screen_of(seed: int, **size):
    size = dict(n_cells=2500, n_genes=200, n_perturbations=15) | size
    adata = gpovae.datasets.simulated(seed=seed, **size)
    gpovae.prepare(adata, "gene", "non-targeting", doublets=False, **QUIET)
    return adata


@pytest.fixture(scope="module")
def adata():
    return screen_of(3)


@pytest.fixture(scope="module")
def plan(adata):
    return Plan.of(read_pilot(Screen(adata)), PowerOptions(), (0.01, 0.25), Bar(disable=True))


def promised_and_achieved(adata, halved: bool = False) -> np.ndarray:
    "Means over the truly changed genes of all perturbations, the targets left out."
    screen = Screen(adata)
    found = responding(screen, 0.25, 0.01) >= 0
    labels = list(found.index)
    pilot = read_pilot(screen)
    plan = Plan.of(pilot, PowerOptions(), (0.01, 0.25), Bar(disable=True))
    effects = true_lfc(adata.uns["gpovae_truth"], labels, screen.genes) / np.log(2)
    pairs = []
    for row, label in enumerate(labels):
        by_gene = plan.by_gene(row)
        for j in np.flatnonzero((np.abs(effects[row]) > 0.25) & (screen.genes != label)):
            effect = effects[row, j] / (2 if halved else 1)
            pairs.append((np.interp(effect, EFFECTS, by_gene[j]), found.iloc[row, j]))
    return np.mean(pairs, axis=0)


@pytest.mark.parametrize("kind", [dict(seed=3), dict(seed=4, n_batches=2, depth=2000.0)])
def test_promised_power_is_achieved(kind):
    adata = screen_of(**kind)
    promised, achieved = promised_and_achieved(adata)
    assert abs(promised - achieved) < 0.05 and 0.2 < achieved < 0.9
    # the comparison can tell: half of the effects are not half as easily seen
    wrong, _ = promised_and_achieved(adata, halved=True)
    assert wrong < achieved - 0.15


def test_power_of_the_normal_approximation_is_that_of_drawn_cells():
    rng = np.random.default_rng(0)
    library = np.quantile(rng.lognormal(0, 0.3, 10_000), (np.arange(16) + 0.5) / 16)
    moments = moments_of(2.0, 0.2, library)
    normal = normal_of(moments, Design.of(np.array([60.0]), np.array([200.0])), library)
    k = list(EFFECTS).index(-0.8)
    bound = 1e-3

    def drawn(mean, n):
        sizes = rng.choice(library, n)
        return rng.poisson(mean * sizes * rng.gamma(5, 0.2, n)) / sizes

    hits = []
    for _ in range(1500):
        x, y = drawn(2.0 * 2**-0.8, 60), drawn(2.0, 200)
        p = mannwhitneyu(x, y, method="asymptotic", use_continuity=False).pvalue
        hits.append((p < bound, p < bound and np.log2(x.mean() / y.mean()) < -0.8))
    seen, called = np.mean(hits, axis=0)
    assert significant(normal, bound)[k] == pytest.approx(seen, abs=0.035)
    assert responds(normal, bound, 0.8)[k] == pytest.approx(called, abs=0.035)
    assert seen - called > 0.1  # the second criterion is seen


def test_more_cells_controls_depth_and_effect_are_seen_better(adata):
    plans = [
        [dict(cells=n) for n in (20, 200)],
        [dict(cells=100, controls=n) for n in (50, 2000)],
        [dict(cells=100, depth=float(d)) for d in (200, 5000)],
    ]
    for planned in plans:
        results = [gpovae.power(adata, **one, **QUIET) for one in planned]
        average = [result.curve["power"].to_numpy() for result in results]
        for less, more in zip(average, average[1:], strict=False):
            assert (more >= less - 1e-3).all() and more.max() > less.max() - 1e-9
            assert more[4] > less[4] + 0.01, planned
    for column in ("decrease", "increase", "power"):
        assert (np.diff(results[-1].curve[column]) >= -1e-6).all()
    smallest = results[-1].by_cells["smallest"].dropna()
    assert (np.diff(smallest) < 0).all() and len(smallest) > 8


def test_limits(adata, plan):
    enormous = gpovae.power(adata, cells=200_000, controls=200_000, depth=1e5, **QUIET)
    # nothing is seen that is estimated to change by less than min_lfc, all else is
    assert enormous.overall["smallest"] == pytest.approx(0.25, abs=0.06)
    nearly_nothing = gpovae.power(adata, cells=2, controls=2, **QUIET)
    assert np.isnan(nearly_nothing.overall["smallest"])
    assert nearly_nothing.curve["power"].max() < 0.05
    lenient = gpovae.power(adata, min_lfc=0.0, alpha=0.9, chance=0.05, **QUIET)
    assert lenient.overall["smallest"] < 0.3
    # without an effect, no more than the test allows is significant
    grid = plan.situation.grid
    normal = normal_of(grid.moments, plan.design(0), grid.library)
    no_effect = significant(normal, 0.01)[..., list(EFFECTS).index(0)]
    assert no_effect.max() < 0.02 and no_effect.min() > 0.005


def test_the_bound_is_that_of_benjamini_and_hochberg(adata, plan):
    screen = Screen(adata)
    p = rank_sum_test(screen, comparable(screen, screen.rows("train", fail=False)))
    found = (false_discovery_control(p, axis=1) < 0.01).sum(1)
    table = gpovae.power(adata, **QUIET).table
    predicted = table["largest_p_value"] * p.shape[1] / 0.01 - 1
    assert np.corrcoef(found, predicted)[0, 1] > 0.9
    assert predicted.mean() == pytest.approx(found.mean(), rel=0.3)
    assert (table["responders"] <= table["changed_genes"]).all()


def test_fewer_genes_are_better_ones(adata):
    everything = gpovae.power(adata, **QUIET)
    best = gpovae.power(adata, genes=50, **QUIET)
    assert best.plan["genes"] == 50 and everything.pilot is None
    assert best.overall["smallest"] < everything.overall["smallest"]
    pd.testing.assert_frame_equal(best.pilot.table, everything.table)


def test_each_perturbation_is_judged_by_its_cells(adata):
    table = gpovae.power(adata, **QUIET).table.set_index("perturbation")
    screen = Screen(adata)
    passing = pd.Series(screen.labels[screen.rows(fail=False)]).value_counts()
    assert (table["cells"] == passing[table.index]).all()
    trained = pd.Series(screen.labels[screen.rows("train", fail=False)]).value_counts()
    assert (table["tested_cells"] == trained[table.index]).all()
    assert (table["tested_controls"] == trained["control"]).all()
    few, many = table["cells"].idxmin(), table["cells"].idxmax()
    assert table.loc[few, "smallest"] > table.loc[many, "smallest"]


WRONG = {
    "cells": [1, 10.5, "many"],
    "controls": [0],
    "depth": [0.0, float("nan")],
    "genes": [0, 201],
    "chance": [0.0, 1.0],
    "alpha": [0.0, 1.5],
    "min_lfc": [-0.1],
}


@pytest.mark.parametrize("name, value", [(k, v) for k, values in WRONG.items() for v in values])
def test_numbers_that_cannot_be_are_refused(adata, name, value):
    with pytest.raises(GpovaeError, match=f"{name}=.* is not possible"):
        gpovae.power(adata, **{name: value}, **QUIET)


def test_a_raw_screen_is_refused(tmp_path):
    raw = gpovae.datasets.simulated(n_cells=300, n_genes=60, n_perturbations=3)
    with pytest.raises(GpovaeError, match="prepare"):
        gpovae.power(raw, **QUIET)
    raw.write_h5ad(tmp_path / "raw.h5ad")
    status, text = shell("power", tmp_path / "raw.h5ad")
    assert status == 2 and "prepare" in text and "Traceback" not in text


def shell(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout if result.exit_code == 0 else result.output


def test_the_shell_answers_as_python(adata, tmp_path):
    file = tmp_path / "prepared.h5ad"
    adata.write_h5ad(file)
    expected = gpovae.power(adata, cells=300, **QUIET)
    words = ["power", file, "--cells", 300, "--quiet"]
    values = json.loads(shell(*words, "--json")[1])
    assert values["overall"]["smallest"] == pytest.approx(expected.overall["smallest"], abs=1e-4)
    assert values["pilot"]["overall"]["smallest"] > values["overall"]["smallest"]
    assert [row["perturbation"] for row in values["perturbations"]] == list(
        expected.table["perturbation"]
    )
    table, figure = tmp_path / "power.csv", tmp_path / "power.svg"
    status, text = shell(*words, "--out", table, "--figure", figure)
    assert status == 0 and "Planned" in text and f"{expected.overall['smallest']:.2f}" in text
    written = pd.read_csv(table)
    np.testing.assert_allclose(written["smallest"], expected.table["smallest"], rtol=1e-3)
    assert "<svg" in figure.read_text()
    status, text = shell("power", file, "--cells", 1)
    assert status == 2 and "--cells" in text
    status, text = shell("power", file, "--figure", "power.doc")
    assert status == 2 and "power.doc" in text


def test_what_is_never_seen_is_null_in_json(adata, tmp_path):
    file = tmp_path / "prepared.h5ad"
    adata.write_h5ad(file)
    status, text = shell("power", file, "--cells", 2, "--json", "--quiet")
    values = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert status == 0 and values["overall"]["smallest"] is None
    assert "no effect" in shell("power", file, "--cells", 2, "--quiet")[1]
