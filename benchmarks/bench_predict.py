"""`predict` of benchmarks/bench.py: average treatment effects and IWELBO at 8,563 genes x 620
perturbations, against their plain formulations.

The plain formulations are written from the formulas, as one would write them without thinking
of time:
- effects: for every treatment 2,500 particles, each with a basal state from the prior, a mask
and an embedding of its own; counts are drawn (Gamma, then Poisson)
  and their logs averaged. The perturbed gene's row alone is encoded.
- IWELBO: particle by particle a full guide pass (all rows of mask and embedding, cells encoded
anew from their counts, D as a matrix), both quality branches
  decoded, counts drawn in each, torch.distributions with validation.
Models have random weights whose effects and differences between cells are of a realistic size;
what depends on training (bias) is measured on trained models.
"""

import math
import resource
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import distributions as D

import gpovae
from gpovae.data.minibatch import Batch
from gpovae.data.responses import Responses
from gpovae.data.simulate import simulated
from gpovae.model.iwelbo import iwelbo, particles
from gpovae.model.likelihood import expected_log2, log_mean
from gpovae.model.prediction import (
    Context,
    average_effects,
    control_context,
    latents,
    log2_table,
    mean_latent,
    mean_log2,
)
from gpovae.model.presets import make_settings
from gpovae.model.response_buffers import ResponseBuffers
from gpovae.model.vae import VAE
from gpovae.network.grn import GRN, sample_mask
from gpovae.train.build import build
from gpovae.train.loop import fit

GENES, NODES, CELLS, PARTICLES = 8563, 620, 256, 2500  # of the issue; cells of the context
# perturbations and particles of the plain effects; time goes with their product
SAMPLED, DRAWN = (8, 60)
LIKELY, PLAIN, OURS = 64, 2, 100  # cells of IWELBO, particles of either
EPOCHS = dict(corrected=25, paper=20)  # of the trained models


def synthetic(
    preset: str, genes: int = GENES, n: int = NODES, cells: int = CELLS, seed: int = 0
) -> tuple[VAE, Context]:
    "A model of a preset's size with random weights, and control cells of about 12,000 counts."
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    s = make_settings(preset)
    mean = rng.normal(0, 0.1, (n, n))
    np.fill_diagonal(mean, rng.uniform(-2.5, -0.5, n))
    names = pd.Index(np.arange(n).astype(str))
    grn = GRN(n, s.accumulation == "effects", s.max_path_length)
    vae = VAE(
        genes,
        torch.randperm(genes)[:n],
        grn,
        ResponseBuffers(
            Responses(mean, np.full((n, n), 0.1), np.full(n, 150), names, names), n_fail=1000
        ),
        **s.architecture(),
    )
    with torch.no_grad():
        if grn.signed:
            grn.edge_logit.copy_(torch.where(torch.rand(n, n) < 0.01, 3.0, -6.0))
            grn.effect.copy_(torch.randn(n, n) * 0.3)
        else:
            grn.edge_logit.copy_(torch.randn(n, n) - 1)
        vae.logits.bias.copy_(torch.randn(genes) * 1.5)
        vae.logits.weight.mul_(4)
        if vae.network_prior:
            vae.decoder.layers[0].weight[:, s.latent : s.latent + n] = (
                torch.randn(s.decoder[0], n) * 0.15
            )
        vae.log_theta.copy_(torch.randn(genes) + 0.5)
        if vae.log_theta_target is not None:
            vae.log_theta_target.copy_(vae.log_theta[vae.position] - 0.3)
    return vae.requires_grad_(False), Context(
        torch.randn(cells, s.latent),
        (torch.randn(cells) * 0.4).exp() * 12_000,
        torch.zeros(cells, dtype=torch.long),
    )


def draw_counts(mu, theta):
    return torch.poisson(torch._standard_gamma(theta.expand_as(mu)) * mu / theta)


@torch.no_grad()
def plain_treatment(vae, node, n: int) -> torch.Tensor:  # (n, genes)
    """log2(1 + x) of `n` particles at 10,000 counts.

    The plain average effect is the difference of two means of this. `node` None: control.
    """
    out = []
    zero = torch.zeros(1, vae.latent)
    own = torch.tensor([0 if node is None else node])
    for _ in range(n):
        z_p = (
            torch.zeros(1, vae.grn.n)
            if node is None
            else vae.effects(own, torch.rand(1, 1, vae.grn.n), torch.randn(1, 1, vae.grn.n)).latent[
                0
            ]
        )
        f = vae.decode(torch.randn(1, vae.latent), z_p, zero, torch.zeros(1, dtype=torch.long))
        out.append(
            torch.log2(
                1
                + draw_counts(
                    torch.softmax(f, -1) * 1e4,
                    vae.inverse_dispersion([] if node is None else [node]),
                )
            )[0]
        )
    return torch.stack(out)


def _mlp(mlp, x):
    h = F.leaky_relu(mlp.layers[0](x))
    for layer in mlp.layers[1:]:
        h = F.leaky_relu(layer(h)) + h
    return h


def _normal(mlp, *parts):
    h = _mlp(mlp.hidden, torch.cat(parts, -1))
    return D.Normal(mlp.mean(h), (mlp.log_var(h).exp() + 1e-4).sqrt(), validate_args=True)


@torch.no_grad()
def plain_iwelbo(vae: VAE, batch: Batch, noise) -> torch.Tensor:  # (B,)
    """Particle by particle, nothing shared.

    Of the noise of all rows that this draws, the given rows are taken over.
    """
    n = vae.grn.n
    P = vae.perturbations
    all_rows = torch.arange(vae.grn.n)
    weights = []
    nodes = P.nodes_of(batch.label)
    theta = torch.stack(
        [
            vae.inverse_dispersion([int(t) for t in P.targets[k] if t < n] if k >= 0 else [])
            for k in batch.label
        ]
    )
    one_hot = torch.cat(
        [F.one_hot(P.targets, n + 1).sum(1)[:, :n], torch.zeros(1, n, dtype=torch.long)]
    )[batch.label].float()  # label -1: the last row
    for some in noise:
        for mask_noise, effect_noise, artifact, basal in zip(*some):
            u = torch.rand(n, n)
            eps = torch.randn(n, n)
            u[nodes], eps[nodes] = mask_noise, effect_noise
            mask = (
                vae.grn.probability() if vae.network_prior else sample_mask(vae.grn.edge_logit, u)
            )
            q_e = _normal(vae.embedding_encoder, mask, torch.eye(n))
            effect = q_e.mean + q_e.stddev * eps
            rows = vae.grn.predicted_lfc(all_rows, P.dose)
            # a target's own transcript is what was measured
            rows = torch.where(torch.eye(n, dtype=torch.bool), P.own_lfc, rows)
            z_p = one_hot @ (effect + rows if vae.network_prior else mask * effect)
            q_a = _normal(vae.artifact_encoder, torch.ones(1, vae.latent))
            e_a = q_a.mean + q_a.stddev * artifact
            x_std = (torch.log1p(batch.x) - vae.log_x_mean) / vae.log_x_std
            q = _normal(vae.basal_encoder, x_std, z_p, batch.fail[:, None] * e_a)
            z_b = q.mean + q.stddev * basal
            like = []
            for z_a in (torch.zeros_like(z_b), e_a.expand_as(z_b)):  # both branches
                f = vae.logits(_mlp(vae.decoder, torch.cat([z_b, z_p, z_a], -1)))
                if vae.network_prior:
                    f = f.index_add(-1, vae.position, z_p)
                mu = torch.softmax(f, -1) * batch.library[:, None] + 1e-4
                torch.poisson(D.Gamma(theta, theta / mu, validate_args=True).sample())
                like.append(
                    D.NegativeBinomial(theta, logits=mu.log() - theta.log(), validate_args=True)
                    .log_prob(batch.x)
                    .sum(-1)
                )
            like = torch.where(batch.fail > 0, like[1], like[0])
            weights.append(like + D.Normal(0, 1).log_prob(z_b).sum(-1) - q.log_prob(z_b).sum(-1))
    return torch.stack(weights).logsumexp(0) - math.log(len(weights))


def seconds(function):
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def core_seconds(function):
    """Seconds of a core, all threads together.

    What is left of a time on a machine that others use as well. No thread of ours waits busily.
    """
    start = time.process_time()
    took, found = seconds(function)
    return took, time.process_time() - start, found


def one_thread(function):
    "In one thread, as is best where every product is small."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return core_seconds(function)
    finally:
        torch.set_num_threads(threads)


def spread_of(x) -> dict[str, float]:
    x = torch.as_tensor(x).abs().flatten()
    return dict(
        median=float(x.median()), p95=float(np.quantile(x.numpy(), 0.95)), largest=float(x.max())
    )


def _error(vae, context, nodes, groups: int = 32):
    """Standard error of effects over context cells (perturbations, genes), from means of groups of
    them.
    """
    size = len(context.library) // groups
    zero = torch.zeros(1, vae.grn.n)
    z_p = torch.cat([zero, mean_latent(vae, torch.tensor(nodes), kept=0)[0]])
    means = []
    for g in range(groups):
        m = mean_log2(
            vae,
            Context(*(t[g * size : (g + 1) * size] for t in context)),
            z_p,
            [[], *([n] for n in nodes)],
        )
        means.append(m[1:] - m[0])
    return torch.stack(means).std(0) / math.sqrt(groups)


def effects_table(preset: str) -> dict:
    "Time of all effects and of their plain formulation, and the Monte Carlo error of both."
    vae, context = synthetic(preset)
    wanted = [[i] for i in range(NODES)]
    average_effects(vae, Context(*(t[:8] for t in context)), wanted[:2])  # compiles
    some = list(range(0, NODES, NODES // SAMPLED))[:SAMPLED]
    half, half_core, first = one_thread(
        lambda: [plain_treatment(vae, i, DRAWN) for i in [None, *some[: SAMPLED // 2]]]
    )
    ours, core, (effect, _, spread) = core_seconds(lambda: average_effects(vae, context, wanted))
    rest, rest_core, second = one_thread(
        lambda: [plain_treatment(vae, i, DRAWN) for i in some[SAMPLED // 2 :]]
    )
    whole = (NODES + 1) * PARTICLES / ((SAMPLED + 1) * DRAWN)
    var = torch.stack([y.var(0) for y in first + second])
    plain_error = ((var[1:] + var[0]) / PARTICLES).sqrt()
    our_error = _error(vae, context, some)
    sixteenth = Context(*(t[:16] for t in context))
    f = vae.decode(
        sixteenth.z_b, torch.zeros(1, vae.grn.n), torch.zeros_like(sixteenth.z_b), sixteenth.batch
    )
    mu = log_mean(f, sixteenth.library).exp()
    theta = vae.inverse_dispersion()
    scale = 1e4 / sixteenth.library[:, None]
    quadrature, exact = seconds(lambda: expected_log2(mu, theta, scale).mean(0))
    off = mean_log2(
        vae, sixteenth, torch.zeros(1, vae.grn.n), [[]], table=log2_table(vae, context)
    )[0] - expected_log2(mu.double(), theta.double(), scale.double(), 0.25).mean(0)
    needed = CELLS * (our_error / plain_error.clamp_min(1e-3)).square()
    return dict(
        preset=preset,
        seconds=ours,
        core_seconds=core,
        plain_seconds=(half + rest) * whole,
        plain_core_seconds=(half_core + rest_core) * whole,
        plain_measured=f"{SAMPLED + 1} of {NODES + 1} treatments, {DRAWN} of {PARTICLES} particles",
        faster=(half_core + rest_core) * whole / core,
        quadrature_seconds=quadrature / 16 * (CELLS * (NODES + 1) + NODES * 16 * 8),
        effect_sd=float(effect.std()),
        spread=spread_of(spread),
        error=spread_of(our_error),
        plain_error=spread_of(plain_error),
        cells_for_plain_error=spread_of(needed),
        table_error=spread_of(off),
    )


def iwelbo_table(preset: str) -> dict:
    """Milliseconds per cell for 100 particles, ours and plain, two interleaved rounds, and their
    difference on the same noise.
    """
    vae, _ = synthetic(preset)
    z = torch.randn(LIKELY, vae.latent)
    labels = torch.randint(-1, NODES, (LIKELY,))
    f = vae.decode(
        z, torch.zeros(1, NODES), torch.zeros_like(z), torch.zeros(LIKELY, dtype=torch.long)
    )
    x = draw_counts(
        torch.softmax(f, -1) * (torch.randn(LIKELY, 1) * 0.4).exp() * 12_000, vae.log_theta.exp()
    )
    vae.log_x_mean.copy_(torch.log1p(x).mean(0))
    vae.log_x_std.copy_(torch.log1p(x).std(0).clamp_min(0.05))
    batch = Batch(
        x,
        x.sum(1),
        labels,
        (torch.rand(LIKELY) < 0.2).float(),
        torch.zeros(LIKELY, dtype=torch.long),
        x,
        torch.zeros(LIKELY, dtype=torch.bool),
    )
    same = list(particles(vae, batch, PLAIN))
    a = plain_iwelbo(vae, batch, same)
    b = iwelbo(vae, batch, same)
    plain = []
    ours = []
    for _ in range(2):
        plain.append(
            seconds(lambda: plain_iwelbo(vae, batch, particles(vae, batch, PLAIN)))[0] / PLAIN
        )
        ours.append(seconds(lambda: iwelbo(vae, batch, particles(vae, batch, OURS)))[0] / OURS)

    def per_cell(t):
        return float(np.median(t)) * 100 / LIKELY * 1e3

    return dict(
        preset=preset,
        cells=LIKELY,
        nonzero=float((x > 0).float().mean()),
        plain_ms_per_cell=per_cell(plain),
        ms_per_cell=per_cell(ours),
        faster=float(np.median(np.array(plain) / ours)),
        fastest_rounds=min(plain) / min(ours),
        relative_difference=float(((a - b) / a).abs().max()),
    )


@torch.no_grad()
def bias_table(preset: str, draws: int = 512, particles: int = 1000, seeds: int = 5) -> dict:
    """On a trained model.

    Effects at the mean latent against their mean over its posterior, beside the Monte Carlo
    errors.
    """
    adata = simulated(n_cells=3000, n_genes=200, n_perturbations=12, seed=0)
    s = make_settings(preset)
    screen = gpovae.prepare(adata, perturbation_key="gene", control="non-targeting", progress=False)
    vae, labels, batches = build(screen, s)
    with torch.enable_grad():
        fit(vae, screen, s, labels, batches, max_epochs=EPOCHS[preset], progress=False)
    context = control_context(vae, screen, batches)
    nodes = torch.tensor([screen.nodes.index.get_loc(p) for p in labels])
    few = Context(*(t[:64] for t in context))
    g = torch.Generator().manual_seed(5)
    targeted = [[int(n)] for n in nodes]
    drawn = latents(
        vae,
        nodes,
        torch.rand(draws, len(nodes), vae.grn.n, generator=g),
        torch.randn(draws, len(nodes), vae.grn.n, generator=g),
    )[1]
    at_mean = mean_log2(vae, few, mean_latent(vae, nodes)[0], targeted)
    each = torch.stack(
        [mean_log2(vae, few, drawn[:, i], targeted[i : i + 1] * draws) for i in range(len(nodes))]
    )
    var = torch.stack([plain_treatment(vae, i, particles).var(0) for i in [None, *nodes.tolist()]])
    plain_error = ((var[1:] + var[0]) / PARTICLES).sqrt()
    off = each.mean(1) - at_mean
    again = np.stack(
        [
            average_effects(vae, control_context(vae, screen, batches, seed=k), targeted, draws=0)[
                0
            ]
            for k in range(1, seeds + 1)
        ]
    )
    return dict(
        preset=preset,
        epochs=EPOCHS[preset],
        draws=draws,
        effect_sd=float(again[0].std()),
        bias=spread_of(off),
        bias_error=spread_of(each.std(1) / math.sqrt(draws)),
        plain_error=spread_of(plain_error),
        share_below_plain_error=float((off.abs() < plain_error).float().mean()),
        error=spread_of(again.std(0, ddof=1)),
        claimed_error=spread_of(_error(vae, context, nodes.tolist(), 16)),
    )


def predict(options) -> dict:
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    found = {}

    def shown(name, row):
        print(
            name,
            {k: v if not isinstance(v, float) else round(v, 6) for k, v in row.items()},
            flush=True,
        )
        return row

    found["effects"] = [shown("effects", effects_table(p)) for p in ("corrected", "paper")]
    found["effects_peak_gib"] = peak()
    found["iwelbo"] = [shown("iwelbo", iwelbo_table(p)) for p in ("paper", "corrected")]
    found["bias"] = [shown("bias", bias_table(p)) for p in ("corrected", "paper")]
    return dict(
        genes=GENES,
        perturbations=NODES,
        context_cells=CELLS,
        plain_particles=PARTICLES,
        threads=torch.get_num_threads(),
        **found,
    )
