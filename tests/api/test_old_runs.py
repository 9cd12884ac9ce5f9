"""Files of gpovae 0.1.0 (`tests/fixtures/v0.1.0/record.py` wrote them): a run predicts what it did,
a prepared screen is read, and a training that was cut off goes on.
"""

import json

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gpovae import GPOVAE, GpovaeError
from gpovae.train.checkpoint import STATE
from gpovae.train.run import FORMAT, RunFolder, run_settings

from places import FIXTURES

OLD = FIXTURES / "v0.1.0"


@pytest.fixture(scope="module")
def expected():
    with np.load(OLD / "expected.npz") as f:
        return dict(f)


@pytest.fixture
def adata():
    return ad.read_h5ad(OLD / "prepared.h5ad")


def test_a_run_predicts_what_it_did(expected, adata):
    model = GPOVAE.load(OLD / "run", adata)
    effects = model.predict()
    assert effects.obs_names.tolist() == expected["perturbations"].tolist()
    np.testing.assert_allclose(effects.X, expected["effects"], atol=1e-6)
    for layer in ("mean", "spread", "residual"):
        np.testing.assert_allclose(effects.layers[layer], expected[layer], atol=1e-6)
    np.testing.assert_allclose(
        model.vae.grn.probability().numpy(), expected["probability"], atol=1e-6
    )


def test_a_run_predicts_what_nobody_perturbed(expected, adata):
    model = GPOVAE.load(OLD / "run", adata)
    with pytest.warns(UserWarning, match="Nothing is known"):
        unseen = model.predict([model.genes[-1]], unseen="network")
    np.testing.assert_allclose(unseen.X, expected["unseen"], atol=1e-6)


def test_a_run_is_saved_in_the_format_of_today(expected, adata, tmp_path):
    assert json.loads((OLD / "run/settings.json").read_text())["format"] == 3
    model = GPOVAE.load(OLD / "run", adata)
    model.save(tmp_path)
    assert run_settings(tmp_path)["format"] == FORMAT
    again = GPOVAE.load(tmp_path, adata)
    np.testing.assert_allclose(again.predict().X, expected["effects"], atol=1e-6)
    assert RunFolder(tmp_path).status == "finished"


def resumed(adata, folder, **changes):
    "The model of record.py, trained on from the state in a folder."
    stored = run_settings(OLD / "run")
    model = GPOVAE(adata, stored["preset"], **stored["settings"] | changes)
    model.train(max_epochs=5, seed=1, progress=False, directory=folder)
    return model


@pytest.fixture
def interrupted(tmp_path):
    "The state, as if it had been written with the PyTorch of today."
    with safe_open(OLD / "interrupted" / STATE, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}
        header = f.metadata()
    told = json.loads(header["told"]) | dict(torch=torch.__version__)
    save_file(tensors, tmp_path / STATE, header | dict(told=json.dumps(told)))
    return tmp_path


def test_a_training_goes_on(expected, adata, interrupted):
    model = resumed(adata, interrupted)
    epochs = len(expected["history_whole"])
    assert len(model.history) == epochs == 5
    # what was written before, and what came since
    np.testing.assert_allclose(model.history.to_numpy(float), expected["history_whole"], rtol=1e-4)
    np.testing.assert_allclose(model.predict().X, expected["effects_whole"], atol=1e-4)


def test_another_training_does_not_go_on(adata, interrupted):
    with pytest.raises(GpovaeError, match="beta was 0.1 and is 0.2"):
        resumed(adata, interrupted, beta=0.2)
