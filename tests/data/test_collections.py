"""A collection as annbatch 0.3.1 writes it: one store of AnnData groups with shuffled cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from gpovae.core.errors import GpovaeError
from gpovae.data.layouts import source

ENCODING = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}


def collection(path, adata, parts) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=3)
    for i, rows in enumerate(parts):
        with ad.settings.override(auto_shard_zarr_v3=True):
            ad.io.write_elem(root, f"dataset_{i}", adata[rows].copy())
    root.attrs.update(ENCODING)


def screen(n=36):
    X = sp.random(n, 7, 0.6, format="csr", random_state=0, dtype=np.float32)
    X.data = np.ceil(9 * X.data)
    obs = pd.DataFrame(
        dict(gene=[f"g{i % 3}" for i in range(n)]), index=[f"c{i}" for i in range(n)]
    )
    return ad.AnnData(X, obs=obs, obsm=dict(two=np.arange(2 * n).reshape(n, 2)))


def test_all_cells_of_a_collection_once_in_its_order(tmp_path):
    a = screen()
    order = np.random.default_rng(0).permutation(a.n_obs)
    # twelve parts: dataset_10 comes after dataset_9, not after dataset_1
    collection(tmp_path / "c.zarr", a, np.array_split(order, 12))
    with source(tmp_path / "c.zarr") as opened:
        X = sp.vstack(list(opened.blocks()))
        assert (X != a.X[order]).nnz == 0
        assert list(opened.obs.index) == list(a.obs_names[order])
        assert list(opened.obs["gene"]) == list(a.obs["gene"].iloc[order])
        assert np.array_equal(opened.obsm["two"], a.obsm["two"][order])


def test_barcodes_twice_other_genes_and_nothing(tmp_path):
    a = screen()
    collection(tmp_path / "c.zarr", a, [[0, 1], [1, 2]])
    with source(tmp_path / "c.zarr") as opened:
        assert opened.obs.index.is_unique and len(opened.obs) == 4
    b = a[:, ::-1].copy()
    root = zarr.open_group(tmp_path / "c.zarr", mode="a")
    ad.io.write_elem(root, "dataset_2", b)
    with pytest.raises(GpovaeError, match="dataset_2.*other genes"):
        with source(tmp_path / "c.zarr"):
            pass
    collection(tmp_path / "none.zarr", a, [])
    with pytest.raises(GpovaeError, match="no data set"):
        with source(tmp_path / "none.zarr"):
            pass
