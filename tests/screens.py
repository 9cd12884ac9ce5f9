"""The one place that builds small screens and tables for tests."""

import warnings

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


def _matrix(stored):
    "Rows x columns and the names of the rows, of a sparse matrix of R."
    if hasattr(stored, "p"):
        X = sp.csc_matrix((stored.x, stored.i, stored.p), tuple(stored.Dim))
    else:
        X = sp.coo_matrix((stored.x, (stored.i, stored.j)), tuple(stored.Dim)).tocsc()
    return X, np.array([str(name) for name in stored.Dimnames[0]])


def eccite():
    "ECCITE-seq knockouts (Papalexi et al. 2021): cells of one guide, by target, guide and rep."
    import rdata

    from places import DATA

    path = DATA / "papalexi2021_eccite" / "lowmoi_example_data.rda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = rdata.read_rda(path)["lowmoi_example_data"]
    X, genes = _matrix(stored["response_matrix"])
    umis, guides = _matrix(stored["grna_matrix"])
    top = umis.max(0).toarray().ravel()
    keep = (top >= 5) & (top > 0.8 * np.asarray(umis.sum(0)).ravel())

    guide = guides[np.asarray(umis.argmax(0)).ravel()]
    target = stored["grna_target_data_frame"].set_index("grna_id")["grna_target"]
    rep = stored["extra_covariates"]["bio_rep"].astype(str).to_numpy()
    obs = pd.DataFrame(dict(gene=target.reindex(guide).to_numpy(str), guide=guide, rep=rep))
    obs.index = [f"c{i}" for i in range(len(obs))]
    counts = sp.csr_matrix(X.T[keep], dtype=np.float32)
    return ad.AnnData(counts, obs[keep], pd.DataFrame(index=genes))


def mcf10a():
    "Knockouts in MCF10A (scMAGeCK, Yang et al. 2020): cells of one guide that have counts."
    import rdata

    from places import DATA

    folder = DATA / "scmageck_mcf10a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = rdata.read_rds(folder / "singles_dox_mki67_v3.RDS").assays["RNA"].counts
    X, genes = _matrix(stored)
    cells = [str(name) for name in stored.Dimnames[1]]

    guides = pd.read_csv(folder / "barcode_rec.txt", sep="\t")
    umis = guides.groupby(["cell", "gene", "barcode"])["umi_count"].sum().reset_index()
    share = umis["umi_count"] / umis.groupby("cell")["umi_count"].transform("sum")
    gene = umis[share > 0.8].set_index("cell")["gene"]
    known = [cell if cell in gene.index else f"{cell}-1" for cell in cells]
    label = gene.reindex(known).replace("NonTargetingControlGuideForHuman", "non-targeting")
    keep = label.notna().to_numpy() & (np.asarray(X.sum(0)).ravel() > 0)
    obs = pd.DataFrame(dict(gene=label.to_numpy(object)), known)[keep]
    counts = sp.csr_matrix(X.T[keep], dtype=np.float32)
    return ad.AnnData(counts, obs.astype(str), pd.DataFrame(index=genes))
