"""Every switch of the objective changes the terms that it is about and no other.

On the same model, batch and noise; and a model built with any single switch thrown takes a step.
"""

from dataclasses import asdict

import pytest
import torch

import gpovae
from gpovae.data.minibatch import Cells
from gpovae.data.simulate import simulated
from gpovae.experiments.ablation import NO_SWITCH
from gpovae.model.objective import draw, objective
from gpovae.model.presets import PRESETS, make_settings
from gpovae.train.build import build

SMALL = dict(latent=6, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), particles=2)
KL = {"kl_basal", "kl_effect", "kl_mask", "kl_artifact"}
TERMS = dict(
    reconstruction={"reconstruction"},
    divergence={"counterfactual"},
    partner={"counterfactual"},
    kl=KL,
    alignment_target={"alignment"},
    decoder_prior={"decoder_prior"},
)
# of the objective: prediction and early stopping
OUTSIDE = {"residual_correction", "combination", "validation"}
# decide what the model is
BUILT = {"latent_effect", "target_dispersion", "covariate", "scale_floor", "accumulation"}
SWITCHES = {
    k: v for k, v in asdict(PRESETS["paper"]).items() if k in TERMS or k in OUTSIDE or k in BUILT
}


@pytest.fixture(scope="module")
def screen():
    a = simulated(
        n_cells=700,
        n_genes=80,
        n_perturbations=6,
        n_downstream=6,
        fail_share=0.3,
        n_batches=2,
        seed=0,
    )
    return gpovae.prepare(
        a,
        perturbation_key="gene",
        control="non-targeting",
        batch_key="batch",
        doublets=False,
        progress=False,
    )


@pytest.fixture(scope="module")
def built(screen):
    s = make_settings(**SMALL)
    vae, *names = build(screen, s)
    with torch.no_grad():
        # or there is nothing for the decoder's prior to see
        vae.decoder.layers[0].weight.normal_(0, 0.05)
    return vae, names


def evaluated(screen, built, **changes):
    vae, names = built
    s = make_settings(**SMALL, **changes)
    batch = Cells(screen, "train", *names, s.partner, s.alignment_target == "cells")[range(200)]
    noise, again = draw(vae, batch, s, torch.Generator().manual_seed(0))
    return {k: v.item() for k, v in objective(vae, batch, s, noise, again).items()}


def test_every_switch_is_tested():
    "Whatever differs between the presets is a switch, a weight or a size."
    corrected, paper = (asdict(PRESETS[p]) for p in ("corrected", "paper"))
    assert (
        {k for k in corrected if corrected[k] != paper[k]} - set(NO_SWITCH)
        == set(SWITCHES)
        == set(TERMS) | OUTSIDE | BUILT
    )


@pytest.mark.parametrize("switch", [*TERMS, *sorted(OUTSIDE)])
def test_a_switch_changes_its_own_terms_only(screen, built, switch):
    before = evaluated(screen, built)
    after = evaluated(screen, built, **{switch: SWITCHES[switch]})
    changed = {
        k
        for k in before | after
        if before.get(k, 0) != pytest.approx(after.get(k, 0), rel=1e-5, abs=1e-7)
    }
    # with fixed edge probabilities and the network's latent, the mask is not drawn: its sampled KL
    # is the closed one
    assert changed - {"total", "elbo"} == TERMS.get(switch, set()) - (
        {"kl_mask"} if switch == "kl" else set()
    )


@pytest.mark.parametrize(
    "weight, term",
    [("beta", "counterfactual"), ("alignment_weight", "alignment"), ("sparsity", "sparsity")],
)
def test_a_weight_multiplies_its_term(screen, built, weight, term):
    before = evaluated(screen, built)
    after = evaluated(screen, built, **{weight: 3 * getattr(make_settings(), weight)})
    assert after[term] == pytest.approx(3 * before[term], rel=1e-5)
    assert after["total"] - before["total"] == pytest.approx(2 * before[term], abs=1e-3)


@pytest.mark.parametrize("base", PRESETS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_any_single_switch_can_take_a_step(screen, base, switch):
    other = asdict(PRESETS["paper" if base == "corrected" else "corrected"])[switch]
    changes = {switch: other} | (
        dict(latent_effect="mask")
        if (base, switch) == ("corrected", "accumulation")
        else dict(accumulation="effects")
        if (base, switch) == ("paper", "latent_effect")
        else {}
    )
    s = make_settings(base, **SMALL | changes)
    vae, *names = build(screen, s)
    batch = Cells(screen, "train", *names, s.partner, s.alignment_target == "cells")[range(200)]
    adam = torch.optim.Adam(vae.parameters(), lr=s.learning_rate)
    for _ in range(2):
        terms = objective(vae, batch, s, *draw(vae, batch, s, torch.Generator().manual_seed(0)))
        assert all(torch.isfinite(torch.as_tensor(v)) for v in terms.values()), terms
        adam.zero_grad()
        terms["total"].backward()
        adam.step()
    for name, w in vae.named_parameters():
        assert torch.isfinite(w).all(), name
    # then the fit has set the edge probabilities for good
    fixed = s.accumulation == "effects" and s.alignment_target == "responses"
    assert vae.grn.edge_logit.requires_grad != fixed
