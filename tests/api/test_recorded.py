"""What was recorded, today's code gives: effects, network and scores of the demo as of 0.3.0, whose
split follows the names of the cells; and the network of a table of 0.1.0.

Where a change is meant, `python tests/fixtures/v0.3.0/record.py` records anew.
"""

import json

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.data.responses import Responses
from gpovae.network.regression import fit_network

from places import FIXTURES

RECORDED = FIXTURES / "v0.3.0"


@pytest.fixture(scope="module")
def demo():
    "The model that `gpovae demo` trains, seed 0, without what came later: simple methods."
    adata = gpovae.datasets.load("simulated")
    arguments = gpovae.datasets.prepare_arguments("simulated")
    gpovae.prepare(adata, seed=0, progress=False, **arguments)
    settings = gpovae.datasets.entry("simulated").settings | dict(combination=False)
    model = gpovae.GPOVAE(adata, **settings)
    model.train(seed=0, progress=False)
    return model


@pytest.fixture(scope="module")
def recorded():
    return np.load(RECORDED / "demo.npz", allow_pickle=False)


def test_effects_of_the_demo(demo, recorded):
    predicted = demo.predict()
    assert list(predicted.obs.perturbation) == list(recorded["names"])
    np.testing.assert_allclose(predicted.X, recorded["effect"], atol=1e-6)
    np.testing.assert_allclose(predicted.layers["spread"], recorded["spread"], atol=1e-6)
    np.testing.assert_allclose(demo.history.validation_loss, recorded["loss"], rtol=1e-6)


def test_network_of_the_demo(demo):
    before = pd.read_csv(RECORDED / "demo_network.csv").set_index(["source", "target"])
    today = demo.network(min_probability=0).set_index(["source", "target"]).loc[before.index]
    for column in ("weight", "probability", "sign"):
        np.testing.assert_allclose(today[column], before[column], atol=1e-6)


def differences(today, before, path=""):
    "Places in which two JSON documents differ by more than 1e-6."
    if isinstance(before, dict):
        return [d for k in before for d in differences(today[k], before[k], f"{path}/{k}")]
    if isinstance(before, list):
        assert len(today) == len(before), path
        pairs = zip(today, before)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{path}/{i}")]
    if isinstance(before, float):
        return [] if today == pytest.approx(before, abs=1e-6) else [path]
    return [] if today == before else [path]


def test_scores_of_the_demo(demo):
    before = json.loads((RECORDED / "demo_scores.json").read_text())
    # recorded anew in 0.6.0: discrimination_both, taken at equal size, and the verdict on it
    assert not differences(json.loads(demo.evaluate(seed=0).to_json()), before)


def test_the_comparison_can_fail(recorded):
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(recorded["effect"] + 1e-5, recorded["effect"], atol=1e-6)
    before = json.loads((RECORDED / "demo_scores.json").read_text())
    changed = json.loads((RECORDED / "demo_scores.json").read_text())
    metric = next(iter(changed["response"]["model"]))
    changed["response"]["model"][metric] += 1e-5
    assert differences(changed, before) == [f"/response/model/{metric}"]


def test_network_of_the_tapseq_table():
    """The table of responses of Schraivogel 2020, as 0.1.0 prepared it.

    The fit is that of 0.3.0: since then a dose is own change, error and kind combined.
    """
    table = np.load(FIXTURES / "v0.1.0" / "tapseq.npz", allow_pickle=False)
    names = table["perturbation"]
    nodes = pd.Index(table["nodes"])
    responses = Responses(table["lfc"], table["se"], table["cells"], names, nodes)
    fit = fit_network(responses, seed=0, progress=False)
    before = np.load(RECORDED / "tapseq.npz")
    for name in ("probability", "effect", "std", "density", "calibration"):
        np.testing.assert_allclose(getattr(fit, name), before[name], atol=1e-6)
