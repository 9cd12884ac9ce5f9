"""Every effect starts where it was caused: what a perturbation does comes out of the network, where
few nodes were perturbed and the others respond together.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from gpovae.data.responses import Responses
from gpovae.network.denoising import steady_state
from gpovae.network.regression import fit_network

from places import FIXTURES

PERTURBED, FOLLOWERS, PROGRAMMES = 8, 40, 2


def hidden_programmes(seed, kind="knockdown"):
    """Eight perturbed genes, forty others in programmes of twenty that unmeasured factors drive.

    Direct effects among the measured, and the table.
    """
    rng = np.random.default_rng(seed)
    n = PERTURBED + FOLLOWERS
    factor = n + np.arange(PROGRAMMES)
    W = np.zeros((n + PROGRAMMES, n + PROGRAMMES))
    W[[0, 1, 4], [1, 2, 5]] = 0.8
    W[[2, 5], factor] = 0.9
    for k, f in enumerate(factor):
        members = PERTURBED + np.arange(k, FOLLOWERS, PROGRAMMES)
        W[f, members] = rng.choice([-1, 1], len(members)) * rng.uniform(0.4, 1, len(members))
    each = [[g] for g in range(PERTURBED)]
    lfc = steady_state(W, np.full(len(W), -1.2), each)[:, :n]
    se = np.full(lfc.shape, 0.05)
    lfc += se * rng.normal(size=se.shape)
    kept = np.arange(n)
    direct = W[np.ix_(kept, kept)] + W[np.ix_(kept, factor)] @ W[np.ix_(factor, kept)]
    return direct, Responses.from_arrays(lfc, se, each, kinds=[kind] * PERTURBED)


def slopes(table, fit):
    "Of total effects on clear responses, by perturbation with at least five."
    total = steady_state(np.float64(fit.probability * fit.effect), fit.dose, table.targets)
    clear = ~table.is_target & (np.abs(table.lfc / table.se) > 4)
    rows = np.flatnonzero(clear.sum(1) >= 5)
    return [
        (total[r] * table.lfc[r])[clear[r]].sum() / (table.lfc[r][clear[r]] ** 2).sum()
        for r in rows
    ]


@pytest.mark.parametrize("kind", ["knockdown", "knockout"])
def test_total_effects_explain_what_was_measured(kind):
    direct, table = hidden_programmes(0, kind)
    fit = fit_network(table, copies=2, progress=False)
    found = slopes(table, fit)
    assert len(found) == 5 and min(found) > 0.8
    # the cascade is found, and perturbations that do nothing have no edge
    assert (fit.probability[[0, 1, 4], [1, 2, 5]] > 0.5).all()
    assert fit.probability[[3, 6, 7]].max() < 0.5


def test_perturbed_genes_regulate_the_programmes_that_they_drive():
    "Not the members each other: nearly all edges of the two drivers are likely."
    direct, table = hidden_programmes(0)
    fit = fit_network(table, copies=0, progress=False)
    others = np.arange(PERTURBED)[:, None] != np.arange(PERTURBED + FOLLOWERS)
    truth = (direct[:PERTURBED] != 0)[others]
    p = fit.probability[:PERTURBED][others]
    assert average_precision_score(truth, p) > 0.95
    assert (p[truth] > 0.5).mean() > 0.9 and (p[~truth] > 0.5).mean() < 0.01


def test_a_screen_that_perturbs_most_nodes_is_fitted_as_before():
    "The default is that of all regulators, to the bit."
    _, table = hidden_programmes(0)
    few = table.take(np.arange(PERTURBED), np.arange(3 * PERTURBED))
    how = dict(copies=0, draws=10, progress=False)
    default, every = fit_network(few, **how), fit_network(few, regulators="all", **how)
    assert (default.probability == every.probability).all()


def test_a_circle_that_nothing_starts_explains_nothing():
    "Followers have no edge of their own where few nodes were perturbed."
    _, table = hidden_programmes(1)
    fit = fit_network(table, copies=0, draws=20, progress=False)
    assert fit.probability[PERTURBED:].max() == 0


@pytest.fixture(scope="module")
def papalexi():
    "25 knockouts and what 91 other genes did; the network of the default settings."
    with np.load(FIXTURES / "papalexi/responses.npz") as f:
        stored = dict(f)
    stored["nodes"] = pd.Index(stored["nodes"])
    table = Responses(**stored)
    fit = fit_network(table, seed=0, progress=False)
    return pd.DataFrame(fit.probability, table.nodes, table.nodes)


@pytest.mark.parametrize(
    "source, target",
    [("IFNGR1", "JAK2"), ("IFNGR2", "JAK2"), ("JAK2", "STAT1"), ("STAT1", "STAT2")],
)
def test_the_known_edges_of_a_real_screen_are_found(papalexi, source, target):
    assert papalexi.loc[source, target] > 0.5


NULLS = ["ATF2", "CD86", "CAV1", "MARCH8", "PDCD1LG2", "ETV7", "POU2F2", "UBE2L6", "STAT5A"]


def test_knockouts_that_do_nothing_have_no_edge(papalexi):
    nulls = papalexi.index.intersection([*NULLS, "TNFRSF14", "CMTM6", "NFKBIA"])
    assert len(nulls) > 8 and papalexi.loc[nulls].to_numpy().max() < 0.5
