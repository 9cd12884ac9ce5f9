"""Simulated screens by kind of perturbation, prepared: what is drawn, which doses are read, and
the notes of the preparation. Then activation that was published.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.kinds import KINDS
from gpovae.data.responses import Responses
from gpovae.data.simulate import simulated, true_lfc
from gpovae.evaluate.rankings import inverse_effects, mean_difference
from gpovae.network.regression import fit_network

from places import DATA, needs

SIZE = dict(n_cells=1000, n_genes=80, n_perturbations=8, seed=2)


def prepared(kind, said=None, **options):
    adata = simulated(**SIZE | options, perturbation_type=kind)
    said = said or kind
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpovae.prepare(
            adata,
            perturbation_key="gene",
            control="non-targeting",
            perturbation_type=said,
            doublets=False,
            progress=False,
        )
    return adata, [str(w.message) for w in caught if "contradict" in str(w.message)]


@pytest.fixture(scope="module")
def by_kind():
    return {kind: prepared(kind) for kind in KINDS}


def test_all_but_the_targets_is_the_same_screen():
    screens = {kind: simulated(**SIZE, perturbation_type=kind) for kind in [*KINDS, "mixed"]}
    truth = {kind: a.uns["gpovae_truth"] for kind, a in screens.items()}
    for kind, a in screens.items():
        np.testing.assert_array_equal(truth[kind]["direct"], truth["knockdown"]["direct"])
        assert a.obs["gene"].equals(screens["knockdown"].obs["gene"])
    names = list(truth["knockdown"]["genes"][:8])
    down, out, up = (true_lfc(truth[kind], names, names) for kind in KINDS)
    other = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(out[other], down[other], rtol=1e-5)
    np.testing.assert_allclose(up, -down, rtol=1e-5)
    own = np.diag(out)
    assert own.max() < 0.7 and own.min() > -1.3 and own.std() > 0.1
    assert "perturbation_type" not in screens["knockdown"].obs
    assert set(screens["mixed"].obs["perturbation_type"]) == {*KINDS, "control"}
    with pytest.raises(GpovaeError, match="perturbation_type='deletion' is unknown"):
        simulated(**SIZE, perturbation_type="deletion")


def test_the_kinds_agree_with_their_data(by_kind):
    for kind, (adata, notes) in by_kind.items():
        assert notes == []
        assert not [k for k in adata.uns["gpovae_prepare"]["responses"]["result"] if "note" in k]
        dose = Responses.read(adata).dose()[:8]
        assert (np.sign(dose) == np.sign(KINDS[kind].dose)).all()


@pytest.mark.parametrize(
    "done, said, setting",
    [("activation", "knockdown", "activation"), ("knockout", "knockdown", "knockout")],
)
def test_preparation_notes_another_kind(done, said, setting):
    adata, notes = prepared(done, said)
    assert len(notes) == 1 and f"perturbation_type='{setting}'" in notes[0]
    assert f"--perturbation-type {setting}" in notes[0]
    record = adata.uns["gpovae_prepare"]["responses"]["result"]
    assert record[f"note_{said}"] == notes[0]


def test_notes_by_kind_of_a_mixed_screen():
    "Knockdowns that are activations, beside knockouts that are."
    adata = simulated(**SIZE | dict(n_perturbations=12), perturbation_type="mixed")
    kinds = adata.obs["perturbation_type"].astype(str)
    adata.obs["said"] = kinds.replace("activation", "knockdown").where(
        kinds != "knockdown", "knockout"
    )
    with pytest.warns(UserWarning, match="contradict knockdown.* column of obs"):
        gpovae.prepare(
            adata,
            perturbation_key="gene",
            control="non-targeting",
            perturbation_type="said",
            doublets=False,
            progress=False,
        )


def edge_list(fit, responses):
    "Every edge from a perturbed to a measured node."
    names = responses.nodes.to_numpy(str)
    possible = responses.is_target.any(0)[:, None] & responses.measured.any(0)
    i, j = np.nonzero(possible & ~np.eye(len(names), dtype=bool))
    p = fit.probability[i, j]
    columns = dict(source=names[i], target=names[j], weight=p * fit.effect[i, j], probability=p)
    return pd.DataFrame(columns)


@pytest.mark.parametrize("unmeasured", [0, 8])
def test_signs_of_an_activation(unmeasured):
    size = dict(n_cells=4000, n_genes=150, n_perturbations=25, seed=0)
    adata, _ = prepared("activation", **size, unmeasured=unmeasured)
    truth = adata.uns["gpovae_truth"]
    responses = Responses.read(adata)
    fit = fit_network(responses, progress=False, copies=0)
    direct = pd.DataFrame(truth["direct"], truth["genes"], truth["genes"]).stack()

    edges = edge_list(fit, responses).set_index(["source", "target"])
    true = direct.reindex(edges.index, fill_value=0)
    hit = (edges.probability > 0.5) & (true != 0)
    assert hit.sum() > 20
    assert (np.sign(edges.weight) == np.sign(true))[hit].mean() >= 0.95
    for edges in (mean_difference(adata), inverse_effects(adata)):
        edges = edges.set_index(["source", "target"])
        # negative, if the dose had the wrong sign
        assert np.corrcoef(edges.weight, direct.reindex(edges.index, fill_value=0))[0, 1] > 0


@needs(DATA / "perturbench_devel" / "devel.h5ad")
def test_klf1_raises_the_globins():
    "CRISPRa of Norman et al. 2019, whose targets were not measured."
    from gpovae.data.datasets import load, prepare_arguments

    adata = load("norman2019_small", progress=False)
    options = prepare_arguments("norman2019_small") | dict(perturbation_type="activation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gpovae.prepare(adata, progress=False, **options)
    responses = Responses.read(adata)
    assert (responses.dose() > 0).all()
    fit = fit_network(responses, progress=False)
    source = responses.nodes.get_loc("KLF1")
    for target in ("HBG2", "HBZ"):
        column = responses.nodes.get_loc(target)
        assert fit.effect[source, column] > 0
    assert fit.probability[source, responses.nodes.get_indexer(["HBG2", "HBZ"])].max() > 0.5
