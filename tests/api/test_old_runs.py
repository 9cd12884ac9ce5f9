"""Files of every version that was released (`tests/fixtures/runs/record.py` wrote them): a run
predicts what it did, a prepared screen is read, and a training that was cut off goes on.
"""

import json
import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.train.checkpoint import STATE
from gpovae.train.run import FORMAT, RunFolder, run_settings

from places import FIXTURES, ROOT

VERSIONS = sorted(p.name for p in (FIXTURES / "runs").glob("v*"))


@pytest.fixture(params=VERSIONS)
def old(request):
    "The folder of a version."
    return FIXTURES / "runs" / request.param


@pytest.fixture
def expected(old):
    with np.load(old / "expected.npz") as f:
        return dict(f)


@pytest.fixture
def adata(old):
    return ad.read_h5ad(old / "prepared.h5ad")


def test_every_version_left_its_files():
    "Of each heading of the changelog but the newest, which may not be released yet."
    released = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert {f"v{version}" for version in released[1:]} <= set(VERSIONS)


def test_a_run_predicts_what_it_did(old, expected, adata):
    model = GPOVAE.load(old / "run", adata)
    effects = model.predict()
    assert effects.obs_names.tolist() == expected["perturbations"].tolist()
    np.testing.assert_allclose(effects.X, expected["effects"], atol=1e-6)
    for layer in ("mean", "spread", "residual"):
        np.testing.assert_allclose(effects.layers[layer], expected[layer], atol=1e-6)
    np.testing.assert_allclose(
        model.vae.grn.probability().numpy(), expected["probability"], atol=1e-6
    )


def test_a_run_predicts_what_nobody_perturbed(old, expected, adata):
    model = GPOVAE.load(old / "run", adata)
    with pytest.warns(UserWarning, match="Nothing is known"):
        unseen = model.predict([model.genes[-1]], unseen="network")
    np.testing.assert_allclose(unseen.X, expected["unseen"], atol=1e-6)


def test_a_run_is_saved_in_the_format_of_today(old, expected, adata, tmp_path):
    assert json.loads((old / "run/settings.json").read_text())["format"] <= FORMAT
    model = GPOVAE.load(old / "run", adata)
    model.save(tmp_path)
    assert run_settings(tmp_path)["format"] == FORMAT
    again = GPOVAE.load(tmp_path, adata)
    np.testing.assert_allclose(again.predict().X, expected["effects"], atol=1e-6)
    assert RunFolder(tmp_path).status == "finished"


@pytest.fixture
def moved(old, tmp_path, monkeypatch):
    "A copy of the files; the commands are typed beside them."
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words):
    result = CliRunner().invoke(main, [*words, "--quiet"])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_shell_answers_about_a_run(moved, expected, adata):
    answer = json.loads(typed("predict", "run", "GATA1", "--json"))["perturbations"][0]
    row = expected["effects"][expected["perturbations"].tolist().index("GATA1")]
    for gene in answer["genes"]:
        stored = row[adata.var_names.get_loc(gene["gene"])]
        assert gene["effect"] == pytest.approx(stored, abs=1e-6)
    typed("network", "run", "--out", "network.csv", "--min-probability", "0.3")
    edges = pd.read_csv("network.csv")
    assert edges["probability"].max() == pytest.approx(expected["probability"].max(), abs=1e-6)


# each takes half a minute: one version in every run of the tests
@pytest.mark.parametrize(
    "old",
    [VERSIONS[0], *(pytest.param(v, marks=pytest.mark.slow) for v in VERSIONS[1:])],
    indirect=True,
)
def test_a_run_is_reported(moved, adata):
    typed("report", "run")
    told = json.loads((moved / "run/report.json").read_text())
    assert (told["cells"], told["genes"]) == adata.shape
    assert {*told["scores"]["cells"]} - {"control"} == {*adata.obs["gene"]} - {"non-targeting"}


def resumed(old, adata, folder, **changes):
    "The model of record.py, trained on from the state in a folder."
    stored = run_settings(old / "run")
    model = GPOVAE(adata, stored["preset"], **stored["settings"] | changes)
    model.train(max_epochs=5, seed=1, progress=False, directory=folder)
    return model


@pytest.fixture
def interrupted(old, tmp_path):
    "The state, as if it had been written with the PyTorch of today."
    with safe_open(old / "interrupted" / STATE, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}
        header = f.metadata()
    key = "told" if "told" in header else "fingerprint"  # as 0.1.0 called it, and later ones
    header[key] = json.dumps(json.loads(header[key]) | dict(torch=torch.__version__))
    save_file(tensors, tmp_path / STATE, header)
    return tmp_path


def test_a_training_goes_on(old, expected, adata, interrupted):
    model = resumed(old, adata, interrupted)
    epochs = len(expected["history_whole"])
    assert len(model.history) == epochs == 5
    # what was written before, and what came since
    np.testing.assert_allclose(model.history.to_numpy(float), expected["history_whole"], rtol=1e-4)
    np.testing.assert_allclose(model.predict().X, expected["effects_whole"], atol=1e-4)


def test_another_training_does_not_go_on(old, adata, interrupted):
    with pytest.raises(GpovaeError, match="beta was 0.1 and is 0.2"):
        resumed(old, adata, interrupted, beta=0.2)
