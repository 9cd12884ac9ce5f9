"""scvi-tools takes prepared files as they are. It wants an environment of its own:

python -m venv scvi && scvi/bin/pip install scvi-tools
GPOVAE_SCVI_PYTHON=scvi/bin/python python -m pytest tests/data/test_scvi_tools.py
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpovae
from gpovae.data.files import open_screen
from gpovae.data.prepare import prepare_file

HAS_SCVI = importlib.util.find_spec("scvi") is not None
PYTHON = os.environ.get("GPOVAE_SCVI_PYTHON") or (sys.executable if HAS_SCVI else None)


@pytest.mark.skipif(PYTHON is None, reason="no scvi-tools here, nor GPOVAE_SCVI_PYTHON")
@pytest.mark.filterwarnings("ignore:Perturbations move the share")
def test_scvi_tools_trains_on_prepared_files(tmp_path):
    raw = gpovae.datasets.simulated(600, 60, 6, seed=1)
    raw.obs["batch"] = ["one", "two"] * 300
    raw.write_h5ad(tmp_path / "raw.h5ad")
    files = [tmp_path / "a.h5ad", tmp_path / "a.zarr"]
    for file in files:
        prepare_file(tmp_path / "raw.h5ad", file, batch_key="batch", doublets=False, progress=False)
    script = Path(__file__).with_name("with_scvi.py")
    # not this folder's gpovae: the other environment has none
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(
        [PYTHON, script, *files], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    registered = json.loads(ended.stdout.splitlines()[-1])
    screen = open_screen(files[0])
    for file in map(str, files):
        said = registered[file]
        assert (said["n_cells"], said["n_vars"]) == screen.shape
        assert said["n_labels"] == screen.obs["gpovae_perturbation"].nunique()
        assert said["n_batch"] == screen.obs["gpovae_batch"].nunique() > 1
        assert said["counts"] == screen.X[:].sum() and said["latent"] == [screen.n_obs, 5]
