"A message says what a file is, and what to do about it."

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.files import open_screen, read_screen
from gpovae.evaluate.generated import score


@pytest.fixture(scope="module")
def raw():
    return gpovae.datasets.simulated(n_cells=300, n_genes=30, n_perturbations=3, seed=0)


def mudata(path):
    with h5py.File(path, "w") as f:
        f.attrs["encoding-type"] = "MuData"
        for name in ("obs", "var", "mod/rna", "mod/prot"):
            f.create_group(name)


def loom(path):
    with h5py.File(path, "w") as f:
        f["matrix"] = np.ones((5, 6))
        for name in ("row_attrs", "col_attrs", "layers"):
            f.create_group(name)


def text(path):
    path.write_text("gene\tcell\n")


FILES = {
    "a.h5mu": (mudata, r"MuData file with prot, rna.*read_h5mu\(path\)\['prot'\]"),
    "renamed.h5ad": (mudata, "MuData file"),
    "a.loom": (loom, r"a loom file.*read_loom\(path\)"),
    "loom.h5ad": (loom, "a loom file"),
    "a.rds": (text, "an object of R.*zellkonverter"),
    "matrix.mtx": (text, "the matrix alone. Name its folder"),
    "counts.csv": (text, r"a table of text.*read_csv"),
    "counts.tsv.gz": (text, r"a table of text.*read_csv"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_screen_is_called_by_its_name(name, tmp_path):
    write, words = FILES[name]
    path = tmp_path / name
    write(path)
    for read in (read_screen, open_screen, lambda p: gpovae.prepare_file(p, tmp_path / "p.h5ad")):
        with pytest.raises(GpovaeError, match=words):
            read(path)
    assert words.split(".*")[0].strip("\\(") in str(gpovae.check(path)).replace("\\", "")


def barcodes(index):
    return [f"{'ACGT'[i % 4]}CGTACGTAC{i:04d}".replace("0", "A") + "-1" for i in range(len(index))]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda b: b + "x7", "None of the 300 barcodes.*Is it the table of this screen"),
        (lambda b: b.removesuffix("-1"), "differ only in what stands before or behind"),
    ],
)
def test_barcodes_that_match_nothing(raw, change, words, tmp_path):
    a = raw.copy()
    a.obs_names = [f"cell{i}-1" for i in range(a.n_obs)]
    gene = a.obs.pop("gene")
    a.write_h5ad(tmp_path / "a.h5ad")
    table = pd.DataFrame(dict(barcode=[change(b) for b in a.obs_names], gene=gene.to_numpy()))
    table.to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(GpovaeError, match=words):
        gpovae.prepare_file(tmp_path / "a.h5ad", tmp_path / "p.h5ad", tmp_path / "cells.csv")


def test_barcodes_that_match_few_cells_are_noted(raw, tmp_path):
    a = raw.copy()
    gene = a.obs.pop("gene")
    a.write_h5ad(tmp_path / "a.h5ad")
    gene.iloc[:140].to_csv(tmp_path / "cells.csv")
    found = gpovae.check(tmp_path / "a.h5ad", cells=tmp_path / "cells.csv", min_cells=2)
    assert "names 140 of the 300 cells" in str(found)


@pytest.mark.parametrize(
    "value, shown",
    [(6.000003, r"6\.000003"), (0.5, r"\(0\.5\)"), (1e6 + 0.25, r"1\.00000025e\+06")],
)
def test_a_number_is_shown_as_it_differs(raw, value, shown):
    a = raw.copy()
    X = a.X.toarray().astype(np.float32)
    X[3, 4] = value
    a.X = X
    with pytest.raises(GpovaeError, match=f"is not a whole number.*{shown}"):
        gpovae.prepare(a, progress=False)


def test_rounding_has_a_remedy_of_its_own(raw):
    a = raw.copy()
    a.X = sp.csr_matrix(a.X.toarray() * (1 + 1e-6))
    with pytest.raises(GpovaeError, match="whole numbers but for rounding"):
        gpovae.prepare(a, progress=False)


def test_layers_that_are_none(raw):
    a = raw.copy()
    a.raw = a
    with pytest.raises(GpovaeError, match=r"adata.raw.to_adata\(\)"):
        gpovae.prepare(a, layer="raw", progress=False)
    with pytest.raises(GpovaeError, match="leave layer away"):
        gpovae.prepare(a, layer="X", progress=False)


@pytest.mark.parametrize(
    "value, words",
    [(-0.001, r"-0\.001.*clip\(0\)"), (-3, "-3.*log-normalised"), (np.nan, "nan.*log-normalised")],
)
def test_score_names_the_value(raw, value, words):
    real = raw.copy()
    real.X = np.log1p(1e4 * real.X.toarray() / real.X.sum(1).A1[:, None])
    drawn = real.copy()
    drawn.X[3, 3] = value
    with pytest.raises(GpovaeError, match=words):
        score(drawn, real, perturbation_key="gene")


def test_names_from_arrays_are_shown_as_text(raw):
    with pytest.raises(GpovaeError) as caught:
        gpovae.prepare(raw.copy(), control=np.str_("NTT"), progress=False)
    assert "'NTT'" in str(caught.value) and "np." not in str(caught.value)
    assert str(GpovaeError(f"{np.float32(0.5)!r}, {[np.str_('a'), np.str_('b')]!r}")) == (
        "0.5, ['a', 'b']"
    )
    assert str(GpovaeError("np.array is meant, as np.sum(x) too")).startswith("np.array is meant")
