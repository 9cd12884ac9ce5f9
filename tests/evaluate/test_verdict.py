"""What a whole evaluation does with names that clash, lists that match nothing.

Targets that nobody measured, and a single held-out perturbation.
"""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.screen import Key
from gpovae.evaluate.observed import observe
from gpovae.evaluate.rankings import mean_difference
from gpovae.evaluate.scores import evaluate


def prepared(**how):
    more = {k: how.pop(k) for k in ("held_out",) if k in how}
    adata = gpovae.datasets.simulated(
        **dict(n_cells=1500, n_genes=80, n_perturbations=8, seed=0) | how
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gpovae.prepare(adata, perturbation_key="gene", doublets=False, progress=False, **more)
    return adata


@pytest.fixture(scope="module")
def screen():
    return prepared(held_out=["MYC"])


@pytest.fixture(scope="module")
def effects(screen):
    return observe(screen, "test").effects


def test_five_points_of_one_number_each(screen, effects):
    seen = effects.drop(index="MYC")
    edges = mean_difference(screen).assign(probability=0.9).head(10)
    noise = np.random.default_rng(0).normal(0, 1, seen.shape)
    more = dict(unseen=effects.loc[["MYC"]], thorough=False)
    found = evaluate(screen, seen + noise, edges, others={"run": seen}, **more)
    points = found.verdict().split("\n")
    numbers = [re.findall(r"[+-]?\d[\d.]*", p) for p in points]
    assert [len(n) for n in numbers] == [1, 1, 1, 1, 1], points
    # what is said is what was measured
    rho, run = found.response["ate_rho"][["model", "run"]]
    assert float(numbers[0][0].rstrip(".")) == round(rho, 2)
    assert (
        float(numbers[2][0]) == round(rho - run, 3) and "worse than the strongest, run" in points[2]
    )
    assert float(numbers[1][0]) == round(100 * rho / found.ceiling["ceiling"])
    share = found.network["true_positive_share"]["model"]
    assert float(numbers[4][0]) == round(100 * share)
    html = found._repr_html_()
    assert html.count("<li>") == 5 and html.index("<details>") < html.index("<table")
    # names of other models are text
    named = evaluate(screen, seen + noise, others={"<b>": seen}, **more)
    assert "<b>," not in named._repr_html_().split("<table")[0]


@pytest.mark.parametrize("name", ["model", "training mean"])
def test_a_name_stands_for_one_row(screen, effects, name):
    seen = effects.drop(index="MYC")
    with pytest.raises(GpovaeError, match=f"cannot be called '{name}'"):
        evaluate(screen, seen, others={name: seen}, unseen=effects.loc[["MYC"]])


def test_one_held_out_perturbation_is_no_verdict(screen, effects):
    found = evaluate(
        screen,
        effects.drop(index="MYC"),
        unseen=effects.loc[["MYC"]],
        evidence=pd.Series(["trained"], ["MYC"]),
    )
    text = found.details().split("held out of training")[1]
    assert (
        "too few to tell it from" in text
        and "level with" not in text
        and "nan" not in text
        and "1 from trained parts" in text
    )
    assert (
        found.unseen["from"].isna().all()
        and "MYC" not in found.cells
        and json.loads(found.to_json())["unseen"]["model"]["discrimination"]["value"] is None
    )


def test_a_list_that_matches_nothing_is_left_out(screen, effects):
    edges = mean_difference(screen).assign(probability=0.9).head(40)
    lists = dict(
        nothing=pd.DataFrame(dict(source=["XXX1"], target=["XXX2"], sign=0, directed=True)),
        own=edges[["source", "target", "sign"]].assign(directed=True),
    )
    with pytest.warns(UserWarning, match="nothing is left out"):
        found = evaluate(
            screen,
            effects.drop(index="MYC"),
            edges,
            unseen=effects.loc[["MYC"]],
            known=lists,
            thorough=False,
        )
    assert (
        set(found.biology.index.get_level_values(0)) == {"own"}
        and found.biology.loc["own"].precision["model"] == 1
        and (found.found["known"] == "own").all()
    )
    assert (
        not set(found.truth.columns)
        - {"auprc", "chance", "early_precision", "sign_accuracy", "true_edges", "found"}
        and "held out" in found.details()
    )


def test_better_networks_are_better_by_their_interval(screen, effects):
    truth = screen.uns[Key.truth]
    W = (
        pd.DataFrame(truth["direct"], truth["genes"], truth["genes"])
        .rename_axis("source")
        .rename_axis(columns="target")
        .stack()
        .rename("weight")
        .reset_index()
        .query("weight != 0 and source != 'MYC'")
    )
    found = evaluate(
        screen,
        effects.drop(index="MYC"),
        W.assign(probability=0.9, sign=np.sign(W.weight)),
        unseen=effects.loc[["MYC"]],
        thorough=False,
    )
    d = found.truth_difference
    assert (
        found.truth.loc["direct"].auprc["model"] > 1 - 1e-9
        and d["from"]["random"] > 0
        and "better than" in found.details().split("AUPRC")[1]
    )
    assert (
        (d["from"] <= d["difference"]).all()
        and (d["difference"] <= d["to"]).all()
        and {"mean difference", "random"} <= set(found.network_difference.index)
    )


def test_targets_that_nobody_measured():
    adata = prepared(n_perturbations=4, unmeasured=4)
    seen = observe(adata, "test").effects
    found = evaluate(
        adata,
        seen,
        pd.DataFrame(
            dict(source=seen.index[:1], target=seen.columns[:1], weight=1.0, probability=0.9)
        ),
        thorough=False,
    )
    assert found.response.ate_rho["model"] > 0.999 and "perturbations" in found.details()
    json.loads(found.to_json())
    str(found)


def test_a_perturbation_without_passing_training_cells():
    adata = prepared()
    adata.obs.loc[
        (adata.obs[Key.perturbation] == "MYC") & (adata.obs[Key.split] == "train"), Key.fail
    ] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = gpovae.GPOVAE(adata)
    with pytest.warns(UserWarning, match="MYC"):
        model.train(max_epochs=1, progress=False)
    assert "MYC" not in model.predict().obs_names
