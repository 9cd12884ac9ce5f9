"""The network from a table of responses: odd tables, the same bits every time, calibration,
priors; the same through the class a user meets.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.responses import Responses
from gpovae.network.chain import Chain, prepare_table
from gpovae.network.denoising import fit_mixture, shrink, steady_state
from gpovae.network.edges import UNDECIDED, ensemble
from gpovae.network.grn import contract
from gpovae.network.prior import read_prior
from gpovae.network.recalibration import platt, simulate_from_fit
from gpovae.network.regression import fit_network
from gpovae.network.stability import stability


def fit_arrays(lfc, se, targets, **options):
    return fit_network(Responses.from_arrays(lfc, se, targets), progress=False, **options)


def network(n, density, seed, size=0.4):
    rng = np.random.default_rng(seed)
    W = (rng.random((n, n)) < density) * size * rng.choice([-1, 1], (n, n))
    np.fill_diagonal(W, 0)
    return W * min(1, 0.8 / max(np.abs(np.linalg.eigvals(W)).max(), 1e-9)), rng


def screen(n=30, density=0.08, seed=0, se=0.05):
    W, rng = network(n, density, seed)
    S = steady_state(W, np.full(n, -1.5), [[i] for i in range(n)])
    return (
        W,
        S + np.where(np.eye(n, dtype=bool), 0, se * rng.normal(size=S.shape)),
        np.full_like(S, se),
        [[i] for i in range(n)],
    )


def test_the_network_is_found():
    W, S, se, targets = screen()
    fit = fit_arrays(S, se, targets)
    likely = fit.probability > 0.5
    assert (W != 0)[likely].mean() > 0.95 and likely[W != 0].mean() > 0.95
    assert (np.sign(fit.effect) == np.sign(W))[W != 0].mean() > 0.95
    inside = np.abs(fit.effect - W) < 3 * fit.std + 0.05
    assert inside[W != 0].mean() > 0.9
    assert (
        (fit.probability >= 0).all()
        and (fit.probability <= 1).all()
        and (np.diag(fit.probability) == 0).all()
    )


def test_same_seed_same_bits_and_any_number_of_threads():
    import numba

    W, S, se, targets = screen(20)
    first = fit_arrays(S, se, targets)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        again = fit_arrays(S, se, targets)
    finally:
        numba.set_num_threads(before)
    for a, b in zip(first[:3], again[:3], strict=False):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.probability, fit_arrays(S, se, targets, seed=1).probability)


@pytest.mark.parametrize(
    "what",
    [
        "one perturbation",
        "two nodes",
        "a column without data",
        "a row without data",
        "an unmeasured target",
        "combinations",
        "nothing moves",
        "a failed knockdown",
        "tiny errors",
    ],
)
def test_odd_tables(what):
    W, S, se, targets = screen(8, 0.2)
    if what == "one perturbation":
        S = S[:1]
        se = se[:1]
        targets = targets[:1]
    if what == "two nodes":
        S = S[:2, :2]
        se = se[:2, :2]
        targets = targets[:2]
    if what == "a column without data":
        S[:, 3] = np.nan
        targets = [t for t in targets]
    if what == "a row without data":
        S[2] = np.nan
    if what == "an unmeasured target":
        S[:, 5] = np.nan
    if what == "combinations":
        targets = targets[:6] + [[0, 1], [2, 3]]
    if what == "nothing moves":
        S = np.where(np.eye(8, dtype=bool), -1.5, 0.0)
    if what == "a failed knockdown":
        S[1] = 0.0
    if what == "tiny errors":
        se = se * 1e-4
    fit = fit_arrays(S, se, targets, draws=20)
    for a in fit[:3]:
        assert np.isfinite(a).all()
    assert (
        fit.probability[:, ~np.isfinite(S).any(0)] == 0
    ).all()  # no edge leads to what nobody measured
    if what == "nothing moves":
        assert fit.probability.max() < 0.3


def test_few_cells_weigh_less():
    "An entry that a network contradicts counts by its own error."
    W, S, se, targets = screen(20)
    i, j = np.argwhere(W == 0)[5]
    S[i, j] = 0.6
    sure = se.copy()
    unsure = se.copy()
    unsure[i, j] = 1.0
    assert (
        fit_arrays(S, sure, targets).probability[i, j]
        > 0.8
        > 0.2
        > fit_arrays(S, unsure, targets).probability[i, j]
    )


def test_contract_bounds_the_spectral_radius():
    for seed in range(10):
        W = torch.from_numpy(
            np.random.default_rng(seed).normal(size=(30, 30))
            * np.random.default_rng(seed).choice([0.02, 0.1, 0.3])
        )

        def radius(V):
            return torch.linalg.eigvals(V).abs().max().item()

        assert radius(contract(W)) <= 0.95 + 1e-6
        if radius(W) < 0.85:
            assert torch.equal(contract(W), W)
    assert (
        torch.equal(contract(torch.zeros(3, 3)), torch.zeros(3, 3))
        and torch.isfinite(contract(torch.full((600, 600), 1e3))).all()
    )


def test_shrinkage_knows_its_error():
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.05, 0.5):
        true = rng.normal(0, spread, 4000) * (rng.random(4000) < 0.3)
        x = true + 0.1 * rng.normal(size=4000)
        mean, var = shrink(x, np.full(4000, 0.01), fit_mixture(x, np.full(4000, 0.01)))
        # a tenth of the variance of the noise
        assert ((mean - true) ** 2).mean() < (
            (x - true) ** 2
        ).mean() and var.mean() == pytest.approx(((mean - true) ** 2).mean(), rel=0.25, abs=1e-3)


def test_recalibration_only_lowers():
    rng = np.random.default_rng(1)
    p = rng.random(3000)
    for true in (rng.random(3000) < p, rng.random(3000) < p**2, rng.random(3000) < np.sqrt(p)):
        a, b = platt(p, true)
        assert a <= 0 and b <= 1
    assert platt(p, rng.random(3000) < p**3)[0] < -0.3


def test_stability_tells_strong_from_weak():
    W, S, se, targets = screen(20, 0.1)
    share = stability(Responses.from_arrays(S, se, targets), refits=4, progress=False)
    assert (
        set(np.unique(share)) <= {0, 0.25, 0.5, 0.75, 1}
        and share[W != 0].mean() > 0.9
        and share[W == 0].mean() < 0.02
    )


# ---- through the class


@pytest.fixture(scope="module")
def prepared():
    adata = gpovae.datasets.simulated(
        n_cells=1500, n_genes=80, n_perturbations=8, n_downstream=6, seed=0
    )
    gpovae.prepare(adata, doublets=False, progress=False)
    return adata


@pytest.fixture(scope="module")
def model(prepared):
    model = gpovae.GPOVAE(prepared)
    model.train(max_epochs=1, progress=False)
    return model


def test_evidence_columns(model):
    e = model.network(min_probability=0, evidence=True)
    assert {"effect", "low", "high", "shift", "se", "p_value", "cells", "relative", "flag"} <= set(
        e
    )
    assert (
        (e.low <= e.effect).all()
        and (e.effect <= e.high).all()
        and e.p_value.dropna().between(0, 1).all()
        and not e.flag.str.contains("never perturbed").any()
    )


def test_regulators_that_nobody_perturbed(model):
    known, everyone = (
        model.network(min_probability=0, regulators=r, evidence=True) for r in ("perturbed", "all")
    )
    new = everyone[~everyone.source.isin(known.source)]
    assert (
        len(new)
        and new.probability.max() <= UNDECIDED
        and new.flag.str.startswith("source never perturbed").all()
        and new["shift"].isna().all()
    )


def test_refits_add_stability(model):
    e = model.network(min_probability=0.3, refits=2)
    assert e.stability.isin([0, 0.5, 1]).all() and len(e)


def test_an_ensemble_of_seeds(prepared, model):
    other = gpovae.GPOVAE(prepared)
    other.train(max_epochs=1, seed=1, progress=False)
    tables = [m.network(min_probability=0) for m in (model, other)]
    both = ensemble(tables, min_probability=0)
    assert (
        len(both) == len(tables[0])
        and both.stability.isin([0, 0.5, 1]).all()
        and both.probability.is_monotonic_decreasing
    )


def test_a_prior_is_learnt_stored_and_refused(prepared, model, tmp_path):
    truth = prepared.uns["gpovae_truth"]
    i, j = np.nonzero(truth["direct"])
    right = pd.DataFrame(
        dict(
            source=truth["genes"][i], target=truth["genes"][j], sign=np.sign(truth["direct"][i, j])
        )
    )
    helped = gpovae.GPOVAE(prepared)
    helped.train(max_epochs=1, prior=right, progress=False)

    def listed(m):
        return m.network(min_probability=0).merge(right[["source", "target"]]).probability.mean()

    assert listed(helped) > listed(model) + 0.05
    back = gpovae.GPOVAE.load(helped.save(tmp_path / "run"))
    assert back.prior == helped.prior and len(
        json.loads((tmp_path / "run/settings.json").read_text())["prior"]["edges"]
    )
    right.to_csv(tmp_path / "prior.csv", index=False)
    from_file = gpovae.GPOVAE(prepared)
    from_file.train(max_epochs=1, prior=tmp_path / "prior.csv", progress=False)
    assert from_file.network(min_probability=0).equals(helped.network(min_probability=0))
    for what, message in (
        (
            dict(prior=pd.DataFrame(dict(source=["X1"], target=["X2"]))),
            "No source of the table of edges",
        ),
        (dict(prior=right, prior_strength=-1), "must not be negative"),
        (dict(prior=right[["source"]]), "no column 'target'"),
    ):
        with pytest.raises(GpovaeError, match=message):
            gpovae.GPOVAE(prepared).train(max_epochs=1, progress=False, **what)
    with pytest.raises(GpovaeError, match="signed effects"):
        gpovae.GPOVAE(prepared, preset="paper").train(max_epochs=1, progress=False, prior=right)


def test_only_perturbed_genes_may_regulate(prepared):
    knows = gpovae.GPOVAE(prepared, regulators="perturbed")
    knows.train(max_epochs=1, progress=False)
    table = knows.network(min_probability=0, regulators="all")
    mine = table.source.map(knows.nodes.perturbed)
    assert not mine.all() and table.probability[~mine].max() < 1e-3 < table.probability[mine].max()
    with pytest.raises(GpovaeError, match="regulators"):
        gpovae.GPOVAE(prepared, regulators="everyone")


def test_a_list_of_regulators():
    W, S, se, targets = screen(20, 0.1)
    may = np.arange(20) < 10
    fit = fit_arrays(S, se, targets, regulators=may)
    assert fit.probability[~may].max() == 0 and fit.probability[:10][W[:10] != 0].mean() > 0.6


def test_prior_edges_on_the_command_line(prepared, tmp_path):
    from click.testing import CliRunner

    from gpovae.app.cli import main

    truth = prepared.uns["gpovae_truth"]
    i, j = np.nonzero(truth["direct"])
    pd.DataFrame(dict(source=truth["genes"][i], target=truth["genes"][j])).to_csv(
        tmp_path / "known.csv", index=False
    )
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    done = CliRunner().invoke(
        main,
        [
            "train",
            str(tmp_path / "prepared.h5ad"),
            "--out",
            str(tmp_path / "run"),
            "--max-epochs",
            "1",
            "--prior",
            str(tmp_path / "known.csv"),
            "--prior-strength",
            "5",
            "--set",
            "regulators=perturbed",
            "--quiet",
        ],
    )
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "run/settings.json").read_text())
    assert (
        told["prior"]["strength"] == 5
        and len(told["prior"]["edges"])
        and told["settings"]["regulators"] == "perturbed"
    )


def test_two_regulators_that_move_together_share_their_target():
    "Whatever the seed: a chain that could not change its mind would say 0 or 1."
    rng = np.random.default_rng(3)
    n = 33
    W = np.zeros((n, n))
    upstream = rng.normal(0, 0.6, 30) * (rng.random(30) < 0.5)
    W[:30, 30], W[:30, 31], W[30, 32] = upstream, upstream, 0.6
    S = -1.5 * np.linalg.inv(np.eye(n) - W)[:30]
    se = np.full((30, n), 0.05)
    S = S + rng.normal(size=S.shape) * se
    for seed in range(3):
        fit = fit_arrays(S, se, [[k] for k in range(30)], copies=0, seed=seed)
        assert 0.05 < fit.probability[30, 32] < 0.95 and 0.05 < fit.probability[31, 32] < 0.95
        assert (fit.probability * fit.effect)[30:32, 32].sum() == pytest.approx(0.6, abs=0.12)


def test_no_circle_holds_itself_up():
    "Two genes that only gene 0 moves: somewhere it starts at gene 0."
    rng = np.random.default_rng(0)
    n = 22
    W = np.zeros((n, n))
    W[0, 20:] = 0.8
    S = -1.5 * np.linalg.inv(np.eye(n) - W)[:20]
    se = np.full((20, n), 0.05)
    p = fit_arrays(
        S + rng.normal(size=S.shape) * se, se, [[k] for k in range(20)], copies=0
    ).probability
    assert p[0, 20:].sum() > 1 and min(p[20, 21], p[21, 20]) < 0.5


def test_same_bits_from_code_just_compiled_and_from_the_cache(tmp_path):
    import os
    import subprocess
    import sys

    script = """
import hashlib, numpy as np
from gpovae.data.responses import Responses
from gpovae.network.regression import fit_network
rng = np.random.default_rng(0); n = 40
W = (rng.random((n, n)) < .06) * rng.choice([-.4, .4], (n, n))
np.fill_diagonal(W, 0); W[:10, 30] = W[:10, 31] = .3
W *= min(1, .8 / np.abs(np.linalg.eigvals(W)).max())
S = -1.5 * np.linalg.inv(np.eye(n) - W)[:25] + .05 * rng.normal(size=(25, n))
table = Responses.from_arrays(S, np.full(S.shape, .05), [[k] for k in range(25)])
fit = fit_network(table, copies=0, progress=False)
print(hashlib.sha256(b"".join(x.tobytes() for x in fit[:3])).hexdigest())
"""

    def run():
        return subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | dict(NUMBA_CACHE_DIR=str(tmp_path)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    first = run()
    assert any(tmp_path.rglob("*gibbs*.nbi")) and run() == first


@pytest.mark.parametrize(
    "how, says",
    [
        ("no row", "no row"),
        ("zero", "Row 2 .* node 3 .*0.0"),
        ("nan", "Row 2 .* node 3 .*nan"),
        ("own", "Row 2 .* node 2"),
        ("regulators", "'tf' is not possible"),
    ],
)
def test_a_table_that_is_none(how, says):
    _, S, se, targets = screen(n=8)
    se = se.copy()
    if how in ("zero", "nan"):
        se[2, 3] = 0 if how == "zero" else np.nan
    if how == "own":
        se[2, 2] = -1
    with pytest.raises(GpovaeError, match=says):
        fit_arrays(
            *((S[:0], se[:0], []) if how == "no row" else (S, se, targets)),
            regulators="tf" if how == "regulators" else "all",
        )


def test_a_simulated_screen_has_the_errors_of_this_one():
    "The gene that is knocked down is measured as well as here, and has neither misfit nor offset."
    _, S, se, targets = screen()
    se[np.diag_indices(30)] = 0.1
    own = np.eye(30, dtype=bool)
    table = prepare_table(Responses.from_arrays(S, se, targets))
    chain = Chain(table, np.random.default_rng(0))
    chain.errors.misfit[:], chain.errors.row[:], chain.errors.column[:] = 4, 1, 1
    nothing = np.zeros((30, 30))
    screens = [
        simulate_from_fit(table, nothing, nothing, chain, np.random.default_rng(k))[1].lfc
        for k in range(40)
    ]
    screens = np.array(screens)
    assert np.abs((screens[:, own] - S[own]).std(0).mean() - 0.1) < 0.01
    assert screens[:, ~own].std(0).mean() > 1.5


def test_intervals_know_the_error_of_the_knockdown():
    "Effects of a gene are divided by its own shift; where that is uncertain, so are they."
    inside, total = 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        W = np.zeros((30, 30))
        W[:6, 6:] = (rng.random((6, 24)) < 0.3) * 0.8
        S = steady_state(W, np.full(30, -0.5), [[i] for i in range(30)]) + 0.03 * rng.normal(
            size=(30, 30)
        )
        S[np.diag_indices(30)] = -0.5 + 0.1 * rng.normal(size=30)
        se = np.full((30, 30), 0.03)
        se[np.diag_indices(30)] = 0.1
        fit = fit_arrays(S, se, [[i] for i in range(30)], copies=0)
        on = (W != 0) & (fit.probability > 0.9)
        inside += (np.abs(fit.effect - W) < 1.96 * fit.std)[on].sum()
        total += on.sum()
    assert total > 200 and 0.88 < inside / total < 0.995, (inside, total)


def test_signs_of_a_prior_list():
    assert read_prior(
        pd.DataFrame(dict(source=list("ABC"), target=list("BCA"), sign=["+", "-", None]))
    ).tolist() == [1, -1, 0]
    with pytest.raises(GpovaeError, match="from 'A' to 'B' is 'activates'"):
        read_prior(pd.DataFrame(dict(source=["A"], target=["B"], sign=["activates"])))


def test_an_ensemble_of_published_networks_has_no_signs():
    t = pd.DataFrame(
        dict(
            source=["A", "B"],
            target=["B", "C"],
            weight=[1.5, -0.2],
            probability=[0.9, 0.6],
            sign=[0, 0],
        )
    )
    assert ensemble([t, t])["sign"].tolist() == [0, 0] and ensemble([t.assign(sign=[1, -1])] * 2)[
        "sign"
    ].tolist() == [1, -1]
