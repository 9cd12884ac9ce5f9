"""Estimated beside measured memory of training, on screens of several shapes.

Writes memory.json beside this file: `python benchmarks/bench_memory.py` (10 minutes, 4 GiB).
"""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import gpovae
from gpovae.data.files import write_screen
from gpovae.data.reorder import Source
from gpovae.data.screen import Key
from gpovae.data.simulate import simulated


def prepared(n_cells: int, n_genes: int, n_perturbations: int, **options) -> ad.AnnData:
    "A small simulated screen, prepared."
    adata = simulated(n_cells, n_genes, n_perturbations, seed=0, **options)
    labels = dict(perturbation_key="gene", control="non-targeting", batch_key="batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gpovae.prepare(adata, **labels, doublets=False, progress=False)
    return adata


def repeated(adata: ad.AnnData, times: int, path: Path) -> Path:
    "The same cells over and over, each time with names of their own."
    parts = []
    for k in range(times):
        obs = adata.obs.copy()
        obs.index = [f"{name}_{k}" for name in obs.index]
        parts.append(obs)
    obs = pd.concat(parts)
    for key in adata.obs.select_dtypes("category"):
        obs[key] = pd.Categorical(obs[key], adata.obs[key].cat.categories)
    obsm = {Key.match: np.tile(np.asarray(adata.obsm[Key.match]), (times, 1))}
    X = sp.csr_matrix(adata.X)
    write_screen(
        path, Source(obs, adata.var, lambda: [X] * times, obsm, dict(adata.uns)), progress=False
    )
    return path
