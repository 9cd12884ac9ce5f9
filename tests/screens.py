"""The one place that builds small screens and tables for tests."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpovae.data.register import register
from gpovae.data.screen import Key
from gpovae.evaluate.effects import observed_effects


def screen(X, labels, split="test", fail=False, genes=None, **uns):
    "The smallest annotated screen."
    genes = [f"g{i}" for i in range(X.shape[1])] if genes is None else genes
    a = ad.AnnData(
        X,
        obs=pd.DataFrame(dict(gene=labels), index=[f"c{i}" for i in range(X.shape[0])]),
        var=pd.DataFrame(index=genes),
    )
    register(a)
    a.obs[Key.fail], a.obs[Key.split] = fail, split
    a.uns.update(uns)
    return a


@pytest.fixture(scope="module")
def small():
    """Five perturbed genes, three responders, one of the targets without a column.

    Training and test cells; shifts and truth.
    """
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(30)]
    names = ["control", "g0", "g1", "g2", "g3", "enh"]
    shift = np.zeros((6, 30))
    shift[range(1, 5), range(4)] = -1.5
    shift[1, [1, 5]] = -0.8, 0.9
    shift[2, 6] = -0.9
    shift[5, 7] = -1.2
    kind = np.repeat(np.arange(6), [300] + [90] * 5)
    mean = np.exp(rng.normal(0, 0.5, 30) + shift[kind]) * 8
    with pytest.warns(UserWarning, match="not among the measured"):
        a = screen(
            sp.csr_matrix(rng.poisson(mean).astype(np.float32)), np.array(names)[kind], genes=genes
        )
    a.obs[Key.split] = np.where(np.arange(a.n_obs) % 3 == 0, "test", "train")
    a.obs[Key.fail] = np.arange(a.n_obs) % 17 == 0
    nodes = ["enh", "g0", "g1", "g2", "g3", "g5", "g6", "g7"]
    train = observed_effects(a, "train") * np.log(2)
    a.uns[Key.nodes] = dict(names=np.array(nodes), perturbed=np.array([True] * 5 + [False] * 3))
    a.uns[Key.responses] = dict(
        perturbation=np.array(train.index),
        mean=train.reindex(columns=nodes).to_numpy(np.float32),
        se=np.where(train.reindex(columns=nodes).isna(), np.nan, 0.1).astype(np.float32),
        cells=np.full(5, 56),
    )
    W = np.zeros((8, 8))
    W[1, 2] = 0.9
    W[1, 5] = -0.6
    W[2, 6] = 0.9
    W[0, 7] = 0.8
    knockdown = np.array([-1.0, -1.5, -1.5, -1.5, -1.5, np.nan, np.nan, np.nan])
    a.uns[Key.truth] = dict(
        genes=np.array(nodes), direct=W, total=np.linalg.inv(np.eye(8) - W), knockdown=knockdown
    )
    return a
