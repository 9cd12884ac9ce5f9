"""Two seeds should say the same; how far they may be apart is told, and decides when to stop."""

import numpy as np
import pandas as pd
import pytest

from gpovae.data.responses import Responses
from gpovae.network.denoising import toy_network, toy_responses
from gpovae.network.regression import fit_network

from places import FIXTURES


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    return toy_responses(toy_network(20, 0.1, rng), 60, rng)


def test_chains_stop_as_soon_as_they_agree(toy):
    how = dict(draws=20, copies=0, progress=False)
    loose, tight = (fit_network(toy, max_error=e, **how) for e in (0.25, 0.1))
    assert 2 <= loose.chains < tight.chains
    assert loose.error.max() < 0.25 and tight.error.max() < 0.1
    capped = fit_network(toy, max_error=1e-6, chains=3, **how)
    assert capped.chains == 3 and capped.error.max() > 1e-6


def test_a_small_standard_error_means_that_seeds_agree(toy):
    how = dict(draws=20, copies=0, progress=False)
    apart = {}
    for largest in (0.3, 0.05):
        first, second = (fit_network(toy, max_error=largest, seed=s, **how) for s in (1, 2))
        apart[largest] = np.abs(first.probability - second.probability).max()
    assert apart[0.05] < 0.2 < apart[0.3] + 0.1
    assert apart[0.05] < apart[0.3]


def test_the_standard_error_is_told(toy, capsys):
    how = dict(draws=10, copies=0)
    fit = fit_network(toy, progress=True, **how)
    assert fit.chains == 2 and fit.error.shape == fit.probability.shape
    assert f"2 chains; the standard error of a probability is {fit.error.max():.2f}" in (
        capsys.readouterr().err
    )
    single = fit_network(toy, chains=1, progress=True, **how)
    assert np.isnan(single.error).all() and "one chain" in capsys.readouterr().err


def test_no_rule_no_other_bits(toy):
    "Networks of which most nodes were perturbed are those of before, of two chains."
    how = dict(draws=10, copies=0, progress=False)
    default, two = fit_network(toy, **how), fit_network(toy, chains=2, **how)
    assert default.chains == 2 and (default.probability == two.probability).all()


@pytest.fixture(scope="module")
def few_perturbed():
    with np.load(FIXTURES / "papalexi/responses.npz") as f:
        stored = dict(f)
    return Responses(**stored | dict(nodes=pd.Index(stored["nodes"])))


def test_asked_for_agreement_a_chain_does_not_stick(few_perturbed):
    "With the regulators that it met first: a chain of another seed found others."

    def moved(**how):
        "Edges that one chain is sure of, and the chain of another seed is not."
        how |= dict(draws=30, copies=0, chains=1, progress=False)
        first, second = (fit_network(few_perturbed, seed=s, **how).probability for s in (1, 2))
        return np.count_nonzero(np.abs(first - second) > 0.5)

    assert moved(max_error=0.05) < moved() / 2


@pytest.mark.parametrize("order", ["nodes", "perturbations"])
def test_a_table_sorted_otherwise_is_fitted_alike(order, few_perturbed):
    "To the bit, the standard error included, in a screen of few perturbed nodes."
    table = few_perturbed
    rows, nodes = (np.arange(len(x)) for x in (table.perturbations, table.nodes))
    rng = np.random.default_rng(0)
    rng.shuffle(nodes if order == "nodes" else rows)
    how = dict(draws=4, copies=0, chains=2, progress=False)
    first, other = fit_network(table, **how), fit_network(table.take(rows, nodes), **how)
    for name in ("probability", "effect", "std", "error"):
        expected = getattr(first, name)[np.ix_(nodes, nodes)]
        assert (getattr(other, name) == expected).all()
