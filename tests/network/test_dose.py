"""The dose: the same screen as a knockdown, a knockout and an activation gives the same network;
noise turns no sign and blows up no effect; mixed screens; notes where data contradict the kind.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from gpovae.data.dose import FLOOR, contradictions, node_doses
from gpovae.data.responses import Responses
from gpovae.network.denoising import steady_state, toy_network
from gpovae.network.edges import with_evidence
from gpovae.network.regression import fit_network

KINDS = ("knockdown", "knockout", "activation")
REGULATORS, NODES, ERROR = 20, 40, 0.08


def table(kind, measured=True, seed=0):
    "The network, and the table of one screen by kind: the same but for sign and own transcripts."
    rng = np.random.default_rng(seed)
    W = toy_network(NODES, 0.08, rng)
    dose = np.log(1 - (0.3 + 0.65 * rng.random(NODES) ** 0.24))
    each = [[i] for i in range(REGULATORS)]
    lfc = steady_state(W, dose, each)
    lfc = lfc + ERROR * rng.normal(size=lfc.shape)
    own = rng.normal(-0.3, 0.3, REGULATORS)
    if kind == "activation":
        lfc = -lfc
    if kind == "knockout":
        np.fill_diagonal(lfc, own)
    if not measured:
        lfc[:, :REGULATORS] = np.nan
    se = np.where(np.isfinite(lfc), ERROR, np.nan)
    return W, Responses.from_arrays(lfc, se, each, kinds=[kind] * REGULATORS)


def found(W, responses, **options):
    "AUPRC of edges from perturbed regulators, share of right signs among those found, the fit."
    fit = fit_network(responses, progress=False, copies=0, **options)
    possible = ~np.eye(len(W), dtype=bool) & responses.measured.any(0)
    possible[REGULATORS:] = False
    p, effect, true = (x[possible] for x in (fit.probability, fit.effect, W))
    hit = (p > 0.5) & (true != 0)
    assert hit.sum() >= 10
    right = (np.sign(effect) == np.sign(true))[hit].mean()
    return average_precision_score(true != 0, p), right, fit


@pytest.fixture(scope="module")
def by_kind():
    every = [(kind, True) for kind in KINDS] + [("knockdown", False), ("activation", False)]
    return {which: found(*table(*which)) for which in every}


@pytest.mark.parametrize("which", [("knockout", True), ("activation", True), ("activation", False)])
def test_the_same_screen_by_kind(by_kind, which):
    auprc, right, _ = by_kind[which]
    assert auprc > by_kind["knockdown", which[1]][0] - 0.03
    assert right >= 0.95


def test_unmeasured_knockouts_are_unmeasured_knockdowns(by_kind):
    W, responses = table("knockout", False)
    assert found(W, responses)[0] == by_kind["knockdown", False][0]


def test_doses_of_knockouts_are_found_and_those_of_knockdowns_kept(by_kind):
    rng = np.random.default_rng(0)
    toy_network(NODES, 0.08, rng)
    true = np.log(1 - (0.3 + 0.65 * rng.random(NODES) ** 0.24))[:REGULATORS]
    dose = {kind: by_kind[kind, True][2].dose[:REGULATORS] for kind in KINDS}
    assert np.corrcoef(dose["knockout"], true)[0, 1] > 0.5
    own = np.diag(table("knockdown")[1].lfc)
    np.testing.assert_allclose(dose["knockdown"], own, atol=0.05)
    assert (dose["knockout"] < 0).all() and (dose["activation"] > 0).all()


def test_a_mixed_screen():
    W, down = table("knockdown")
    _, out = table("knockout")
    _, up = table("activation")
    rows = np.arange(REGULATORS) % 3
    lfc = np.choose(rows[:, None], [down.lfc, out.lfc, up.lfc])
    kinds = np.array(KINDS)[rows]
    mixed = Responses.from_arrays(lfc, down.se, down.targets, kinds=kinds)
    auprc, right, fit = found(W, mixed)
    assert auprc > found(W, down)[0] - 0.03 and right >= 0.95
    assert (np.sign(fit.dose[:REGULATORS]) == np.where(kinds == "activation", 1, -1)).all()


@pytest.mark.parametrize("own", [0.3, 0.02, -0.02, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_an_own_change_within_its_noise(kind, own):
    W, responses = table(kind)
    dose = responses.dose()[0]
    lfc, se = responses.lfc.copy(), responses.se.copy()
    lfc[0, 0], se[0, 0] = own, 0.6
    noisy = replace(responses, lfc=lfc, se=se)
    assert np.sign(noisy.dose()[0]) == np.sign(dose)
    assert np.abs(noisy.dose()[0]) > 0.5
    fit = fit_network(noisy, progress=False, copies=0, draws=40)
    assert np.abs(fit.effect[0]).max() < 5 and np.isfinite(fit.std).all()


def test_the_error_of_a_dose_is_that_of_its_effects():
    W, responses = table("knockdown")
    se = responses.se.copy()
    se[0, 0] = 0.5
    doubtful = replace(responses, se=se)
    # the same dose, so that only its error differs
    known = [r.target_dose().se[0, 0] for r in (responses, doubtful)]
    assert known[0] < 0.1 < 0.3 < known[1]
    j = fit_network(responses, progress=False, copies=0).probability[0].argmax()
    std = [fit_network(r, progress=False, copies=0).std[0, j] for r in (responses, doubtful)]
    assert std[1] > 1.5 * std[0]


def test_combinations_have_the_dose_of_each_target():
    lfc = np.array([[-1.5, 0.1, 0.2], [0.1, np.nan, 0.3], [-1.0, np.nan, 0.2]])
    both = Responses.from_arrays(lfc, np.full((3, 3), 0.05), [[0], [1], [0, 1]])
    doses = both.target_dose()
    np.testing.assert_allclose(doses.mean, [[-1.5, 0, 0], [0, -1, 0], [-1, -1, 0]], atol=0.03)
    np.testing.assert_allclose(both.dose()[:2], [-1.5, -1], atol=0.03)
    assert both.dose_se()[1] == 0 < both.dose_se()[0]
    up = replace(both, kinds=np.repeat("activation", 3))
    assert (up.dose()[:2] >= FLOOR).all() and up.target_dose().mean[2, 1] == 1


def test_a_gene_in_combinations_of_two_kinds():
    lfc = np.full((3, 3), np.nan)
    kinds = ["knockdown", "activation", "activation"]
    r = Responses.from_arrays(lfc, lfc, [[0, 1], [0, 2], [0, 1]], kinds=kinds)
    np.testing.assert_array_equal(r.dose(), [1, -1, 1])
    assert (np.abs(node_doses(r.target_dose(), r.is_target).mean) == 1).all()


def test_edges_say_whether_a_transcript_tells_the_dose():
    import pandas as pd

    _, responses = table("knockout")
    names = responses.nodes
    nodes = pd.DataFrame(dict(perturbed=range(NODES), position=range(NODES)), index=names)
    nodes["perturbed"] = nodes.perturbed < REGULATORS
    edges = pd.DataFrame(dict(source=["0", "1"], target=["5", "6"]))
    assert with_evidence(edges, responses, nodes).relative.all()
    assert not with_evidence(edges, table("knockdown")[1], nodes).relative.any()


@pytest.mark.parametrize(
    "kind, said, setting",
    [
        ("knockdown", "activation", "activation"),
        ("activation", "knockdown", "knockdown"),
        ("knockdown", "knockout", "knockout"),
        ("activation", "knockout", "knockout"),
    ],
)
def test_notes_where_the_data_contradict_the_kind(kind, said, setting):
    "`kind` is what the user says, and `said` what was done."
    _, responses = table(said)
    notes = contradictions(replace(responses, kinds=np.repeat(kind, REGULATORS)))
    assert list(notes) == [f"note_{kind}"]
    assert f"perturbation_type='{setting}' (--perturbation-type {setting})" in notes[f"note_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_note_where_they_agree(kind):
    assert contradictions(table(kind)[1]) == {}
