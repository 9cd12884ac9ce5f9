"""PDS, DES and MAE of predicted cells equal those of cell-eval (PyPI.

Needed by this test only), perturbation by perturbation, run here on the same two AnnData.
"""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpovae.evaluate.metrics import fold_change
from gpovae.evaluate.observed import observe_cells
from gpovae.evaluate.response import FDR, contributions, scores

pytest.importorskip(
    "cell_eval",
    reason=(
        "cell-eval is not installed (pip install cell-eval): PDS, DES and MAE cannot be compared"
        " with it"
    ),
)
CONTROL, KEY = "non-targeting", "perturbation"


def cells(seed, strength, n=90, n_genes=160, n_perturbations=14, sparse=True):
    "Log-normalised cells of a screen whose effects are `strength` times those of a fixed truth."
    rng = np.random.default_rng(7)
    names = [f"G{i}" for i in range(n_genes)]
    base = rng.normal(0, 1.2, n_genes)
    shift = np.zeros((n_perturbations + 1, n_genes))
    for p in range(n_perturbations):
        shift[p + 1, rng.choice(n_genes, 12, replace=False)] = rng.normal(0, 0.9, 12)
        shift[p + 1, p] = -1.5
    shift[-1] = 0
    shift[-1, n_perturbations - 1] = 0  # the last perturbation does nothing
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(n_perturbations + 1), [3 * n] + [n] * n_perturbations)
    share = np.exp(base + strength * shift)
    share /= share.sum(1, keepdims=True)
    X = rng.poisson(rng.gamma(2, share[kind] * rng.lognormal(7, 0.3, (len(kind), 1)) / 2)).astype(
        np.float32
    )
    X = np.log1p(X / X.sum(1, keepdims=True) * 1e4).astype(np.float32)
    order = rng.permutation(len(kind))
    return ad.AnnData(
        sp.csr_matrix(X[order]) if sparse else X[order],
        obs=pd.DataFrame(
            {KEY: np.array([CONTROL] + names)[kind[order]]},
            index=[f"c{i}" for i in range(len(kind))],
        ),
        var=pd.DataFrame(index=names),
    )


@pytest.fixture(
    scope="module",
    params=[(True, 1.0), (False, 0.5), (True, 1.8)],
    ids=["same strength, sparse", "half, dense", "louder, sparse"],
)
def both(request):
    "Ours, and cell-eval's numbers by perturbation."
    from cell_eval._evaluator import _build_de_comparison
    from cell_eval._types import PerturbationAnndataPair
    from cell_eval.metrics._anndata import discrimination_score, mae, pearson_delta
    from cell_eval.metrics._de import de_overlap_metric

    for name in ("pdex", "cell_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sparse, strength = request.param
    real = cells(1, 1.0, sparse=sparse)
    pred = cells(2, strength, sparse=sparse)
    before = real.X.copy(), pred.X.copy()
    seen = observe_cells(real, KEY, CONTROL)
    made = observe_cells(pred, KEY, CONTROL)
    for a, b in zip(before, (real.X, pred.X)):
        assert (a != b).sum() == 0  # the user's cells are left as they were
    pair = PerturbationAnndataPair(real=real, pred=pred, pert_col=KEY, control_pert=CONTROL)
    de = _build_de_comparison(anndata_pair=pair, num_threads=1)
    theirs = dict(
        discrimination=discrimination_score(pair),
        mae=mae(pair),
        de_overlap=de_overlap_metric(de, k=None),
        pearson=pearson_delta(pair),
    )
    return seen, made, {k: pd.Series(v)[seen.effects.index] for k, v in theirs.items()}, de


def test_discrimination_equals_cell_eval(both):
    seen, made, theirs, _ = both
    np.testing.assert_allclose(
        contributions(made, seen)["discrimination"][:, 0], theirs["discrimination"], atol=1e-12
    )
    assert scores(made, seen)["discrimination"] == pytest.approx(
        theirs["discrimination"].mean(), abs=1e-12
    )
    assert 0.6 < theirs["discrimination"].mean()


def test_mae_equals_cell_eval(both):
    "On mu, with each file's own controls; natural log there, log2 here."
    seen, made, theirs, _ = both
    np.testing.assert_allclose(
        contributions(made, seen)["mae"][:, 0] * np.log(2), theirs["mae"], rtol=1e-5
    )
    alike = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(seen.effects.to_numpy(), made.effects.to_numpy())
    ]
    # the effects themselves
    np.testing.assert_allclose(alike, theirs["pearson"], rtol=1e-4, atol=1e-6)


def test_de_overlap_equals_cell_eval(both):
    """Where something is significant in the real cells.

    Where nothing is, cell-eval counts 0 for every model; we leave the perturbation out.
    """
    seen, made, theirs, _ = both
    ours = contributions(made, seen)["de_overlap"][:, 0]
    some = (seen.q < FDR).any(axis=1).to_numpy()
    np.testing.assert_allclose(ours[some], theirs["de_overlap"][some], atol=1e-12)
    assert np.isnan(ours[~some]).all() and (theirs["de_overlap"][~some] == 0).all()
    assert len(set(ours[some].round(6))) > 3 and 0.2 < np.nanmean(ours)


def test_significance_and_fold_change_equal_cell_eval(both):
    """pdex corrects for continuity, we do not.

    P differs in the third digit, the decision in no gene here.
    """
    seen, _, _, de = both
    table = de.real.data.to_pandas()

    def wide(c):
        return (
            table.pivot(index="target", columns="feature", values=c)
            .loc[seen.effects.index, seen.effects.columns]
            .to_numpy(float)
        )

    assert ((wide("fdr") < FDR) == (seen.q < FDR)).to_numpy().all()
    np.testing.assert_allclose(seen.q, wide("fdr"), rtol=0.05, atol=0.02)
    np.testing.assert_allclose(fold_change(seen), wide("log2_fold_change"), rtol=1e-3, atol=1e-4)
