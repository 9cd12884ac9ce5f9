"""The network's parameters: sums over paths, both alignments, the fit as a prior of the effects."""

import numpy as np
import pytest
import torch

from gpovae.network import grn as grn_module
from gpovae.network.grn import (
    GRN,
    contract,
    k_hop,
    published_alignment,
    sample_mask,
    table_alignment,
)


@pytest.fixture
def fitted():
    grn = GRN(3)
    p = np.array([[0, 0.9, 0.2], [0.5, 0, 0.7], [0.1, 0.3, 0]], np.float32)
    std = np.array([[1, 0.1, 0.5], [0.2, 1, 0.3], [0.4, 0.1, 1]], np.float32)
    grn.start_from(p, np.full((3, 3), 0.4, np.float32), std)
    return grn


def test_mask_is_zero_or_one_with_the_right_share():
    torch.manual_seed(0)
    logit = torch.tensor([-2.0, 0.0, 2.0])
    mask = sample_mask(logit, torch.rand(20_000, 3))
    assert set(mask.round(decimals=4).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mask.mean(0), torch.sigmoid(logit), atol=0.01, rtol=0)


def test_published_alignment_of_a_table():
    "Three entries fit, one is off by 0.5."
    total = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    difference = torch.tensor([[1.4, 0.4], [0.4, 0.9]])
    assert published_alignment(total, difference, eps=0.4).item() == pytest.approx(0.5 / 4)


def test_published_paths_are_divided_away():
    "At 5 % density the second edge of a path is worth less than a fifth of the first."
    torch.manual_seed(0)
    logits = torch.where(torch.rand(100, 100) < 0.05, 3.0, 0.0)
    size = [
        (logits[:1] @ torch.linalg.matrix_power(logits / 100, k)).abs().mean() for k in range(2)
    ]
    assert size[1] < 0.2 * size[0]


@pytest.mark.parametrize("longest", [1, 2, 6])
def test_paths_have_at_most_so_many_edges(longest):
    signed, published = (GRN(8, signed=s, max_path_length=longest) for s in (True, False))
    chain = torch.diag(torch.full((7,), 0.5), 1)
    with torch.no_grad():
        signed.edge_logit.fill_(50.0)
        signed.effect.copy_(chain)
        published.edge_logit.copy_(8 * chain)
    first = torch.tensor([0])
    reached = [(grn.accumulate(first)[0, 1:] != 0).sum() for grn in (signed, published)]
    assert reached == [longest, longest]
    assert torch.equal(signed.accumulate(first), k_hop(torch.eye(8)[:1], chain, longest))


def test_effect_prior_is_the_log_density(fitted):
    fresh = GRN(3)
    with torch.no_grad():
        fresh.effect.fill_(5.0)
    assert fresh.effect_prior() == 0  # no fit yet
    assert fitted.effect_prior() == 0 and not fitted.edge_logit.requires_grad
    with torch.no_grad():
        fitted.effect.copy_(torch.randn(3, 3))
    normal = torch.distributions.Normal(fitted.effect_mean, fitted.effect_std)
    log_density = normal.log_prob(fitted.effect) - normal.log_prob(fitted.effect_mean)
    expected = -(fitted.probability() * log_density).sum()
    torch.testing.assert_close(fitted.effect_prior(), expected, atol=1e-4, rtol=0)


def test_no_gene_regulates_itself(fitted):
    assert fitted.probability().diagonal().tolist() == [0, 0, 0]
    assert fitted.sparsity() == torch.sigmoid(fitted.edge_logit).mean()
    measured = GRN(3, measured=np.array([True, False, True]))
    assert (measured.probability()[:, 1] == 0).all() and measured.probability()[0, 2] == 0.5


def test_a_loop_that_would_explode_is_contracted():
    loop = torch.tensor([[0.0, 2.0], [1.5, 0.0]])
    assert torch.linalg.eigvals(contract(loop)).abs().max() == pytest.approx(0.95, abs=0.02)


def test_uncertain_entries_count_less():
    mean = torch.tensor([[0.5, -0.2, float("nan")]]).repeat(2, 1)
    se = torch.tensor([[0.05] * 3, [0.5] * 3])
    loss = table_alignment(torch.zeros(2, 3), mean, se)
    assert loss[0] > 20 * loss[1] and torch.isfinite(loss).all()
    assert table_alignment(mean, mean, se).tolist() == [0, 0]


def test_weights_of_a_trained_network_are_made_once(monkeypatch):
    made = []
    contract = grn_module.contract
    monkeypatch.setattr(grn_module, "contract", lambda W: made.append(1) or contract(W))
    grn = GRN(3).requires_grad_(False)
    grn.effect.fill_(0.5)
    first = grn.weights()
    again = grn.weights()
    grn.accumulate(torch.tensor([1]))
    assert torch.equal(again, first) and len(made) == 1
    again.zero_()  # whoever asks may change what it got
    assert torch.equal(grn.weights(), first)

    grn.effect.mul_(0.5)  # in place
    torch.testing.assert_close(grn.weights(), first / 2)
    grn.load_state_dict(grn.state_dict() | dict(effect=torch.ones(3, 3)))
    torch.testing.assert_close(grn.weights(), contract(grn.probability() * torch.ones(3, 3)))
    grn.effect = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    assert not grn.weights().any()

    before = len(made)
    grn.requires_grad_(True)
    grn.weights()
    grn.weights()
    assert len(made) == before + 2
