"""A lane without controls, in which some genes read higher: what the lane does to its cells must
not be taken for an effect, neither where a model learns nor where it is scored.
"""

import numpy as np
import pytest
import scipy.sparse as sp

from gpovae.data.prepare import prepare
from gpovae.data.screen import Screen
from gpovae.data.simulate import simulated
from gpovae.evaluate.effects import cells, observed_effects

SHIFTED = 40  # genes


def prepared(times=1.7, **options):
    "Three lanes; the third has no controls, and its counts of 40 genes are so many times higher."
    adata = simulated(n_cells=3000, n_genes=120, n_perturbations=6, n_batches=3, seed=0)
    lane = adata.obs["batch"].cat.codes.to_numpy() == 2
    is_control = (adata.obs["gene"] == "non-targeting").to_numpy()
    adata = adata[~(lane & is_control)].copy()
    lane = lane[~(lane & is_control)]
    X = adata.X.toarray()
    X[np.ix_(lane, range(SHIFTED))] = np.round(times * X[np.ix_(lane, range(SHIFTED))])
    adata.X = sp.csr_matrix(X)
    labels = dict(perturbation_key="gene", control="non-targeting", batch_key="batch")
    prepare(adata, **labels, doublets=False, progress=False, **options)
    return adata, lane


@pytest.fixture(scope="module")
def apart():
    return prepared()


@pytest.fixture(scope="module")
def pooled():
    return prepared(pool_controls=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_its_cells_are_no_part_of_observed_effects(apart, split):
    adata, lane = apart
    screen = Screen(adata)
    kept = np.setdiff1d(screen.rows(split, fail=False), np.flatnonzero(lane))
    assert cells(adata, split).sum() == len(kept)
    alone = adata[kept].copy()
    np.testing.assert_allclose(
        observed_effects(adata, split), observed_effects(alone, split), atol=1e-12
    )


def test_its_cells_take_part_where_the_user_pools_controls(pooled):
    adata, _ = pooled
    assert cells(adata, "test").sum() == len(Screen(adata).rows("test", fail=False))


def test_the_shift_of_the_lane_is_no_effect(apart, pooled):
    def effects(adata):
        return observed_effects(adata, "test").iloc[:, :SHIFTED]

    undisturbed, _ = prepared(times=1)
    right, wrong = (
        (effects(adata) - effects(undisturbed)).abs().to_numpy().mean()
        for adata in (apart[0], pooled[0])
    )
    assert right < 0.05 and wrong > 0.1
