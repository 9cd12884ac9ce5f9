"""No NaN: the count likelihood in float32 against float64 and scipy, screens of awkward shape under
both presets, and an error that names the culprit where a loss is not finite all the same.
"""

import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import nbinom

from gpovae.core.errors import GpovaeError
from gpovae.data.minibatch import Cells
from gpovae.data.nodes import graph_nodes
from gpovae.data.prepare import prepare
from gpovae.data.register import register
from gpovae.data.responses import node_responses
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.split import split_cells
from gpovae.model.iwelbo import iwelbo, particles
from gpovae.model.likelihood import log_likelihood
from gpovae.model.objective import draw, objective
from gpovae.model.presets import make_settings
from gpovae.train.build import build
from gpovae.train.loop import fit

PRESETS = ("corrected", "paper")
SMALL = dict(
    latent=6, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64, particles=2
)


# ---- the likelihood, gene by gene


def grid():
    """x, log mu and log theta (points,).

    Counts up to 1e4, means from 1e-4 to 1e4 and close to the count, inverse dispersions from 1e-3
    to 1e6.
    """
    x = torch.tensor([0.0, 1, 2, 3, 5, 10, 30, 100, 300, 1000, 3000, 10_000])
    theta = torch.logspace(-3, 6, 37)
    far = torch.cartesian_prod(x, torch.logspace(-4, 4, 33), theta)
    near = torch.cartesian_prod(x[1:], torch.tensor([0.9, 0.99, 0.999, 1, 1.001, 1.03]), theta)
    near[:, 1] *= near[:, 0]
    x, mu, theta = torch.cat([far, near]).T
    return x, mu.log(), theta.log()


def reference(x, log_mu, log_theta):
    "Value and gradients in float64, from the formula as it stands in books."
    x = x.double()
    log_mu = log_mu.double().requires_grad_()
    log_theta = log_theta.double().requires_grad_()
    theta = log_theta.exp()
    mu = log_mu.exp() + 1e-4
    value = (
        torch.lgamma(theta + x)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        - theta * torch.log1p(mu / theta)
        + x * (mu.log() - (theta + mu).log())
    )
    return value.detach(), *torch.autograd.grad(value.sum(), (log_mu, log_theta))


@pytest.fixture(scope="module")
def evaluated():
    "The grid, ours and the reference: (value, gradient of log mu, gradient of log theta) each."
    x, log_mu, log_theta = at = grid()
    value = torch.empty_like(x)
    for t in log_theta.unique():
        # every point is a cell with one gene
        value[log_theta == t] = log_likelihood(
            x[log_theta == t, None], log_mu[log_theta == t, None], t[None]
        )
    free = log_mu[None].clone().requires_grad_(), log_theta.clone().requires_grad_()
    # every point is a gene of one cell
    mean, theta = torch.autograd.grad(log_likelihood(x[None], *free).sum(), free)
    return at, (value, mean[0], theta), reference(*at)


def test_likelihood_in_float32(evaluated):
    _, (ours, *_), (exact, *_) = evaluated
    assert ((ours - exact) / exact).abs().max() < 5e-6


def test_reference_is_scipys(evaluated):
    (x, log_mu, log_theta), _, (exact, *_) = evaluated
    theta = log_theta.double().exp()
    mu = log_mu.double().exp() + 1e-4
    np.testing.assert_allclose(exact, nbinom.logpmf(x, theta, theta / (theta + mu)), rtol=1e-6)


def test_gradient_of_the_mean_in_float32(evaluated):
    """Relative to the gradient, or to its standard deviation where that is larger.

    At x = mu it is 0.
    """
    (_, log_mu, log_theta), (_, ours, _), (_, exact, _) = evaluated
    theta = log_theta.double().exp()
    mu = log_mu.double().exp()
    assert (
        (ours - exact).abs() / torch.maximum(exact.abs(), (mu * theta / (mu + theta)).sqrt())
    ).max() < 1e-5


def test_gradient_of_the_dispersion_in_float32(evaluated):
    _, (*_, ours), (*_, exact) = evaluated
    assert ((ours - exact).abs() / exact.abs().clamp_min(1)).max() < 1e-5


def test_log_theta_far_outside_stays_finite():
    for log_theta in (-30.0, -15.0, 30.0, 60.0):
        theta = torch.full((4,), log_theta, requires_grad=True)
        log_mu = torch.tensor([[-80.0, -5.0, 0.0, 9.0]], requires_grad=True)
        value = log_likelihood(torch.tensor([[0.0, 1.0, 40.0, 10_000.0]]), log_mu, theta)
        value.sum().backward()
        for t in (value, theta.grad, log_mu.grad):
            assert torch.isfinite(t).all(), log_theta


# ---- screens of awkward shape


def awkward(change=None, then=None, **kw):
    """A tiny screen.

    `change(X, obs)` before, `then(X, adata)` after it was prepared, both on dense counts.
    """
    a = simulated(n_cells=400, n_genes=60, n_perturbations=4, seed=3)
    X = a.X.toarray()
    if change:
        change(X, a.obs)
    a.X = sp.csr_matrix(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(
            a,
            perturbation_key="gene",
            control="non-targeting",
            doublets=False,
            progress=False,
            **kw,
        )
    if then:
        X = a.X.toarray()
        then(X, a)
        a.X = sp.csr_matrix(X)
        a.obs[Key.library_size] = X.sum(1)
    return Screen(a)


def silent_genes(X, a):
    X[np.ix_((a.obs[Key.split] == "train").to_numpy(), [20, 30, 40])] = (
        0  # but not in validation and test cells
    )


def silent_everywhere(X, obs):
    X[:, [20, 30, 40]] = 0


def single_counts(X, obs):
    "A control cell and a perturbed one."
    for i in (
        np.flatnonzero(obs["gene"] == "non-targeting")[0],
        np.flatnonzero(obs["gene"] != "non-targeting")[0],
    ):
        X[i] = 0
        X[i, 10] = 1


def two_cells(X, obs):
    name = sorted(set(obs["gene"]) - {"non-targeting"})[0]
    spare = np.flatnonzero(obs["gene"] == name)[2:]
    label = obs["gene"].astype(object)
    label.iloc[spare] = "non-targeting"
    obs["gene"] = label


SCREENS = {
    "silent in training": dict(then=silent_genes),
    "silent everywhere": dict(change=silent_everywhere),
    "single counts, failing": dict(change=single_counts),
    "single counts, passing": dict(change=single_counts, n_mads=1000),
    "two cells": dict(change=two_cells),
    "no failing cell": dict(n_mads=1000),
    "as it is": {},
}


@pytest.fixture(scope="module", params=SCREENS)
def screen(request):
    s = awkward(**SCREENS[request.param])
    if "passing" in request.param or "no failing" in request.param:
        assert not s.fail.any()
    if "single" in request.param:
        assert (s.library_size == 1).sum() == 2
    if "two" in request.param:
        assert min(np.unique(s.labels, return_counts=True)[1]) == 2
    return s


def model(screen, preset, **changes):
    s = make_settings(preset, **SMALL | changes)
    return s, *build(screen, s)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_stays_finite(screen, preset):
    s, vae, labels, batches = model(screen, preset)
    log = fit(vae, screen, s, labels, batches, max_epochs=3, progress=False)
    assert len(log) == 3 and np.isfinite(log.to_numpy(float)).all(), log.columns[
        ~np.isfinite(log.to_numpy(float)).all(0)
    ]
    for name, w in vae.named_parameters():
        assert torch.isfinite(w).all(), name


def gradients(vae, s, batch):
    "Every term of the objective and every gradient must be finite."
    vae.zero_grad()
    terms = objective(vae, batch, s, *draw(vae, batch, s, torch.Generator().manual_seed(0)))
    terms["total"].backward()
    for name, v in terms.items():
        assert torch.isfinite(torch.as_tensor(v)), name
    for name, w in vae.named_parameters():
        assert w.grad is None or torch.isfinite(w.grad).all(), name
    return terms


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_are_finite_in_odd_batches(screen, preset):
    "Only control cells, only failing ones, one cell of every kind, and the whole split."
    s, vae, labels, batches = model(screen, preset)
    cells = Cells(screen, "train", labels, batches, s.partner, preset == "paper")
    control = np.flatnonzero(cells.label < 0)
    fail = np.flatnonzero(cells.fail)
    kinds = [
        [np.flatnonzero((cells.label == g) & (cells.fail == f))[:1] for g in np.unique(cells.label)]
        for f in (False, True)
    ]
    for rows in (control, fail, np.arange(len(cells)), *kinds[0], *kinds[1]):
        if not len(rows):
            continue
        gradients(vae, s, cells[rows])
        assert torch.isfinite(
            iwelbo(vae, cells[rows], particles(vae, cells[rows], 3, block=2))
        ).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("theta", [1e-3, 1e6])
def test_any_dispersion_trains(preset, theta):
    screen = awkward()
    s, vae, labels, batches = model(screen, preset)
    with torch.no_grad():
        for name, w in vae.named_parameters():
            if name.startswith("log_theta"):
                w.fill_(np.log(theta))
    log = fit(vae, screen, s, labels, batches, max_epochs=2, progress=False)
    assert np.isfinite(log.to_numpy(float)).all()


def test_the_published_scale_divides_by_zero_and_ours_does_not():
    "Errata 17: a gene that is silent in training has no spread."
    screen = awkward(**SCREENS["silent in training"])
    for preset in PRESETS:
        s, vae, labels, batches = model(screen, preset)
        cells = Cells(screen, "validation", labels, batches, s.partner, preset == "paper")
        x = vae.standardise(cells[np.arange(len(cells))].x)
        assert torch.isfinite(x).all() and (vae.log_x_std[20] == 0) == (preset == "paper") == (
            x[:, 20].abs().max() > 1e5
        )
        if preset == "corrected":
            gradients(vae, s, cells[np.arange(len(cells))])


def test_a_gene_seen_in_one_training_cell():
    """It is not silent, however many cells there are.

    Its scale is not zero, and the cell's gradient is finite without a floor.
    """
    a = simulated(n_cells=6600, n_genes=30, n_perturbations=2, n_downstream=2, seed=0)
    screen = register(a, "gene", "non-targeting")
    gene = 20
    a.obs[Key.fail] = False
    a.obsm[Key.match] = np.zeros((a.n_obs, 1), np.int32)
    split_cells(a)
    graph_nodes(a)
    node_responses(a)
    rows = screen.rows("train")
    alone = rows[np.random.default_rng(0).permutation(len(rows))[-1]]
    X = a.X.tolil()
    X[:, gene] = 0
    X[alone, gene] = 1
    a.X = X.tocsr()
    s, vae, labels, batches = model(screen, "paper")
    assert vae.log_x_std[gene] > 0
    gradients(
        vae,
        s,
        Cells(screen, "train", labels, batches, s.partner, True)[np.flatnonzero(rows == alone)],
    )


# ---- where a loss is not finite all the same


def named(message, name):
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", message) is not None


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_error_names_epoch_gene_and_cell(preset, split, value):
    "A count that went bad after the checks."
    screen = awkward()
    s, vae, labels, batches = model(screen, preset)
    cell = screen.rows(split, fail=False)[7]
    gene = 33
    screen.adata.X = screen.adata.X.toarray()
    screen.adata.X[cell, gene] = value
    with pytest.raises(GpovaeError, match="epoch 0") as e:
        fit(vae, screen, s, labels, batches, max_epochs=2, progress=False)
    assert named(str(e.value), screen.genes[gene]) and named(
        str(e.value), screen.adata.obs_names[cell]
    ), e.value


@pytest.mark.parametrize("preset", PRESETS)
def test_error_names_the_gene_of_a_broken_weight(preset):
    "Every cell is touched, so any of them may be named; but only one gene is to blame."
    screen = awkward()
    s, vae, labels, batches = model(screen, preset)
    with torch.no_grad():
        vae.logits.bias[33] = np.nan
    with pytest.raises(GpovaeError, match="epoch 0") as e:
        fit(vae, screen, s, labels, batches, max_epochs=2, progress=False)
    assert [g for g in screen.genes if named(str(e.value), g)] == [screen.genes[33]], e.value
    assert any(named(str(e.value), c) for c in screen.adata.obs_names), e.value
