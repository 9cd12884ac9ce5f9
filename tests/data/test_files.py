"""Screens in every layout and under every naming convention, from file to file.

The result is that of memory, the user's file is untouched, and nothing is half-written.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import gpovae.data.blocks
import gpovae.data.matching
import gpovae.data.pipeline
import gpovae.data.rank_sum
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.data import datasets
from gpovae.data.blocks import block_rows
from gpovae.data.files import open_screen
from gpovae.data.labels import gene_names
from gpovae.data.layouts import read_cells, source
from gpovae.data.matching import choose_rho
from gpovae.data.prepare import prepare, prepare_file
from gpovae.data.screen import Key, Screen
from gpovae.data.steps import stale

from annotated import STEPS

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("files")]
QUICK = dict(doublets=False, progress=False)
# four blocks of cells; the rank-sum test takes its genes in two parts
BLOCK = 60 * 100
PART = 60 * 50


@pytest.fixture(scope="module", autouse=True)
def given_rho():
    "The search for rho takes half of the time of a small screen; one test below has it."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(gpovae.data.matching, "choose_rho", lambda *_: 0.05)
        yield


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(gpovae.data.blocks, "BLOCK", BLOCK)
    monkeypatch.setattr(gpovae.data.rank_sum, "BLOCK", PART)


@pytest.fixture
def light(monkeypatch):
    "Register the screen and leave out the steps, where only reading and writing is asked about."
    for step in STEPS:
        monkeypatch.setattr(gpovae.data.pipeline, step, lambda *_, **__: {})


@pytest.fixture(scope="module")
def base():
    "400 cells x 60 genes, 5 perturbations; X is CSR float32."
    a = datasets.simulated(n_cells=400, n_genes=60, n_perturbations=5, seed=0)
    return ad.AnnData(a.X, obs=a.obs[["gene"]].copy(), var=pd.DataFrame(index=a.var_names))


@pytest.fixture(scope="module")
def expected(base):
    "What preparation in memory makes of it, read as one block."
    return results(prepared(base))


def prepared(a, **settings):
    a = a.copy()
    prepare(a, **QUICK | settings)
    return a


def results(a):
    """Everything that was written, as one flat dict of arrays.

    Without the record, which names file and versions.
    """
    flat = {}

    def walk(prefix, m):
        for k in m:
            if isinstance(m[k], (dict, pd.DataFrame)):
                walk(f"{prefix}{k}/", dict(m[k]))
            else:
                flat[f"{prefix}{k}"] = np.asarray(m[k])

    for part in ("obs", "var", "obsm", "uns"):
        walk(
            part + "/",
            {
                k: v
                for k, v in getattr(a, part).items()
                if k.startswith("gpovae_") and k not in (Key.prepare, Key.screen)
            },
        )
    return flat | {"identity": np.array(Screen(a).identity)}


REGISTERED = {
    "identity",
    "obs/gpovae_perturbation",
    "obs/gpovae_library_size",
    "var/gpovae_gene",
    "var/gpovae_size_factor",
}


def assert_same(a, b, rtol=1e-6):
    "All results; or what registering alone gives, where one of them is no more (`light`)."
    light = "uns/gpovae_nodes/names" not in a.keys() & b.keys()
    assert REGISTERED <= a.keys() & b.keys() if light else a.keys() == b.keys()
    for k in a.keys() & b.keys():
        if a[k].dtype.kind == "f":
            np.testing.assert_allclose(a[k], b[k], rtol, err_msg=k)
        else:
            assert np.array_equal(a[k].astype(str), b[k].astype(str)), k


def from_file(path, folder, **settings):
    "The AnnData that `prepare_file` makes of a file, once more read from the start."
    target = Path(folder) / "result/prepared.h5ad"
    assert prepare_file(path, target, **QUICK | dict(force=True) | settings)
    assert [p.name for p in target.parent.iterdir()] == ["prepared.h5ad"]
    return ad.read_h5ad(target)


def written(a, folder, **how):
    a.write_h5ad(path := Path(folder) / "raw.h5ad", **how)
    return path


def state(path):
    "Content and time of change of a file, or of all files of a folder."
    path = Path(path)
    return {
        str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in ([path] if path.is_file() else sorted(path.rglob("*")))
        if p.is_file()
    }


def with_X(base, X):
    return ad.AnnData(X, obs=base.obs.copy(), var=base.var.copy())


def labels_csv(base, folder):
    "In another order than the file has."
    base.obs[["gene"]].rename_axis("barcode").sample(frac=1, random_state=0).to_csv(
        path := Path(folder) / "cells.csv"
    )
    return path


def packed(path, target):
    with path.open("rb") as f, gzip.open(target, "wb", 1) as out:
        shutil.copyfileobj(f, out)
    path.unlink()
    return target


# ---- layouts: name -> f(base, folder) -> path, settings

ENSEMBL = [f"ENSG{7 * i:011d}" for i in range(60)]


def h5ad(make, packing=None, **settings):
    def write(base, folder):
        made = make(base)
        path = written(
            made if isinstance(made, ad.AnnData) else with_X(base, made), folder, **packing or {}
        )
        return path, settings

    return write


def shuffled(X):
    "The columns of every row backwards, 64-bit positions."
    X = sp.csr_matrix(X, copy=True)
    for i, j in zip(X.indptr[:-1], X.indptr[1:], strict=False):
        X.indices[i:j] = X.indices[i:j][::-1].copy()
        X.data[i:j] = X.data[i:j][::-1].copy()
    return sp.csr_matrix(
        (X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)), shape=X.shape
    )


def zeros_stored(X):
    X = sp.coo_matrix(X)
    empty = np.argwhere(X.toarray() == 0)[::3]
    return sp.csr_matrix(
        (
            np.r_[X.data, np.zeros(len(empty))],
            (np.r_[X.row, empty[:, 0]], np.r_[X.col, empty[:, 1]]),
        ),
        shape=X.shape,
    )


def in_layer(name, X, without=False):
    def make(base):
        a = with_X(base, None if without else base.X.log1p())
        a.layers[name] = X(base.X)
        return a

    return make


def in_raw(base):
    a = with_X(base, base.X.astype(np.int64))
    a.raw = a
    a = a[:, ::2].copy()
    a.X = a.X.log1p()
    return a


def rewritten(**how):
    "Dense X, stored as h5py is told."

    def write(base, folder):
        path = written(with_X(base, base.X.toarray()), folder)
        with h5py.File(path, "a") as f:
            attributes = dict(f["X"].attrs)
            del f["X"]
            f.create_dataset("X", data=base.X.toarray(), **how).attrs.update(attributes)
        return path, {}

    return write


def zarr_store(version, X):
    def write(base, folder):
        before = ad.settings.zarr_write_format
        try:
            ad.settings.zarr_write_format = version
            with_X(base, X(base.X)).write_zarr(folder / "raw.zarr")
        finally:
            ad.settings.zarr_write_format = before
        assert (folder / "raw.zarr" / ("zarr.json" if version == 3 else ".zgroup")).exists()
        return folder / "raw.zarr", {}

    return write


def ten_x(version, guides=False, text=None, packing=False):
    def write(base, folder):
        X = base.X
        ids = ENSEMBL
        names = list(base.var_names)
        kind = ["Gene Expression"] * 60
        # two a gene, the second in front of the genes, so that their columns are no block at the
        # end
        if guides:
            wanted = sorted({(g, i) for g in base.obs["gene"] for i in (1, 2)})
            label = list(base.obs["gene"])
            umis = np.array(
                [
                    [20 * (g == label[c] and i == 1 + c % 2) + (c % 5 == 0) for g, i in wanted]
                    for c in range(400)
                ]
            )
            n = len(wanted) // 2
            g = [f"{g}_{i}" for g, i in wanted]
            X = sp.hstack([umis[:, :n], X, umis[:, n:]], "csr")
            ids = g[:n] + ids + g[n:]
            names = g[:n] + names + g[n:]
            kind = ["CRISPR Guide Capture"] * n + kind + ["CRISPR Guide Capture"] * n
        as_text = (lambda v: np.array(v, object)) if text else (lambda v: np.array(v, "S"))
        with h5py.File(path := folder / "raw.h5", "w") as f:
            g = f.create_group("matrix" if version == 3 else "GRCh38")

            def put(at, v):
                return g.create_dataset(at, data=as_text(v), dtype=text)

            for k, v in dict(
                data=X.data.astype(np.int32),
                indices=X.indices.astype(np.int64),
                indptr=X.indptr.astype(np.int64),
                shape=np.array(X.shape[::-1], np.int32),
            ).items():
                g[k] = v
            put("barcodes", list(base.obs_names))
            if version == 2:
                put("genes", ids)
                put("gene_names", names)
            else:
                put("features/id", ids)
                put("features/name", names)
                put("features/feature_type", kind)
                put("features/genome", ["GRCh38"] * len(ids))
                if guides:
                    put(
                        "features/target_gene_name",
                        [
                            (
                                ""
                                if k == "Gene Expression"
                                else "Non-Targeting"
                                if "non" in s
                                else s.split("_")[0]
                            )
                            for s, k in zip(names, kind, strict=False)
                        ],
                    )
        if packing:
            path = packed(path, folder / "raw.h5.gz")
        return path, {} if guides else dict(cells=labels_csv(base, folder).as_posix())

    return write


def mtx(packing=True, order=None, features="features.tsv", barcodes=None, body=None, entries=None):
    def write(base, folder):
        (path := folder / "lane").mkdir(exist_ok=True)
        X = sp.coo_matrix(base.X)
        at = np.arange(X.nnz) if order is None else np.random.default_rng(order).permutation(X.nnz)
        rows = (
            "".join(
                f"{g + 1} {c + 1} {int(v)}\n"
                for g, c, v in zip(X.col[at], X.row[at], X.data[at], strict=False)
            )
            if body is None
            else body
        )
        third = "\tGene Expression" if features == "features.tsv" else ""
        for name, text in {
            "matrix.mtx": (
                "%%MatrixMarket matrix coordinate integer general\n%made by hand\n60 400"
                f" {X.nnz if entries is None else entries}\n{rows}"
            ),
            "barcodes.tsv": "".join(b + "\n" for b in barcodes or base.obs_names),
            features: "".join(
                f"{i}\t{g}{third}\n" for i, g in zip(ENSEMBL, base.var_names, strict=False)
            ),
        }.items():
            with gzip.open(path / f"{name}.gz", "wt") if packing else (path / name).open("w") as f:
                f.write(text)
        return path, dict(cells=labels_csv(base, folder).as_posix())

    return write


LAYOUTS = {
    "csr": h5ad(lambda b: b.X),
    "csr, int32, gzip inside": h5ad(lambda b: b.X.astype(np.int32), dict(compression="gzip")),
    "csr, uint16, unsorted, 64-bit positions": h5ad(lambda b: shuffled(b.X.astype(np.uint16))),
    "csr, float64, zeros stored": h5ad(lambda b: zeros_stored(b.X)),
    "csc": h5ad(lambda b: b.X.tocsc()),
    "csc, int64, lzf inside": h5ad(lambda b: b.X.astype(np.int64).tocsc(), dict(compression="lzf")),
    "dense": h5ad(lambda b: b.X.toarray()),
    "dense, uint16": h5ad(lambda b: b.X.toarray().astype(np.uint16)),
    "dense, by column": rewritten(chunks=(400, 1), compression="gzip"),
    "dense, big-endian": rewritten(dtype=">f8"),
    ".h5ad.gz": lambda b, folder: (packed(written(b, folder), folder / "raw.h5ad.gz"), {}),
    "gzip by another name": lambda b, folder: (packed(written(b, folder), folder / "screen"), {}),
    "layer counts": h5ad(in_layer("counts", lambda X: X)),
    "layer counts, no X": h5ad(in_layer("counts", lambda X: X.toarray(), True)),
    "layer umis": h5ad(in_layer("umis", lambda X: X.tocsc()), layer="umis"),
    "raw": h5ad(in_raw, layer="raw"),
    "zarr 2, csr": zarr_store(2, lambda X: X),
    "zarr 2, dense": zarr_store(2, lambda X: X.toarray().astype(np.int32)),
    "zarr 3, csc": zarr_store(3, lambda X: X.tocsc()),
    "10x 3": ten_x(3),
    "10x 2": ten_x(2),
    "10x 3, text of any length, gz": ten_x(3, text=h5py.string_dtype(), packing=True),
    "10x 3, guides": ten_x(3, guides=True),
    "mtx": mtx(),
    "mtx, plain, unsorted": mtx(packing=False, order=0),
    "mtx, genes.tsv": mtx(features="genes.tsv", order=1),
}


# with all steps; the others are only copied and registered
THROUGHOUT = {"csr", "csc", "raw", "10x 3, guides", "mtx, plain, unsorted"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_memory_gives(layout, base, expected, tmp_path, request):
    if layout not in THROUGHOUT:
        request.getfixturevalue("light")
    assert block_rows(60) == 100
    path, settings = LAYOUTS[layout](base, tmp_path)
    before = state(path)
    a = from_file(path, tmp_path, **settings)
    assert state(path) == before
    assert (
        a.X.dtype == np.float32
        and a.X.has_canonical_format
        and (a.X != base.X).nnz == 0
        and list(a.obs_names) == list(base.obs_names)
    )
    assert_same(results(a), expected)
    assert a.uns[Key.prepare]["source"]["parameters"]["file_name"] == path.name


@pytest.mark.parametrize("layout", ["csr", "csc", "zarr 2, dense", "10x 3", "mtx, plain, unsorted"])
def test_blocks_can_be_asked_for_twice_and_are_small(layout, base, tmp_path):
    path, settings = LAYOUTS[layout](base, tmp_path)
    with source(path, cells=settings.get("cells"), scratch=tmp_path) as s:
        for _ in range(2):
            blocks = list(s.blocks())
            assert (
                {b.shape for b in blocks} == {(100, 60)}
                and all(b.dtype == np.float32 for b in blocks)
                and (sp.vstack(blocks) != base.X).nnz == 0
            )
    assert not list(tmp_path.glob(".gpovae-*"))


def test_duplicate_entries_are_added_up(base, expected, tmp_path):
    "CSR may hold a value in parts."
    X = sp.coo_matrix(base.X)
    big = X.data > 1
    parts = np.r_[np.where(big, X.data - 1, X.data), np.ones(big.sum())]
    row = np.r_[X.row, X.row[big]]
    col = np.r_[X.col, X.col[big]]
    order = np.lexsort((col, row))
    split = sp.csr_matrix(
        (
            parts[order].astype(np.float32),
            col[order],
            np.r_[0, np.cumsum(np.bincount(row, minlength=400))],
        ),
        shape=X.shape,
    )
    assert split.nnz > X.nnz and (split != base.X).nnz == 0
    with source(written(with_X(base, split), tmp_path)) as s:
        X = sp.vstack(list(s.blocks()), "csr")
    assert X.nnz == base.X.nnz and (X != base.X).nnz == 0
    assert_same(results(prepared(with_X(base, split))), expected)


IN_MEMORY = dict(
    csc=sp.csc_matrix,
    csr_array=sp.csr_array,
    uint16=lambda X: X.astype(np.uint16),
    fortran=lambda X: np.asfortranarray(X.toarray()),
    half=lambda X: X.toarray().astype(np.float16),
    other_order=lambda X: X.toarray().astype(">i4"),
    unsorted=shuffled,
)


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_storage_in_memory_does_not_matter(kind, base, expected):
    a = with_X(base, IN_MEMORY[kind](base.X))
    before = a.X.copy()
    prepare(a, **QUICK)
    assert type(a.X) is type(before) and a.X.dtype == before.dtype
    assert_same(results(a), expected, rtol=1e-4)  # sums in another order


def test_annotations_of_any_kind_are_carried_along(base, expected, tmp_path, light):
    a = base.copy()
    a.obs["gene"] = a.obs["gene"].cat.add_categories(["never seen"])
    a.obs_names = a.obs_names.rename("cell_barcode")
    a.obs["whole"] = pd.array([None, 1] * 200, dtype="Int64")
    a.obs["flag"] = pd.array([None, True] * 200, dtype="boolean")
    a.obs["level"] = pd.Categorical(["low", None] * 200, ["low", "high"], ordered=True)
    a.obs["words"] = pd.array(["a", None] * 200, dtype="string")
    a.obsm["X_pca"] = np.ones((400, 3))
    a.obsm["table"] = pd.DataFrame(dict(x=np.arange(400)), index=a.obs_names)
    a.obsm["sparse"] = sp.csr_matrix(np.eye(400))
    a.uns = dict(
        log1p=dict(base=None),
        record=np.array([(1, "a")], dtype=[("n", "i4"), ("s", "O")]),
        table=pd.DataFrame(dict(x=[1, 2])),
        nothing={},
        names=["a", "b"],
    )
    b = from_file(written(a, tmp_path), tmp_path)
    assert_same(results(b), expected)
    assert (
        (b.obsm["table"]["x"] == np.arange(400)).all()
        and b.uns["log1p"] == dict(base=None)
        and b.obs["level"].cat.ordered
        and b.obs_names.name == "cell_barcode"
    )
    b = from_file(written(a, tmp_path), tmp_path, min_cells=60)
    assert (
        b.n_obs == 266
        and set(b.obs[Key.perturbation]) == {"control", "KLF1", "MYC"}
        and np.array_equal(b.obsm["table"]["x"], np.flatnonzero(a.obs_names.isin(b.obs_names)))
    )


SETTINGS = {
    "batches, guides, doublets": dict(batch_key="lane", guide_key="guide", doublets=True, seed=3),
    "sizes and splits": dict(
        size_factor_exclude=["HBB", "HBD"], held_out=["MYC"], fractions=(0.5, 0.25, 0.25)
    ),
    "cells left out": dict(min_cells=50, drop_unmeasured=True, drop_unlabelled=True),
    "strong": dict(strong="data", batch_key="lane"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_mean_the_same_as_in_memory(name, base, tmp_path, monkeypatch):
    # that rule asks for more cells
    monkeypatch.setattr(
        gpovae.data.pipeline,
        "strong_cells",
        lambda work, summary: (
            np.isin(Screen(work).labels, ["control", "KLF1", "MYC"])
            & (np.arange(work.n_obs) % 7 > 0),
            pd.DataFrame(dict(outcome=["strong"])),
        ),
    )
    if name == "sizes and splits":
        monkeypatch.setattr(gpovae.data.matching, "choose_rho", choose_rho)
    a = base[:, base.var_names != "TAL1"].copy() if name == "cells left out" else base.copy()
    a.obs["guide"] = [f"{g}_{i % 2}" for i, g in enumerate(a.obs["gene"])]
    a.obs["lane"] = np.where(np.arange(400) % 3, "a", "b")
    if name == "cells left out":
        a.obs.loc[a.obs_names[::50], "gene"] = None
    b = from_file(written(a, tmp_path), tmp_path, **SETTINGS[name])
    wanted = prepared(a, **SETTINGS[name])
    assert_same(results(b), results(wanted))
    assert b.n_obs == wanted.n_obs and (b.X != wanted.X).nnz == 0
    if name in ("cells left out", "strong"):
        assert (
            b.n_obs < 390
            and set(b.obs[Key.perturbation]) <= {"control", "CEBPA", "KLF1", "MYC"}
            and b.uns[Key.prepare]["source"]["result"]["cells"] == 400
        )


# ---- conventions


def relabelled(base, obs, ids=None, symbols="gene_name", names=None, **more):
    "The screen with other annotations; with `ids`, these are the index and the symbols a column."
    var = (
        pd.DataFrame(index=list(base.var_names))
        if ids is None
        else pd.DataFrame(
            {} if symbols is None else {symbols: names or list(base.var_names)}, index=list(ids)
        )
    )
    return ad.AnnData(
        base.X.copy(), obs=pd.DataFrame(obs, index=list(base.obs_names)), var=var, **more
    )


def said(base, **to):
    return [
        to.get(g, to.get("any", "{}").format(g)) if g != "non-targeting" else to["control"]
        for g in base.obs["gene"]
    ]


def replaced(base, what, many, by, values=None):
    "Labels of the screen, `many` cells of `what` labelled otherwise."
    v = np.array(base.obs["gene"] if values is None else values, object)
    v[np.flatnonzero(base.obs["gene"] == what)[:many]] = by
    return v


def gears(base):
    return (
        relabelled(
            base,
            dict(
                cell_type="K562",
                condition=said(base, any="{}+ctrl", control="ctrl"),
                dose_val="1+1",
                control=1,
            ),
            ENSEMBL,
            layers=dict(counts=base.X),
        ),
        {},
    )


def scperturb(base):
    return (
        relabelled(
            base,
            dict(
                perturbation=said(base, control="control"),
                nperts=[int(g != "non-targeting") for g in base.obs["gene"]],
                tissue_type="cell_line",
                ncounts=1.0,
            ),
        ),
        {},
    )


def numbered(base):
    return (
        relabelled(
            base,
            dict(
                gene=[
                    g if g != "non-targeting" else f"non-targeting_{i % 9:05d}"
                    for i, g in enumerate(base.obs["gene"])
                ]
            ),
        ),
        {},
    )


def replogle(base):
    a = relabelled(
        base,
        dict(
            gem_group=1 + np.arange(400) // 200,
            gene=list(base.obs["gene"]),
            gene_id=said(
                base, control="non-targeting", **dict(zip(base.var_names, ENSEMBL, strict=False))
            ),
            transcript="P1P2",
            mitopercent=0.1,
            UMI_count=1.0,
            core_adjusted_UMI_count=1.0,
        ),
        ENSEMBL,
    )
    a.obs.index.name, a.var.index.name = "cell_barcode", "gene_id"
    a.var["class"], a.var["in_matrix"] = "gene_version10", True
    return a, dict(batch_key="gem_group")


def ensembl_labels(base):
    return (
        relabelled(
            base,
            dict(
                gene_id=said(
                    base,
                    control="non-targeting",
                    **dict(zip(base.var_names, ENSEMBL, strict=False)),
                )
            ),
            ENSEMBL,
            "symbol",
        ),
        {},
    )


def ensembl_column(base):
    a, _ = ensembl_labels(base)
    return (
        ad.AnnData(a.X, obs=a.obs, var=pd.DataFrame(dict(gene_ids=ENSEMBL), index=base.var_names)),
        {},
    )


def versions(base):
    a, _ = ensembl_labels(base)
    a.var_names = [f"{i}.{7 + k % 9}" for k, i in enumerate(ENSEMBL)]
    return a, {}


def named_control(base):
    return relabelled(base, dict(gene=said(base, control="GFP"))), dict(control="GFP")


def gene_column(base):
    return relabelled(
        base, dict(gene=list(base.obs["gene"])), [f"probe{i}" for i in range(60)], "target"
    ), dict(gene_key="target")


@pytest.mark.parametrize(
    "convention",
    [
        gears,
        scperturb,
        numbered,
        replogle,
        ensembl_labels,
        ensembl_column,
        versions,
        named_control,
        gene_column,
    ],
)
def test_conventions_are_understood_without_asking(convention, base, expected, tmp_path, request):
    "Whatever labels and genes are called: the labels, nodes and shifts of the plain screen."
    if convention is not replogle:
        request.getfixturevalue("light")
    a, settings = convention(base)
    b = from_file(written(a, tmp_path), tmp_path, **settings)
    if convention is replogle:
        plain = base.copy()
        plain.obs["gem_group"] = 1 + np.arange(400) // 200
        expected = results(prepared(plain, **settings))
    assert_same(results(b), expected)
    s = Screen(b)
    assert (
        s.perturbations == ["CEBPA", "GATA1", "KLF1", "MYC", "TAL1"]
        and (s.genes.get_indexer(s.targets) >= 0).all()
    )
    if Key.nodes in b.uns:
        assert (
            list(s.nodes.index[s.nodes.perturbed]) == s.perturbations
            and (s.nodes.position >= 0).all()
            and 0.05 < b.obs["gpovae_share_mitochondrial"].mean() < 0.2
        )


def test_pairs_of_gears_and_scperturb(base, tmp_path, light):
    plain = relabelled(base, dict(gene=replaced(base, "KLF1", 30, "KLF1+MYC")))
    wanted = results(prepared(plain))
    a, _ = gears(base)
    # either order
    a.obs["condition"] = replaced(
        base, "KLF1", 15, "MYC+KLF1", replaced(base, "KLF1", 30, "KLF1+MYC", a.obs["condition"])
    )
    b, _ = scperturb(base)
    b.obs["perturbation"] = replaced(base, "KLF1", 30, "MYC_KLF1", b.obs["perturbation"])
    b.obs["nperts"] = b.obs["perturbation"].map(lambda p: 2 if "_" in p else int(p != "control"))
    for x in (a, b):
        found = from_file(written(x, tmp_path), tmp_path)
        assert_same(results(found), wanted)
        assert (
            Screen(found).targets == ["CEBPA", "GATA1", "KLF1", "MYC", "TAL1"]
            and "KLF1+MYC" in Screen(found).perturbations
        )


@pytest.mark.parametrize(
    "label, n, genes",
    [
        ("KLF1_OFFPANEL", 2, ["KLF1", "OFFPANEL"]),
        ("OFFPANEL_KLF1", 2, ["KLF1", "OFFPANEL"]),
        ("Off_Panel", 2, ["Off", "Panel"]),
        ("KLF1_P1", 1, ["KLF1_P1"]),
        ("KLF1_pDS258", 1, ["KLF1"]),
        ("KLF1_MYC_TAL1", 3, ["KLF1", "MYC", "TAL1"]),
    ],
)
def test_nperts_says_how_many_genes_a_label_names(label, n, genes, base, light):
    "Also where they are not measured; a promoter or a vector behind the gene is no second one."
    a, _ = scperturb(base)
    cells = np.flatnonzero(base.obs["gene"] == "KLF1")[:30]
    a.obs["perturbation"] = replaced(base, "KLF1", 30, label, a.obs["perturbation"])
    a.obs.iloc[cells, a.obs.columns.get_loc("nperts")] = n
    assert Screen(prepared(a)).targets == sorted({"CEBPA", "GATA1", "KLF1", "MYC", "TAL1", *genes})


def test_causalbench(base, tmp_path):
    "Labels and genes are Ensembl ids, and some cells are labelled `excluded`."
    labels = said(base, control="non-targeting", **dict(zip(base.var_names, ENSEMBL, strict=False)))
    labels[:10] = ["excluded"] * 10
    a = prepared(relabelled(base, dict(interventions=labels), ENSEMBL, None))
    ids = dict(zip(base.var_names, ENSEMBL, strict=False))
    assert (
        a.n_obs == 390
        and Screen(a).perturbations
        == sorted(ids[g] for g in set(base.obs["gene"]) - {"non-targeting"})
        and (Screen(a).nodes.position >= 0).all()
    )
    assert dict(a.uns[Key.prepare]["source"]["result"]) == dict(
        cells=400, kept=390, unlabelled_cells=10
    )
    # with symbols, the plain screen without these cells
    b = from_file(
        written(relabelled(base, dict(interventions=labels), ENSEMBL, "gene_symbol"), tmp_path),
        tmp_path,
    )
    assert_same(results(b), results(prepared(base[10:])))


def test_mouse(base, expected, tmp_path):
    mouse = [
        ("mt-" + g[3:].capitalize()) if g.startswith("MT-") else g.capitalize()
        for g in base.var_names
    ]
    a = relabelled(
        base,
        dict(gene=said(base, any="{}", control="NT")),
        [f"ENSMUSG{i:011d}" for i in range(60)],
        "gene_symbols",
        mouse,
    )
    a.obs["gene"] = [g if g == "NT" else g.capitalize() for g in a.obs["gene"]]
    b = from_file(written(a, tmp_path), tmp_path)
    s = Screen(b)
    assert (
        s.perturbations == ["Cebpa", "Gata1", "Klf1", "Myc", "Tal1"]
        and (s.nodes.position >= 0).all()
    )
    np.testing.assert_allclose(
        b.obs["gpovae_share_mitochondrial"], expected["obs/gpovae_share_mitochondrial"]
    )


def test_symbols_that_occur_twice_or_not_at_all(base, tmp_path, light):
    names = list(base.var_names)
    spare = [i for i, g in enumerate(names) if g.startswith("RP")][:4]
    first = names[spare[0]]
    names[spare[1]], names[spare[2]], names[spare[3]] = first, "", None
    b = from_file(
        written(
            relabelled(base, dict(gene=list(base.obs["gene"])), ENSEMBL, "gene_name", names),
            tmp_path,
        ),
        tmp_path,
    )
    genes = Screen(b).genes
    assert (
        genes.is_unique
        and genes[spare[0]] == first
        and list(genes[spare[1:]]) == [ENSEMBL[i] for i in spare[1:]]
        and list(b.var_names) == ENSEMBL
    )
    assert Screen(b).perturbations == ["CEBPA", "GATA1", "KLF1", "MYC", "TAL1"]


def test_names_stay_different_where_symbol_and_index_cross(base):
    "The second A would be called by its index, which is A too."
    a = base.copy()
    a.var["symbol"] = ["A", "A", *a.var_names[2:]]
    a.var_names = ["B", "A", *a.var_names[2:]]
    try:
        names, _ = gene_names(a.var, "symbol")
    except GpovaeError as e:
        assert "'A'" in str(e)
    else:
        assert names.is_unique


def test_ensembl_version_in_the_label(base, light):
    a, _ = ensembl_labels(base)
    a.obs["gene_id"] = [i if i == "non-targeting" else f"{i}.3" for i in a.obs["gene_id"]]
    assert Screen(prepared(a)).perturbations == ["CEBPA", "GATA1", "KLF1", "MYC", "TAL1"]


@pytest.mark.parametrize("nothing", [None, "", " ", "nan"])
def test_a_cell_without_label_is_no_control(nothing, base, tmp_path, light):
    labels = replaced(base, "KLF1", 5, nothing)
    a = relabelled(base, dict(gene=pd.Categorical(labels)))
    first = a.obs_names[np.flatnonzero(base.obs["gene"] == "KLF1")[0]]
    path = written(a, tmp_path)
    with pytest.raises(GpovaeError, match=f"'gene'.*{first}.*drop_unlabelled"):
        prepare(a.copy(), **QUICK)
    with pytest.raises(GpovaeError, match=f"'gene'.*{first}.*drop_unlabelled"):
        from_file(path, tmp_path)
    assert not (tmp_path / "result").exists()
    b = from_file(path, tmp_path, drop_unlabelled=True)
    assert_same(
        results(b),
        results(
            prepared(base[~np.isin(np.arange(400), np.flatnonzero(base.obs["gene"] == "KLF1")[:5])])
        ),
    )


# ---- what is there is left alone, what was done is not done again


def forbid(monkeypatch, *names):
    "No call of these may happen; a name is module.function."

    def refuse(*_, **__):
        raise AssertionError("this should not have been called")

    for name in names:
        monkeypatch.setattr(f"gpovae.data.{name}", refuse)


def test_earlier_results_in_the_raw_file_are_ignored(base, expected, tmp_path):
    a = prepared(base, seed=5, n_mads=1)
    a.obs["gpovae_note"] = "x"
    a.obsm["X_gpovae"] = np.zeros((400, 2))
    a.uns[Key.network] = dict(a=1)
    a.obs[Key.perturbation], a.var[Key.gene] = "junk", "GENE"
    b = from_file(written(a, tmp_path), tmp_path)
    assert_same(results(b), expected)
    assert "X_gpovae" not in b.obsm and Key.network not in b.uns


def test_a_prepared_file_can_be_prepared_into_another(base, expected, tmp_path, light):
    prepare_file(written(base, tmp_path), tmp_path / "one.h5ad", **QUICK | dict(n_mads=1))
    before = state(tmp_path / "one.h5ad")
    prepare_file(tmp_path / "one.h5ad", tmp_path / "two.h5ad", **QUICK)
    assert_same(results(ad.read_h5ad(tmp_path / "two.h5ad")), expected)
    assert state(tmp_path / "one.h5ad") == before
    with pytest.raises(GpovaeError, match="one.h5ad.*raw file itself"):
        prepare_file(tmp_path / "one.h5ad", tmp_path / "one.h5ad", **QUICK)
    os.symlink(tmp_path / "one.h5ad", tmp_path / "link.h5ad")
    with pytest.raises(GpovaeError, match="raw file itself"):
        prepare_file(tmp_path / "one.h5ad", tmp_path / "link.h5ad", **QUICK)
    assert state(tmp_path / "one.h5ad") == before


def test_a_second_run_does_nothing(base, tmp_path, monkeypatch, light):
    raw = written(base, tmp_path)
    target = tmp_path / "prepared.h5ad"
    settings = dict(
        fractions=(0.6, 0.2, 0.2),
        held_out=["MYC"],
        max_extended=None,
        size_factor_exclude=["HBB", "HBD"],
        n_mads=3,
    )
    assert prepare_file(raw, target, **QUICK | settings)
    before = state(target)
    with monkeypatch.context() as m:
        forbid(
            m,
            "prepare.complete",
            "prepare.prepared",
            "prepare.source",
            "prepare.write_screen",
            "prepare.write_annotations",
        )
        assert prepare_file(raw, target, **QUICK | settings) is False
        assert (
            prepare_file(
                str(raw),
                str(target),
                **QUICK
                | settings
                | dict(held_out="MYC", n_mads=3.0, size_factor_exclude=("HBB", "HBD")),
            )
            is False
        )
    assert state(target) == before
    assert prepare_file(raw, target, force=True, **QUICK | settings)
    assert state(target)[str(target)][1] != before[str(target)][1] and not list(
        tmp_path.glob(".gpovae-*")
    )
    with monkeypatch.context() as m:
        forbid(m, "prepare.complete")
        for changed in (
            dict(seed=1),
            dict(held_out=[]),
            dict(size_factor_exclude=["HBB"]),
            dict(fractions=(0.64, 0.16, 0.2)),
            dict(max_extended=3),
            dict(min_cells=2),
            dict(drop_unlabelled=True),
        ):
            with pytest.raises(AssertionError):
                prepare_file(raw, target, **QUICK | settings | changed)
        raw.touch()
        with pytest.raises(AssertionError):
            prepare_file(raw, target, **QUICK | settings)


def test_a_changed_table_of_cells_is_noticed(base, tmp_path, light):
    path, settings = mtx()(base, tmp_path)
    target = tmp_path / "prepared.h5ad"
    table = Path(settings["cells"])
    assert prepare_file(path, target, **QUICK | settings) and not prepare_file(
        path, target, **QUICK | settings
    )
    table.write_text(table.read_text().replace("TAL1", "GATA1"))
    assert prepare_file(path, target, **QUICK | settings)
    assert "TAL1" not in set(open_screen(target).obs[Key.perturbation])


def named_are_strong(monkeypatch):
    monkeypatch.setattr(
        gpovae.data.pipeline,
        "strong_cells",
        lambda work, summary: (
            np.isin(Screen(work).labels, ["control", *summary["perturbation"]]),
            pd.DataFrame(dict(outcome=["strong"])),
        ),
    )


def test_a_changed_file_of_strong_perturbations_is_noticed(base, tmp_path, monkeypatch, light):
    raw = written(base, tmp_path)
    target = tmp_path / "prepared.h5ad"
    table = tmp_path / "strong.csv"
    named_are_strong(monkeypatch)

    def row(*genes):
        return "perturbation,degs,knockdown,cells\n" + "".join(f"{g},100,0.9,100\n" for g in genes)

    table.write_text(row("MYC", "KLF1"))
    for strong in (str(table), table):
        assert prepare_file(raw, target, strong=strong, force=True, **QUICK) and not prepare_file(
            raw, target, strong=strong, **QUICK
        )
    assert Screen(open_screen(target)).perturbations == ["KLF1", "MYC"]
    table.write_text(row("MYC", "TAL1"))
    assert prepare_file(raw, target, strong=str(table), **QUICK) and Screen(
        open_screen(target)
    ).perturbations == ["MYC", "TAL1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prepared.h5ad", "raw.h5ad", "strong.csv"]


def test_a_changed_table_of_strong_perturbations_is_noticed(base, tmp_path, monkeypatch, light):
    raw = written(base, tmp_path)
    target = tmp_path / "prepared.h5ad"
    named_are_strong(monkeypatch)
    for genes in (["MYC", "TAL1"], ["KLF1", "TAL1"]):  # of one size
        assert prepare_file(
            raw, target, strong=(frame := pd.DataFrame(dict(perturbation=genes))), **QUICK
        ) and not prepare_file(raw, target, strong=frame, **QUICK)
        assert Screen(open_screen(target)).perturbations == genes


@pytest.mark.parametrize("name", ["counts.h5ad", "strong.h5ad", "raw"])
def test_any_name_for_the_target(name, base, expected, tmp_path, light):
    raw = written(base, tmp_path)
    target = tmp_path / "out" / name
    assert prepare_file(raw, target, **QUICK) and [p.name for p in target.parent.iterdir()] == [
        name
    ]
    assert_same(results(ad.read_h5ad(target)), expected)


def test_settings_of_any_number_type(base, tmp_path, light):
    raw = written(base, tmp_path)
    target = tmp_path / "prepared.h5ad"
    assert prepare_file(
        raw, target, **QUICK | dict(seed=np.int64(1), min_cells=np.int32(60), n_mads=np.float32(3))
    )
    assert prepare_file(raw, target, **QUICK | dict(seed=1, min_cells=60, n_mads=3)) is False


def test_a_failure_leaves_the_target_as_it_was(base, expected, tmp_path, light):
    target = tmp_path / "prepared.h5ad"
    target.write_text("something else")
    X = base.X.toarray()
    X[3, 7] = -1
    raw = written(with_X(base, X), tmp_path)
    before = state(tmp_path)
    with pytest.raises(GpovaeError):
        prepare_file(raw, target, **QUICK)
    assert state(tmp_path) == before
    assert_same(results(from_file(written(base, tmp_path), tmp_path)), expected)


def test_a_folder_is_no_target(base, tmp_path, light):
    raw = written(base, tmp_path)
    (tmp_path / "folder.h5ad").mkdir()
    with pytest.raises(GpovaeError, match="folder.h5ad"):
        prepare_file(raw, tmp_path / "folder.h5ad", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.h5ad", "raw.h5ad"]


@pytest.mark.parametrize("layout", ["zarr 2, csr", "mtx"])
def test_nothing_is_written_into_the_folder_of_the_raw_screen(layout, base, tmp_path, light):
    path, settings = LAYOUTS[layout](base, tmp_path)
    before = state(path)
    with pytest.raises(GpovaeError, match="prepared.h5ad"):
        prepare_file(path, path / "prepared.h5ad", **QUICK | settings)
    assert state(path) == before


INNER = (
    "quality.cell_metrics",
    "nodes.fold_changes",
    "nodes.rank_sum_test",
    "matching.problems",
    "responses.fold_changes",
    "pipeline.perturbation_table",
    "split.split_sizes",
)


def test_steps_are_recognised_in_memory(base, expected, tmp_path, monkeypatch):
    a = prepared(base)
    assert stale(a) == []
    a.write_h5ad(tmp_path / "a.h5ad")
    b = ad.read_h5ad(tmp_path / "a.h5ad")
    assert stale(b) == []
    with monkeypatch.context() as m:
        forbid(m, *INNER)
        for x in (a, b):
            prepare(x, **QUICK)
            assert_same(results(x), expected)
        for changed in (dict(n_mads=2), dict(seed=1)):
            with pytest.raises(AssertionError):
                prepare(a, **QUICK | changed)
    assert_same(results(a), expected)  # and a failure left it as it was
    assert stale(a[:200].copy())


def test_a_change_by_hand_is_noticed_and_put_right(base, expected, monkeypatch):
    a = prepared(base)
    a.obs[Key.fail] = ~a.obs[Key.fail]
    later = ["nodes", "matching", "responses", "perturbations"]
    assert stale(a) == ["quality", "size_factor", *later]
    prepare(a, **QUICK)
    assert stale(a) == []
    assert_same(results(a), expected)
    a.uns[Key.nodes]["names"] = a.uns[Key.nodes]["names"][::-1].copy()
    assert stale(a) == ["nodes", "responses"]
    with monkeypatch.context() as m:
        forbid(
            m,
            "quality.cell_metrics",
            "matching.problems",
            "split.split_sizes",
            "pipeline.perturbation_table",
        )
        prepare(a, **QUICK)
        assert stale(a) == []
        assert_same(results(a), expected)
    a.obs.iloc[0, a.obs.columns.get_loc(Key.split)] = (
        "test" if a.obs[Key.split].iloc[0] == "train" else "train"
    )
    assert stale(a) == ["split", "nodes", "matching", "responses", "perturbations"]
    X = a.X.copy()
    X.data[0] += 1
    a.X = X
    prepare(a, **QUICK)
    assert_same(results(a), results(prepared(with_X(base, X))))


CHANGES = dict(size_factor_exclude=["RPL4", "RPL3", "RPS3"], guide_key="guide")


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_of_the_screen_is_noticed_in_memory(name, base):
    a = base.copy()
    a.obs["guide"] = [f"{g}_{i % 2}" for i, g in enumerate(a.obs["gene"])]
    fresh = prepared(a, **{name: CHANGES[name]})
    again = prepared(a)
    prepare(again, **QUICK | {name: CHANGES[name]})
    assert_same(results(again), results(fresh))


def test_record_of_another_release(base, expected):
    a = base.copy()
    a.uns[Key.prepare] = {
        s: dict(cells=400, n_mads=3.0) for s in ("register", "quality", "split", "nodes")
    }
    assert stale(a) == []
    prepare(a, **QUICK)
    assert_same(results(a), expected)


# ---- bad input, in the shell


def gpovae_(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def cut(path, bytes):
    path.write_bytes(path.read_bytes()[:bytes])
    return path


def changed(base, folder, value, dense=True):
    "One bad value, in the third block."
    X = base.X.toarray()
    X[123, 45] = value
    return written(with_X(base, X if dense else sp.csc_matrix(X)), folder)


def renamed(base, folder, axis):
    a = base.copy()
    names = list(getattr(a, axis))
    names[150 if axis == "obs_names" else 50] = names[3]
    setattr(a, axis, names)
    return written(a, folder)


def broken_chunk(base, folder):
    path = written(with_X(base, base.X.toarray()), folder, compression="gzip")
    with h5py.File(path) as f:
        chunk = f["X"].id.get_chunk_info(f["X"].id.get_num_chunks() - 1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    return path


def folder_with(folder, **files):
    (path := folder / "lane").mkdir()
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def text(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


def legacy(base, folder):
    "As anndata wrote until 2019."
    X = base.X
    with h5py.File(path := folder / "raw.h5ad", "w") as f:
        g = f.create_group("X")
        g.attrs["h5sparse_format"] = "csr"
        g.attrs["h5sparse_shape"] = np.array(X.shape)
        g["data"] = X.data
        g["indices"] = X.indices
        g["indptr"] = X.indptr
        for axis, names in dict(obs=base.obs_names, var=base.var_names).items():
            f[axis] = np.array(
                [(n.encode(), 0) for n in names], dtype=[("index", "S20"), ("n", "f4")]
            )
    return path


def two_genomes(base, folder):
    path, _ = ten_x(2)(base, folder)
    with h5py.File(path, "a") as f:
        f.copy("GRCh38", "mm10")
    return path


BAD = {  # name: (f(base, folder) -> path, what the message says)
    "cut-off h5ad": (lambda b, d: cut(written(b, d), 30_000), "raw.h5ad.*cannot be read.*whole"),
    "cut-off gz": (
        lambda b, d: cut(packed(written(b, d), d / "raw.h5ad.gz"), 20_000),
        "raw.h5ad.gz.*cannot be read.*whole",
    ),
    "text": (lambda b, d: text(d, "raw.h5ad", "cell,gene\n1,2\n"), "raw.h5ad.*is no screen"),
    "gzipped text": (
        lambda b, d: packed(text(d, "note", "hello"), d / "note.h5ad.gz"),
        "note.h5ad.gz.*is no screen",
    ),
    "empty file": (lambda b, d: text(d, "raw.h5ad", ""), "raw.h5ad.*is no screen"),
    "HDF5 of something else": (
        lambda b, d: (
            h5py.File(d / "raw.h5", "w").create_dataset("music", data=[1]).file.close(),
            d / "raw.h5",
        )[1],
        "raw.h5.*no screen.*music",
    ),
    "empty folder": (lambda b, d: folder_with(d), "lane.*neither"),
    "folder without barcodes": (
        lambda b, d: folder_with(d, matrix_mtx="%%MatrixMarket\n1 1 1\n1 1 1\n"),
        "lane.*barcodes.tsv",
    ),
    "two genomes": (two_genomes, "GRCh38.*mm10"),
    "legacy h5ad": (legacy, "raw.h5ad|before 0.7"),
    "broken chunk": (broken_chunk, "raw.h5ad.*cannot be read"),
    "NaN": (lambda b, d: changed(b, d, np.nan), "cell 'cell123'.*not a number"),
    "negative": (lambda b, d: changed(b, d, -2), "cell 'cell123'.*negative.*-2"),
    "negative, csc": (lambda b, d: changed(b, d, -2, False), "cell 'cell123'.*negative.*-2"),
    "fraction": (lambda b, d: changed(b, d, 2.5), "cell 'cell123'.*whole number.*2.5"),
    "no counts": (lambda b, d: written(with_X(b, b.X * 0), d), "400 cells have no counts"),
    "cell named twice": (lambda b, d: renamed(b, d, "obs_names"), "cell name.*'cell003'"),
    "gene named twice": (lambda b, d: renamed(b, d, "var_names"), "gene name.*'HBE1'"),
    "no cells": (lambda b, d: written(b[:0].copy(), d), "no cells"),
    "no genes": (lambda b, d: written(b[:, :0].copy(), d), "no genes"),
    "no X": (lambda b, d: written(with_X(b, None), d), "no X.*layer"),
    "no labels": (
        lambda b, d: written(relabelled(b, dict(treatment="x")), d),
        "treatment.*perturbation.key",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind, base, tmp_path):
    make, says = BAD[kind]
    path = make(base, tmp_path)
    before = state(tmp_path)
    status, text = gpovae_(
        "prepare", path, tmp_path / "new/folder/out.h5ad", "--no-doublets", "--quiet"
    )
    assert (
        status == 2
        and text.startswith("Error: ")
        and "Traceback" not in text
        and ".gpovae-" not in text
    )
    assert re.search(says, text.replace("\n", " ")), text
    if kind in ("NaN", "negative", "negative, csc", "fraction"):
        assert f"gene {base.var_names[45]!r}" in text
    assert state(tmp_path) == before and not (tmp_path / "new").exists()


MTX = {  # arguments of `mtx`, what the message says
    "barcodes": (dict(barcodes=[f"cell{i:03d}" for i in range(397)]), "60 x 400.*397 barcodes"),
    "barcode twice": (dict(barcodes=[f"cell{min(i, 398):03d}" for i in range(400)]), "'cell398'"),
    "index too large": (dict(body="61 1 5\n", entries=1), "matrix.mtx|lane"),
    "index zero": (dict(body="1 0 5\n", entries=1), "matrix.mtx|lane"),
    "words": (dict(body="a b c\n", entries=1), "matrix.mtx|lane"),
    "no entries": (dict(body="", entries=0), "no counts|lane"),
    "lines missing": (
        dict(
            body="".join(f"{1 + i % 60} {1 + i // 60} 1\n" for i in range(24_000)), entries=24_001
        ),
        "matrix.mtx.*24,?001|lane.*24,?001",
    ),
}


@pytest.mark.parametrize("kind", [*MTX, "cut-off"])
def test_bad_folders_of_cell_ranger(kind, base, tmp_path):
    arguments, says = MTX.get(kind, ({}, "matrix.mtx|lane"))
    path, settings = mtx(**arguments)(base, tmp_path)
    if kind == "cut-off":
        cut(path / "matrix.mtx.gz", 4000)
    before = state(tmp_path)
    with pytest.raises(GpovaeError) as e:
        prepare_file(path, tmp_path / "out.h5ad", **QUICK | settings)
    assert re.search(says, str(e.value)) and ".gpovae-" not in str(e.value), e.value
    assert state(tmp_path) == before and not list(tmp_path.glob(".gpovae-*"))


def test_commands_that_cannot_be_done(base, tmp_path):
    raw = written(base, tmp_path)
    out = tmp_path / "out.h5ad"
    before = state(tmp_path)
    unwritable = [["prepare", raw, "/proc/out.h5ad"]] if sys.platform == "linux" else []
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        unwritable.append(["prepare", raw, tmp_path / "locked/out.h5ad"])
    for culprit, command in [
        ("raw file itself", ["prepare", raw, raw]),
        ("umis", ["prepare", raw, out, "--layer", "umis"]),
        ("raw", ["prepare", raw, out, "--layer", "raw"]),
        ("nowhere.h5ad", ["prepare", "nowhere.h5ad", out]),
        ("norman", ["prepare", "norman", out]),
        ("symbol", ["prepare", raw, out, "--gene-key", "symbol"]),
        ("lane", ["prepare", raw, out, "--batch-key", "lane"]),
        ("sgRNA", ["prepare", raw, out, "--guide-key", "sgRNA"]),
        ("raw.h5ad", ["prepare", raw, raw / "out.h5ad"]),
        ("GENE1", ["prepare", raw, out, "--held-out", "GENE1"]),
        ("--min-cells 1000", ["prepare", raw, out, "--min-cells", 1000]),
        ("summary.csv", ["prepare", raw, out, "--strong", "summary.csv"]),
        *(("Cannot write", c) for c in unwritable),
    ]:
        status, text = gpovae_(*command, *["--no-doublets", "--quiet"])
        assert status == 2 and culprit in text and "Traceback" not in text, (command, text)
    assert state(tmp_path) == before and not out.exists()


def test_a_screen_by_name(base, expected, tmp_path, monkeypatch):
    monkeypatch.setitem(
        datasets.REGISTRY,
        "tiny",
        datasets.Dataset(
            "Tiny screen",
            lambda: base.copy(),
            dict(perturbation_key="gene"),
            licence="MIT",
            citation="nobody",
        ),
    )
    for again in (False, True):
        status, text = gpovae_(
            "prepare", "tiny", tmp_path / "tiny.h5ad", "--no-doublets", "--quiet"
        )
        assert (
            status == 0 and "400 cells x 60 genes" in text and ("nothing to do" in text) == again
        ), text
    assert_same(results(ad.read_h5ad(tmp_path / "tiny.h5ad")), expected)
    status, text = gpovae_("datasets")
    assert (
        status == 0
        and all(name in text for name in datasets.REGISTRY)
        and "Tiny screen" in text
        and "nobody" in text
    )


# ---- the table of cells


def test_cells_on_the_command_line(base, expected, tmp_path):
    path, settings = mtx()(base, tmp_path)
    for again in (False, True):
        status, text = gpovae_(
            "prepare",
            path,
            tmp_path / "out.h5ad",
            "--cells",
            settings["cells"],
            "--no-doublets",
            "--quiet",
        )
        assert status == 0 and ("nothing to do" in text) == again, text
    assert_same(results(ad.read_h5ad(tmp_path / "out.h5ad")), expected)


def test_cells_without_a_row(base, tmp_path, light):
    path, settings = mtx()(base, tmp_path)
    table = base.obs[["gene"]].rename_axis("barcode")
    table.iloc[:390].to_csv(settings["cells"])
    with pytest.raises(GpovaeError, match="10 cell.*'cell390'.*drop_unlabelled"):
        from_file(path, tmp_path, **settings)
    assert_same(
        results(from_file(path, tmp_path, drop_unlabelled=True, **settings)),
        results(prepared(base[:390])),
    )
    pd.concat([table, table.iloc[:1]]).to_csv(settings["cells"])
    with pytest.raises(GpovaeError, match="cells.csv.*'cell000' more than once"):
        from_file(path, tmp_path, **settings)
    # none of these cells
    table.rename_axis(None).set_axis([f"{b}-1" for b in table.index]).to_csv(settings["cells"])
    with pytest.raises(GpovaeError, match="cell"):
        from_file(path, tmp_path, **settings)


@pytest.mark.parametrize("column", ["note", "flag", "number", "barcode", "a/b"])
def test_further_columns_of_the_table(column, base, expected, tmp_path, light):
    "With gaps, and by any name."
    path, settings = mtx()(base, tmp_path)
    table = pd.read_csv(settings["cells"], index_col=0)
    gaps = np.arange(400) < 5
    table[column] = dict(
        note=np.where(gaps, None, "good"),
        flag=np.where(gaps, None, True),
        number=np.where(gaps, np.nan, 2.5),
    ).get(column, np.arange(400))
    table.rename_axis("cell").to_csv(settings["cells"])
    assert_same(results(from_file(path, tmp_path, **settings)), expected)


def test_the_table_wins_over_the_file(base, tmp_path, light):
    "A table given on purpose is not ignored where the file has a column of that name."
    new = replaced(base, "KLF1", 40, "TAL1")
    table = pd.DataFrame(dict(gene=new), index=base.obs_names.rename("barcode"))
    raw = written(base, tmp_path)
    wanted = results(prepared(relabelled(base, dict(gene=new))))
    for more in ({}, dict(guide="x")):
        table.assign(**more).to_csv(tmp_path / "cells.csv")
        assert_same(results(from_file(raw, tmp_path, cells=str(tmp_path / "cells.csv"))), wanted)


def test_the_table_may_have_a_column_named_like_the_index(base, expected, tmp_path, light):
    a = base.copy()
    a.obs_names = a.obs_names.rename("cell_barcode")
    raw = written(a, tmp_path)
    pd.DataFrame(
        dict(cell_barcode=[f"{b}-1" for b in a.obs_names]), index=pd.Index(a.obs_names, name="cell")
    ).to_csv(tmp_path / "cells.csv")
    assert_same(results(from_file(raw, tmp_path, cells=str(tmp_path / "cells.csv"))), expected)


def test_a_packed_table(base, tmp_path):
    table = packed(labels_csv(base, tmp_path), tmp_path / "cells.csv.gz")
    assert (
        read_cells(table)["gene"].astype(str).loc[base.obs_names].tolist()
        == base.obs["gene"].tolist()
    )


def test_a_cut_off_table(base, tmp_path):
    table = packed(labels_csv(base, tmp_path), tmp_path / "cells.csv.gz")
    with pytest.raises(GpovaeError, match="cells.csv.gz"):
        read_cells(cut(table, 500))


@pytest.mark.parametrize(
    "content", ["", "barcode,gene\n", "barcode\ncell000\ncell001\n", "\x00\x01\x02\n"]
)
def test_tables_that_are_none(content, tmp_path):
    (tmp_path / "cells.csv").write_text(content)
    with pytest.raises(GpovaeError, match="cells.csv"):
        read_cells(tmp_path / "cells.csv")


def test_barcodes_and_labels_are_text(tmp_path):
    (tmp_path / "cells.csv").write_text("barcode,gene\n001,A\n002,NA\n010,None\n")
    table = read_cells(tmp_path / "cells.csv")
    assert list(table.index) == ["001", "002", "010"] and list(table["gene"]) == ["A", "NA", "None"]


def test_tables_with_tabs_and_quotes(tmp_path):
    (tmp_path / "cells.tsv").write_text(
        'cell_barcode\tgene\tnote\nACGT-1\tA\t"a, b"\nGTCA-1\t\tc\n'
    )
    table = read_cells(tmp_path / "cells.tsv")
    assert (
        list(table.index) == ["ACGT-1", "GTCA-1"]
        and table["gene"].isna().tolist() == [False, True]
        and list(table["note"].astype(str)) == ["a, b", "c"]
    )


# ---- open_screen, and AnnData whose counts lie on disk


def test_open_screen(base, expected, tmp_path):
    raw = written(base, tmp_path)
    before = state(raw)
    a = open_screen(raw)
    np.testing.assert_array_equal(a.X[3:70].toarray(), base.X[3:70].toarray())
    np.testing.assert_array_equal(
        a.X[np.array([5, 300, 17])].toarray(), base.X[[5, 300, 17]].toarray()
    )
    prepare(a, **QUICK)
    assert_same(results(a), expected)
    assert not sp.issparse(a.X) and state(raw) == before
    with pytest.raises(GpovaeError, match="backed by.*raw.h5ad.*prepare_file"):
        prepare(ad.read_h5ad(raw, backed="r"), **QUICK)


@pytest.mark.parametrize("layout", [".h5ad.gz", "csc", "dense", "10x 3", "mtx"])
def test_open_screen_refuses_other_layouts(layout, base, tmp_path):
    path, _ = LAYOUTS[layout](base, tmp_path)
    with pytest.raises(GpovaeError, match=f"{path.name}.*by cell"):
        open_screen(path)


def infinite(X):
    X = X.toarray().astype(float)
    X[123, 45] = 1e300
    return X


@pytest.mark.parametrize("kind", ["no X", "too large", "control=0"])
def test_bad_input_in_memory(kind, base):
    a, settings, says = {
        "no X": (with_X(base, None), {}, "layer"),
        "too large": (with_X(base, infinite(base.X)), {}, "'cell123'"),
        "control=0": (base, dict(control=0), "are called '0'"),
    }[kind]
    with pytest.raises(GpovaeError, match=says):
        prepared(a, **settings)


# ---- interrupted, and at size: in processes of their own

# far enough apart: the peaks of two equal runs differ by up to 10 MB
SIZES = (3000, 20_000)
GENES = 1200
CASES = [
    "SIGKILL-copying-old",
    "SIGKILL-matching-new",
    "SIGKILL-writing-old",
    "SIGINT-copying-new",
    "SIGINT-matching-old",
    "SIGINT-writing-new",
]


@pytest.fixture(scope="module")
def outcome(base, tmp_path_factory):
    "What became of the processes: see processes.py. Returns the folder and what they said."
    written(base, folder := tmp_path_factory.mktemp("processes"))
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("processes.py"),
            folder,
            json.dumps([SIZES, GENES]),
            json.dumps(CASES),
            json.dumps(STEPS),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_interruption_leaves_no_target_and_the_old_one_intact(case, outcome, expected):
    folder, said = outcome
    signal, where, old = case.split("-")
    found = said[case]
    assert found["status"] == {"SIGKILL": -9, "SIGINT": 130}[signal] and found["intact"] == (
        True if old == "old" else None
    )
    # a killed process cannot clear away
    kept = [f for f in found["left"] if not (signal == "SIGKILL" and f.startswith(".gpovae-"))]
    # the steps that were done
    assert kept == ["prepared.h5ad"] * (old == "old") + ["prepared.h5ad.part"] * (
        where != "copying"
    )
    if where == "writing":
        assert found["again"] == 0
        assert_same(results(ad.read_h5ad(folder / case / "prepared.h5ad")), expected)


def test_memory_grows_by_a_few_numbers_per_cell(outcome):
    "By less than the counts of these cells take; reading them as one block does not keep to that."
    more = {}
    for name, runs in outcome[1]["peaks"].items():
        assert [status for status, _ in runs] == [0, 0]
        more[name] = (runs[1][1] - runs[0][1]) / (SIZES[1] - SIZES[0])
    # bytes a cell: 500 numbers of 8 bytes, for labels, metrics, matches and their hashes
    assert more["copying"] < 4000 and more["all"] < 4000 < 0.45 * GENES * 8 < more["one block"], (
        more
    )


@pytest.mark.parametrize("layout", ["dense", "by cell"])
def test_counts_of_fewer_cells_than_obs_are_refused(layout, tmp_path):
    "Half of the rows used to be read without a word, and the other cells were lost."
    a = ad.AnnData(np.ones((6, 4), np.float32))
    if layout == "by cell":
        a.X = sp.csr_matrix(a.X)
    a.write_h5ad(tmp_path / "whole.h5ad")
    with h5py.File(tmp_path / "whole.h5ad", "r+") as f:
        if layout == "dense":
            values = f["X"][:3]
            del f["X"]
            f["X"] = values
        else:
            f["X"].attrs["shape"] = [3, 4]
    with pytest.raises(GpovaeError, match=r"\(3, 4\).*6 cells.*4 genes"):
        with source(tmp_path / "whole.h5ad"):
            pass
