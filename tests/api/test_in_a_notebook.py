"""What a cell shows: cards in which names are text, and, interrupted, how to go on."""

from dataclasses import replace
from html import unescape

import numpy as np
import pytest

import gpovae
from gpovae import api
from gpovae.data import prepare as preparing
from gpovae.data.responses import Responses
from gpovae.data.screen import Screen
from gpovae.network import regression

from places import FIXTURES

HOSTILE = "<img src=x onerror=alert(1)>"


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def prepared():
    adata = gpovae.datasets.simulated(n_cells=400, n_genes=30, n_perturbations=4, seed=0)
    gpovae.prepare(adata, "gene", "non-targeting", progress=False)
    return adata


def test_preparing_in_memory(monkeypatch):
    adata = gpovae.datasets.simulated(n_cells=200, n_genes=30, n_perturbations=4, seed=0)
    monkeypatch.setattr(preparing, "prepared", interrupted)
    before = {*adata.obs, *adata.uns}
    with pytest.raises(KeyboardInterrupt, match="as it was.*starts again.*prepare_file"):
        gpovae.prepare(adata, "gene", "non-targeting", progress=False)
    assert {*adata.obs, *adata.uns} == before


def test_preparing_from_a_file(monkeypatch, tmp_path):
    adata = gpovae.datasets.simulated(n_cells=200, n_genes=30, n_perturbations=4, seed=0)
    adata.write_h5ad(tmp_path / "raw.h5ad")
    monkeypatch.setattr(preparing, "_prepare_in", interrupted)
    with pytest.raises(KeyboardInterrupt, match="goes on with the first step"):
        gpovae.prepare_file(
            tmp_path / "raw.h5ad",
            tmp_path / "prepared.h5ad",
            perturbation_key="gene",
            control="non-targeting",
            progress=False,
        )


@pytest.mark.parametrize("kept, says", [(False, "starts again; with directory"), (True, "goes on")])
def test_training_before_its_first_epoch(monkeypatch, prepared, tmp_path, kept, says):
    monkeypatch.setattr(api, "build", interrupted)
    model = gpovae.GPOVAE(prepared)
    with pytest.raises(KeyboardInterrupt, match=f"as it was before.*{says}"):
        model.train(directory=tmp_path / "run" if kept else None, progress=False)
    assert model.run is None


@pytest.mark.parametrize("kept, says", [(False, "Nothing of it was kept"), (True, "goes on")])
def test_fitting_the_network(monkeypatch, prepared, tmp_path, kept, says):
    monkeypatch.setattr(regression, "_run", interrupted)
    responses = Responses.read(prepared)
    with pytest.raises(KeyboardInterrupt, match=f"network was interrupted.*{says}"):
        regression.fit_network(responses, state=tmp_path if kept else None, progress=False)


def test_what_was_said_nearer_to_the_work_is_kept(monkeypatch, prepared):
    def ended(*_, **__):
        raise KeyboardInterrupt("before the first epoch was complete")

    monkeypatch.setattr(api, "build", ended)
    with pytest.raises(KeyboardInterrupt, match="^before the first epoch was complete$"):
        gpovae.GPOVAE(prepared).train(progress=False)


def test_cards(prepared):
    html = Screen(prepared)._repr_html_()
    assert f"{prepared.n_obs:,}, of which" in html and "perturbations" in html
    untrained = gpovae.GPOVAE(prepared)._repr_html_()
    assert "not trained" in untrained and "model.train()" in untrained
    assert max(map(len, (html, untrained))) < 2000


def test_names_in_cards_are_text(prepared):
    renamed = prepared.copy()
    labels = renamed.obs["gpovae_perturbation"].astype(str)
    first = Screen(prepared).perturbations[0]
    renamed.obs["gpovae_perturbation"] = np.where(labels == first, HOSTILE, labels)
    html = Screen(renamed)._repr_html_()
    assert "&lt;img" in html and "<img" not in html


def test_card_of_a_trained_model():
    model = gpovae.GPOVAE.load(FIXTURES / "runs/v0.5.0/run")
    html = model._repr_html_()
    assert html == model.run._repr_html_() and model.ended["summary"] in unescape(html)
    hostile = replace(model.run, labels=[HOSTILE, *model.run.labels[1:]])._repr_html_()
    assert "&lt;img" in hostile and "<img" not in hostile
