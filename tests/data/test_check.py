"`check` says in one table what a preparation would note or refuse."

import json
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import gpovae
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError


def raw(**options):
    settings = dict(n_cells=400, n_genes=40, n_perturbations=4, seed=0) | options
    return gpovae.datasets.simulated(**settings)


def with_labels(a, function):
    labels = a.obs["gene"].astype(str).astype(object)
    a.obs["gene"] = function(labels)
    return a


def some(labels, value, n=4):
    labels.iloc[:n] = value
    return labels


def refusal_and_notes(a, **options):
    "What the preparation itself says."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            gpovae.prepare(a.copy(), progress=False, **options)
            refusal = None
        except GpovaeError as error:
            refusal = str(error)
    return refusal, [str(w.message) for w in caught]


REFUSED = dict(
    unlabelled=lambda: with_labels(raw(), lambda x: some(x, None)),
    single=lambda: with_labels(raw(), lambda x: some(x, "GATA1x", 1)),
    no_control=lambda: with_labels(raw(), lambda x: x.replace("non-targeting", "stuff")),
    no_column=lambda: without_column(),
    normalised=lambda: with_counts(raw(), np.log1p),
    negative=lambda: with_counts(raw(), lambda x: -x),
    twice=lambda: renamed(raw()),
)


def without_column():
    a = raw()
    a.obs = a.obs[["batch"]]
    return a


def with_counts(a, function):
    a.X = sp.csr_matrix(a.X)
    a.X.data = function(a.X.data)
    return a


def renamed(a):
    a.var_names = ["A", "A", *a.var_names[2:]]
    return a


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_that_of_the_preparation(case):
    a = REFUSED[case]()
    refusal, _ = refusal_and_notes(a)
    assert refusal is not None
    found = gpovae.check(a)
    assert found.status == 2
    assert refusal in list(found.table.query("kind == 'refused'")["text"])


def test_a_note_is_that_of_the_preparation():
    a = with_labels(raw(), lambda x: some(x, "AAVS1-site", 20))
    _, notes = refusal_and_notes(a)
    mine = list(gpovae.check(a).table.query("kind == 'note'")["text"])
    assert len(mine) == 1 and mine[0] in notes and "AAVS1-site" in mine[0]
    assert gpovae.check(a).status == 1


def test_several_refusals_are_all_seen():
    a = with_labels(with_counts(raw(), np.log1p), lambda x: some(x, None))
    a.obs.loc[a.obs_names[10], "gene"] = "single"
    found = gpovae.check(a, batch_key="nothing")
    text = " ".join(found.table.query("kind == 'refused'")["text"])
    for words in ("missing for 4", "single cell", "'nothing' not found", "not a whole number"):
        assert words in text
    assert not any(name.startswith("gpovae_") for name in [*a.obs, *a.var])


def test_a_sound_screen_has_facts_only():
    found = gpovae.check(raw(n_batches=2), batch_key="batch")
    facts = found.table.set_index("subject")["text"]
    assert found.status == 0 and set(found.table["kind"]) == {"fact"}
    assert "4 perturbations" in facts["labels"] and "non-targeting" in facts["controls"]
    assert facts["targets"].startswith("4 of 4") and facts["batches"].startswith("2, with")
    assert json.loads(found.to_json())["status"] == 0


def test_columns_that_nobody_named_are_proposed():
    a = raw(n_batches=2)
    facts = gpovae.check(a).table.set_index("subject")["text"]
    assert "batch_key='batch'" in facts["not used"]


@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "zarr"])
def test_files_are_checked_like_screens_in_memory(layout, tmp_path):
    a = with_labels(raw(), lambda x: some(x, None))
    a.X = {"csc": sp.csc_matrix, "dense": lambda X: X.toarray()}.get(layout, sp.csr_matrix)(a.X)
    path = tmp_path / ("a.zarr" if layout == "zarr" else "a.h5ad")
    (a.write_zarr if layout == "zarr" else a.write_h5ad)(path)
    of_file, of_memory = (
        x.table.set_index("subject")["text"] for x in map(gpovae.check, (path, a))
    )
    if layout == "csc":
        assert of_file["counts"].startswith("not looked at")
    pd.testing.assert_series_equal(of_file.drop("counts"), of_memory.drop("counts"))


def test_not_all_counts_are_read(tmp_path):
    a = raw(n_cells=3000)
    a.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f["X/data"][-5:] = 0.5  # of cells that are not looked at
    assert gpovae.check(tmp_path / "a.h5ad").status == 0


def test_a_prepared_screen_is_held_against_its_fingerprint(tmp_path):
    a = raw(n_batches=2)
    gpovae.prepare(a, batch_key="batch", progress=False)
    assert gpovae.check(a).status == 0
    a.write_h5ad(tmp_path / "a.h5ad")
    assert gpovae.check(tmp_path / "a.h5ad").status == 0
    a.obs["batch"] = a.obs["batch"].to_numpy()[::-1]
    a.write_h5ad(tmp_path / "b.h5ad")
    for x in (a, tmp_path / "b.h5ad"):
        found = gpovae.check(x)
        assert found.status == 1 and "the batches (obs['batch'])" in str(found)


def test_the_command_has_three_exit_statuses(tmp_path):
    fine, noted, refused = (tmp_path / f"{name}.h5ad" for name in "abc")
    raw().write_h5ad(fine)
    with_labels(raw(), lambda x: some(x, "AAVS1-site", 20)).write_h5ad(noted)
    with_labels(raw(), lambda x: some(x, None)).write_h5ad(refused)
    results = [CliRunner().invoke(main, ["check", str(p)]) for p in (fine, noted, refused)]
    assert [r.exit_code for r in results] == [0, 1, 2]
    assert "--drop-unlabelled" in results[2].output
    listed = CliRunner().invoke(main, ["check", str(noted), "--json"])
    assert json.loads(listed.stdout)["status"] == 1 == listed.exit_code
    assert CliRunner().invoke(main, ["check", str(tmp_path / "none.h5ad")]).exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "b.h5ad", "c.h5ad"]


def test_what_is_no_screen_is_a_refusal():
    found = gpovae.check(np.ones(3))
    assert found.status == 2 and "not an AnnData" in str(found)
    empty = ad.AnnData(np.zeros((0, 3), np.float32))
    assert gpovae.check(empty).status == 2
