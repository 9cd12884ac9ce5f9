"""A model of knockouts, and of a mixed screen: the transcript of a target is a response like any
other, and the dose is another number; what a user reads says what the unit is.
"""

import numpy as np
import pytest
import torch

import gpovae
from gpovae.data.kinds import KINDS
from gpovae.data.responses import Responses
from gpovae.model.unseen import fit_unseen


@pytest.fixture(scope="module")
def mixed():
    "A model of a small screen of all kinds, the column of obs that says so."
    adata = gpovae.datasets.simulated(900, 60, 6, seed=1, perturbation_type="mixed")
    gpovae.prepare(
        adata,
        perturbation_key="gene",
        control="non-targeting",
        perturbation_type="perturbation_type",
        doublets=False,
        progress=False,
    )
    model = gpovae.GPOVAE(adata)
    model.train(max_epochs=3, seed=0, progress=False)
    return model


def kind_of(model):
    "Type of each label's perturbation."
    table = Responses.read(model.adata)
    kinds = dict(zip(table.perturbations, table.kinds, strict=True))
    return [kinds[label] for label in model.labels]


def test_doses_of_a_mixed_screen(mixed):
    known = mixed.vae.perturbations
    place = mixed.nodes.index.get_indexer(mixed.labels)
    kinds = kind_of(mixed)
    assert set(kinds) == set(KINDS)
    sign = [np.sign(KINDS[kind].dose) for kind in kinds]
    np.testing.assert_array_equal(np.sign(known.dose.numpy()[place]), sign)
    told = [KINDS[kind].own_transcript_is_dose for kind in kinds]
    np.testing.assert_array_equal(known.dose_se.numpy()[place] > 0, told)


def test_the_own_transcript_is_what_was_measured(mixed):
    table = Responses.read(mixed.adata).select(mixed.labels)
    place = mixed.nodes.index.get_indexer(mixed.labels)
    own = mixed.vae.perturbations.own_lfc.numpy()[place]
    np.testing.assert_allclose(own, table.lfc[range(len(place)), place], rtol=1e-6)
    rows = mixed.vae.expected_rows(torch.from_numpy(place)).detach().numpy()
    np.testing.assert_allclose(rows[range(len(place)), place], own, rtol=1e-6)
    # and is predicted: of a knockout not the dose
    effects = mixed.predict(mixed.labels).to_df()
    predicted = np.array([effects.loc[g, g] for g in mixed.labels]) * np.log(2)
    knockouts = np.array(kind_of(mixed)) == "knockout"
    gap = np.abs(predicted - own)[knockouts]
    dose = mixed.vae.perturbations.dose.numpy()[place][knockouts]
    assert gap.max() < 0.3 < np.abs(dose - own[knockouts]).max()


def test_what_a_user_reads_says_the_unit(mixed):
    kinds = np.array(kind_of(mixed))
    labels = np.array(mixed.labels)
    told = labels[kinds == "knockdown"][0]
    untold = labels[kinds == "knockout"][0]
    target = mixed.nodes.index[~mixed.nodes.perturbed][0]
    unit = "the unit of the network's edges is the perturbation as it was done"
    assert unit in mixed.explain(untold, target).sentence()
    assert unit not in mixed.explain(told, target).sentence()
    for method in (mixed.predict, mixed.explain):
        assert "as it was done" in method.__doc__ or "as they were done" in method.__doc__

    edges = mixed.network(min_probability=0, evidence=True)
    relative = edges.groupby("source").relative.all()
    assert relative[untold] and not relative[told]
    graph = mixed.graph(min_probability=0)
    assert graph.nodes[untold]["dose"] < 0 and graph.nodes[told]["dose"] < 0


def test_untrained_targets_get_the_dose_of_most(mixed):
    fit = fit_unseen(mixed.vae, folds=2)
    assert (fit.doses < 0).all() and len(fit.doses) == len(fit.own_lfc) > 1


def test_a_model_comes_back_with_its_doses(mixed, tmp_path):
    mixed.save(tmp_path)
    again = gpovae.GPOVAE.load(tmp_path, mixed.adata).vae.perturbations
    for name in ("dose", "dose_se", "own_lfc"):
        before = getattr(mixed.vae.perturbations, name)
        np.testing.assert_array_equal(getattr(again, name).numpy(), before.numpy())
