"""gpovae.data.prepare: refusals, reproducibility, the way to disk
and back, and screens of unusual shape.
"""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from gpovae.core.errors import GpovaeError
from gpovae.data import doublets
from gpovae.data.expression import log_normalised
from gpovae.data.files import open_screen
from gpovae.data.matching import effective_number, plan
from gpovae.data.minibatch import Cells
from gpovae.data.partners import mean_shares, median_profiles
from gpovae.data.prepare import prepare, prepare_file
from gpovae.data.quality import mad_threshold, quality_labels
from gpovae.data.rank_sum import rank_sum_test
from gpovae.data.register import register
from gpovae.data.responses import Responses, fold_changes
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.split import split_sizes
from gpovae.data.steps import stale

from places import DATA, FIXTURES, needs

warnings.filterwarnings("ignore", category=FutureWarning)


def screen(**kw):
    return simulated(**(dict(n_cells=600, n_genes=100, n_perturbations=5, seed=0) | kw))


def run(adata, **kw):
    return prepare(
        adata,
        **(
            dict(perturbation_key="gene", control="non-targeting", doublets=False, progress=False)
            | kw
        ),
    )


def ours(a):
    """All annotations as one flat dict."""
    flat = {}

    def walk(prefix, m):
        for k in m:
            v = m[k]
            if prefix.count("/") == 1 and not str(k).startswith("gpovae_"):
                continue
            if isinstance(v, (dict, pd.DataFrame)):
                walk(f"{prefix}{k}/", dict(v))
            else:
                flat[f"{prefix}{k}"] = np.asarray(v)

    for name in ("obs", "var", "obsm", "uns"):
        walk(f"{name}/", getattr(a, name))
    return flat


def assert_same(a, b, rtol=0):
    a = ours(a)
    b = ours(b)
    assert a.keys() == b.keys()
    for k in a:
        if rtol and k.endswith(("/reads", "/wrote")):
            continue  # hashes of what is compared here
        if a[k].dtype.kind == "f":
            assert np.allclose(a[k], b[k], rtol=rtol, atol=0, equal_nan=True), k
        elif rtol and k == f"obsm/{Key.match}":
            assert (a[k] == b[k]).mean() > 0.99
        else:
            assert np.array_equal(a[k], b[k]), k


def with_X(change):
    a = screen()
    X = a.X.toarray()
    change(X, a)
    a.X = X
    return a


def set_value(v):
    def change(X, a):
        X[3, 7] = v

    return lambda: with_X(change)


def logged():
    a = screen()
    a.X = a.X.log1p()
    return a


def empty_cell():
    def change(X, a):
        X[5] = 0

    return with_X(change)


def renamed(axis, i, j):
    def make():
        a = screen()
        names = list(getattr(a, axis))
        names[i] = names[j]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(a, axis, names)
        return a

    return make


def relabelled(change):
    def make():
        a = screen()
        a.obs["gene"] = change(a.obs["gene"].astype(object))
        return a

    return make


def one_cell(g):
    g = g.copy()
    g.iloc[0] = "LONELY"
    return g


def missing(g):
    g = g.copy()
    g.iloc[4] = np.nan
    return g


BAD = {
    "nan": (set_value(np.nan), {}, r"cell 'cell003', gene '.+' is not a number"),
    "negative": (set_value(-1), {}, r"cell 'cell003', gene '.+' is negative"),
    "fraction": (set_value(0.5), {}, r"cell 'cell003', gene '.+' is not a whole number"),
    "log": (logged, {}, r"not a whole number .*layer="),
    "empty cell": (empty_cell, dict(drop_empty=False), r"first is 'cell005'"),
    "gene twice": (renamed("var_names", 1, 0), {}, r"gene name\(s\) occur more than once"),
    "cell twice": (
        renamed("obs_names", 1, 0),
        {},
        r"cell name\(s\) occur more than once, the first is 'cell000'",
    ),
    "no control": (
        relabelled(lambda g: g.replace({"non-targeting": "A"})),
        {},
        r"No control cells in obs\['gene'\]",
    ),
    "one cell": (relabelled(one_cell), {}, r"'LONELY'.*min_cells"),
    "missing label": (relabelled(missing), {}, r"missing for 1 cell\(s\), the first is 'cell004'"),
    "only controls": (
        relabelled(lambda g: g.map(lambda _: "non-targeting")),
        {},
        r"control cells only",
    ),
    "key": (screen, dict(perturbation_key="guide"), r"no column 'guide'"),
    "batch key": (screen, dict(batch_key="lane"), r"batch_key 'lane' not found"),
    "layer": (screen, dict(layer="raw"), r"raw.X of a file"),
    "size factor": (screen, dict(size_factor_exclude=["XYZ"]), r"'XYZ', which is not a gene"),
    "n_mads": (screen, dict(n_mads=-1), r"n_mads is -1"),
    "fractions": (screen, dict(fractions=(0.5, 0.5, 0.5)), r"fractions \(0.5, 0.5, 0.5\)"),
    "held out": (screen, dict(held_out=["XYZ"]), r"'XYZ' cannot be held out"),
    "alpha": (screen, dict(alpha=0), r"alpha is 0"),
    "min_lfc": (screen, dict(min_lfc=-1), r"min_lfc is -1"),
    "max_extended": (screen, dict(max_extended=-1), r"max_extended is -1"),
    "n_matches": (screen, dict(n_matches=0), r"n_matches is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusal_names_the_culprit_and_leaves_the_file_alone(name):
    make, arguments, message = BAD[name]
    a = make()
    before = set(ours(a))
    with pytest.raises(GpovaeError, match=message):
        run(a, **arguments)
    assert set(ours(a)) == before


def test_a_failing_step_leaves_the_earlier_preparation():
    a = screen()
    run(a)
    kept = a.copy()
    with pytest.raises(GpovaeError):
        run(a, n_matches=0, seed=5, min_cells=90)
    assert a.n_obs == kept.n_obs
    assert_same(a, kept)


def test_seed_decides_everything():
    a = screen()
    b = screen()
    c = screen()
    run(a, doublets=True)
    run(b, doublets=True)
    run(c, doublets=True, seed=1)
    assert_same(a, b)
    assert (Screen(a).split != Screen(c).split).any() and (
        a.obsm[Key.match] != c.obsm[Key.match]
    ).any()
    run(c, doublets=True)  # a second preparation replaces the first
    assert_same(a, c)


def test_round_trip(tmp_path):
    a = screen()
    run(a, batch_key="batch", size_factor_exclude=[a.var_names[0]], held_out=0.2)
    a.write_h5ad(tmp_path / "a.h5ad")
    b = ad.read_h5ad(tmp_path / "a.h5ad")
    assert_same(a, b)
    assert (
        Screen(b).same_cells()
        and Screen(b).nodes.equals(Screen(a).nodes)
        and Responses.read(b).to_frame().equals(Responses.read(a).to_frame())
    )


def test_counts_are_never_altered_and_layers_are_found():
    a = screen()
    a.layers["counts"] = a.X.copy()
    a.X = a.X.log1p()
    X = a.X.copy()
    counts = a.layers["counts"].copy()
    s = run(a, doublets=True)
    assert (a.X != X).nnz == 0 and (a.layers["counts"] != counts).nnz == 0
    assert s.counts is a.layers["counts"]


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        lambda X: np.asarray(X, dtype=np.int64),
        lambda X: sp.csr_matrix(X, dtype=np.int32),
        sp.csc_matrix,
    ],
)
def test_storage_does_not_matter(kind):
    a = screen()
    b = screen()
    b.X = kind(b.X.toarray())
    run(a, doublets=True)
    run(b, doublets=True)
    assert_same(a, b, rtol=1e-3)  # sums in another order


def test_explicit_zeros_do_not_matter():
    a = screen()
    b = screen()
    X = b.X.toarray()
    r, c = np.nonzero(X == 0)
    b.X = sp.csr_matrix(
        (
            np.r_[X[X != 0], np.zeros(50, np.float32)],
            (np.r_[np.nonzero(X)[0], r[:50]], np.r_[np.nonzero(X)[1], c[:50]]),
        ),
        shape=X.shape,
    )
    run(a)
    run(b)
    assert_same(a, b)
    assert (b.X.toarray() == X).all()


def test_subset_is_noticed():
    a = screen()
    run(a)
    assert Screen(a).same_cells()
    assert not Screen(a[10:].copy()).same_cells() and not Screen(a[::-1].copy()).same_cells()
    assert Screen(a[:, ::-1].copy()).same_cells()  # genes may move, positions of cells stay
    s = run(a[a.obs["gene"] != Screen(a).perturbations[0]].copy())
    assert s.same_cells()


def test_a_view_is_prepared_as_its_own_file():
    a = screen()
    v = a[:400]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s = run(v)
    assert (
        s.adata is v
        and v.n_obs == 400
        and s.same_cells()
        and not ours(a).keys() - {k for k in ours(a) if "truth" in k}
    )


def test_small_perturbations_leave_in_place():
    a = screen()
    few = a.obs["gene"].value_counts().iloc[-1]
    s = run(a, min_cells=int(few) + 1)
    assert (
        s.same_cells()
        and len(s.perturbations) < 5
        and a.uns[Key.prepare]["source"]["result"]["cells"] == 600 > a.n_obs
    )


def test_unmeasured_targets():
    a = screen(unmeasured=1)
    with pytest.warns(UserWarning, match="not among the measured genes"):
        s = run(a)
    gone = s.nodes.index[s.nodes.position < 0]
    assert (
        len(gone) == 1
        and Responses.read(a).to_frame()[gone[0]].isna().all()
        and gone[0] in Responses.read(a).to_frame().index
    )
    n = a.n_obs
    s = run(a, drop_unmeasured=True)
    assert a.n_obs < n and gone[0] not in s.nodes.index and s.same_cells()


def test_combinations_have_a_row_and_their_targets_are_nodes():
    a = screen()
    g = a.obs["gene"].astype(str)
    p = sorted(set(g) - {"non-targeting"})
    hit = np.flatnonzero(g == p[0])[:20]
    g.iloc[hit] = f"{p[1]}+{p[0]}"
    a.obs["gene"] = g
    s = run(a)
    pair = "+".join(sorted(p[:2]))
    assert pair in Responses.read(a).to_frame().index and list(s.targets) == p


def test_held_out_genes_leave_no_trace_in_training():
    a = screen()
    p = sorted(set(a.obs["gene"]) - {"non-targeting"})[0]
    s = run(a, held_out=[p])
    assert (s.split[s.labels == p] == "test").all() and p not in Responses.read(a).to_frame().index
    b = a.copy()
    X = b.X.toarray()
    X[s.labels == p] = X[s.labels == p][:, ::-1]
    b.X = sp.csr_matrix(X)  # garble the held-out cells
    b.obs[Key.library_size] = np.asarray(b.X.sum(1)).ravel()
    rows = s.rows("train", fail=False)
    assert np.array_equal(fold_changes(s, rows)[1], fold_changes(Screen(b), rows)[1])


def test_batches():
    a = simulated(n_cells=900, n_genes=100, n_perturbations=4, n_batches=3, seed=2)
    s = run(a, batch_key="batch")
    m = a.obsm[Key.match]
    own = ~s.is_control
    assert (s.split[m[own]] == s.split[own][:, None]).all()
    train = own & (s.split == "train")
    assert (
        s.batch[m[train]] == s.batch[train][:, None]
    ).all()  # enough controls in every batch of the training split


def test_tiny_screen():
    rng = np.random.default_rng(0)
    a = ad.AnnData(
        rng.poisson(5, (40, 6)).astype(np.float32),
        obs=pd.DataFrame(
            {"gene": ["ctrl"] * 20 + ["A"] * 10 + ["B"] * 8 + ["C"] * 2},
            index=[f"c{i}" for i in range(40)],
        ),
        var=pd.DataFrame(index=list("ABCDEF")),
    )
    s = prepare(a, doublets=True, progress=False, n_mads=20)
    assert (
        s.split[s.labels == "C"].tolist().count("train") == 1
        and (a.obsm[Key.match][~s.is_control] >= 0).all()
    )
    assert np.isfinite(Responses.read(a).to_frame("se")).all(axis=None)


@pytest.mark.parametrize(
    "fractions", [(0.64, 0.16, 0.2), (0.8, 0, 0.2), (1, 0, 0), (0.5, 0.1, 0.4)]
)
def test_split_sizes(fractions):
    for n in range(1, 60):
        size = split_sizes(n, fractions)
        assert (
            size.sum() == n
            and (size >= 0).all()
            and all(s == 0 for s, f in zip(size, fractions, strict=True) if f == 0)
        )


def test_silent_gene_has_an_error():
    a = screen()
    X = a.X.toarray()
    g = 11
    X[:, g] = 0
    a.X = sp.csr_matrix(X)
    s = run(a)
    labels, shift, se, _ = fold_changes(s, s.rows("train", fail=False))
    assert (shift[:, g] == 0).all() and (se[:, g] > 0.5).all()
    assert (rank_sum_test(s, s.rows("train", fail=False))[:, g] == 1).all()


def test_plan_has_uniform_marginals():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5, 3)) * 50
    Y = rng.normal(size=(17, 3))
    P = plan(X, Y, 0.05)
    assert np.allclose(P.sum(1), 1 / 5) and np.allclose(P.sum(0), 1 / 17, rtol=1e-2)
    assert ((1 <= effective_number(P)) & (effective_number(P) <= 17)).all()


# ---- published figures: random inputs and what the published implementation computes from them
# (its code: CC BY-NC 4.0; no code is kept here) ----


@pytest.fixture(scope="module")
def published():
    return np.load(FIXTURES / "metrics_published.npz", allow_pickle=False)


def test_quality_threshold_is_the_published_one(published):
    values = published["qc.values"]
    keys = [k for k in published.files if re.match(r"qc\.mad.*threshold", k)]
    assert len(keys) == 4
    for k in keys:
        t = float(k.removeprefix("qc.mad").split(".")[0])
        assert np.isclose(mad_threshold(values, t), published[k]), k
        flag = values < published[k] if t < 0 else values > published[k]
        assert np.array_equal(flag, published[k.replace("threshold", "flag")].astype(bool))


def test_transport_plan_is_the_published_one(published):
    """Their cost is the Euclidean distance / 100 with an entropy of weight 1.

    Ours is a squared distance, so we take coordinates whose squared distance is theirs (classical
    scaling).
    """
    X = published["match.perturbed"].astype(float)
    Y = published["match.control"].astype(float)
    cost = cdist(np.r_[X, Y], np.r_[X, Y])
    centre = np.eye(15) - 1 / 15
    value, vector = np.linalg.eigh(-centre @ cost @ centre / 2)
    at = vector * np.sqrt(np.maximum(value, 0))
    P = plan(at[:6], at[6:], 100 / np.median(cost[:6, 6:]))
    np.testing.assert_allclose(P, published["match.ot.plan"], rtol=1e-5)
    assert np.array_equal(P.argmax(1), published["match.ot.index"])


def test_unsigned_shift_is_the_published_one(published):
    counts = published["deltaX.counts"]
    a = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"gene": ["g0"] * 8 + ["control"] * 2}, index=[f"c{i}" for i in range(10)]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(8)]),
    )
    s = register(a)
    a.obs[Key.fail] = False
    a.obs[Key.split] = "train"
    a.obsm[Key.match] = published["deltaX.control_index"][:, None]
    a.uns[Key.nodes] = dict(names=a.var_names.to_numpy(str), perturbed=np.arange(8) < 1)
    np.testing.assert_allclose(
        log_normalised(s, np.arange(10)), published["deltaX.lognorm"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        Cells(s, "train", cell_shift=True)[np.arange(10)].shift,
        published["deltaX.value"],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["even", "odd"])
def test_partner_is_the_published_lower_median(published, kind):
    rows = published[f"cfX.rows_{kind}"]

    class Drawn:
        integers = staticmethod(lambda *_: rows[None])

    assert np.array_equal(
        median_profiles(published["deltaX.counts"], 1, Drawn, len(rows)).toarray()[0],
        published[f"cfX.median_{kind}"],
    )


def test_mean_counts_are_the_published_ones(published):
    names, group = np.unique(published["dataate.label"], return_inverse=True)
    mean = pd.DataFrame(
        mean_shares(published["dataate.X"], np.ones(len(group)), group, len(names)), index=names
    )
    np.testing.assert_allclose(
        (mean - mean.loc["non-targeting"]).loc[published["dataate.mean.rows"]],
        published["dataate.mean"],
        rtol=1e-5,
        atol=1e-6,
    )


@needs(DATA / "schraivogel2020_tapseq")
def test_tap_seq_enhancer_makes_the_globins_nodes(monkeypatch):
    from gpovae.data import datasets

    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    a = datasets.schraivogel2020()
    with pytest.warns(UserWarning, match="HS2"):
        s = prepare(
            a, doublets=False, progress=False, **datasets.prepare_arguments("schraivogel2020")
        )
    rows = s.rows("train", fail=False)
    labels, shift, _, _ = fold_changes(s, rows)
    hit = rank_sum_test(s, rows)[labels.index("HS2")] < 0.05 / 72
    assert (
        set(s.genes[hit]) == {"HBE1", "HBD", "HBB"} <= set(s.nodes.index)
        and (shift[labels.index("HS2"), hit] < -0.5).all()
    )
    assert s.fail.mean() < 0.1


def test_a_doublet_threshold_that_calls_most_cells_is_refused(monkeypatch):
    "Scrublet's automatic threshold can fall below all scores, so that no control would be left."
    scrublet = doublets.sc.pp.scrublet

    def with_low_threshold(*args, **options):
        scrublet(*args, **options | dict(threshold=0.0))

    monkeypatch.setattr(doublets.sc.pp, "scrublet", with_low_threshold)
    adata = simulated(n_cells=1000, n_genes=100, seed=4)
    register(adata, "gene", "non-targeting")
    with pytest.warns(UserWarning, match="calls .* of the cells doublets"):
        found = quality_labels(adata, seed=4)
    assert found["doublets"] == 0 and found["fail"] < 0.3 * adata.n_obs


def test_strong_perturbations_from_memory_and_from_disk(tmp_path):
    """Weak ones leave with their cells, what remains fits together, and a table that cannot be read
    stops it before any work.
    """
    a = simulated(n_cells=4000, n_genes=120, n_perturbations=6, seed=0)
    genes = [g for g in a.obs["gene"].cat.categories if g != "non-targeting"]
    pd.DataFrame(
        dict(perturbation=genes, degs=[10] + [80] * 5, knockdown=[0.7] * 5 + [0.1], cells=300)
    ).to_csv(tmp_path / "summary.csv", index=False)
    a.write_h5ad(tmp_path / "raw.h5ad")
    assert prepare_file(
        tmp_path / "raw.h5ad",
        tmp_path / "strong.h5ad",
        strong=tmp_path / "summary.csv",
        doublets=False,
        progress=False,
    )
    run(a, strong=str(tmp_path / "summary.csv"))
    b = open_screen(tmp_path / "strong.h5ad")
    for x in (a, b):
        assert (
            Screen(x).perturbations == genes[1:5] and x.n_obs == a.n_obs < 4000 and stale(x) == []
        )
        assert (
            x.uns[Key.prepare]["strong"]["result"]["cells_in"] == 4000
            and x.uns[Key.prepare]["register"]["result"]["cells"] == x.n_obs
        )
    assert (b.X[:] != a.X).nnz == 0 and list(a.obs[Key.fail]) == list(b.obs[Key.fail])
    again = a.copy()
    run(again, strong=str(tmp_path / "summary.csv"))  # a second call leaves no further cells out
    for x in (a, again):
        del x.uns[Key.prepare]["source"]
    assert_same(a, again)
    with pytest.raises(GpovaeError, match="nowhere.csv"):
        prepare_file(
            tmp_path / "raw.h5ad", tmp_path / "none.h5ad", strong="nowhere.csv", progress=False
        )
    with pytest.raises(GpovaeError, match="mean nothing"):
        prepare_file("mcfaline2023", tmp_path / "none.h5ad", layer="counts", progress=False)
    with pytest.raises(GpovaeError, match="batch_key 'lane'"):
        prepare_file(
            tmp_path / "raw.h5ad", tmp_path / "none.h5ad", batch_key="lane", progress=False
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw.h5ad", "strong.h5ad", "summary.csv"]


def test_genes_of_a_large_stratum_are_tested_slab_by_slab(monkeypatch):
    "The same p-values whether the genes fit into memory together or a few at a time."
    a = screen()
    s = register(a, "gene", "non-targeting")
    rows = np.arange(a.n_obs)
    whole = rank_sum_test(s, rows)
    monkeypatch.setattr("gpovae.data.rank_sum.BLOCK", 2000)
    monkeypatch.setattr("gpovae.data.blocks.BLOCK", 5000)
    np.testing.assert_allclose(rank_sum_test(s, rows), whole, rtol=1e-12)


def test_cells_excluded_by_causalbench_are_not_a_perturbation():
    a = screen()
    a.obs["gene"] = np.where(np.arange(a.n_obs) < 7, "excluded", a.obs["gene"].astype(str))
    assert "excluded" not in register(a, "gene", "non-targeting").perturbations and a.n_obs == 593


@pytest.mark.parametrize(
    "rename, control, says",
    [
        (
            lambda g: f"{g}_sg1",
            "non-targeting",
            (
                r"3 label\(s\) are not the name of a measured gene, and are read as what they seem"
                r" to name: (\w+)_sg1 as \1,.*guide_key='gene'"
            ),
        ),
        (
            lambda g: "TAL1_MYC" if g == "TAL1" else g,
            "non-targeting",
            (
                r"1 label\(s\) are not the name of a measured gene, and are read as what they seem"
                r" to name: TAL1_MYC as MYC\+TAL1"
            ),
        ),
        (
            lambda g: "NegCtrl1" if g == "TAL1" else g,
            "NegCtrl0",
            (
                r"NegCtrl1 look\(s\) like a control beside 'NegCtrl0', and is taken for a"
                r" perturbation. control='NegCtrl' takes all"
            ),
        ),
    ],
)
def test_labels_that_are_not_what_they_seem(rename, control, says):
    a = simulated(n_cells=400, n_genes=40, n_perturbations=3, seed=0)
    own = sorted(set(a.obs.gene.astype(str)) - {"non-targeting"})
    names = dict(zip(own, ("TAL1", "MYC", "GATA1"), strict=True))
    a.var_names = [names.get(g, f"X{i}") for i, g in enumerate(a.var_names)]
    a.obs["gene"] = [
        control if g == "non-targeting" else rename(names[g]) for g in a.obs.gene.astype(str)
    ]
    with pytest.warns(UserWarning, match=says):
        register(a, "gene", control)
