"What one function returns, another one takes."

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae import plots
from gpovae.core.errors import GpovaeError
from gpovae.data.screen import Screen
from gpovae.evaluate.effects import observed_effects
from gpovae.evaluate.response import scores
from gpovae.evaluate.scores import evaluate


@pytest.fixture(scope="module")
def model():
    a = gpovae.datasets.simulated(n_cells=600, n_genes=40, n_perturbations=4, seed=1)
    model = gpovae.GPOVAE(gpovae.prepare(a, progress=False))  # a Screen
    model.train(max_epochs=2, progress=False)
    return model


def test_a_prediction_stands_beside_a_model(model):
    prediction = model.predict()
    table = prediction.to_df()
    found = model.evaluate(others=dict(p=prediction, t=table, m=model), thorough=False).response
    for name in "pt":
        pd.testing.assert_series_equal(found.loc[name], found.loc["m"], check_names=False)
    whole = evaluate(model.adata, prediction, model.graph(0))
    pd.testing.assert_frame_equal(
        whole.compared, evaluate(model.adata, table, model.network(0)).compared
    )
    observed = observed_effects(model.adata)
    assert scores(prediction, observed) == scores(table, observed)


def test_names_as_the_user_spelt_them_find_their_row(model):
    first, *_ = model.labels
    prediction = model.predict([f"{first}+ctrl", *model.labels[1:]])
    found = model.evaluate(others=dict(p=prediction), thorough=False).response
    assert np.isfinite(found.loc["p", "ate_rho"])


def test_figures_take_predictions(model):
    observed = observed_effects(model.adata)
    for draw in (plots.predicted_observed, plots.effects):
        draw(model.predict(), observed)


def test_known_networks_of_any_kind(model, tmp_path):
    edges = model.network(0).head(8)
    edges[["source", "target"]].to_csv(tmp_path / "known.csv", index=False)
    known = dict(table=edges, graph=model.graph(0), file=tmp_path / "known.csv")
    biology = model.evaluate(known=known, thorough=False).biology
    assert set(biology.index.get_level_values(0)) == set(known)
    with pytest.warns(UserWarning, match="x is left out: .* is a dict; a known network is a file"):
        model.evaluate(known=dict(x=dict(a=1)), thorough=False)


def test_edges_of_the_network_can_be_cut(model):
    edges = model.network(0).head(2)
    pairs = list(zip(edges["source"], edges["target"], strict=True))
    expected = model.cut(pairs).predict().X
    for given in (edges, edges[["source", "target"]].to_numpy(), zip(*map(list, zip(*pairs)))):
        np.testing.assert_array_equal(model.cut(given).predict().X, expected)
    with pytest.raises(GpovaeError, match="takes a list of pairs"):
        model.cut(["GATA1"])


def test_a_screen_stands_for_its_anndata(model):
    screen = Screen(model.adata)
    assert gpovae.GPOVAE(screen).adata is model.adata
    pd.testing.assert_frame_equal(observed_effects(screen), observed_effects(model.adata))
    with pytest.raises(GpovaeError, match="holds the AnnData: pass its .adata"):
        gpovae.prepare(screen)


def test_what_is_no_effect_is_named(model):
    with pytest.raises(GpovaeError, match="are 50 cells|cells, not effects"):
        model.evaluate(others=dict(x=model.sample(n_cells=10)), thorough=False)
    with pytest.raises(GpovaeError, match="'run' is a str, not a table of effects"):
        evaluate(model.adata, "run")
