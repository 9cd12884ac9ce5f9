"""A training step of a fitted network follows its edges: no dense product, the same numbers."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpovae.data.minibatch import Batch
from gpovae.data.responses import Responses
from gpovae.model.objective import draw, objective
from gpovae.model.presets import make_settings
from gpovae.model.response_buffers import ResponseBuffers
from gpovae.model.vae import VAE
from gpovae.network.grn import GRN, contract

N, GENES, CELLS = 300, 310, 24
# what only takes rows or edges of a matrix, or says that it is the same one
READS = {"index", "index_select", "detach", "alias", "view", "_unsafe_view", "expand", "reshape"}


class NoDense(TorchDispatchMode):
    "Refuses every operation with an n x n operand or result that is stored densely."

    def __init__(self, n):
        super().__init__()
        self.shape = (n, n)
        self.refused = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        result = f(*args, **(kwargs or {}))
        name = f.overloadpacket.__name__
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        dense = [t for t in tensors if t.layout == torch.strided and t.shape == self.shape]
        if dense and name not in READS:
            self.refused.append(name)
        return result


@pytest.fixture
def model():
    "A fitted network of some edges a node, a batch, and its noise."
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    settings = make_settings("corrected", particles=2)
    lfc = rng.normal(0, 0.3, (N, N))
    names = pd.Index(np.arange(N).astype(str))
    table = Responses(lfc, np.full_like(lfc, 0.1), np.full(N, 100.0), names, names)
    known = ResponseBuffers(table, n_fail=50, n_controls=500)
    grn = GRN(N, max_path_length=6)
    is_edge = (rng.random((N, N)) < 0.02) & ~np.eye(N, dtype=bool)
    probability = np.where(is_edge, 0.8, 1e-4).astype(np.float32)
    effect = np.where(is_edge, rng.normal(0, 0.3, (N, N)), 0).astype(np.float32)
    grn.start_from(probability, effect, np.full((N, N), 0.1, np.float32))
    vae = VAE(GENES, torch.arange(N), grn, known, **settings.architecture())
    with torch.no_grad():
        grn.effect += 0.01 * torch.from_numpy(is_edge)

    g = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((CELLS, GENES), 2.0), generator=g)
    batch = Batch(
        x=x,
        library=x.sum(1),
        label=torch.arange(CELLS) - 1,
        fail=(torch.arange(CELLS) % 5 == 0).float(),
        lane=torch.zeros(CELLS, dtype=torch.long),
        partner=torch.poisson(torch.full((CELLS, GENES), 2.0), generator=g),
        paired=torch.ones(CELLS, dtype=torch.bool),
        shift=None,
        row=torch.arange(CELLS),
    )
    return vae, batch, settings, draw(vae, batch, settings, g)


def step(model, vae=None):
    vae = vae or model[0]
    adam = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], lr=1e-3, fused=True)
    adam.zero_grad()
    terms = objective(vae, *model[1:3], *model[3])
    terms["total"].backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1e9)
    gradients = {k: p.grad for k, p in vae.named_parameters() if p.grad is not None}
    adam.step()
    return {k: v.detach() for k, v in terms.items()}, gradients


def listed(vae):
    vae = copy.deepcopy(vae)
    if hasattr(vae.grn, "list_edges"):  # as `fit` does
        vae.grn.list_edges()
    return vae


def test_the_step_makes_no_dense_product(model):
    "With optimiser and clipping: nothing of the size of all pairs is made or read through."
    vae = listed(model[0])
    with NoDense(N) as mode:
        step(model, vae)
    assert mode.refused == []


def test_listed_and_dense_steps_are_equal(model):
    "Terms, gradients and the next weights, where all edges are kept."
    vae = listed(model[0])
    assert vae.grn.listed is not None
    terms, gradients = step(model, vae)
    dense_terms, dense_gradients = step(model)
    for name, value in dense_terms.items():
        torch.testing.assert_close(terms[name], value, rtol=5e-6, atol=5e-6)

    edges = vae.grn.listed.edges
    of_effect = edges.gather(dense_gradients.pop("grn.effect"))
    torch.testing.assert_close(gradients.pop("grn.effect"), of_effect, rtol=5e-6, atol=5e-6)
    assert gradients.keys() == dense_gradients.keys()
    for name, value in dense_gradients.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(gradients[name], value, rtol=5e-6, atol=5e-6 * max(scale, 1))


def test_the_network_is_accumulated_once(model, monkeypatch):
    "Latents and alignment share what the network predicts."
    calls = []
    accumulate = GRN.accumulate
    monkeypatch.setattr(GRN, "accumulate", lambda *a: calls.append(1) or accumulate(*a))
    step(model, listed(model[0]))
    assert len(calls) == 1


def test_a_saved_network_is_dense(model):
    "State, loading and the way back: other than what is left out nothing changes."
    vae = model[0]
    other = listed(vae)
    state = other.state_dict()
    assert state.keys() == vae.state_dict().keys()
    for name, tensor in vae.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, equal_nan=True)

    step(model, other)
    moved = {k: v.clone() for k, v in other.state_dict().items()}
    again = listed(vae)
    again.load_state_dict(moved)
    assert torch.equal(again.grn.effect, other.grn.effect)
    other.grn.unlist_edges()
    assert other.grn.effect.shape == (N, N)
    assert torch.equal(other.grn.effect, moved["grn.effect"])


def test_the_bound_holds_where_a_network_must_be_contracted(model):
    grn = listed(model[0]).grn
    with torch.no_grad():
        grn.effect *= 3.0
    scaled = grn.weights().detach()
    raw = grn.probability().detach() * grn.listed.edges.dense(grn.effect.detach())
    assert torch.linalg.eigvals(raw.double()).abs().max() > 1
    assert torch.linalg.eigvals(scaled.double()).abs().max() < 0.96
    torch.testing.assert_close(scaled, contract(raw), rtol=0.02, atol=1e-6)


def test_few_nodes_or_many_edges_stay_dense(model):
    grn = model[0].grn
    assert not copy.deepcopy(grn).list_edges(large=N + 1)
    assert not copy.deepcopy(grn).list_edges(most=0.001)
    assert not GRN(N).list_edges()  # whose logits are trained
