"""Why a gene changed: parts that add up, paths against brute force; on small networks and on a
trained model.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from gpovae import GPOVAE
from gpovae.core.errors import GpovaeError
from gpovae.network.explain import Explanation, by_length, explain, strongest_walks, without_each
from gpovae.network.grn import GRN
from gpovae.plots.networks import path_diagram

from networks import W_of, powers, random_grn


@pytest.fixture(scope="module")
def model(run_folder):
    return GPOVAE.load(run_folder / "run")


# ---- sums


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("longest", [2, 6])
def test_parts_add_up(seed, longest):
    grn, kappa, nodes = random_grn(12, seed, longest=longest)
    P = powers(W_of(grn), longest)
    s = 3
    T = sum(P)
    found = by_length(grn, kappa, s)
    np.testing.assert_allclose(
        found, float(kappa[s]) / T[s, s] * np.stack([p[s] for p in P[1:]]), atol=1e-12
    )
    for j in (g for g in range(12) if g != s):
        why = explain(grn, kappa, nodes, "g3", f"g{j}", n_paths=5)
        assert (
            why.total
            == pytest.approx(grn.predicted_lfc(torch.tensor([s]), kappa)[0, j].item(), abs=1e-5)
            == pytest.approx(float(kappa[s]) * T[s, j] / T[s, s], abs=1e-5)
        )
        for table in (why.by_length, why.paths, why.mediators):
            assert table.contribution.sum() == pytest.approx(why.total, abs=1e-10)


def test_trained_model_adds_up(model):
    shift = (
        model.vae.grn.predicted_lfc(torch.arange(len(model.nodes)), model.vae.perturbations.dose)
        .detach()
        .numpy()
    )
    for s, t in itertools.product(model.labels[:3], model.nodes.index[model.nodes.position >= 0]):
        if s == t:
            continue
        i, j = (model.nodes.index.get_loc(g) for g in (s, t))
        why = model.explain(s, t)
        assert isinstance(why, Explanation) and why.total == pytest.approx(shift[i, j], abs=1e-5)
        for table in (why.by_length, why.paths, why.mediators):
            assert table.contribution.sum() == pytest.approx(why.total, abs=1e-5)
        assert why.total + why.rest == pytest.approx(
            why.predicted
        ) and why.observed == pytest.approx(
            float(model.vae.perturbations.mean[model.labels.index(s), j])
        )
    table = model.explain(s)
    np.testing.assert_allclose(table.direct + table.indirect, table.total, atol=1e-9)
    assert (
        list(table.total.abs()) == sorted(table.total.abs(), reverse=True) and s not in table.index
    )


def test_what_is_lost_without_a_mediator():
    grn, kappa, nodes = random_grn(9, 0)
    left = without_each(grn, kappa, 2)
    W = W_of(grn)
    assert np.isnan(left[2]).all()
    for m in (g for g in range(9) if g != 2):
        V = W.copy()
        V[m] = 0
        T = sum(powers(V, 6))
        np.testing.assert_allclose(
            left[m],
            float(kappa[2]) * np.where(np.arange(9) == 2, T[2] - 1, T[2]) / T[2, 2],
            atol=1e-12,
        )
        total = sum(powers(W, 6))[2] * float(kappa[2]) / sum(powers(W, 6))[2, 2]
        share = (
            np.abs(total - left[m])[np.arange(9) != 2].sum()
            / np.abs(total)[np.arange(9) != 2].sum()
        )
        assert explain(grn, kappa, nodes, "g2").mediates[f"g{m}"] == pytest.approx(share, abs=1e-9)
    why = explain(grn, kappa, nodes, "g2", "g5").mediators
    through = why[why.kind == "through"].set_index("mediator").loss
    assert (
        through["g1"] == pytest.approx(total[5] - left[1, 5], abs=1e-9)
        and np.isnan(why[why.kind == "direct"].loss).all()
    )


def test_chain_has_one_mediator():
    grn = GRN(3)
    with torch.no_grad():
        grn.edge_logit.fill_(20.0)
        grn.effect[0, 1] = grn.effect[1, 2] = 0.5
    nodes = pd.DataFrame(dict(perturbed=True, position=range(3)), index=list("abc"))
    kappa = -torch.ones(3)
    table = explain(grn, kappa, nodes, "a")
    assert table.mediates["b"] == pytest.approx(0.25 / 0.75) and table.mediates["c"] == 0
    why = explain(grn, kappa, nodes, "a", "c")
    assert (
        why.paths.path.tolist() == ["a > b > c"]
        and why.paths.sign.tolist() == [-1]
        and why.paths.edges.tolist() == [2]
    )


# ---- paths


def brute_force(W, start, target, longest):
    found = []
    for length in range(1, longest + 1):
        for walk in itertools.product(range(len(W)), repeat=length + 1):
            if walk[0] in start and walk[-1] == target:
                value = start[walk[0]] * np.prod(
                    [W[a, b] for a, b in zip(walk, walk[1:], strict=False)]
                )
                if value:
                    found.append((walk, value))
    return sorted(found, key=lambda x: -abs(x[1]))


@pytest.mark.parametrize("seed", range(12))
def test_best_first_is_brute_force(seed):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(5, 5)) * (rng.random((5, 5)) < (0.3, 0.6, 1)[seed % 3])
    np.fill_diagonal(W, 0)
    start = {0: -1.2} if seed % 2 else {0: -1.2, 1: 0.4}
    every = brute_force(W, start, 4, 5)
    for n in (1, 2, 7, 50, None):
        found, more = strongest_walks(W, start, 4, 5, n)
        np.testing.assert_allclose(
            [v for _, v in found], [v for _, v in every[:n]], rtol=1e-12, atol=0
        )
        assert {w for w, _ in found} == {w for w, _ in every[:n]} and more == (
            len(found) < len(every)
        )


def test_large_network_is_searched_quickly():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(600, 600)) * 0.02
    np.fill_diagonal(W, 0)
    found, more = strongest_walks(W, {0: -1.0}, 1, 6, 20)
    assert (
        more
        and len(found) == 20
        and all(abs(a) >= abs(b) for (_, a), (_, b) in zip(found, found[1:], strict=False))
    )
    A = np.abs(W)
    # of one, two and three edges; longer ones are weaker
    assert abs(found[0][1]) == pytest.approx(
        max(A[0, 1], (A[0] * A[:, 1]).max(), (A[0] @ np.eye(600) * (A * A[:, 1]).max(1)).max())
    )


def test_a_row_for_all_other_paths():
    grn, kappa, nodes = random_grn(7, 1, density=1)
    some, more = (explain(grn, kappa, nodes, "g0", "g1", n_paths=n).paths for n in (3, 30))
    assert (
        len(some) == 4
        and some.path.iloc[-1] == "all other paths" == more.path.iloc[-1]
        and pd.isna(some.edges.iloc[-1])
    )
    assert some.path[:3].tolist() == more.path[
        :3
    ].tolist() and some.contribution.sum() == pytest.approx(more.contribution.sum())
    P = torch.sigmoid(grn.edge_logit).double().detach().numpy()
    for r in more[:-1].itertuples():
        walk = [int(g[1:]) for g in r.path.split(" > ")]
        assert (
            r.probability
            == pytest.approx(min(P[a, b] for a, b in zip(walk, walk[1:], strict=False)))
            and r.edges == len(walk) - 1
            and r.sign == np.sign(r.contribution)
        )
    all_paths = explain(*random_grn(4, 1, longest=3), "g0", "g1", n_paths=None).paths
    assert "all other paths" not in set(all_paths.path)


# ---- what it says


def test_combination_is_the_sum(model):
    a, b = model.labels[:2]
    t = next(g for g in model.nodes.index[model.nodes.position >= 0] if g not in (a, b))
    both = model.explain(f"{b}+{a}", t)
    parts = [model.explain(g, t) for g in (a, b)]
    assert both.total == pytest.approx(
        sum(p.total for p in parts), abs=1e-9
    ) and both.paths.contribution.sum() == pytest.approx(both.total, abs=1e-9)
    assert (
        both.mediators.contribution.sum() == pytest.approx(both.total, abs=1e-9)
        and np.isnan(both.observed)
        and np.isfinite(both.predicted)
    )
    np.testing.assert_allclose(
        both.by_length.contribution, sum(p.by_length.contribution for p in parts), atol=1e-12
    )


def test_words_and_markup():
    grn, kappa, nodes = random_grn(4, 0, density=1)
    nodes.index = ["<script>alert(1)</script>", 'b"&', "c", "d"]
    why = explain(grn, kappa, nodes, nodes.index[0], "c", n_paths=3)
    html = why._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "&amp;" in html
    assert "<script>alert(1)</script>" in repr(why) and f"{why.total:+.3f}" in why.sentence()
    nodes["position"] = [-1, 0, 1, 2]
    assert (
        "the perturbation as it was done"
        in explain(grn, kappa, nodes, nodes.index[0], "c").sentence()
        and "the perturbation as it was done" not in why.sentence()
    )
    with torch.no_grad():
        grn.effect.zero_()
    assert "No path" in explain(grn, kappa, nodes, nodes.index[0], "c").sentence()


def test_errors(model):
    g = model.labels[0]
    t = next(x for x in model.nodes.index if x not in model.labels)
    for arguments, message in (
        ((g, "SOX2-no"), "'SOX2-no' is not a node"),
        (("nobody",), "'nobody' is not a node"),
        ((t,), f"'{t}' was never perturbed"),
        ((g, g), "is itself perturbed"),
        (("control", t), "is the control"),
    ):
        with pytest.raises(GpovaeError, match=message):
            model.explain(*arguments)
    grn, kappa, nodes = random_grn(4, 0)
    with pytest.raises(GpovaeError, match="no signed effects"):
        explain(GRN(4, signed=False), kappa, nodes, "g0")
    with pytest.raises(GpovaeError, match="'g1' was not measured"):
        explain(grn, kappa, nodes.assign(position=[0, -1, 1, 2]), "g0", "g1")


def test_no_path_and_a_stranger():
    """Where no path leads there is an empty table, and a drawing that says so.

    A name that is not there gets those that are like it.
    """
    grn = GRN(3, True, 4)
    grn.start_from(*(torch.zeros(3, 3).numpy() + x for x in (0.5, 0, 0.1)))
    nodes = pd.DataFrame(dict(perturbed=True, position=range(3)), index=["GATA1", "KLF1", "MYC"])
    paths = explain(grn, torch.full((3,), -1.0), nodes, "GATA1", "MYC").paths
    assert len(paths) == 0 and paths.contribution.dtype == float
    path_diagram(paths)
    with pytest.raises(
        GpovaeError, match="'KFL1' is not a node of the network. Did you mean KLF1?"
    ):
        explain(grn, torch.full((3,), -1.0), nodes, "KFL1")
    with pytest.raises(
        GpovaeError,
        match="'XYZ' is not a node of the network, whose nodes are .*: GATA1, KLF1, MYC",
    ):
        explain(grn, torch.full((3,), -1.0), nodes, "GATA1", "XYZ")
