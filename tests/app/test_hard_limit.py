"""Under a hard limit on memory every command ends well, however large the counts are."""

import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpovae import datasets, prepare
from gpovae.core.memory import RESERVE
from gpovae.core.provenance import fingerprint
from gpovae.data.files import write_screen
from gpovae.data.reorder import Source
from gpovae.data.screen import Key
from gpovae.experiments.runner import COMMAND
from gpovae.model.presets import make_settings
from gpovae.train.memory import SHARE, evaluating, preparing, sizes, training

GENES = 2500
# after all imports of a report
_IMPORTS = """
import psutil, torch, papermill, ipykernel.kernelapp, matplotlib.pyplot, lightning_fabric
import gpovae.app.reports, gpovae.app.cli, gpovae.plots.explorer, gpovae.evaluate.scores
print(psutil.Process().memory_info().data)
"""


def inflated(adata, n_more: int, path: Path, **values) -> Path:
    "The screen, and behind it so many cells that nobody needs, with an entry for every gene."
    more = adata.obs.iloc[np.zeros(n_more, int)].assign(**values)
    more.index = [f"more {i}" for i in range(n_more)]
    obs = pd.concat([adata.obs, more])
    for column in adata.obs.select_dtypes("category"):
        obs[column] = pd.Categorical(obs[column], adata.obs[column].cat.categories)
    rows = np.append(np.arange(adata.n_obs), np.zeros(n_more, int))
    obsm = {key: value[rows] for key, value in adata.obsm.items()}
    uns = dict(adata.uns)
    if Key.screen in uns:
        uns[Key.screen] = dict(uns[Key.screen]) | dict(cells=fingerprint(obs.index))
    few = sp.csr_matrix((n_more, adata.n_vars), dtype=np.float32)
    write_screen(path, Source(obs, adata.var, lambda: [adata.X, few], obsm, uns))
    # entries that were never written take no place on disk, and are zeros of the first gene
    with h5py.File(path, "r+") as f:
        for name in ("data", "indices"):
            f["X"][name].resize((adata.X.nnz + n_more * adata.n_vars,))
        f["X/indptr"][adata.n_obs :] = adata.X.nnz + np.arange(n_more + 1) * adata.n_vars
    return path


def run(line: str, limit: int) -> str:
    "What a command says that may take so many bytes of data."
    process = subprocess.run(
        [*COMMAND, *line.split()],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stderr


@pytest.fixture(scope="module")
def imports() -> int:
    "Bytes of data of a process that has imported everything."
    command = [sys.executable, "-c", _IMPORTS]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def raw():
    return datasets.simulated(n_cells=1000, n_genes=GENES, n_perturbations=8, seed=0)


@pytest.fixture(scope="module")
def prepared(raw):
    return prepare(raw.copy(), "gene", "non-targeting", doublets=False, progress=False).adata


def limit(imports: int, need: float) -> tuple[int, int]:
    "A limit that just suffices, and how much of it is left after the imports."
    left = int(need / SHARE) + RESERVE["ulimit -d"] + 2**24
    return imports + left, left


@pytest.mark.parametrize("times", [1.1, pytest.param(1.6, marks=pytest.mark.slow)])
def test_train_evaluate_and_report(prepared, imports, tmp_path, times):
    path = tmp_path / "prepared.h5ad"
    unneeded = {Key.split: "test", Key.fail: True}
    inflated(prepared, 20_000, path, **unneeded)
    settings = make_settings()
    needs = [f(sizes(path), settings).on_disk for f in (training, evaluating)]
    # of more cells, names and annotations take some memory
    most, left = limit(imports, 1.1 * max(needs))
    n_more = int(times * left / (8 * prepared.n_vars))
    inflated(prepared, n_more, path, **unneeded)
    assert sizes(path).matrix > times * left
    assert max(f(sizes(path), settings).on_disk for f in (training, evaluating)) < SHARE * left

    out = tmp_path / "run"
    said = run(f"train {path} --out {out} --max-epochs 1 --set particles=1", most)
    assert "Counts stay on disk" in said and "the data segment (ulimit -d)" in said
    said = run(f"evaluate {out} --quick", most)
    assert "Counts stay on disk" in said
    if times < 1.5:
        run(f"report {out}", most)
        run(f"network {out} --min-probability 0", most)


def test_prepare(raw, imports, tmp_path):
    path = inflated(raw, 20_000, tmp_path / "raw.h5ad", gene=np.nan)
    most, left = limit(imports, 1.1 * preparing(sizes(path)).on_disk)
    inflated(raw, int(1.1 * left / (8 * raw.n_vars)), path, gene=np.nan)
    assert sizes(path).matrix > left
    options = "--perturbation-key gene --control non-targeting --no-doublets --drop-unlabelled"
    run(f"prepare {path} {tmp_path / 'prepared.h5ad'} {options} --quiet", most)


def test_what_cannot_be_done_is_refused_before_anything_is_read(prepared, imports, tmp_path):
    path = inflated(prepared, 0, tmp_path / "prepared.h5ad")
    with pytest.raises(AssertionError, match="Training takes about .* in memory"):
        run(f"train {path} --out {tmp_path / 'run'}", imports + RESERVE["ulimit -d"] + 2**26)
