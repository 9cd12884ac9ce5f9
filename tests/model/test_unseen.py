"""Perturbations that were never trained.

Refused unless asked for; predicted from training cells alone; honest where nothing is known;
better than the mean where something is.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.labels import CONTROL
from gpovae.data.responses import Responses
from gpovae.data.screen import Key, Screen
from gpovae.evaluate.effects import cells, observed_effects
from gpovae.evaluate.response import pearson
from gpovae.model.unseen import EVIDENCE, between
from gpovae.network.prior import prior_matrix, read_prior
from gpovae.network.regression import fit_network

SMALL = dict(latent=8, basal=(24, 1), embedding=(24, 2), decoder=(24, 2))


def prepared(adata, held, **settings):
    gpovae.prepare(
        adata,
        perturbation_key="gene",
        control="non-targeting",
        held_out=held,
        doublets=False,
        progress=False,
        **settings,
    )
    return adata


def trained(adata, preset="corrected", max_epochs=8, **settings):
    model = gpovae.GPOVAE(adata, preset=preset, combination=False, **settings)
    model.train(max_epochs=max_epochs, seed=0, progress=False)
    return model


def quiet(model, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.predict(*args, unseen="network", **kw)


def simulated():
    return gpovae.datasets.simulated(
        n_cells=4000, n_genes=120, n_perturbations=24, n_downstream=8, seed=1
    )


def truth(adata):
    t = adata.uns[Key.truth]
    return np.asarray(t["genes"]).astype(str), np.asarray(t["direct"])


@pytest.fixture(scope="module")
def held():
    "The genes that most other perturbed genes regulate."
    names, W = truth(simulated())
    return sorted(names[np.argsort(-(W[:24, :24] != 0).sum(0), kind="stable")[:5]])


@pytest.fixture(scope="module")
def model(held):
    return trained(prepared(simulated(), held), max_epochs=15, **SMALL)


@pytest.fixture(scope="module")
def observed(model, held):
    return observed_effects(model.adata, "test").loc[held]


@pytest.fixture(scope="module")
def shared(model):
    "Effect of the mean of all perturbed training cells."
    train, n = observed_effects(model.adata, "train"), cells(model.adata, "train").drop(CONTROL)
    return train.mul(n[train.index], axis=0).sum() / n[train.index].sum()


@pytest.fixture(scope="module")
def right(model):
    "The true edges."
    names, W = truth(model.adata)
    i, j = np.nonzero(W)
    return pd.DataFrame(dict(source=names[i], target=names[j], sign=np.sign(W[i, j]).astype(int)))


@pytest.fixture(scope="module")
def wrong(model, right):
    "As many edges, none of them true."
    names, W = truth(model.adata)
    i, j = (
        np.random.default_rng(0)
        .choice(np.argwhere((W == 0) & ~np.eye(len(W), dtype=bool)), len(right), replace=False)
        .T
    )
    return pd.DataFrame(
        dict(
            source=names[i], target=names[j], sign=np.random.default_rng(1).choice([-1, 1], len(i))
        )
    )


def pearson_delta(pred, observed, shared):
    """Against the mean of perturbed cells, without the target itself.

    That a knocked-down gene goes down is no merit.
    """
    t = pred.to_df()
    return np.mean(
        [
            pearson((t.loc[p] - shared)[t.columns != p], (observed.loc[p] - shared)[t.columns != p])
            for p in observed.index
        ]
    )


def rho(pred, observed):
    t = pred.to_df().loc[observed.index]
    other = np.array([[g != p for g in t.columns] for p in t.index])
    return pearson(t.to_numpy()[other], observed.to_numpy()[other])


def test_refused_unless_asked_for(model, held):
    with pytest.raises(GpovaeError, match="never perturbed in the training cells") as e:
        model.predict(held[:1])
    assert "unseen='network'" in str(e.value)
    with pytest.raises(GpovaeError, match="Choose 'refuse' or 'network'"):
        model.predict(held[:1], unseen="guess")


def test_unknown_gene(model):
    for unseen in ("refuse", "network"):
        with pytest.raises(GpovaeError, match="no gene of this screen"):
            model.predict(["NOSUCHGENE"], unseen=unseen)
    name = model.genes[0]
    with pytest.raises(GpovaeError, match=f"Did you mean.*{name}"):
        model.predict([name + "X"], unseen="network")


def test_prior_needs_a_network(model, held, right):
    with pytest.raises(GpovaeError, match="add unseen='network'"):
        model.predict(held[:1], prior=right)
    with pytest.raises(GpovaeError, match="source"):
        quiet(model, held[:1], prior=right.rename(columns=dict(source="colour")))


def test_held_out_cells_do_not_reach_the_model():
    """Other counts in the cells of a held-out perturbation.

    The same nodes, the same prediction to the bit.
    """
    found = []
    for change in (False, True):
        adata = gpovae.datasets.simulated(
            n_cells=1200, n_genes=80, n_perturbations=8, n_downstream=6, seed=1
        )
        names, _ = truth(adata)
        prepared(adata, list(names[:2]))
        if change:  # after the preparation: what counts is which cells training reads
            rows = np.flatnonzero(np.isin(Screen(adata).labels, names[:2]))
            X = adata.X.tolil()
            X[rows] = X[rows[::-1]] * 3
            adata.X = X.tocsr()
        model = trained(adata, max_epochs=2, **SMALL)
        found.append((model, quiet(model, list(names[:2])), list(adata.uns[Key.nodes]["names"])))
    (a, x, n), (b, y, m) = found
    assert n == m and not a.nodes.perturbed[list(names[:2])].any()
    assert (
        np.array_equal(x.X, y.X)
        and np.array_equal(x.layers["spread"], y.layers["spread"])
        and np.array_equal(x.layers["mean"], y.layers["mean"])
    )


def test_held_out_cells_do_not_reach_the_preparation():
    "Nodes and shifts come from training cells: those of a screen without the held-out cells."
    adata = gpovae.datasets.simulated(
        n_cells=1200, n_genes=80, n_perturbations=8, n_downstream=6, fail_share=0, seed=1
    )
    held = list(truth(adata)[0][:2])
    prepared(adata, held)
    table = adata.uns[Key.responses]
    nodes = list(np.asarray(adata.uns[Key.nodes]["names"]).astype(str))
    assert not set(held) & set(np.asarray(table["perturbation"]).astype(str)) and set(held) <= set(
        nodes
    )
    other = adata.copy()
    rows = np.flatnonzero(np.isin(Screen(other).labels, held))
    X = other.X.tolil()
    X[rows] = X[rows[::-1]]
    other.X = X.tocsr()
    from gpovae.data.nodes import graph_nodes

    graph_nodes(other)
    assert list(np.asarray(other.uns[Key.nodes]["names"]).astype(str)) == nodes


def test_better_than_the_mean_where_others_regulate_it(model, held, observed, shared):
    p = quiet(model, held)
    assert rho(p, observed) > 0.25
    mean = pd.DataFrame(np.repeat(shared.to_numpy()[None], len(held), 0), held, shared.index)
    other = np.array([[g != h for g in mean.columns] for h in held])
    assert (
        rho(p, observed)
        > pearson(mean.to_numpy()[other], observed[mean.columns].to_numpy()[other]) + 0.15
    )
    # the mean of perturbed cells has 0 by construction
    assert pearson_delta(p, observed, shared) > 0.2
    assert (p.obs.evidence == "network").sum() >= 3 and not p.obs.trained.any()
    for h in held:
        assert p[h, h].X.item() < -0.5


def test_nothing_known(model, shared):
    """A gene that is measured and no node.

    Its knockdown, what is shared, a wide spread, and a word of warning.
    """
    gene = next(g for g in model.genes if g not in model.nodes.index)
    with pytest.warns(UserWarning, match=gene):
        p = model.predict(gene, unseen="network")
    assert p.obs.evidence.tolist() == ["none"] and p[:, gene].X.item() < -0.2
    seen = model.predict()
    own = np.array([[g == n for g in model.genes] for n in seen.obs_names])
    assert (p.layers["spread"][0] >= between(seen.X, seen.layers["spread"], own) - 1e-6).all()
    assert p.layers["spread"].mean() > np.median(seen.layers["spread"].mean(1))
    others = np.delete(p.X[0], model.genes.index(gene))
    assert np.abs(others).mean() < np.abs(seen.X[~own]).mean()  # no confident effects


def test_spread_is_honest(model, held, observed):
    """Nominal 95 % intervals contain the observed effects of held-out perturbations about that
    often.
    """
    from gpovae.evaluate.effects import noise_variance

    p = quiet(model, held)
    noise = noise_variance(model.adata, "test")
    z = np.abs(p.X - observed.to_numpy()) / np.sqrt(
        p.layers["spread"] ** 2 + noise.loc[held].to_numpy() + noise.loc[CONTROL].to_numpy()
    )
    assert 0.88 < (z < 1.96).mean() <= 1


def test_prior_right_and_wrong(model, held, observed, shared, right, wrong):
    by = {
        k: pearson_delta(quiet(model, held, prior=e), observed, shared)
        for k, e in dict(
            none=None, right=right, wrong=wrong, unsigned=right[["source", "target"]]
        ).items()
    }
    assert (
        by["right"] > by["none"] + 0.1
        and by["unsigned"] > by["none"] + 0.05
        and by["wrong"] > by["none"] - 0.05
    )


def test_prior_where_nothing_else_is_known(model, right, wrong):
    """A measured gene that is no node.

    A prior of the quality of the rest moves what it lists, in its direction; a worthless one does
    not.
    """
    gene = next(g for g in model.genes if g not in model.nodes.index)
    targets = [g for g in model.nodes.index if g in model.genes][:3]
    mine = pd.DataFrame(dict(source=gene, target=targets, sign=[1, -1, 0]))
    base = quiet(model, gene).to_df().loc[gene]
    good = quiet(model, gene, prior=pd.concat([right, mine]))
    bad = quiet(model, gene, prior=pd.concat([wrong, mine]))
    change = good.to_df().loc[gene] - base
    assert (
        good.obs.evidence.iloc[0] == "prior"
        and change[targets[0]] < -0.1
        and change[targets[1]] > 0.1
    )
    # sign unknown: doubt, not effect
    assert (
        good[:, targets[2]].layers["spread"].item()
        > quiet(model, gene)[:, targets[2]].layers["spread"].item()
    )
    assert (
        bad.obs.evidence.iloc[0] == "none"
        and np.abs(bad.to_df().loc[gene] - base)[targets].max() < 0.05
    )


def test_combinations(model, held):
    a = model.labels[0]
    b = held[0]
    gene = next(g for g in model.genes if g not in model.nodes.index)
    p = quiet(model, [a, b, f"{a}+{b}", f"{b}+{gene}", f"{b}+{a}"])
    single = dict(zip(p.obs_names, p.obs.evidence, strict=True))
    assert (
        p.obs.evidence.iloc[2] == max(single[a], single[b], key=EVIDENCE.index)
        and p.obs.evidence.iloc[3] == "none"
    )
    # whichever is named first; a matrix product may round its rows differently
    assert np.allclose(p.X[2], p.X[4], rtol=1e-5, atol=1e-6)
    near = p.X[0] + p.X[1] - model.run.common_residual()
    assert pearson(p.X[2], near) > 0.95
    assert np.array_equal(p.X[0], model.predict(a).X[0])  # trained ones are not touched


def test_whatever_else_is_asked_for(model, held):
    both = quiet(model, held[:2])
    one = quiet(model, held[1])
    assert np.allclose(both.X[1], one.X[0], atol=1e-5) and np.allclose(
        both.layers["spread"][1], one.layers["spread"][0], atol=1e-5
    )


def test_save_and_load(model, held, right, tmp_path):
    before = [quiet(model, held), quiet(model, held, prior=right)]
    loaded = gpovae.GPOVAE.load(model.save(tmp_path / "run"))  # without the screen
    for p, q in zip(before, [quiet(loaded, held), quiet(loaded, held, prior=right)], strict=True):
        assert (
            np.array_equal(p.X, q.X)
            and np.array_equal(p.layers["spread"], q.layers["spread"])
            and p.obs.evidence.tolist() == q.obs.evidence.tolist()
        )


def test_unmeasured_target():
    "A held-out target without a column: no knockdown to be seen, no evidence, no failure."
    adata = gpovae.datasets.simulated(
        n_cells=1200, n_genes=80, n_perturbations=8, n_downstream=6, unmeasured=2, seed=1
    )
    name = str(truth(adata)[0][7])
    assert name not in adata.var_names
    p = quiet(trained(prepared(adata, [name]), max_epochs=2, **SMALL), name)
    assert p.obs.evidence.tolist() == ["none"] and np.isfinite(p.X).all()


def test_few_perturbations():
    "Two perturbations in training: nothing to learn a slope from, and no failure."
    adata = gpovae.datasets.simulated(
        n_cells=700, n_genes=60, n_perturbations=3, n_downstream=5, seed=1
    )
    name = str(truth(adata)[0][0])
    p = quiet(trained(prepared(adata, [name]), max_epochs=1, **SMALL), name)
    assert (
        np.isfinite(p.X).all()
        and np.isfinite(p.layers["spread"]).all()
        and (p.layers["spread"] > 0).any()
    )


def test_published_preset():
    "From its node alone, as published; no prior; no gene without a node."
    adata = gpovae.datasets.simulated(
        n_cells=900, n_genes=60, n_perturbations=6, n_downstream=5, seed=1
    )
    held = str(truth(adata)[0][0])
    model = trained(prepared(adata, [held]), "paper", 1, particles=1, **SMALL)
    gene = next(g for g in model.genes if g not in model.nodes.index)
    p = quiet(model, [held, gene])
    assert (
        p.obs.evidence.tolist() == ["network", "none"]
        and np.allclose(p.X[1], 0, atol=1e-5)
        and np.abs(p.X[0]).max() > 0
    )
    assert (p.layers["spread"] >= model._unseen["between"] - 1e-6).all()
    with pytest.raises(GpovaeError, match="signed effects"):
        quiet(model, held, prior=pd.DataFrame(dict(source=[held], target=[gene])))


def test_read_prior():
    e = read_prior(
        pd.DataFrame(dict(source=["A", "A", "B"], target=["B", "A", "A"], sign=[2.5, 1, -1]))
    )
    assert e.to_dict() == {("A", "B"): 1, ("B", "A"): -1}
    assert np.isnan(prior_matrix(e, pd.Index(["B", "C"]))).all()


def test_a_prior_can_be_given_to_any_fit():
    """Listed pairs between nodes that were never seen keep what the listed pairs of others turned
    out to be worth.
    """
    rng = np.random.default_rng(0)
    W = (rng.random((20, 20)) < 0.1) * 0.5 * rng.choice([-1, 1], (20, 20))
    np.fill_diagonal(W, 0)
    S = -1.5 * np.linalg.inv(np.eye(20) - W * 0.7)
    S = S / np.diag(S)[:, None] * -1.5 + rng.normal(size=S.shape) * 0.05
    sign = np.where(W != 0, np.sign(W), np.nan)
    p, m, *_ = fit_network(
        Responses.from_arrays(S[:15], np.full((15, 20), 0.05), [[i] for i in range(15)]),
        prior=sign,
        copies=0,
        progress=False,
    )
    rest = np.isfinite(sign[15:])
    assert p[15:][rest].mean() > 0.5 and (np.sign(m[15:][rest]) == sign[15:][rest]).mean() > 0.8
