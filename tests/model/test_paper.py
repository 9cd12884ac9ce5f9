"""`preset="paper"` against recorded numbers of the published objective, every array.

One batch, fixed parameters and noise. tests/fixtures/paper_step.npz holds inputs, parameters,
noise and results computed by running the published implementation (Baek et al. 2025; its code:
CC BY-NC 4.0) on random inputs, torch CPU float32. Symbols: P = 3 particles, n = 12 cells,
G = 15 genes, T = 6 nodes of which 4 are perturbed, L = 4; good and bad are both quality labels
of a cell.
"""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from gpovae.data.minibatch import Batch
from gpovae.data.partners import mean_shares
from gpovae.data.register import register
from gpovae.data.responses import Responses
from gpovae.data.screen import Key
from gpovae.evaluate.effects import observed_effects
from gpovae.model.divergences import log_bernoulli, log_normal, unit_normal
from gpovae.model.iwelbo import iwelbo
from gpovae.model.layers import Gaussian, PerRow
from gpovae.model.likelihood import log_likelihood, log_mean
from gpovae.model.objective import (
    Posterior,
    cell_log_likelihood,
    cell_weight,
    kl_artifact,
    kl_basal,
    kl_effect,
    kl_mask,
    objective,
    share_plates,
)
from gpovae.model.presets import make_settings
from gpovae.model.response_buffers import ResponseBuffers
from gpovae.model.vae import VAE, Effects, Noise
from gpovae.network.grn import EPS, GRN, sample_mask

from places import FIXTURES, ROOT

RAW = np.load(FIXTURES / "paper_step.npz")
Z = {k: torch.from_numpy(np.atleast_1d(v)) for k, v in RAW.items() if v.dtype.kind != "U"}
PERTURBED = slice(0, 4)
ALL = torch.arange(6)
NAMES = {
    "embedding_encoder": "embedding_encoder",
    "qc_encoder": "artifact_encoder",
    "z_encoder": "basal_encoder",
}


def ours(name: str) -> str:
    "Our name of a recorded parameter."
    head, _, rest = name.partition(".")
    if name == "mask_param":
        return "grn.edge_logit"
    if name == "decoder.log_concentration":
        return "log_theta"
    if rest.startswith("softmax_logits"):
        return rest.replace("softmax_logits", "logits")
    if rest.startswith("hidden"):
        layer, _, kind = rest[len("hidden") :].partition(".")
        return (
            f"decoder.layers.{layer}.{kind}"
            if head == "decoder"
            else f"{NAMES[head]}.hidden.layers.{layer}.{kind}"
        )
    return f"{NAMES[head]}.{rest}"


RECORDED = [k[len("param.") :] for k in Z if k.startswith("param.")]
GIVEN = r"in\.|cfg\.|param\.|noise\.|iwelbo\.noise\.|ate\.mean\.sample\.|ate\.\w+\.counts_"
# the last match counts
TOLERANCE = {
    r"(logp|loss)\.": 1e-4,
    r"iwelbo\.value": 1e-4,
    r"grad\.norm": 1e-4,
    r"loss\.(alpha|cf_kl|grn|penalty|total)": 1e-5,
    r"sample|dist|grn|after_step|ate": 1e-5,
}


@pytest.fixture(scope="module")
def step():
    "The model with the recorded parameters, its settings, the batch and the noise of both passes."
    c = {k[4:]: RAW[k].item() for k in RAW if k.startswith("cfg.")}
    # what the published configurations use
    assert (c["mode"], c["sum_mode"], c["temp"], c["pscale"]) == ("logits", False, 1, 1)
    s = make_settings(
        "paper",
        latent=c["L"],
        basal=(7, c["bas_l"]),
        embedding=(8, c["emb_l"]),
        decoder=(9, c["dec_l"] + 1),
        particles=c["P"],
        eps=c["fc"],
        sparsity=c["penalty_coeff"],
        max_path_length=c["hop"] + 1,
        beta=c["beta"],
        alignment_weight=c["gloss_coeff"],
        edge_prior=c["mask_prior"],
    )
    names = pd.Index([f"g{i}" for i in range(6)])
    table = Responses(np.zeros((4, 6)), np.ones((4, 6)), np.ones(4), names[:4], names)
    P = ResponseBuffers(table, n_fail=1)
    P.node_cells.copy_(Z["in.D_obs_counts"])
    P.n_fail.copy_(Z["in.qc_obs_counts"][0])
    vae = VAE(
        c["G"],
        ALL,
        GRN(c["T"], signed=False, max_path_length=s.max_path_length, edge_prior=s.edge_prior),
        P,
        **s.architecture(),
    )
    vae.log_x_mean.copy_(Z["in.log_x_mean"])
    vae.log_x_std.copy_(Z["in.log_x_std"])
    state = dict(vae.named_parameters())
    with torch.no_grad():
        for name in RECORDED:
            state[ours(name)].copy_(Z[f"param.{name}"])
    D = Z["in.D"]
    x = Z["in.X"]
    batch = Batch(
        x,
        Z["in.library_size"],
        torch.where(D.sum(1) > 0, D.argmax(1), -1),
        Z["in.qc"].flatten(),
        torch.zeros(12, dtype=torch.long),
        Z["in.cfX"],
        Z["in.cfX"].sum(1) != 0,
        Z["in.deltaX"],
    )
    return vae, s, batch, [recorded_noise("noise."), recorded_noise("noise.cf.")]


def recorded_noise(at, nodes=ALL):
    return Noise(
        Z[f"{at}u_mask"][:, nodes], Z[f"{at}eps_E"][:, nodes], Z[f"{at}eps_qcE"], Z[f"{at}eps_z"]
    )


def perturbed(noise):
    return noise._replace(mask=noise.mask[:, PERTURBED], effect=noise.effect[:, PERTURBED])


def guide(vae, batch, noise, to):
    """All draws and distributions of one pass.

    The second pass is that of the partner: `batch` with its counts and the other label.
    """
    E = vae.effects(ALL, noise.mask, noise.effect)
    e_a, q_a = vae.artifact(noise.artifact)
    z_p = vae.perturbations.gather(E.latent, ALL, batch.label)
    u = batch.fail[:, None]
    q, flipped = (
        vae.encode(vae.standardise(batch.x), z_p, v * e_a, batch.lane) for v in (u, 1 - u)
    )
    q_a = Gaussian(*(t.expand(3, 1, 4) for t in q_a))
    draws = dict(mask=E.mask, E=E.effect, qc_E=e_a, z_basal=q.sample(noise.basal))
    logit = vae.grn.edge_logit
    out = {f"sample.{to}{k}": v for k, v in draws.items()} | {
        f"dist.{to}q_mask.probs": vae.grn.probability(),
        f"dist.{to}q_mask.logits": logit,
    }
    for k, g in dict(E=E.q, qc_E=q_a, z_basal=q, z_cf_basal=flipped).items():
        out |= {f"dist.{to}q_{k}.mean": g.mean, f"dist.{to}q_{k}.std": g.std}
    rows = PerRow(E.latent, vae.perturbations.find(ALL, batch.label))
    posterior = Posterior(ALL, E, e_a, q_a, q, flipped, draws["z_basal"], rows, u * e_a)
    return out, posterior, draws, dict(E=E.q, qc_E=q_a, z_basal=q), z_p


def soft(logit, u):
    """The relaxed sample behind the mask, from its derivative s (1 - s), which is that of the
    straight-through sample.
    """
    logit = logit.detach().double().expand(u.shape).requires_grad_()
    mask = sample_mask(logit, u.double())
    (slope,) = torch.autograd.grad(mask.sum(), logit)
    return 0.5 + (mask - 0.5).sign() * (0.25 - slope).clamp_min(0).sqrt()


def decoder(vae, batch, draws, z_p):
    "Both branches of the decoder for every cell, gene by gene."
    out = {}
    for name, flag in dict(good=0, bad=1).items():
        log_mu = log_mean(
            vae.decode(draws["z_basal"], z_p, flag * draws["qc_E"].expand(3, 12, 4), batch.lane),
            batch.library,
            vae.size_factor,
        )
        theta = vae.log_theta.exp()
        mean = log_mu.exp() + 1e-4
        out |= {
            f"dist.p_x_{name}.concentration": theta,
            f"dist.p_x_{name}.rate": theta / mean,
            f"dist.p_x_{name}.mean": mean,
        }
        out[f"logp.x_{name}"] = torch.stack(
            [
                log_likelihood(batch.x[:, [g]], log_mu[..., [g]], vae.log_theta[[g]])
                for g in range(15)
            ],
            -1,
        )
    return out


def densities(vae, draws, q):
    "Log density of every draw under prior and guide."
    m = draws["mask"]
    unit = unit_normal(m)
    out = {
        "logp.prior.mask": log_bernoulli(m, torch.logit(vae.grn.edge_prior)),
        "logp.guide.mask": log_bernoulli(m, torch.logit(vae.grn.probability(), EPS)),
    }
    for k, g in q.items():
        out |= {
            f"logp.prior.{k}": log_normal(draws[k], unit),
            f"logp.guide.{k}": log_normal(draws[k], g),
        }
    return out


def cell_terms(vae, batch, posterior):
    "The KL terms of every particle and cell: those of a batch that is this cell alone."
    names = ("z_basal", "E", "mask", "qc_E")
    out = {f"loss.{k}": torch.zeros(3, 12) for k in names}
    for p in range(3):
        for i in range(12):
            cell = Batch(*(None if t is None else t[[i]] for t in batch))
            plates = share_plates(vae, cell, ALL)
            one = particle(posterior, p, i)
            kl = (
                kl_basal(cell, one, True),
                kl_effect(vae, one, plates, True),
                kl_mask(vae.grn, one, plates, True),
                kl_artifact(one, plates, True),
            )
            for name, value in zip(names, kl, strict=True):
                out[f"loss.{name}"][p, i] = -value
    return out


def particle(posterior, p, i):
    "What one particle says of one cell."

    def one(g):
        return Gaussian(*(t[[p]] for t in g))

    e = posterior.effects
    return posterior._replace(
        effects=Effects(e.mask[[p]], one(e.q), e.effect[[p]], e.latent[[p]]),
        artifact=posterior.artifact[[p]],
        q_artifact=one(posterior.q_artifact),
        q_basal=Gaussian(*(t[[p]][:, [i]] for t in posterior.q_basal)),
        z_basal=posterior.z_basal[[p]][:, [i]],
    )


def reconstruction(vae, s, batch, noise, posterior):
    "Per particle and cell: likelihood, times the weight that the objective gives it."
    like = cell_log_likelihood(vae, batch, posterior)
    weight = cell_weight(batch, s)
    torch.testing.assert_close(
        objective(vae, batch, s, *map(perturbed, noise))["reconstruction"],
        -(weight * like).mean(),
        rtol=1e-6,
        atol=0,
    )
    return {"loss.reconstruction": weight * like, "loss.alpha": weight[batch.fail == 0].mean()}


def effects(vae):
    """Average effects on the scale of counts and of log2, from recorded counts.

    Expected counts from recorded latents.
    """
    E = Z["ate.mean.sample.E"] * Z["ate.mean.sample.mask"]
    z = Z["ate.mean.sample.z_basal"][:, :, None]
    z_p = torch.cat([torch.zeros(24, 1, 6), E[:, PERTURBED]], 1).transpose(0, 1)[:, :, None]
    zero = torch.zeros(24, 1, dtype=torch.long)
    f = torch.stack(
        [vae.decode(z[t], z_p[t], torch.zeros(24, 1, 4), zero[:1, 0]) for t in range(5)]
    )
    out = {"ate.mean.nb_mean": log_mean(f, torch.full((5, 24, 1), 1e4))[:, :, 0].exp() + 1e-4}
    names = np.array(["control", "g0", "g1", "g2", "g3"])
    kind = np.repeat(np.arange(5), 24)
    for method in ("mean", "perturbseq"):
        X = torch.cat(
            [Z[f"ate.{method}.counts_control"], Z[f"ate.{method}.counts_alt"].flatten(0, 1)]
        ).numpy()
        if method == "mean":
            mean = mean_shares(X, np.ones(120), kind, 5)
            effect = mean[1:] - mean[0]
        else:
            a = ad.AnnData(
                X,
                obs=pd.DataFrame(dict(gene=names[kind]), index=[f"c{i}" for i in range(120)]),
                var=pd.DataFrame(index=[f"g{i}" for i in range(15)]),
            )
            register(a)
            a.obs[Key.fail], a.obs[Key.split] = False, "test"
            effect = observed_effects(a).loc[names[1:]].to_numpy()
        out[f"ate.{method}.effect"] = torch.from_numpy(effect)
    return out


@pytest.fixture(scope="module")
def numbers(step):
    "Everything that the published implementation recorded, computed by ours: name -> value."
    vae, s, batch, noise = step
    out, posterior, draws, q, z_p = guide(vae, batch, noise[0], "")
    second, *_ = guide(vae, batch._replace(x=batch.partner, fail=1 - batch.fail), noise[1], "cf.")
    out |= (
        second
        | decoder(vae, batch, draws, z_p)
        | densities(vae, draws, q)
        | cell_terms(vae, batch, posterior)
        | reconstruction(vae, s, batch, noise, posterior)
        | effects(vae)
    )
    out |= {
        "sample.mask_soft": soft(vae.grn.edge_logit, noise[0].mask),
        "dist.p_mask.probs": vae.grn.edge_prior.expand(6, 6),
    }
    S = vae.grn.accumulate(ALL)
    DS = vae.perturbations.gather(vae.grn.accumulate(ALL), ALL, batch.label)
    out |= {
        "grn.S": S,
        "grn.DS": DS,
        "grn.target": batch.shift - s.eps,
        "iwelbo.value": iwelbo(vae, batch, [perturbed(recorded_noise("iwelbo.noise."))]),
    }
    state = dict(vae.named_parameters())
    before = {k: v.detach().clone() for k, v in state.items()}
    optimiser = torch.optim.Adam(vae.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
    vae.zero_grad()
    terms = objective(vae, batch, s, *map(perturbed, noise))
    terms["total"].backward()
    out |= {
        "loss.cf_kl": terms["counterfactual"],
        "loss.grn": terms["alignment"],
        "loss.penalty": terms["sparsity"],
        "loss.total": terms["total"],
    }
    out |= {f"grad.{n}": state[ours(n)].grad.clone() for n in RECORDED} | {
        "grad.norm_before_clip_100": torch.nn.utils.clip_grad_norm_(vae.parameters(), s.clip_norm)
    }
    optimiser.step()
    out |= {f"after_step.{n}": state[ours(n)].detach().clone() for n in RECORDED}
    with torch.no_grad():
        for k, v in state.items():
            v.copy_(before[k])
    return {k: v.detach() for k, v in out.items()}


RESULTS = [k for k in RAW if not re.match(GIVEN, k)]


def test_nothing_recorded_is_forgotten(numbers):
    assert set(numbers) == set(RESULTS) and len(RESULTS) > 100
    assert [
        k
        for k in RESULTS
        if not k.startswith("grad.") and not any(re.match(p, k) for p in TOLERANCE)
    ] == []


def test_every_parameter_is_recorded(step):
    vae, *_ = step
    assert {ours(n) for n in RECORDED} == {n for n, p in vae.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("key", RESULTS)
def test_number(numbers, key):
    mine = numbers[key].double()
    theirs = Z[key].double()
    if key.startswith("grad.") and "norm" not in key:
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6
        return
    rtol = [t for p, t in TOLERANCE.items() if re.match(p, key)][-1]
    torch.testing.assert_close(
        mine.reshape(theirs.shape),
        theirs,
        rtol=rtol,
        atol=1e-7 if key.startswith("after_step") else 1e-6,
    )


def test_the_objective_is_their_sum(step):
    vae, s, batch, noise = step
    out = objective(vae, batch, s, *map(perturbed, noise))
    for mine, theirs in dict(
        reconstruction="reconstruction",
        kl_basal="z_basal",
        kl_effect="E",
        kl_mask="mask",
        kl_artifact="qc_E",
    ).items():
        torch.testing.assert_close(
            out[mine].detach(), -Z[f"loss.{theirs}"].mean(), rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(
        out["alignment"].detach(),
        100 * (Z["grn.DS"] - Z["grn.target"]).abs().mean(),
        rtol=1e-5,
        atol=0,
    )
    torch.testing.assert_close(
        out["sparsity"].detach(), 5 * Z["dist.q_mask.probs"].mean(), rtol=1e-5, atol=0
    )


# The numbers of evaluation and preparation stand in tests/fixtures/metrics_published.npz, of the
# same origin. Two matchings that were recorded are not part of our design (errata 7): the weighted
# distance that picks the most distant control, and one-to-one assignment; so are networks by path
# length and random pairs that ignore which edges were predicted (errata 8).
EVALUATE, NETWORK = "evaluate/test_evaluate.py", "evaluate/test_networks.py"
PREPARE = "data/test_prepare.py"
METRICS = {
    r"atemetric\.": f"{EVALUATE}::test_response_metrics_equal_published",
    r"dataate\.(X|label|perturbseq)": f"{EVALUATE}::test_observed_effects_equal_published",
    r"dataate\.mean": f"{PREPARE}::test_mean_counts_are_the_published_ones",
    r"stat\.(?!edges|json)": f"{NETWORK}::test_every_published_pair",
    r"stat\.(edges|json)": f"{NETWORK}::test_every_published_network",
    r"bio\.": "evaluate/test_curated.py::test_overlap_equals_published",
    r"qc\.": f"{PREPARE}::test_quality_threshold_is_the_published_one",
    r"match\.(control|perturbed|ot)": f"{PREPARE}::test_transport_plan_is_the_published_one",
    r"deltaX\.": f"{PREPARE}::test_unsigned_shift_is_the_published_one",
    r"cfX\.": f"{PREPARE}::test_partner_is_the_published_lower_median",
    r"match\.(wd|hungarian)": None,
}


def test_no_metric_is_forgotten():
    for key in np.load(FIXTURES / "metrics_published.npz").files:
        assert sum(re.match(p, key) is not None for p in METRICS) == 1, key
    for file, name in (t.split("::") for t in METRICS.values() if t):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_preset_has_the_published_architecture():
    "Basal encoder 1 x 400, embedding and artifact encoders 4 x 400, decoder 2 x 400 (model.md)."
    settings = make_settings("paper")
    empty = ResponseBuffers.empty([[0]], 2)
    vae = VAE(5, torch.arange(2), GRN(2, signed=False), empty, **settings.architecture())
    widths = {
        name: [layer.out_features for layer in hidden.layers]
        for name, hidden in dict(
            basal=vae.basal_encoder.hidden,
            embedding=vae.embedding_encoder.hidden,
            artifact=vae.artifact_encoder.hidden,
            decoder=vae.decoder,
        ).items()
    }
    assert widths == dict(
        basal=[400], embedding=[400] * 4, artifact=[400] * 4, decoder=[400] * 2
    ), widths
