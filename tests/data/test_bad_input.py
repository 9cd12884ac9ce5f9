"""Broken and odd input of more than two hundred kinds, named below.

Each either works, or ends in a `GpovaeError` that names the culprit; on the command line in one
message and an exit status, never in a traceback.

A kind is a line of one of the catalogues: what is done, and what the message must name (a regular
expression; WORKS where nothing is wrong). hypothesis draws where it is done, and combines kinds.
"""

import gzip
import json
import re
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.data.prepare import prepare_file
from gpovae.data.screen import Key
from gpovae.evaluate.curated import read_network
from gpovae.train.run import checksum

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("bad")]


def draws(n):
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


WORKS = None
SMALL = dict(latent=2, basal=(4, 1), embedding=(4, 1), decoder=(4, 1))
CELLS, GENES = 90, 12


def base(seed=0):
    "Three perturbed genes among twelve, two batches, 90 cells."
    rng = np.random.default_rng(seed)
    label = np.repeat(["non-targeting", "g0", "g1", "g2"], [45, 15, 15, 15])
    X = rng.poisson(5, (CELLS, GENES))
    for k in range(3):
        X[label == f"g{k}", k] = rng.poisson(1, 15)
    return ad.AnnData(
        sp.csr_matrix(X.astype(np.float32)),
        obs=pd.DataFrame(
            dict(gene=label, lane=np.tile(["a", "b"], CELLS // 2)),
            index=[f"c{i}" for i in range(CELLS)],
        ),
        var=pd.DataFrame(index=[f"g{j}" for j in range(GENES)]),
    )


def refusal(f, *args, **kwargs):
    "What a call is told: None where it works; any other error than `GpovaeError` goes through."
    try:
        f(*args, **kwargs)
    except GpovaeError as e:
        return str(e)


def judge(said, culprit):
    if culprit is WORKS:
        assert said is None, said
    else:
        assert said is not None, "accepted"
        assert re.search(culprit, said), said
        assert len(said) > 20 and (said.rstrip()[-1] in ".?!)" or "Train one" in said), said


def prepare(a, **changes):
    gpovae.prepare(a, **dict(doublets=False, progress=False) | changes)


def use(a):
    "Prepare, train for one epoch, predict, read the network."
    prepare(a)
    model = GPOVAE(a, **SMALL)
    model.train(max_epochs=1, progress=False)
    assert np.isfinite(model.predict().X).all() and np.isfinite(
        model.network(min_probability=0)[["weight", "probability"]]
    ).all(None)


# Screens: f(a, i, j) changes cell i and gene j of the screen, or gives another one
def value(v, dtype=None):
    def f(a, i, j):
        X = a.X.toarray().astype(dtype or np.float32)
        X[i, j] = v
        a.X = sp.csr_matrix(X)

    return f


def matrix(g):
    def f(a, i, j):
        a.X = g(a.X)

    return f


def dense(g):
    def f(a, i, j):
        X = a.X.toarray()
        Y = g(X, i, j)
        a.X = X if Y is None else Y

    return f


def label(g):
    def f(a, i, j):
        a.obs["gene"] = g(a.obs["gene"].astype(object).copy(), i)

    return f


def put(v):
    return label(lambda s, i: s.where(np.arange(len(s)) != i, v))


def rename(old, new):
    return label(lambda s, i: s.replace({old: new}))


def obs_names(g):
    def f(a, i, j):
        n = list(a.obs_names)
        g(n, i)
        a.obs_names = n

    return f


def var_names(g):
    def f(a, i, j):
        n = list(a.var_names)
        g(n, j)
        a.var_names = n

    return f


def item(k, v):
    return lambda n, at: n.__setitem__(at if k is None else k, v(n, at) if callable(v) else v)


def slot(where, key, v):
    def f(a, i, j):
        getattr(a, where)[key] = v(a, i) if callable(v) else v

    return f


def unsorted(a, i, j):
    X = a.X.tocsr().copy()
    X.indices = X.indices.copy()
    for r in range(X.shape[0]):
        s = slice(X.indptr[r], X.indptr[r + 1])
        X.indices[s] = X.indices[s][::-1].copy()
        X.data[s] = X.data[s][::-1].copy()
    X.has_sorted_indices = False
    a.X = X


def zeros(X, i, j):
    X[i] = 0


def column(g):
    def f(a, i, j):
        g(a.obs)

    return f


SCREENS = {
    # counts
    "NaN": (value(np.nan), "cell 'c\\d+', gene 'g\\d+' is not a number"),
    "infinite": (value(np.inf), "gene 'g\\d+' is not a number"),
    "minus infinite": (value(-np.inf), "is not a number"),
    "negative": (value(-3), "cell 'c\\d+', gene 'g\\d+' is negative"),
    "fraction": (value(0.5), "is not a whole number"),
    "tiny fraction": (value(1e-30), "is not a whole number"),
    "huge": (value(1e9), "larger than any UMI count"),
    "large": (value(1e6), WORKS),
    "all NaN": (dense(lambda X, i, j: X * np.nan), "is not a number"),
    "log": (matrix(lambda X: X.log1p()), "not a whole number.*layer="),
    "normalised": (dense(lambda X, i, j: X / X.sum(1, keepdims=True)), "not a whole number"),
    "centred": (dense(lambda X, i, j: np.rint(X - X.mean(0))), "negative"),
    "empty cell": (dense(zeros), WORKS),
    "all zero": (dense(lambda X, i, j: X * 0), "no counts at all"),
    "empty gene": (dense(lambda X, i, j: X.__setitem__((slice(None), j), 0)), WORKS),
    "constant": (dense(lambda X, i, j: X * 0 + 3), WORKS),
    "ones": (dense(lambda X, i, j: X * 0 + 1), WORKS),
    "one gene has all counts": (
        dense(lambda X, i, j: np.where(np.arange(GENES) == j, X + 1e5, 0)),
        WORKS,
    ),
    "binary": (dense(lambda X, i, j: np.minimum(X, 1) + (np.arange(GENES) == 0)), WORKS),
    "negative zero": (dense(lambda X, i, j: np.where(X == 0, -0.0, X)), WORKS),
    # types and formats
    "int64": (matrix(lambda X: X.astype(np.int64)), WORKS),
    "uint8": (matrix(lambda X: X.astype(np.uint8)), WORKS),
    "int16 dense": (dense(lambda X, i, j: X.astype(np.int16)), WORKS),
    "float64": (matrix(lambda X: X.astype(np.float64)), WORKS),
    "float16": (dense(lambda X, i, j: X.astype(np.float16)), WORKS),
    "big endian": (dense(lambda X, i, j: X.astype(">f4")), WORKS),
    "bool": (matrix(lambda X: (X > 3).astype(bool)), WORKS),
    "object": (dense(lambda X, i, j: X.astype(object)), "counts|X"),
    "text": (dense(lambda X, i, j: X.astype(str)), "counts|X"),
    "complex": (dense(lambda X, i, j: X.astype(complex)), "counts|X"),
    "dense": (dense(lambda X, i, j: X), WORKS),
    "Fortran order": (dense(lambda X, i, j: np.asfortranarray(X)), WORKS),
    "CSC": (matrix(sp.csc_matrix), WORKS),
    "sparse array": (matrix(sp.csr_array), WORKS),
    "CSC array": (matrix(sp.csc_array), WORKS),
    "unsorted indices": (unsorted, WORKS),
    "stored zeros": (
        matrix(
            lambda X: sp.csr_matrix(
                (
                    np.r_[X.data, np.zeros(1, np.float32)],
                    np.r_[X.indices, 0],
                    np.r_[X.indptr[:-1], X.indptr[-1] + 1],
                ),
                shape=X.shape,
            )
        ),
        WORKS,
    ),
    "masked": (dense(lambda X, i, j: np.ma.masked_array(X, mask=X > 8)), WORKS),
    "no X": (lambda a, i, j: ad.AnnData(obs=a.obs, var=a.var), "X is empty.*layer="),
    # size
    "no cells": (lambda a, i, j: a[:0].copy(), "cell"),
    "no genes": (lambda a, i, j: a[:, :0].copy(), "no counts at all"),
    "one cell": (lambda a, i, j: a[[i]].copy(), "control|cell"),
    "two cells": (lambda a, i, j: a[[0, 60]].copy(), "control|cell"),
    "one gene": (lambda a, i, j: a[:, [5]].copy(), WORKS),
    "two genes": (lambda a, i, j: a[:, :2].copy(), WORKS),
    "only targets measured": (lambda a, i, j: a[:, :3].copy(), WORKS),
    "no target measured": (lambda a, i, j: a[:, 3:].copy(), WORKS),
    "one perturbation": (lambda a, i, j: a[a.obs.gene.isin(["g0", "non-targeting"])].copy(), WORKS),
    "all control": (label(lambda s, i: s.map(lambda v: "control")), "control cells only"),
    "no control": (
        lambda a, i, j: a[a.obs.gene != "non-targeting"].copy(),
        "No control cells.*control=",
    ),
    "one control": (lambda a, i, j: a[44:].copy(), "[Cc]ontrol"),
    "two controls": (lambda a, i, j: a[43:].copy(), "control"),
    "three controls": (lambda a, i, j: a[42:].copy(), "validation split has no control cell"),
    "five controls": (lambda a, i, j: a[40:].copy(), None),
    "two cells each": (lambda a, i, j: a[np.r_[:45, 45:47, 60:62, 75:77]].copy(), "min_cells=5"),
    "three cells each": (lambda a, i, j: a[np.r_[:45, 45:48, 60:63, 75:78]].copy(), None),
    "view": (lambda a, i, j: a[::-1], WORKS),
    "every cell twice": (lambda a, i, j: ad.concat([a, a]), "'c0'.*obs_names_make_unique"),
    # labels
    "perturbation with one cell": (put("LONELY"), "'LONELY'.*min_cells"),
    "label missing": (put(None), "missing for 1 cell.*drop_unlabelled"),
    "label NaN": (put(np.nan), "missing for 1"),
    "label empty": (put(""), "missing for 1"),
    "label blank": (put("  "), "missing for 1"),
    "label of a number": (put(7), "'7'"),
    "label plus": (put("+"), None),
    "label of many pluses": (put("g0++g1"), "g0\\+g1"),
    "label excluded": (put("excluded"), WORKS),
    "all labels missing": (label(lambda s, i: s.map(lambda v: np.nan)), "missing for 90"),
    "all labels differ": (
        label(lambda s, i: pd.Series([f"p{k}" for k in range(len(s))], s.index)),
        "control",
    ),
    "all one perturbation": (label(lambda s, i: s.map(lambda v: "g1")), "No control"),
    "labels of numbers": (
        label(lambda s, i: pd.Series(np.arange(len(s)) % 4, s.index)),
        "No control",
    ),
    "labels true and false": (label(lambda s, i: s == "g0"), "No control"),
    "labels with blanks around": (label(lambda s, i: " " + s + "\t"), WORKS),
    "label unicode": (rename("g2", "βカテニン🧬"), WORKS),
    "label very long": (rename("g2", "x" * 5000), WORKS),
    "label with newline": (rename("g2", "a\nb"), WORKS),
    "label with slash": (rename("g2", "a/b"), WORKS),
    "label with quotes": (rename("g2", "\"'<b>"), WORKS),
    "label with null": (rename("g2", "a\0b"), None),
    "label not measured": (rename("g2", "XYZ"), WORKS),
    "label of another case": (rename("g2", "G2"), WORKS),
    "pairs": (rename("g2", "g0+g1"), WORKS),
    "pair of itself": (rename("g2", "g0+g0"), WORKS),
    "pair with control": (rename("g2", "g2+ctrl"), WORKS),
    "control of many spellings": (
        label(
            lambda s, i: s.where(
                s != "non-targeting", pd.Series(["NT", "ctrl", "control-1"] * 30, s.index)
            )
        ),
        WORKS,
    ),
    "categories unused": (label(lambda s, i: pd.Categorical(s, [*sorted(set(s)), "never"])), WORKS),
    "categories ordered": (
        label(lambda s, i: pd.Categorical(s, sorted(set(s)), ordered=True)),
        WORKS,
    ),
    "labels of categories of numbers": (
        label(lambda s, i: pd.Categorical(np.arange(len(s)) % 3)),
        "No control",
    ),
    "label is a tuple": (label(lambda s, i: s.map(lambda v: (v, 1))), "No control"),
    "labels of bytes": (label(lambda s, i: s.map(lambda v: v.encode())), WORKS),
    "labels as strings of pandas": (label(lambda s, i: s.astype("string")), WORKS),
    "dates as labels": (
        label(lambda s, i: pd.Series(pd.Timestamp("2020-01-01"), s.index)),
        "No control",
    ),
    # names
    "gene twice": (var_names(item(0, lambda n, j: n[1])), "gene name.*var_names_make_unique"),
    "cell twice": (obs_names(item(0, lambda n, i: n[1])), "cell name.*obs_names_make_unique"),
    "gene empty": (var_names(item(None, "")), WORKS),
    "gene unicode": (var_names(item(None, "β-🧬")), WORKS),
    "gene very long": (var_names(item(None, "y" * 5000)), WORKS),
    "gene blank": (var_names(item(None, "   ")), WORKS),
    "gene NaN": (var_names(item(None, "nan")), WORKS),
    "gene called control": (var_names(item(None, "control")), WORKS),
    "gene with plus": (var_names(item(None, "a+b")), WORKS),
    "gene with slash": (var_names(item(None, "a/b")), WORKS),
    "genes are numbers": (
        var_names(lambda n, j: n.__setitem__(slice(None), [str(k) for k in range(len(n))])),
        WORKS,
    ),
    "cell empty": (obs_names(item(None, "")), WORKS),
    "cell unicode": (obs_names(item(None, "ζ🧫")), WORKS),
    "cell with tab": (obs_names(item(None, "a\tb")), WORKS),
    "cells are numbers": (
        obs_names(lambda n, i: n.__setitem__(slice(None), [str(k) for k in range(len(n))])),
        WORKS,
    ),
    "Ensembl ids": (
        var_names(
            lambda n, j: n.__setitem__(slice(None), [f"ENSG{k:011d}" for k in range(len(n))])
        ),
        WORKS,
    ),
    "names of the index": (
        lambda a, i, j: (
            (
                a.obs.index.set_names("gene", inplace=True),
                a.var.index.set_names("index", inplace=True),
            )[:0]
            or None
        ),
        WORKS,
    ),
    # columns
    "no columns": (lambda a, i, j: ad.AnnData(a.X, obs=a.obs[[]], var=a.var), "perturbation_key"),
    "column of another name": (
        column(lambda o: o.insert(0, "treatment", o.pop("gene"))),
        "treatment.*perturbation_key",
    ),
    "two candidate columns": (column(lambda o: o.insert(0, "condition", o["gene"])), WORKS),
    "candidate column of numbers": (
        column(lambda o: o.insert(0, "perturbation", np.arange(len(o)) % 2)),
        "obs\\['perturbation'\\]",
    ),
    "nperts broken": (column(lambda o: o.insert(0, "nperts", "many")), WORKS),
    "nperts missing": (column(lambda o: o.insert(0, "nperts", np.nan)), WORKS),
    "our columns exist": (
        column(lambda o: [o.insert(0, k, "x") for k in (Key.perturbation, Key.fail, Key.split)]),
        WORKS,
    ),
    "column of lists": (column(lambda o: o.insert(0, "notes", [[1]] * len(o))), WORKS),
    # other slots
    "our record is empty": (slot("uns", Key.prepare, {}), WORKS),
    "our uns is empty": (slot("uns", Key.screen, {}), WORKS),
    "uns of arrays": (slot("uns", "anything", np.zeros(3)), WORKS),
    "counts layer is log": (
        slot("layers", "counts", lambda a, i: a.X.log1p()),
        "not a whole number",
    ),
    "counts layer": (slot("layers", "counts", lambda a, i: a.X.copy()), WORKS),
    "obsm of NaN": (slot("obsm", "X_pca", np.full((CELLS, 2), np.nan)), WORKS),
    "our obsm exists": (slot("obsm", Key.match, np.zeros((CELLS, 3))), WORKS),
    "raw": (lambda a, i, j: setattr(a, "raw", a.copy()), WORKS),
}


# What reaches training in an odd shape
TRAINED = [
    "large",
    "constant",
    "one gene has all counts",
    "empty gene",
    "one gene",
    "only targets measured",
    "no target measured",
    "one perturbation",
    "five controls",
    "three cells each",
    "label very long",
    "pair of itself",
    "gene called control",
    "CSC array",
    "int64",
]


def changed(kind, a, i, j):
    other = SCREENS[kind][0](a, i, j)
    return other if isinstance(other, ad.AnnData) else a


@pytest.mark.parametrize("kind", SCREENS)
@draws(1)
@given(i=st.integers(0, CELLS - 1), j=st.integers(3, GENES - 1))
def test_screens(kind, i, j):
    judge(
        refusal(use if kind in TRAINED else prepare, changed(kind, base(), i, j)), SCREENS[kind][1]
    )


@draws(60)
@given(
    kinds=st.lists(st.sampled_from(sorted(SCREENS)), min_size=2, max_size=4, unique=True),
    i=st.integers(0, CELLS - 1),
    j=st.integers(0, GENES - 1),
    seed=st.integers(0, 3),
)
def test_several_things_at_once(kinds, i, j, seed):
    a = base(seed)
    try:
        for kind in kinds:
            a = changed(kind, a, i % max(a.n_obs, 1), j % max(a.n_vars, 1))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        assume(False)  # kinds that cannot be put together
    said = refusal(prepare, a)
    assert said is None or len(said) > 20


# Settings of prepare
PREPARE = {
    **{
        f"{k}={v!r}": ({k: v}, k)
        for k, values in dict(
            perturbation_key=("nothing", 3, ["gene"], ""),
            layer=("nothing", 3),
            batch_key=("nothing", 3),
            guide_key=("nothing",),
            gene_key=("nothing",),
            min_cells=("3", 2.5, -1, True, float("nan")),
            n_mads=(0, -1, "3", float("nan"), None),
            alpha=(0, 2, "a", float("nan")),
            min_lfc=(-1, "a", float("nan")),
            max_extended=(-1, 2.5, "many"),
            n_matches=(0, -1, 2.5, "a", None),
            seed=(-1, 1.5, "a", None, 2**70, True),
            fractions=(
                (0.5, 0.5),
                (1, 1, 1),
                "abc",
                (-0.1, 0.6, 0.5),
                None,
                (0, 0.5, 0.5),
                (float("nan"), 0.5, 0.5),
            ),
            doublets=("yes", None),
            drop_unmeasured=("no",),
            drop_unlabelled=(1.5,),
            strong=("nowhere.csv", 7),
        ).items()
        for v in values
    },
    "control='nothing'": (dict(control="nothing"), "are called 'nothing'"),
    "control=7": (dict(control=7), "control"),
    "control=''": (dict(control=""), "control"),
    "control is a perturbation": (dict(control="g0"), WORKS),
    "size_factor_exclude unknown": (dict(size_factor_exclude=["XYZ"]), "'XYZ'"),
    "size_factor_exclude a text": (dict(size_factor_exclude="g5"), "size_factor_exclude"),
    "size_factor_exclude all": (
        dict(size_factor_exclude=[f"g{k}" for k in range(GENES)]),
        "size_factor_exclude",
    ),
    "held_out unknown": (dict(held_out=["XYZ"]), "'XYZ'"),
    "held_out all": (dict(held_out=["g0", "g1", "g2"]), "leaves none"),
    "held_out=2.0": (dict(held_out=2.0), "between 0 and 1"),
    "held_out=5": (dict(held_out=5), "hold out.*not 5"),
    "held_out a name": (dict(held_out="g0"), WORKS),
    "held_out control": (dict(held_out=["non-targeting"]), "cannot be held out"),
    "min_cells above all": (dict(min_cells=1000), "min_cells=1000"),
    "min_cells of numpy": (dict(min_cells=np.int64(3)), WORKS),
    "more matches than controls": (dict(n_matches=500), WORKS),
    "batch is the perturbation": (dict(batch_key="gene"), None),
    "seed of numpy": (dict(seed=np.uint32(3)), WORKS),
    "n_mads tiny": (dict(n_mads=1e-9), None),
    "n_mads large": (dict(n_mads=1e9), WORKS),
    "no test cells": (dict(fractions=(0.8, 0.2, 0)), None),
    "no validation cells": (dict(fractions=(0.8, 0, 0.2)), None),
}


@pytest.mark.parametrize("kind", PREPARE)
def test_settings_of_prepare(kind):
    a = base()
    said = refusal(prepare, a, **PREPARE[kind][0])
    if PREPARE[kind][1] is not None or said:
        judge(said, PREPARE[kind][1] or ".")
    assert said is None or not [
        k for k in [*a.obs, *a.uns, *a.obsm] if str(k).startswith("gpovae_")
    ]


@pytest.mark.parametrize(
    "thing", [None, "raw.h5ad", 7, pd.DataFrame(), np.zeros((3, 3)), [], dict()], ids=repr
)
def test_what_is_no_screen(thing):
    for f in (gpovae.prepare, GPOVAE, GPOVAE.setup_anndata):
        judge(refusal(f, thing), "AnnData")


# Settings of the model and of training
nan = float("nan")
MODEL = {
    f"{k}={v!r}": ({k: v}, k)
    for k, values in dict(
        preset=("improved", None, 3),
        latent=(0, -1, 2.5, "50", None, True),
        basal=(5, (5,), (0, 1), (4, 1, 1), "4x1", (4.5, 1), None),
        decoder=((4, 0),),
        max_path_length=(0, -1, 1.5, "5"),
        particles=(0, "1"),
        batch_size=(0, -5, 2.5),
        learning_rate=(nan, -1, "fast", float("inf"), None),
        weight_decay=(-1, nan),
        clip_norm=(-1, "a"),
        max_epochs=(0, 1.5),
        patience=(-1, 0.5),
        beta=(-1, nan, "a"),
        alignment_weight=(-1,),
        sparsity=(nan,),
        edge_prior=(0, 1, 2, -1, nan),
        decoder_prior=(0, -1, "a"),
        scale_floor=(-1, nan),
        eps=(nan,),
        kl=("open", 3, None),
        partner=("mode",),
        residual_correction=("yes", 1),
        covariate=(None,),
        target_dispersion=("no",),
        latent_effect=(True,),
        nothing=(1,),
    ).items()
    for v in values
}
MODEL |= {
    "network over logits": (dict(accumulation="logits"), "latent_effect"),
    "list for a tuple": (dict(basal=[4, 1]), WORKS),
    "numpy numbers": (
        dict(latent=np.int64(2), beta=np.float32(0.1), learning_rate=np.float64(1e-3)),
        WORKS,
    ),
    "whole number for a fraction": (dict(beta=1), WORKS),
    "learning_rate=0": (dict(learning_rate=0), WORKS),
}
TRAIN = {
    f"{k}={v!r}": ({k: v}, k)
    for k, values in dict(
        max_epochs=(0, -1, 1.5, "3", True),
        seed=(-1, "a", 1.5, None, 2**70),
        accelerator=("abacus", 3),
        precision=("16", None, 32),
        compile=("maybe",),
        devices=(0, -1, "two", 1.5),
        strategy=("fsdp", 3),
        max_time=(0, -1, "soon", nan, []),
        prior_strength=(-1, nan, "a"),
        progress=("yes",),
    ).items()
    for v in values
}


@pytest.fixture(scope="module")
def prepared():
    a = base()
    prepare(a, batch_key="lane")
    return a


@pytest.mark.parametrize("kind", MODEL)
def test_settings_of_the_model(prepared, kind):
    judge(refusal(lambda: GPOVAE(prepared, **MODEL[kind][0])), MODEL[kind][1])


@pytest.mark.parametrize("kind", TRAIN)
def test_settings_of_training(prepared, kind):
    judge(
        refusal(
            lambda: GPOVAE(prepared, **SMALL).train(
                **dict(max_epochs=1, progress=False) | TRAIN[kind][0]
            )
        ),
        TRAIN[kind][1],
    )


@draws(40)
@given(
    settings=st.dictionaries(
        st.sampled_from(sorted(gpovae.model.presets.Settings.__dataclass_fields__)),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-3, 3),
            st.floats(),
            st.text(max_size=5),
            st.tuples(st.integers(-1, 3), st.integers(-1, 3)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_settings(prepared, settings):
    refusal(lambda: GPOVAE(prepared, **settings))


@pytest.fixture(scope="module")
def model(prepared):
    m = GPOVAE(prepared, **SMALL)
    m.train(max_epochs=1, progress=False)
    return m


# Questions to a trained model: f(m)
ASKED = {
    "predict unknown": (lambda m: m.predict("XYZ"), "'XYZ'"),
    "predict a near miss": (lambda m: m.predict("G0 "), "'G0'.*[Dd]id you mean"),
    "predict control": (lambda m: m.predict("ctrl"), "'ctrl' is the control"),
    "predict nothing": (lambda m: m.predict([]), "empty"),
    "predict empty text": (lambda m: m.predict(""), "''"),
    "predict a number": (lambda m: m.predict(3), "3"),
    "predict numbers": (lambda m: m.predict([0, 1]), "0"),
    "predict None in a list": (lambda m: m.predict([None]), "None"),
    "predict responder": (lambda m: m.predict("g7"), "'g7'.*unseen='network'"),
    "predict pair": (lambda m: m.predict("g1+g0"), WORKS),
    "predict twice": (lambda m: m.predict(["g0", "g0"]), WORKS),
    "predict an array": (lambda m: m.predict(np.array(["g0", "g1"])), WORKS),
    "predict a column": (lambda m: m.predict(pd.Series(["g0"], [5])), WORKS),
    "predict very long": (lambda m: m.predict("x" * 9999), "never perturbed"),
    "unseen=yes": (lambda m: m.predict("g7", unseen="yes"), "unseen='yes'"),
    "prior and refuse": (lambda m: m.predict("g7", prior=pd.DataFrame()), "unseen='network'"),
    "prior without columns": (
        lambda m: m.predict("g7", unseen="network", prior=pd.DataFrame(dict(a=[1]))),
        "source",
    ),
    "prior is a text": (lambda m: m.predict("g7", unseen="network", prior="edges"), "prior|edges"),
    "prior sign 3": (
        lambda m: m.predict(
            "g7", unseen="network", prior=pd.DataFrame(dict(source=["g0"], target=["g7"], sign=[3]))
        ),
        WORKS,
    ),
    "prior of NaN": (
        lambda m: m.predict(
            "g7",
            unseen="network",
            prior=pd.DataFrame(dict(source=["g0"], target=["g7"], sign=[nan])),
        ),
        WORKS,
    ),
    "prior empty": (
        lambda m: m.predict(
            "g7", unseen="network", prior=pd.DataFrame(dict(source=[], target=[], sign=[]))
        ),
        WORKS,
    ),
    "sample 0": (lambda m: m.sample("g0", n_cells=0), "n_cells is 0"),
    "sample 2.5": (lambda m: m.sample("g0", n_cells=2.5), "n_cells"),
    "sample seed": (lambda m: m.sample("g0", n_cells=2, seed=-1), "seed=-1"),
    "sample text": (lambda m: m.sample("g0", n_cells="many"), "n_cells"),
    "network 2": (lambda m: m.network(2), "min_probability"),
    "network -1": (lambda m: m.network(-1), "min_probability"),
    "network NaN": (lambda m: m.network(nan), "min_probability"),
    "network text": (lambda m: m.network("a"), "min_probability"),
    "network refits -1": (lambda m: m.network(refits=-1), "refits"),
    "network refits text": (lambda m: m.network(refits="ten"), "refits"),
    "network of some": (lambda m: m.network(regulators="some"), "regulators='some'"),
    "network evidence text": (lambda m: m.network(evidence="yes"), "evidence"),
    "explain unknown": (lambda m: m.explain("XYZ"), "XYZ"),
    "explain unknown target": (lambda m: m.explain("g0", "XYZ"), "XYZ"),
    "explain itself": (lambda m: m.explain("g0", "g0"), None),
    "explain no path": (lambda m: m.explain("g0", "g1", 0), WORKS),
    "explain paths text": (lambda m: m.explain("g0", "g1", "all"), "n_paths"),
    "explain control": (lambda m: m.explain("control"), "control"),
    "explain a number": (lambda m: m.explain(3), "3"),
    "cut unknown": (lambda m: m.cut([("g0", "XYZ")]), "XYZ"),
    "cut a text": (lambda m: m.cut("g0>g1"), "list of pairs"),
    "cut triples": (lambda m: m.cut([("g0", "g1", 1)]), "list of pairs"),
    "cut nothing": (lambda m: m.cut([]), None),
    "export suffix": (lambda m: m.export_network("net.xyz"), "net.xyz"),
    "export format": (lambda m: m.export_network("net.tsv", format="word"), "word"),
    "export into nowhere": (lambda m: m.export_network("/proc/nowhere/net.tsv"), "/proc"),
    "export onto a folder": (lambda m: m.export_network("."), None),
    "graph 2": (lambda m: m.graph(2), "min_probability"),
    "iwelbo split": (lambda m: m.iwelbo("half"), "half split has no cells"),
    "iwelbo particles": (lambda m: m.iwelbo(particles=0), "particles"),
    "iwelbo most": (lambda m: m.iwelbo(most=0), "most"),
    "iwelbo seed": (lambda m: m.iwelbo(seed="a"), "seed"),
    "evaluate others": (lambda m: m.evaluate(others=[m], thorough=False), "others"),
    "evaluate other screen": (
        lambda m: m.evaluate(others=dict(other=pd.DataFrame()), thorough=False),
        "lacks 3 perturbation",
    ),
    "evaluate known text": (lambda m: m.evaluate(known="list.csv", thorough=False), "known"),
    "evaluate seed": (lambda m: m.evaluate(thorough=False, seed=-1), "seed=-1"),
    "save onto a file": (lambda m: m.save(__file__), "test_bad_input"),
    "save nowhere": (lambda m: m.save("/proc/nowhere/run"), "/proc"),
    "load a file": (lambda m: GPOVAE.load(__file__), "test_bad_input"),
    "load nothing": (lambda m: GPOVAE.load("/nowhere"), "/nowhere is not a gpovae run.*Train one"),
    "load a number": (lambda m: GPOVAE.load(3), "3|path"),
    "not trained": (lambda m: GPOVAE(m.adata).predict(), "not trained"),
    "prior file missing": (
        lambda m: GPOVAE(m.adata, **SMALL).train(max_epochs=1, progress=False, prior="nowhere.csv"),
        "nowhere.csv",
    ),
    "prior of another species": (
        lambda m: GPOVAE(m.adata, **SMALL).train(
            max_epochs=1,
            progress=False,
            prior=pd.DataFrame(dict(source=["Gata1"], target=["Klf1"], sign=[1])),
        ),
        "No source of the table of edges is a gene",
    ),
}


@pytest.mark.parametrize("kind", ASKED)
def test_questions(model, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(ASKED[kind][0], model)
    if ASKED[kind][1] is not None or said:
        judge(said, ASKED[kind][1] or ".")


# Prepared screens that somebody changed: f(a)
def drop(where, key):
    return lambda a: getattr(a, where).__delitem__(key)


def gone(key, name):
    return lambda a: a.uns[key].pop(name)


def row(key, value):
    return lambda a: a.obs.__setitem__(key, value(a) if callable(value) else value)


ALTERED = {
    **{
        f"without {w} {k}": (drop(w, k), k)
        for w, k in [
            ("uns", Key.screen),
            ("uns", Key.nodes),
            ("uns", Key.responses),
            ("obs", Key.perturbation),
            ("obs", Key.library_size),
            ("obs", Key.fail),
            ("obs", Key.split),
        ]
    },
    "without uns gpovae_screen": (drop("uns", Key.screen), "not prepared"),
    "without uns gpovae_responses": (drop("uns", Key.responses), "table of responses"),
    "without uns gpovae_nodes": (drop("uns", Key.nodes), "[Nn]odes"),
    "without obsm gpovae_match": (drop("obsm", Key.match), WORKS),
    "without obs gpovae_batch": (drop("obs", Key.batch), "gpovae_batch"),
    "without the record": (drop("uns", Key.prepare), WORKS),
    "without perturbations": (drop("uns", Key.perturbations), WORKS),
    "screen is empty": (lambda a: a.uns.__setitem__(Key.screen, {}), "gpovae.prepare"),
    "nodes without names": (gone(Key.nodes, "names"), "[Nn]odes"),
    "shifts without se": (gone(Key.responses, "se"), "table of responses"),
    "shifts of NaN": (
        lambda a: a.uns[Key.responses].update(mean=a.uns[Key.responses]["mean"] * nan),
        WORKS,
    ),
    "shifts of another size": (
        lambda a: a.uns[Key.responses].update(mean=a.uns[Key.responses]["mean"][:, :-1]),
        "table of responses",
    ),
    "nodes of another screen": (
        lambda a: a.uns[Key.nodes].update(
            names=np.array([f"x{k}" for k in range(len(a.uns[Key.nodes]["names"]))])
        ),
        "node|'g0'",
    ),
    "library size 0": (row(Key.library_size, 0), "library"),
    "library size NaN": (row(Key.library_size, nan), "library"),
    "all fail": (row(Key.fail, True), "passes quality"),
    "fail is text": (row(Key.fail, "no"), "'no' instead of True"),
    "no training cells": (row(Key.split, "test"), "train"),
    "no validation cells": (
        row(Key.split, lambda a: a.obs[Key.split].astype(str).replace({"validation": "train"})),
        "validation",
    ),
    "split of other words": (row(Key.split, "learn"), "train"),
    "labels changed": (
        row(Key.perturbation, lambda a: a.obs[Key.perturbation].astype(str).replace({"g0": "g9"})),
        "g9",
    ),
    "all control now": (row(Key.perturbation, "control"), "perturb|train"),
    "fewer cells": (lambda a: a[:60].copy(), WORKS),
    "fewer genes": (lambda a: a[:, :4].copy(), None),
    "other order of cells": (lambda a: a[::-1].copy(), WORKS),
    "counts now log": (lambda a: setattr(a, "X", a.X.log1p()), "no count"),
    "counts now NaN": (lambda a: setattr(a, "X", a.X * nan), "no count"),
    "counts now negative": (lambda a: setattr(a, "X", a.X * -1), "no count"),
}


def altered(kind, prepared):
    a = prepared.copy()
    other = ALTERED[kind][0](a)
    return other if isinstance(other, ad.AnnData) else a


@pytest.mark.parametrize("kind", ALTERED)
def test_changed_after_preparation(prepared, kind):
    said = refusal(
        lambda: GPOVAE(altered(kind, prepared), **SMALL).train(max_epochs=1, progress=False)
    )
    if ALTERED[kind][1] is not None or said:
        judge(said, ALTERED[kind][1] or ".")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepared, model):
    "raw.h5ad, prepared.h5ad, run/, a list of known edges: written once, copied or only read."
    at = tmp_path_factory.mktemp("bad")
    base().write_h5ad(at / "raw.h5ad")
    prepared.write_h5ad(at / "prepared.h5ad")
    model.save(at / "run", data=at / "prepared.h5ad")
    (at / "known.csv").write_text("source,target\ng0,g5\ng1,g6\ng2,g7\n")
    return at


# Runs that somebody changed: f(path of a copy)
def text(name, content):
    return lambda p: (p / name).write_text(content)


def bytes_(name, g):
    return lambda p: (p / name).write_bytes(g((p / name).read_bytes()))


def signed(g):
    "Settings that were changed by somebody who knows of the checksum."

    def f(p):
        s = g(json.loads((p / "settings.json").read_text()))
        (p / "settings.json").write_text(json.dumps(s | dict(checksum=checksum(s))))

    return f


def setting(**values):
    return signed(lambda s: s | values)


def without(name):
    return signed(lambda s: {k: v for k, v in s.items() if k != name})


def folder_for(name):
    return lambda p: ((p / name).unlink(), (p / name).mkdir())


RUNS = {
    **{
        f"no {n}": (lambda p, n=n: (p / n).unlink(), n.split(".")[0])
        for n in ("settings.json", "model.safetensors", "history.csv")
    },
    **{
        f"{n} empty": (text(n, ""), n)
        for n in ("settings.json", "model.safetensors", "history.csv")
    },
    **{
        f"{n} is a folder": (folder_for(n), n.split(".")[0])
        for n in ("model.safetensors", "history.csv")
    },
    **{
        f"settings without {k}": (without(k), k)
        for k in (
            "format",
            "preset",
            "settings",
            "genes",
            "labels",
            "nodes",
            "files",
            "batches",
            "cells",
        )
    },
    "settings cut": (bytes_("settings.json", lambda b: b[: len(b) // 2]), "settings.json.*damaged"),
    "settings binary": (
        bytes_("settings.json", lambda b: b"\xff\xfe\x00" + b),
        "settings.json.*damaged",
    ),
    "settings a list": (text("settings.json", "[]"), "format"),
    "settings a number": (text("settings.json", "3"), "format"),
    "weights cut": (bytes_("model.safetensors", lambda b: b[:-100]), "weights"),
    "weights changed": (bytes_("model.safetensors", lambda b: b[:-4] + b"abcd"), "checksum"),
    "weights are text": (text("model.safetensors", "hello"), "weights"),
    "of a later version": (setting(format=99), "99"),
    "preset of a later version": (setting(preset="v9"), "v9"),
    "a gene less": (setting(genes=["g0"]), "settings.json"),
    "a label less": (setting(labels=["g0"]), None),
    "no batches": (setting(batches=[]), None),
    "other sizes": (setting(settings=dict(latent=3)), "settings.json"),
    "unknown setting": (setting(settings=dict(depth=3)), "depth"),
    "screen is gone": (setting(data="/gone.h5ad"), WORKS),
    "screen is text": (
        lambda p: ((p / "x.h5ad").write_text("hello"), setting(data=str(p / "x.h5ad"))(p)),
        "x.h5ad",
    ),
}


def break_run(kind, folder, to):
    shutil.copytree(folder / "run", to)
    RUNS[kind][0](to)
    return to


@pytest.mark.parametrize("kind", RUNS)
def test_broken_runs(folder, kind, tmp_path):
    run = break_run(kind, folder, tmp_path / "run")
    said = refusal(lambda: GPOVAE.load(run).predict())
    if RUNS[kind][1] is not None or said:
        judge(said, RUNS[kind][1] or ".")


# Files: f(path of a copy of raw.h5ad) -> what is given to `prepare`
def inside(g):
    def f(p):
        with h5py.File(p, "r+") as h:
            g(h)
        return p

    return f


def moved(name, g=lambda b: b):
    def f(p):
        (q := p.with_name(name)).write_bytes(g(p.read_bytes()))
        return q

    return f


def cells_table(content):
    return lambda p: (
        p,
        dict(
            cells=(
                p.with_name("cells.csv").write_bytes(
                    content if isinstance(content, bytes) else content.encode()
                ),
                p.with_name("cells.csv"),
            )[1]
        ),
    )


def summary(name, content):
    return lambda p: (
        p,
        dict(strong=str((p.with_name(name).write_bytes(content), p.with_name(name))[1])),
    )


FILES = {
    "missing": (lambda p: p.with_name("none.h5ad"), "none.h5ad"),
    "empty": (moved("a.h5ad", lambda b: b""), "a.h5ad"),
    "text": (moved("a.h5ad", lambda b: b"hello"), "a.h5ad"),
    "first half": (moved("a.h5ad", lambda b: b[: len(b) // 2]), "a.h5ad"),
    "last bytes cut": (moved("a.h5ad", lambda b: b[:-10]), "a.h5ad"),
    "zeros": (moved("a.h5ad", lambda b: bytes(len(b))), "a.h5ad"),
    "middle destroyed": (moved("a.h5ad", lambda b: b[:3000] + bytes(20000) + b[23000:]), "a.h5ad"),
    "gz by name only": (moved("a.h5ad.gz"), WORKS),
    "gz without name": (moved("a.h5ad", gzip.compress), WORKS),
    "gz cut": (moved("a.h5ad.gz", lambda b: gzip.compress(b)[:500]), "a.h5ad.gz"),
    "gz of text": (moved("a.h5ad.gz", lambda b: gzip.compress(b"hello")), "a.h5ad"),
    "a zip": (moved("a.h5ad", lambda b: b"PK\3\4" + b), "a.h5ad"),
    "a table": (moved("a.csv", lambda b: b"cell,gene\nc0,g1\n"), "a.csv"),
    "a folder": (lambda p: p.parent, "neither"),
    "an empty folder": (lambda p: (p.with_name("d").mkdir(), p.with_name("d"))[1], "neither"),
    "the name of a screen misspelt": (lambda p: Path("replogle"), "replogle"),
    "a link to nothing": (
        lambda p: (p.with_name("l.h5ad").symlink_to("nothing"), p.with_name("l.h5ad"))[1],
        "l.h5ad",
    ),
    "a link": (lambda p: (p.with_name("l.h5ad").symlink_to(p), p.with_name("l.h5ad"))[1], WORKS),
    "suffix of another kind": (moved("a.zarr"), WORKS),
    "no suffix": (moved("screen"), WORKS),
    "name with blanks": (moved("my screen ä.h5ad"), WORKS),
    "other HDF5": (
        lambda p: (
            h5py.File(q := p.with_name("o.h5"), "w").create_dataset("x", data=[1]).file.close(),
            q,
        )[1],
        "o.h5",
    ),
    "empty HDF5": (lambda p: (h5py.File(q := p.with_name("o.h5"), "w").close(), q)[1], "o.h5"),
    "no X": (inside(lambda h: h.__delitem__("X")), "no X"),
    "no obs": (inside(lambda h: h.__delitem__("obs")), "instead of obs and var|no screen"),
    "no var": (inside(lambda h: h.__delitem__("var")), "instead of obs and var|no screen"),
    "X without indices": (inside(lambda h: h["X"].__delitem__("indices")), "raw.h5ad"),
    "X of another encoding": (
        inside(lambda h: h["X"].attrs.__setitem__("encoding-type", "coo_matrix")),
        "raw.h5ad",
    ),
    "X of another shape": (
        inside(lambda h: h["X"].attrs.__setitem__("shape", (5, 5))),
        "raw.h5ad|cells",
    ),
    "indices out of range": (
        inside(lambda h: h["X/indices"].__setitem__(3, 99)),
        "raw.h5ad|genes|index",
    ),
    "obs too short": (
        inside(
            lambda h: (
                h["obs"].__delitem__("lane"),
                h["obs"].__delitem__("_index"),
                h["obs"].__setitem__(
                    "_index", np.array([b"a"], dtype=object).astype(h5py.string_dtype())
                ),
            )
        ),
        "raw.h5ad|cells",
    ),
    "obs without index": (inside(lambda h: h["obs"].__delitem__("_index")), "raw.h5ad"),
    "codes out of range": (
        inside(lambda h: h["obs/gene/codes"].__setitem__(3, 99)),
        "raw.h5ad|label|missing|categor",
    ),
    "uns broken": (
        inside(lambda h: h["uns"].attrs.__setitem__("encoding-type", "mystery")),
        WORKS,  # nothing of it is needed
    ),
    "cells empty": (cells_table(""), "cells.csv"),
    "cells with a header only": (cells_table("cell,gene\n"), "cells.csv"),
    "cells with one column": (cells_table("cell\nc0\n"), "cells.csv"),
    "cells of others": (cells_table("cell,gene\nx,control\ny,g1\n"), "None of the 2 barcodes"),
    "cells twice": (cells_table("cell,gene\nc0,g1\nc0,g1\n"), "'c0' more than once"),
    "cells binary": (cells_table(bytes(range(256)) * 4), "cells.csv"),
    "cells ragged": (cells_table("cell,gene\nc0,g1\nc1,g1,b,c\n"), "cells.csv"),
    "cells missing": (lambda p: (p, dict(cells="none.csv")), "none.csv"),
    "cells a folder": (lambda p: (p, dict(cells=p.parent)), "table of cells"),
    "cells without the column": (cells_table("cell,treatment\nc0,g1\n"), WORKS),
    "summary empty": (summary("s.csv", b""), "s.csv"),
    "summary of something else": (summary("s.csv", b"a,b\n1,2\n"), "s.csv"),
    "summary binary": (summary("s.csv", bytes(range(256)) * 4), "s.csv"),
    "summary no workbook": (summary("s.xlsx", b"hello"), "s.xlsx"),
    "summary of unknown kind": (summary("s.doc", b"hello"), "s.doc"),
}


def given_file(kind, folder, at):
    at.mkdir(exist_ok=True)
    shutil.copy(folder / "raw.h5ad", at / "raw.h5ad")
    made = FILES[kind][0](at / "raw.h5ad")
    return made if isinstance(made, tuple) else (made, {})


@pytest.mark.parametrize("kind", FILES)
def test_broken_files(folder, kind, tmp_path):
    path, options = given_file(kind, folder, tmp_path / "in")
    judge(
        refusal(
            prepare_file, path, tmp_path / "out.h5ad", progress=False, doublets=False, **options
        ),
        FILES[kind][1],
    )
    assert FILES[kind][1] is WORKS or sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@draws(15)
@given(share=st.floats(0, 0.999))
def test_cut_anywhere(folder, tmp_path_factory, share):
    at = tmp_path_factory.mktemp("cut")
    data = (folder / "raw.h5ad").read_bytes()
    (at / "raw.h5ad").write_bytes(data[: int(share * len(data))])
    judge(
        refusal(prepare_file, at / "raw.h5ad", at / "out.h5ad", progress=False, doublets=False),
        "raw.h5ad",
    )


# Lists of known edges
LISTS = {
    "empty": "",
    "comments only": "# a\n# b\n",
    "one column": "source\ng0\n",
    "header only": "source,target\n",
    "numbers": "1,2\n3,4\n",
    "numbers under a header": "a,b\n3,4\n",
    "ragged": "source,target\ng0,g1\ng0,g1,g2,g3\n",
    "unclosed quote": 'source,target\n"g0,g1\n',
    "html": "<html><body>404 not found</body></html>",
    "json": '{"source": "g0"}',
    "binary": bytes(range(256)) * 4,
    "zip cut": b"PK\3\4abc",
    "gz cut": gzip.compress(b"source,target\ng0,g1\n" * 50)[:30],
    "utf-16 cut": "source,target\ng0,g1\n".encode("utf-16")[:-1],
    "one line very long": "x" * 100000,
    "only separators": ",,,\n,,,\n",
    "null bytes": b"source,target\ng0\0,g1\n",
    "blank names": "source,target\n , \n",
    "workbook": b"PK\3\4" + bytes(100),
    "source twice": "source,source,target\ng0,g1,g2\n",
    "self edges only": "source,target\ng0,g0\n",
}
READABLE = {"numbers under a header", "source twice", "utf-16 cut", "null bytes"}


@pytest.mark.parametrize("kind", LISTS)
def test_broken_lists(kind, tmp_path):
    (tmp_path / "list.csv").write_bytes(
        LISTS[kind] if isinstance(LISTS[kind], bytes) else LISTS[kind].encode()
    )
    said = refusal(read_network, tmp_path / "list.csv")
    if said or kind not in READABLE:
        judge(said, "list.csv")


# The command line: words, and what the message must name. {x} is a file of the folder
def lines(command, *options):
    return [f"{command} {o}" for o in options]


COMMANDS = {
    "": "Usage|Commands",
    "trian": "trian",
    "--nothing": "--nothing",
    "prepare": "RAW",
    "prepare {raw}": "PREPARED",
    "prepare nowhere.h5ad out.h5ad": "nowhere.h5ad",
    "prepare {raw} out.h5ad --nothing": "--nothing",
    "prepare {raw} out.h5ad --seed -1": "--seed",
    "prepare {raw} out.h5ad --seed x": "--seed",
    "prepare {raw} out.h5ad --n-mads 0": "--n-mads",
    "prepare {raw} out.h5ad --n-mads nan": "--n-mads",
    "prepare {raw} out.h5ad --min-cells 1": "--min-cells",
    "prepare {raw} out.h5ad --min-cells 999": "--min-cells 999",
    "prepare {raw} out.h5ad --cells none.csv": "none.csv",
    "prepare {raw} out.h5ad --held-out XYZ": "XYZ",
    "prepare {raw} out.h5ad --layer counts": "counts",
    "prepare {raw} out.h5ad --perturbation-key x": "'x'",
    "prepare {raw} out.h5ad --control x": "'x'",
    "prepare {raw} out.h5ad --batch-key x": "'x'",
    "prepare {raw} out.h5ad --guide-key x": "'x'",
    "prepare {raw} out.h5ad --gene-key x": "'x'",
    "prepare {raw} out.h5ad --strong none.xlsx": "none.xlsx",
    "prepare {raw} out.h5ad --max-extended -1": "--max-extended",
    "prepare {raw} out.h5ad --n-matches 0": "--n-matches",
    "prepare {raw} {raw}": "raw file itself",
    "prepare {raw} {folder}": "folder|directory",
    "prepare {raw} /proc/nowhere/out.h5ad": "/proc",
    "prepare {known} out.h5ad": "known.csv",
    "prepare {run} out.h5ad": "run",
    "train": "PREPARED",
    "train {prepared}": "--out",
    "train nowhere.h5ad --out r": "nowhere.h5ad",
    "train {raw} --out r": "not prepared",
    "train {known} --out r": "known.csv",
    "train {folder} --out r": "directory",
    "train {prepared} --out {known}": "known.csv",
    "train {prepared} --out {folder}": "other files",
    "train {prepared} --out r --preset x": "'x'",
    "train {prepared} --out r --max-epochs 0": "--max-epochs",
    "train {prepared} --out r --max-epochs x": "--max-epochs",
    "train {prepared} --out r --max-time soon": "soon",
    "train {prepared} --out r --max-time -3": "-3",
    "train {prepared} --out r --seed -1": "--seed",
    "train {prepared} --out r --seed 99999999999999": "--seed",
    "train {prepared} --out r --accelerator tpu": "tpu",
    "train {prepared} --out r --precision 16": "16",
    "train {prepared} --out r --devices 0": "--devices",
    "train {prepared} --out r --strategy x": "--strategy",
    "train {prepared} --out r --set latent": "'latent'",
    "train {prepared} --out r --set latent=0": "latent=0",
    "train {prepared} --out r --set latent=x": "latent=x",
    "train {prepared} --out r --set lr=1": "'lr'",
    "train {prepared} --out r --set latent=1,2": "latent=1,2",
    "train {prepared} --out r --set beta=nan": "beta=nan",
    "train {prepared} --out r --set latent=5 --set latent=6": "latent is named twice",
    "train {prepared} --out r --set learning_rate=-1": "learning_rate",
    "train {prepared} --out r --set edge_prior=2": "edge_prior",
    "train {prepared} --out r --set =": "NAME=VALUE",
    "train {prepared} --out /proc/nowhere": "/proc",
    "evaluate": "RUN",
    "evaluate nowhere": "nowhere",
    "evaluate {known}": "known.csv",
    "evaluate {folder}": "settings.json",
    "evaluate {run} --other nowhere": "nowhere",
    "evaluate {run} --known none.csv": "none.csv",
    "evaluate {run} --seed x": "--seed",
    "report": "RUN",
    "report nowhere": "nowhere",
    "report {folder}": "settings.json",
    "compare": "RUNS",
    "compare {run}": "--out",
    "compare nowhere --out c": "nowhere",
    "network": "RUN",
    "network {folder}": "settings.json",
    "network {run} --min-probability 2": "--min-probability",
    "network {run} --min-probability nan": "min.probability",
    "network {run} --out net.xyz": "net.xyz",
    "network {run} --out {folder}": "directory",
    "network {run} --format word": "word",
    "network {run} --out /proc/nowhere/net.tsv": "/proc",
    "sweep": "SCREENS",
    "sweep {prepared}": "--out",
    "sweep nowhere.h5ad --out s": "nowhere.h5ad",
    "sweep {prepared} --out s --seeds x": "x",
    "sweep {prepared} --out s --seeds 3-1": "3-1",
    "sweep {prepared} --out s --presets x": "'x'",
    "sweep {prepared} --out s --set x=1": "'x'",
    "sweep {prepared} --out s --workers 0": "--workers",
    "sweep {prepared} --out s --part 3/2": "3/2",
    "sweep {prepared} --out s --part x": "x",
    "sweep {raw} --out s --dry-run": None,
    "sweep {prepared} {prepared} --out s --dry-run": "twice|prepared",
    "sweep {prepared} --out {folder} --dry-run": None,
    "sweep {prepared} --out {known}": "known.csv",
    "score": "PREDICTED",
    "score {raw}": "REAL",
    "score {raw} nowhere.h5ad": "nowhere.h5ad",
    "score {known} {raw}": "known.csv",
    "score {raw} {raw}": "Log-normalise",
    "score {raw} {prepared} --control": "--control",
    "score {raw} {raw} --out {folder}": "directory",
    "demo --dataset x": "'x'",
    "demo --max-epochs 0": "--max-epochs",
    "demo --seed x": "--seed",
    "demo --out {known}": "known.csv",
    "datasets extra": "extra",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    words = command.format(
        **{
            k: folder / v
            for k, v in dict(
                raw="raw.h5ad", prepared="prepared.h5ad", run="run", known="known.csv", folder=""
            ).items()
        }
    ).split()
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(
        result.exception
    )
    assert "Traceback" not in result.output
    if COMMANDS[command] is not None:
        assert result.exit_code != 0 and re.search(
            COMMANDS[command], result.output.replace("\n", " ")
        ), (result.exit_code, result.output)
        assert sorted(folder.rglob("*")) == before and not list(tmp_path.iterdir())


def test_there_are_enough_kinds():
    kinds = [SCREENS, PREPARE, MODEL, TRAIN, ASKED, ALTERED, RUNS, FILES, LISTS, COMMANDS]
    assert sum(map(len, kinds)) >= 600, list(map(len, kinds))
