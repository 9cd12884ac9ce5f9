"""An explanation beside the decoder's prediction; cut edges against the algebra."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from gpovae import GPOVAE
from gpovae.core.errors import GpovaeError
from gpovae.model.attribution import cut_edges, log_fold, trained_responses
from gpovae.model.prediction import mean_latent, mean_log2
from gpovae.network.grn import GRN

from networks import W_of, powers, random_grn


@pytest.fixture(scope="module")
def model(run_folder):
    return GPOVAE.load(run_folder / "run")


def test_prediction_in_natural_log(model):
    "A gene whose mean changes by that factor shows the predicted effect."
    vae = copy.deepcopy(model.vae)
    context = model.context
    effect = model.predict(model.labels[0]).X[0]
    j = model.genes.index(model.labels[1])
    vae.size_factor[j] = False  # so that the library stays as it is when this gene moves
    beside = torch.zeros(1, len(model.genes))
    zero = torch.zeros(1, vae.grn.n)
    for wanted in (effect[j], -0.8, 0.8):
        beside[0, j] = float(log_fold(vae, context, [j], [wanted])[0])
        before, after = (
            mean_log2(vae, context, zero, [[]], b)[0, j].item() for b in (None, beside)
        )
        assert (
            after - before == pytest.approx(wanted, abs=2e-3) and beside[0, j].item() * wanted > 0
        )
    np.testing.assert_allclose(log_fold(vae, context, [0, 1], [0.0, 0.0]), 0, atol=1e-5)
    assert log_fold(vae, context, [0], [-50.0])[0] == pytest.approx(-10, abs=1e-5)


def test_cut_is_the_algebra(model):
    e = model.network(0).iloc[0]
    i, j = (model.nodes.index.get_loc(g) for g in (e.source, e.target))
    before = {k: v.clone() for k, v in model.vae.state_dict().items()}
    table = model.network(0)
    effects = model.predict(e.source).X
    less = model.cut([(e.source, e.target)])
    W = W_of(model.vae.grn)
    W[i, j] = 0
    T = sum(powers(W, model.vae.grn.max_path_length))
    dose = model.vae.perturbations.dose.double().numpy()
    rows = torch.arange(len(dose))
    np.testing.assert_allclose(
        less.vae.grn.predicted_lfc(rows, model.vae.perturbations.dose).numpy(),
        dose[:, None] * T / np.diag(T)[:, None],
        atol=1e-5,
    )
    # no other edge has changed
    np.testing.assert_allclose(less.vae.grn.weights().numpy(), W, atol=1e-7)
    at = torch.tensor([i])
    shift = less.vae.grn.predicted_lfc(
        at, model.vae.perturbations.dose
    ) - model.vae.grn.predicted_lfc(at, model.vae.perturbations.dose)
    (old, draws), (new, new_draws) = (mean_latent(m.vae, at) for m in (model, less))
    torch.testing.assert_close(new - old, shift.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        new_draws - draws, shift.detach().expand_as(draws), atol=1e-5, rtol=0
    )
    assert not np.allclose(less.predict(e.source).X, effects) and np.array_equal(
        less.predict(e.source).layers["residual"], model.predict(e.source).layers["residual"]
    )
    assert less.explain(e.source, e.target).by_length.contribution[1] == 0
    assert (e.source, e.target) not in set(
        zip(less.network(1e-6).source, less.network(1e-6).target, strict=False)
    ) and f"{e.source} > {e.target}" in repr(less)
    for k, v in model.vae.state_dict().items():
        # the whole model is as it was
        torch.testing.assert_close(v, before[k], rtol=0, atol=0, equal_nan=True)
    pd.testing.assert_frame_equal(model.network(0), table)
    assert np.array_equal(model.predict(e.source).X, effects) and "without" not in repr(model)


def test_cut_when_the_bound_is_active():
    """The spectral radius is at its bound.

    Without the edge it would not be, and the others would grow if they were scaled again.
    """
    grn, dose, nodes = random_grn(6, 3, density=1, scale=2)
    from gpovae.data.responses import Responses
    from gpovae.model.response_buffers import ResponseBuffers
    from gpovae.model.vae import VAE

    responses = Responses.from_arrays(np.full((1, 6), -1.0), np.ones((1, 6)), [[0]])
    vae = VAE(
        6,
        torch.arange(6),
        grn,
        ResponseBuffers(responses, [9], n_fail=0),
        latent=3,
        basal=(8, 1),
        embedding=(8, 2),
        decoder=(8, 2),
    )
    raw = (grn.probability() * grn.effect).detach()
    assert not torch.allclose(grn.weights(), raw)
    less = cut_edges(cut_edges(vae, nodes, [("g0", "g1")]), nodes, [("g2", "g3"), ("g4", "g5")])
    W = W_of(grn)
    W[0, 1] = W[2, 3] = W[4, 5] = 0
    np.testing.assert_allclose(less.grn.weights().numpy(), W, atol=1e-7)
    assert less.grn.removed == [(0, 1), (2, 3), (4, 5)] and not hasattr(grn, "removed")
    assert torch.equal(less.grn.probability(), grn.probability())


def test_cut_errors(model, tmp_path):
    g = model.labels[0]
    t = next(x for x in model.nodes.index if x not in model.labels)
    for edges, message in (
        ([(g, "nobody")], "'nobody' is not a node"),
        ([(t, g)], f"'{t}' was never perturbed"),
        ([(g, g)], f"no edge from '{g}' to '{g}'"),
        ((g, t), "a list of pairs"),
        ([], "a list of pairs"),
    ):
        with pytest.raises(GpovaeError, match=message):
            model.cut(edges)
    less = model.cut([(g, t)])
    with pytest.raises(GpovaeError, match="no edge"):
        less.cut([(g, t)])
    with pytest.raises(GpovaeError, match="cannot be saved"):
        less.save(tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    with pytest.raises(GpovaeError, match="fit of its own"):
        less.predict(t, unseen="network")


def test_published_network_cannot_be_cut(model):
    vae = model.vae
    paper = type("Paper", (), dict(network_prior=False, grn=GRN(3, signed=False)))()
    with pytest.raises(GpovaeError, match="preset='corrected'"):
        cut_edges(paper, model.nodes, [("a", "b")])
    assert vae.network_prior


def test_the_table_inside_a_model_is_that_of_the_screen(model):
    from gpovae.data.responses import Responses

    inside = trained_responses(model.vae, model.labels, model.nodes)
    table = Responses.read(model.adata).select(model.labels)
    other = ~inside.is_target
    np.testing.assert_array_equal(inside.lfc[other], np.asarray(table.lfc, np.float32)[other])
    np.testing.assert_array_equal(inside.se[other], np.asarray(table.se, np.float32)[other])
    np.testing.assert_allclose(inside.dose(), model.vae.perturbations.dose.numpy(), rtol=1e-6)
    assert inside.cells.tolist() == list(table.cells)
