"""A training of a large screen ends where its effects stand still."""

import json

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae import GPOVAE
from gpovae.data.minibatch import Cells
from gpovae.data.screen import Screen
from gpovae.evaluate.effects import observed_effects
from gpovae.model.presets import make_settings
from gpovae.train import plateau
from gpovae.train.build import build
from gpovae.train.checkpoint import STATE
from gpovae.train.plateau import is_over, measured_effects
from gpovae.train.run import RunFolder, checksum

SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64)


@pytest.fixture(scope="module")
def adata():
    a = gpovae.datasets.simulated(n_cells=800, n_genes=60, n_perturbations=5, seed=0)
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    return a


@pytest.fixture
def large(monkeypatch):
    "The limit is lowered, so that a small screen counts as a large one."
    monkeypatch.setattr(plateau, "FEWEST_STEPS", 8)


def trained(adata, **options):
    model = GPOVAE(adata, **SMALL | options.pop("settings", {}))
    return model, model.train(progress=False, **options)


@pytest.fixture(scope="module")
def whole(adata):
    "A training that ended by itself."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plateau, "FEWEST_STEPS", 8)
        return trained(adata, settings=dict(effects_patience=2))


@pytest.mark.parametrize(
    "effects, patience, over",
    [
        ([0.5, 0.6, 0.6, 0.6], 2, True),
        ([0.5, 0.6, 0.6], 2, False),
        ([0.5, 0.6, 0.601, 0.5999, 0.6015], 3, True),  # below the gain that counts
        ([0.5, 0.503, 0.506, 0.509, 0.512], 2, False),
        ([0.6, 0.1, 0.2, 0.3], 3, True),
        ([np.nan] * 10, 3, False),
        ([np.nan, np.nan, 0.5], 2, False),
        ([], 1, False),
    ],
)
def test_over(effects, patience, over):
    assert is_over(effects, patience) is over


def test_effects_are_those_of_the_validation_cells(adata):
    screen = Screen(adata)
    vae, labels, batches = build(screen, make_settings(**SMALL))[:3]
    measured = measured_effects(vae, Cells(screen, "validation", labels, batches))
    nodes = screen.nodes.index.to_numpy()
    names = ["+".join(nodes[list(targets)]) for targets in measured.nodes]
    real = observed_effects(adata, "validation").loc[names]
    assert len(names) == 5
    np.testing.assert_allclose(measured.effects, real, atol=1e-6)


def test_a_training_ends_where_its_effects_stand_still(adata, whole):
    model, history = whole
    assert history.attrs["by"] == "effects" and len(history) < 40
    assert "as the predicted effects improved no more" in history.attrs["summary"]
    assert is_over(history.validation_effects.tolist(), 2)
    assert not is_over(history.validation_effects.tolist()[:-1], 2)
    real = observed_effects(adata, "validation")
    predicted = model.predict(list(real.index)).to_df()
    rho = np.corrcoef(predicted.to_numpy().ravel(), real.to_numpy().ravel())[0, 1]
    assert abs(rho - history.validation_effects.max()) < 0.1


def test_a_small_screen_runs_as_ever_and_measuring_changes_no_number(adata, whole):
    ended = whole[1]
    _, longer = trained(adata, max_epochs=len(ended) + 2)
    assert len(longer) == len(ended) + 2 and "validation_effects" not in longer
    pd.testing.assert_frame_equal(
        ended.drop(columns="validation_effects"), longer.iloc[: len(ended)], check_exact=True
    )


def test_it_can_be_told_not_to(adata, large):
    _, history = trained(adata, settings=dict(effects_patience=0), max_epochs=3)
    assert "validation_effects" not in history


def test_interrupted_it_ends_at_the_same_epoch(adata, whole, large, tmp_path):
    settings = dict(effects_patience=2)
    n_epochs = len(whole[1])
    _, first = trained(adata, settings=settings, directory=tmp_path, max_epochs=n_epochs - 1)
    assert (tmp_path / STATE).exists() and first.attrs["by"] == "max_epochs"
    for _ in range(2):  # what is over stays over
        _, resumed = trained(adata, settings=settings, directory=tmp_path)
        assert resumed.attrs["by"] == "effects"
        pd.testing.assert_frame_equal(resumed, whole[1], check_exact=True)


def test_its_run_is_finished(whole, tmp_path):
    model, history = whole
    folder = RunFolder(tmp_path / "run")
    model.save(folder.path)
    assert folder.status == "finished"
    requested = dict(max_epochs=60, effects_patience=2)
    assert folder.differences(requested) == []
    assert folder.differences(requested | dict(effects_patience=0)) == [
        "effects_patience was 2 and is 0"
    ]


def test_runs_of_before_the_rule_are_finished_too(whole, tmp_path):
    model, history = whole
    folder = RunFolder(tmp_path / "run")
    model.save(folder.path)
    file = folder.path / "settings.json"
    stored = json.loads(file.read_text())
    del stored["settings"]["effects_patience"], stored["checksum"]
    file.write_text(json.dumps(stored | dict(checksum=checksum(stored))))
    assert folder.differences(dict(max_epochs=60, effects_patience=3)) == []
