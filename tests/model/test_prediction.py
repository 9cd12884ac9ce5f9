"""Average effects and IWELBO: against the exact quadrature and plain formulations.

Honest errors; nothing depends on company or on how the work is cut up.
"""

import math
import resource

import numpy as np
import pytest
import torch

from gpovae.data.minibatch import Batch
from gpovae.model.averages import Log2Table, add_log2, log_total
from gpovae.model.iwelbo import iwelbo, particles
from gpovae.model.likelihood import expected_log2, log_mean
from gpovae.model.prediction import (
    Context,
    average_effects,
    effects_of,
    in_threads,
    mean_latent,
    mean_log2,
)
from gpovae.model.vae import Noise

import bench_predict

N, GENES, CELLS = 12, 150, 24


@pytest.fixture(scope="module", params=["corrected", "paper"])
def model(request):
    return bench_predict.synthetic(request.param, GENES, N, CELLS, seed=3)


def quadrature(vae, context, z_p, targeted=(), beside=0.0):
    "Every cell decoded and integrated by itself, in double precision: (..., genes)."
    with torch.no_grad():
        f = beside + vae.decode(
            context.z_b,
            z_p.expand(len(context.z_b), -1),
            torch.zeros_like(context.z_b),
            context.batch,
        )
        mu = log_mean(f, context.library, vae.size_factor).double().exp()
        return expected_log2(
            mu,
            vae.inverse_dispersion(targeted).double(),
            (1e4 / context.library).double()[:, None],
            step=0.25,
        ).mean(0)


@pytest.mark.parametrize("library", [(3000, 30_000), (200, 200_000), (8000, 8000)])
def test_table_is_the_quadrature(library):
    "Means from 1e-6 to 1e5, inverse dispersions from 1e-3 to 1e6; in sums over cells as well."
    g = torch.Generator().manual_seed(0)

    def uniform(low, high, *shape):
        return torch.exp(math.log(low) + torch.rand(*shape, generator=g) * math.log(high / low))

    theta = uniform(1e-3, 1e6, 700)
    s = 1e4 / uniform(*library, 9)
    mu = uniform(1e-6, 1e5, 9, 5, 700)
    table = Log2Table(theta, s)
    total = torch.zeros(5, 700)
    add_log2(mu.log(), torch.zeros(9, 5), table, slice(None), total)
    exact = expected_log2(mu.double(), theta.double(), s.double()[:, None, None], step=0.25)
    assert (total - exact.sum(0)).abs().max() < 9 * 1e-4
    one = torch.zeros(5, 700)
    add_log2(mu[4:5].log() - 2, torch.full((1, 5), 2.0), table, [4], one)
    assert (one - exact[4]).abs().max() < 1e-4


def test_table_ends_gently():
    table = Log2Table(torch.tensor([3.0]), torch.tensor([2.0]))
    out = torch.zeros(4, 1)
    add_log2(
        torch.tensor([-60.0, -14.5, 14.0, 17.0]).view(1, 4, 1), torch.zeros(1, 4), table, [0], out
    )
    assert 0 <= out[0] <= out[1] < 1e-5 and abs(out[3] - out[2] - 3 / math.log(2)) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_passed_on(model, value):
    vae, context = model
    z = torch.zeros(2, N)
    z[1, 3] = value
    found = mean_log2(vae, context, z, [[], []])
    assert torch.isfinite(found[0]).all() and found[1].isnan().all()


def test_log_total():
    f = torch.randn(3, 4, 1000) * 20
    S = torch.rand(1000) < 0.5
    assert torch.allclose(
        log_total(f, S), torch.logsumexp(f.masked_fill(~S, -math.inf), -1), atol=2e-5
    )
    f[..., ~S] = 1000.0
    assert torch.allclose(
        log_total(f, S), torch.logsumexp(f.masked_fill(~S, -math.inf), -1), atol=2e-5
    )


def test_effects_are_those_of_the_quadrature(model):
    "Large effects too: latents scaled up until genes change by more than 10 units."
    vae, context = model
    wanted = [[0], [5], [2, 7], [11]]
    effect, mean, _ = average_effects(vae, context, wanted)
    base = quadrature(vae, context, torch.zeros(N))
    for i, ts in enumerate(wanted):
        exact = quadrature(vae, context, mean_latent(vae, torch.tensor(ts))[0].sum(0), ts)
        assert (
            np.abs(mean[i] - exact.numpy()).max() < 1e-4
            and np.abs(effect[i] - (exact - base).numpy()).max() < 1e-4
        )
    z = torch.randn(3, 1, N, generator=torch.Generator().manual_seed(1)) * 40
    large = effects_of(vae, context, z, [[1], [], [4]])
    assert np.abs(large[0]).max() > 5 and np.isnan(large[2]).all()
    for i, ts in enumerate([[1], [], [4]]):
        assert np.abs(large[1][i] - quadrature(vae, context, z[i, 0], ts).numpy()).max() < 1e-4


def test_spread_is_that_of_the_draws(model):
    vae, context = model
    few = Context(*(t[:8] for t in context))
    drawn = mean_latent(vae, torch.tensor([3, 9]))[1]
    spread = average_effects(vae, context, [[3], [3, 9]])[2]
    for row, (z, ts) in zip(spread, ((drawn[:, 0], [3]), (drawn.sum(1), [3, 9])), strict=True):
        assert (
            np.abs(row - torch.stack([quadrature(vae, few, d, ts) for d in z]).std(0).numpy()).max()
            < 1e-4
        )
    assert np.isnan(average_effects(vae, context, [[3]], draws=0)[2]).all()


def test_shifts_beside_the_nodes(model):
    vae, context = model
    beside = torch.zeros(1, 1, GENES)
    beside[0, 0, 17] = -1.5
    found = effects_of(vae, context, torch.zeros(1, 1, N), [[]], beside)
    assert (
        np.abs(found[1][0] - quadrature(vae, context, torch.zeros(N), (), beside[0]).numpy()).max()
        < 1e-4
    )
    assert found[0][0].argmin() == 17


def test_latents_by_their_definition(model):
    "Mean over masks with E at its mean; draws with the same masks."
    vae, _ = model
    nodes = torch.tensor([2, 6])
    g = [torch.Generator().manual_seed(4 * 100_003 + t) for t in (2, 6)]
    u, eps = (torch.stack([f(64, N, generator=x) for x in g], 1) for f in (torch.rand, torch.randn))
    with torch.no_grad():
        mean = vae.effects(nodes, u, torch.zeros_like(eps)).latent.mean(0)
        drawn = vae.effects(nodes, u, eps).latent
    ours = mean_latent(vae, nodes, seed=4)
    assert torch.allclose(ours[0], mean, atol=1e-5) and torch.allclose(
        ours[1], drawn[:16], atol=1e-5
    )


def test_the_same_again_alone_and_in_company(model):
    vae, context = model
    everything = [[i] for i in range(N)] * 6  # more than one block of rows
    a, b, alone = (
        average_effects(vae, context, w) for w in (everything, everything, everything[5:6])
    )
    for x, y, z in zip(a, b, alone, strict=True):
        assert np.array_equal(x, y)  # the same call: the same bits
        assert np.abs(x[5] - z[0]).max() < 2e-6 and np.abs(x[5] - x[5 + N * 5]).max() < 2e-6
    assert [len(x) for x in average_effects(vae, context, [])] == [0, 0, 0]


def test_threads_change_nothing(model, monkeypatch):
    vae, context = model
    everything = [[i % N] for i in range(130)]
    one = average_effects(vae, context, everything, draws=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    for x, y in zip(one, average_effects(vae, context, everything, draws=2), strict=True):
        assert np.abs(x - y).max() < 2e-6


def test_a_failing_thread_is_heard_and_leaves_no_trace(monkeypatch):
    def fail(i):
        raise ValueError(f"item {i}")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="item 0"):
            in_threads(fail, range(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_error_is_what_contexts_show():
    """Effects scatter as the standard error over the cells of one context says.

    In 12 contexts of 24 cells.
    """
    vae, context = bench_predict.synthetic("corrected", GENES, N, 288, seed=3)
    parts = [Context(*(t[i : i + CELLS] for t in context)) for i in range(0, 288, CELLS)]
    scatter = np.stack([average_effects(vae, c, [[1], [2]], draws=0)[0] for c in parts]).std(
        0, ddof=1
    )
    claimed = np.stack(
        [bench_predict._error(vae, c, [1, 2], groups=12).numpy() for c in parts]
    ).mean(0)
    ratio = scatter[scatter > 1e-4] / claimed[scatter > 1e-4]
    assert 0.8 < np.median(ratio) < 1.2 and np.quantile(ratio, 0.9) < 1.7


def test_plain_effects_agree(model):
    """Thousands of drawn counts have the mean that is computed, within their error.

    At the prior's basal states and 10,000 counts.
    """
    vae, _ = model
    torch.manual_seed(0)
    n = 1000
    y = bench_predict.plain_treatment(vae, None, n)
    prior = Context(
        torch.randn(1000, vae.latent), torch.full((1000,), 1e4), torch.zeros(1000, dtype=torch.long)
    )
    z = (y.mean(0) - mean_log2(vae, prior, torch.zeros(1, N), [[]])[0]) / (
        y.var(0) * (1 / n + 1 / 1000)
    ).sqrt()
    assert z.abs().max() < 5 and z.square().mean() < 1.6


@pytest.fixture(scope="module")
def batch(model):
    vae, _ = model
    torch.manual_seed(7)
    B = 40
    x = torch.poisson(torch.rand(B, GENES) * 5)
    return Batch(
        x,
        x.sum(1),
        torch.randint(-1, N, (B,)),
        (torch.rand(B) < 0.3).float(),
        torch.zeros(B, dtype=torch.long),
        x,
        torch.zeros(B, dtype=torch.bool),
    )


def test_iwelbo_is_the_plain_one(model, batch):
    vae, _ = model
    same = list(particles(vae, batch, 6, block=4))
    assert torch.allclose(
        iwelbo(vae, batch, same), bench_predict.plain_iwelbo(vae, batch, same), rtol=5e-6
    )


def test_iwelbo_does_not_depend_on_how_it_is_cut(model, batch, monkeypatch):
    vae, _ = model
    noise = list(particles(vae, batch, 6, block=6))
    whole = iwelbo(vae, batch, noise)
    single = [Noise(*(t[i : i + 1] for t in noise[0])) for i in range(6)]
    assert torch.allclose(whole, iwelbo(vae, batch, single), rtol=2e-6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert torch.allclose(whole, iwelbo(vae, batch, noise), rtol=2e-6)


def test_memory_does_not_grow_with_cells():
    "Cells x rows x genes would be 430 MB here; what is written is a few blocks."
    vae, context = bench_predict.synthetic("corrected", 3000, 60, 600)
    average_effects(vae, Context(*(t[:8] for t in context)), [[0]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    average_effects(vae, context, [[i] for i in range(60)], draws=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024
