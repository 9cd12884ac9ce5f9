"""A prepared screen as a store of zarr: the same as the .h5ad to the bit, for all that reads it."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import gpovae
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.core.provenance import digest
from gpovae.data.files import open_screen, read_screen
from gpovae.data.parts import part_of
from gpovae.data.prepare import prepare_file
from gpovae.data.stores import file_of
from gpovae.data.stream import DiskRows
from gpovae.experiments.jobs import content
from gpovae.train.memory import sizes

pytestmark = pytest.mark.filterwarnings("ignore:Perturbations move the share")
FAST = dict(doublets=False, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stores")
    gpovae.datasets.simulated(600, 60, 6, seed=1).write_h5ad(place / "raw.h5ad")
    for name in ("a.h5ad", "a.zarr"):
        assert prepare_file(place / "raw.h5ad", place / name, **FAST)
    return place


def assert_same(a, b):
    assert (a.X[:] != b.X[:]).nnz == 0
    assert a.obs.equals(b.obs) and a.var.equals(b.var)
    for part in ("obs", "var", "uns", "obsm"):
        values = [dict(getattr(x, part)) for x in (a, b)]
        assert digest(values[0]) == digest(values[1]), part


def test_store_is_the_file_to_the_bit_and_is_made_once(folder):
    assert_same(open_screen(folder / "a.h5ad"), open_screen(folder / "a.zarr"))
    assert_same(read_screen(folder / "a.h5ad"), read_screen(folder / "a.zarr"))
    assert not prepare_file(folder / "raw.h5ad", folder / "a.zarr", **FAST)
    assert sorted(p.name for p in folder.iterdir()) == ["a.h5ad", "a.zarr", "raw.h5ad"]
    X = zarr.open_group(folder / "a.zarr", mode="r")["X"]
    assert X["data"].metadata.zarr_format == 3 and X["data"].shards is not None


def test_a_store_replaces_a_store_and_no_other_folder(folder, tmp_path):
    target = tmp_path / "a.zarr"
    shutil.copytree(folder / "a.zarr", target)
    (target / "of_before").touch()
    assert prepare_file(folder / "raw.h5ad", target, force=True, **FAST)
    assert not (target / "of_before").exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(GpovaeError, match="inside"):
        shutil.copy(folder / "raw.h5ad", target / "raw.h5ad")
        prepare_file(target / "raw.h5ad", target, **FAST)
    (tmp_path / "other.zarr").mkdir()
    with pytest.raises(GpovaeError, match="is a folder"):
        prepare_file(folder / "raw.h5ad", tmp_path / "other.zarr", **FAST)


def test_what_is_prepared_from_a_store_is_what_is_prepared_from_the_file(folder, tmp_path):
    read_screen(folder / "raw.h5ad").write_zarr(tmp_path / "raw.zarr")
    prepare_file(tmp_path / "raw.zarr", tmp_path / "b.zarr", **FAST)
    a, b = open_screen(folder / "a.h5ad"), open_screen(tmp_path / "b.zarr")
    assert (a.X[:] != b.X[:]).nnz == 0 and a.obs.equals(b.obs)


def test_training_on_disk_is_the_same(folder):
    losses = []
    for name in ("a.h5ad", "a.zarr"):
        model = gpovae.GPOVAE(open_screen(folder / name))
        model.train(max_epochs=1, seed=0, progress=False)
        losses.append(model.history["validation_loss"].iloc[-1])
    assert losses[0] == losses[1]


def test_sizes_blocks_parts_and_hash(folder):
    a, b = (sizes(folder / name) for name in ("a.h5ad", "a.zarr"))
    assert (a.cells, a.genes, a.counts, a.layout) == (b.cells, b.genes, b.counts, b.layout)
    assert (a.responses, a.nodes, a.tested) == (b.responses, b.nodes, b.tested)
    a, b = (open_screen(folder / name).X for name in ("a.h5ad", "a.zarr"))
    assert DiskRows(a).size == DiskRows(b).size and DiskRows(b).file == str(folder / "a.zarr")
    rows = np.array([3, 5, 400])
    part, positions = part_of(b, rows)
    assert part.file == file_of(b.group) and (part[positions] != a[rows]).nnz == 0
    assert content(folder / "a.zarr") == content(folder / "a.zarr") != content(folder / "a.h5ad")


def test_a_store_that_lost_a_file_is_refused(folder, tmp_path):
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    next((tmp_path / "a.zarr/X/data/c").iterdir()).unlink()
    for read in (open_screen, read_screen, lambda p: prepare_file(p, tmp_path / "b.h5ad", **FAST)):
        with pytest.raises(GpovaeError, match="a.zarr.*not whole"):
            read(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").write_text("{")
    for read in (open_screen, read_screen):
        with pytest.raises(GpovaeError, match="cannot be read"):
            read(tmp_path / "a.zarr")


def test_anndata_itself_reads_it(folder):
    assert ad.read_zarr(folder / "a.zarr").shape == ad.read_h5ad(folder / "a.h5ad").shape


def test_what_was_interrupted_leaves_no_half_store_and_is_gone_on_with(
    folder, tmp_path, monkeypatch
):
    def pressed(*_):
        raise KeyboardInterrupt

    files = folder / "raw.h5ad", tmp_path / "a.zarr"
    with monkeypatch.context() as patched:
        patched.setattr("gpovae.data.prepare.write_store", pressed)
        with pytest.raises(KeyboardInterrupt, match="goes on"):
            prepare_file(*files, **FAST)
    assert not files[1].exists()
    assert prepare_file(*files, **FAST)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert_same(open_screen(files[1]), open_screen(folder / "a.zarr"))


def test_commands_take_a_store(folder, tmp_path):
    def run(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    target = tmp_path / "p.zarr"
    run("prepare", folder / "raw.h5ad", target, "--no-doublets", "--quiet")
    trained = tmp_path / "run"
    run("train", target, "--out", trained, "--max-epochs", 1, "--on-disk", "--quiet")
    assert "spread" in run("predict", trained, "--quiet")
    scores = json.loads(run("evaluate", trained, "--quick", "--json", "--quiet"))
    assert "ate_rho" in json.dumps(scores)
