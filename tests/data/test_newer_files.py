"Files of later libraries are read; what is not needed cannot stand in the way."

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.data.elements import plain_table
from gpovae.data.files import open_screen, read_screen
from gpovae.data.layouts import source
from gpovae.data.screen import Screen


def raw():
    return gpovae.datasets.simulated(n_cells=400, n_genes=40, n_perturbations=4, seed=0)


def write_nullable(group, name, values):
    "A nullable string array as the specification of anndata has it."
    values = np.asarray(values, dtype=object)
    if name in group:
        del group[name]
    g = group.create_group(name)
    g.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
    text = np.array(["" if v is None else v for v in values], dtype=object)
    kind = h5py.string_dtype("utf-8")
    values = g.create_dataset("values", data=text, dtype=kind)
    values.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    mask = g.create_dataset("mask", data=np.array([t == "" for t in text]))
    mask.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@pytest.fixture
def newer(tmp_path):
    "Index, a column and the categories of another one are nullable text."
    path = tmp_path / "newer.h5ad"
    a = raw()
    a.obs["gene"] = a.obs["gene"].astype("category")
    a.write_h5ad(path)
    with h5py.File(path, "r+") as f:
        for name, names in (("obs", a.obs_names), ("var", a.var_names)):
            write_nullable(f[name], f[name].attrs["_index"], names)
        write_nullable(f["obs/gene"], "categories", a.obs["gene"].cat.categories)
        write_nullable(f["obs"], "batch", a.obs["batch"].astype(str))
    return path


def test_nullable_text_is_prepared_as_any_other(newer, tmp_path):
    expected = raw()
    gpovae.prepare(expected, batch_key="batch", doublets=False, progress=False)
    gpovae.prepare_file(
        newer, tmp_path / "p.h5ad", batch_key="batch", doublets=False, progress=False
    )
    for prepared in (read_screen(tmp_path / "p.h5ad"), open_screen(tmp_path / "p.h5ad")):
        pd.testing.assert_index_equal(prepared.obs_names, expected.obs_names)
        assert Screen(prepared).identity == Screen(expected).identity
        gpovae.GPOVAE(prepared)


def test_nullable_text_in_memory(newer, tmp_path):
    for a in (read_screen(newer), ad.read_h5ad(newer)):
        gpovae.prepare(a, batch_key="batch", doublets=False, progress=False)
        assert gpovae.check(a).status == 0
    read_screen(newer).write_h5ad(tmp_path / "again.h5ad")  # as text that any version writes


def spoil(path, place):
    "An encoding of the future."
    with h5py.File(path, "r+") as f:
        d = f.create_dataset(place, data=np.arange(3))
        d.attrs.update({"encoding-type": "of-the-future", "encoding-version": "9.9.9"})
        group, _, name = place.rpartition("/")
        if group in ("obs", "var"):
            order = [*f[group].attrs["column-order"], name]
            f[group].attrs["column-order"] = np.array(order, dtype=object)


PLACES = ["uns/future", "obsm/future", "obsp/future", "varm/future", "obs/future", "var/future"]


@pytest.mark.parametrize("place", PLACES)
def test_unknown_encodings_of_what_is_not_needed(place, tmp_path):
    path = tmp_path / "a.h5ad"
    raw().write_h5ad(path)
    spoil(path, place)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpovae.prepare_file(path, tmp_path / "p.h5ad", doublets=False, progress=False)
        read_screen(path)
    notes = [str(w.message) for w in caught if "left out: it was written" in str(w.message)]
    group = place.split("/")[0]
    assert bool(notes) == (group in ("uns", "obsm", "obs", "var"))
    assert all(place in note for note in notes)
    assert gpovae.GPOVAE(read_screen(tmp_path / "p.h5ad")).genes == list(raw().var_names)


def test_an_unknown_encoding_in_a_prepared_file(tmp_path):
    path = tmp_path / "p.h5ad"
    a = raw()
    gpovae.prepare(a, progress=False)
    a.write_h5ad(path)
    spoil(path, "uns/future")
    for read in (read_screen, open_screen):
        with pytest.warns(UserWarning, match="uns/future cannot be read"):
            gpovae.GPOVAE(read(path))


def test_text_of_any_kind_is_plain():
    table = pd.DataFrame(
        dict(
            text=pd.array(["a", None], dtype="string"),
            kind=pd.Categorical(pd.array(["x", "y"], dtype="string"), ordered=True),
            number=pd.array([1, None], dtype="Int64"),
        ),
        index=pd.Index(pd.array(["c", "d"], dtype="string"), name="cell"),
    )
    table.columns = table.columns.astype("string")
    plain = plain_table(table)
    assert plain.index.dtype == object and plain.index.name == "cell"
    assert plain.columns.dtype == object and list(plain) == ["text", "kind", "number"]
    assert plain["text"].dtype == object and plain["text"].isna().tolist() == [False, True]
    assert plain["kind"].cat.categories.dtype == object and plain["kind"].cat.ordered
    assert plain["number"].dtype == "Int64"
    empty = plain_table(pd.DataFrame(index=["a", "b"]))
    assert empty.shape == (2, 0) and list(empty.index) == ["a", "b"]


def test_a_damaged_file_is_still_refused(tmp_path):
    path = tmp_path / "a.h5ad"
    raw().write_h5ad(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(gpovae.GpovaeError), source(path):
        pass
    with pytest.raises(gpovae.GpovaeError):
        read_screen(path)
