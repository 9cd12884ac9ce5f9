"""Training from disk.

Every cell comes once, in an order that the seed decides and no thread can change, mixed as well as
in memory, with memory that does not follow the cells.
"""

import re
import shutil
import time
import tracemalloc
import warnings
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse as sp
import torch
from click.testing import CliRunner
from lightning_fabric.utilities.apply_func import move_data_to_device

import gpovae.data.blocks
import gpovae.train.build
from gpovae import GPOVAE, datasets, prepare
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.core.memory import Free
from gpovae.data import stream
from gpovae.data.files import open_screen, read_screen, write_screen
from gpovae.data.minibatch import Batch, Cells
from gpovae.data.reorder import Source
from gpovae.data.screen import Key, Screen
from gpovae.data.stream import DiskRows, ahead, dense_pieces, windows
from gpovae.model.presets import make_settings
from gpovae.train.build import build
from gpovae.train.loop import fit
from gpovae.train.memory import SHARE, Needs, choose, evaluating, sizes, training

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("stream")]


@pytest.fixture(scope="module")
def memory():
    "A prepared screen, its cells sorted by perturbation: the worst order for training."
    raw = datasets.simulated(n_cells=1500, n_genes=90, n_perturbations=12, seed=3)
    raw = raw[np.argsort(raw.obs["gene"].astype(str), kind="stable")].copy()
    return prepare(raw, "gene", "non-targeting", doublets=False, progress=False)


def written(memory, folder, layout):
    a = memory.adata
    path = folder / f"{layout}.h5ad"
    if layout == "chunks":
        write_screen(path, Source(a.obs, a.var, lambda: [a.X], dict(a.obsm), dict(a.uns)))
    elif layout == "layer":
        a = ad.AnnData(
            a.X.log1p(),
            obs=a.obs,
            var=a.var,
            obsm=dict(a.obsm),
            uns=dict(a.uns) | {Key.screen: dict(a.uns[Key.screen]) | dict(layer="counts")},
            layers=dict(counts=a.X),
        )
        a.write_h5ad(path)
    else:
        a.write_h5ad(path, compression="gzip" if layout == "gzip" else None)
    if layout == "foreign":
        with h5py.File(path, "a") as f:
            for name, kind in (("data", ">f8"), ("indices", ">i8")):
                x = f["X"].pop(name)[:]
                f["X"][name] = x.astype(kind)
    return path


@pytest.fixture(scope="module")
def path(memory, tmp_path_factory):
    return written(memory, tmp_path_factory.mktemp("stream"), "chunks")


@pytest.fixture
def disk(path):
    return Screen(open_screen(path))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    "Some 80 blocks of about a dozen cells, in three windows or so."
    monkeypatch.setattr(stream, "BLOCK", 2**10)
    monkeypatch.setattr(stream, "WINDOW", 2**14)


def rows(loader):
    return [b.row.numpy() for b in loader]


def assert_equal(a: Batch, b: Batch):
    for name, x, y in zip(a._fields, a, b, strict=False):
        if name == "whole" and x is not None:
            assert_equal_whole(x, y)
        else:
            assert x is y is None or torch.equal(x, y), name


def assert_equal_whole(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=False)) and a[3:] == b[3:]


@pytest.mark.parametrize(
    "layout, split",
    [
        ("chunks", "train"),
        ("chunks", "validation"),
        ("plain", "train"),
        ("gzip", "train"),
        ("layer", "train"),
        ("foreign", "train"),
    ],
)
def test_batches_are_those_of_memory(memory, tmp_path, layout, split):
    there = Cells(Screen(open_screen(written(memory, tmp_path, layout))), split)
    here = Cells(memory, split)
    assert isinstance(there.X, DiskRows) and len(list(windows(there.X))) > (split == "train")
    # several windows follow the file, and a single one the names
    several = len(list(windows(there.X))) > 1
    same = Cells(memory, split, file_order=several).loader(64, shuffle=False)
    for a, b in zip(there.loader(64, shuffle=False), same, strict=True):
        assert_equal(a, b)
    seen = []
    for a in there.loader(64, seed=1):
        at = np.searchsorted(here.rows, a.row)
        seen.append(at)
        assert_equal(a, here[at])
    assert sorted(np.concatenate(seen)) == list(range(len(here)))  # every cell once
    assert not np.array_equal(np.concatenate(seen), np.sort(np.concatenate(seen)))


@pytest.mark.parametrize(
    "block, window", [(1, 1), (1, 2**30), (2**30, 1), (2**30, 2**30), (2**9, 2**11)]
)
def test_any_size_of_blocks_and_windows(memory, disk, monkeypatch, block, window):
    monkeypatch.setattr(stream, "BLOCK", block)
    monkeypatch.setattr(stream, "WINDOW", window)
    cells = Cells(disk, "validation")
    assert sorted(np.concatenate(rows(cells.loader(50)))) == cells.rows.tolist()
    expected = cells.rows[cells.order] if stream.n_windows(cells.X) == 1 else cells.rows
    assert np.array_equal(np.concatenate(rows(cells.loader(50, shuffle=False))), expected)


def test_cells_without_counts(tmp_path):
    X = sp.random(40, 6, 0.2, format="csr", random_state=0, dtype=np.float32)
    X[:10] = 0
    X[-5:] = 0
    X.eliminate_zeros()
    write_screen(
        tmp_path / "a.h5ad",
        Source(
            pd.DataFrame(index=[f"c{i}" for i in range(40)]),
            pd.DataFrame(index=list("abcdef")),
            lambda: [X],
            {},
            {},
        ),
    )
    disk = DiskRows(open_screen(tmp_path / "a.h5ad").X)
    for i in (slice(None), np.arange(10), np.array([], int), np.array([39, 0, 20, 20])):
        assert (disk[i] != X[i]).nnz == 0
    assert sorted(np.concatenate(list(windows(disk, np.random.default_rng(0))))) == list(range(40))


def test_the_seed_decides_the_order_of_every_epoch(disk):
    cells = Cells(disk, "train")
    a = cells.loader(64, seed=4)
    b = cells.loader(64, seed=4)
    c = cells.loader(64, seed=5)
    first, second = (np.concatenate(rows(a)) for _ in range(2))
    assert np.array_equal(first, np.concatenate(rows(b))) and np.array_equal(
        second, np.concatenate(rows(b))
    )
    assert not np.array_equal(first, second) and not np.array_equal(first, np.concatenate(rows(c)))
    stopped = cells.loader(64, seed=4)
    iter(stopped)
    next(iter(stopped))  # asked for, and left after one batch
    assert np.array_equal(second, np.concatenate(rows(stopped)))


def test_no_thread_decides_anything(disk, monkeypatch):
    cells = Cells(disk, "train")
    read = DiskRows.__getitem__
    rng = np.random.default_rng()
    expected = list(cells.loader(64, seed=2))

    def slow(self, i):
        time.sleep(rng.random() / 50)
        return read(self, i)

    monkeypatch.setattr(DiskRows, "__getitem__", slow)
    for a, b in zip(expected, cells.loader(64, seed=2), strict=True):
        assert_equal(a, b)
        time.sleep(rng.random() / 100)


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_parts_make_the_whole(memory, disk, where, world):
    cells = Cells(memory if where == "memory" else disk, "train")
    # what is left over is no batch for seven
    size = next(s for s in range(100, 200) if 1 < len(cells) % s < 7)
    alone = list(cells.loader(size, seed=1))
    parts = [list(cells.loader(size, seed=1, rank=r, world=world)) for r in range(world)]
    left = len(cells) % size
    if left < world:
        last = [torch.cat(x) for x in zip(*(b[:7] for b in alone[-2:]), strict=False)]
        alone[-2:] = [
            alone[-1]._replace(
                **dict(zip(Batch._fields, last, strict=False)),
                row=torch.cat([b.row for b in alone[-2:]]),
            )
        ]
    assert {len(p) for p in parts} == {len(alone)} == {len(cells.loader(size, rank=0, world=world))}
    for b, *some in zip(alone, *parts, strict=False):
        assert [len(p.row) for p in some] == [
            len(x) for x in np.array_split(np.arange(len(b.row)), world)
        ] and min(len(p.row) for p in some)
        for name in ("x", "library", "label", "fail", "lane", "partner", "paired", "row"):
            assert torch.equal(torch.cat([getattr(p, name) for p in some]), getattr(b, name)), name
        for p in some:
            assert p.whole.parts == world and all(
                torch.equal(getattr(p.whole, k), getattr(b, k)) for k in ("label", "fail", "paired")
            )
            assert torch.equal(p.row, b.row[p.whole.start : p.whole.start + len(p.row)])
    assert alone[0].whole is None
    moved = move_data_to_device(parts[1][0], torch.device("meta"))  # as Lightning does
    assert (
        isinstance(moved, Batch)
        and moved.whole.label.is_meta
        and moved.whole[3:] == parts[1][0].whole[3:]
    )


def test_training_is_the_same_in_one_window(memory, disk, monkeypatch):
    "Same seed, same model: on disk nothing differs but where the counts come from."

    def run(screen):
        model = GPOVAE(screen.adata)
        return model.train(max_epochs=2, seed=1, progress=False), model

    monkeypatch.setattr(stream, "WINDOW", 2**30)
    a, one = run(memory)
    b, other = run(disk)
    pd.testing.assert_frame_equal(a, b, rtol=1e-6)
    np.testing.assert_allclose(one.predict().X, other.predict().X, rtol=1e-5, atol=1e-6)


SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2))


@pytest.mark.parametrize("window", [2**14, 2**23])
def test_a_backed_screen_gives_the_same_effects_or_says_so(path, monkeypatch, window):
    monkeypatch.setattr(stream, "WINDOW", window)

    def effects(adata):
        model = GPOVAE(adata, **SMALL)
        model.train(max_epochs=1, progress=False)
        return model.predict().X

    in_memory = effects(ad.read_h5ad(path))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        backed = effects(ad.read_h5ad(path, backed="r"))
    said = any("another order of cells than in memory" in str(n.message) for n in notes)
    assert said != np.array_equal(in_memory, backed)
    assert said == (window == 2**14)


def perturbations_in_a_batch(loader):
    return np.mean([len(set(b.label.tolist())) for b in loader])


def late_loss(screen):
    """Mean validation loss of the second to fourth epoch, with large steps, so that what a batch
    holds matters.
    """
    settings = make_settings(
        "corrected",
        latent=8,
        basal=(32, 1),
        embedding=(32, 1),
        decoder=(32, 1),
        batch_size=32,
        learning_rate=1e-2,
        decoder_prior=None,
    )
    vae, labels, batches = build(screen, settings)
    return (
        fit(vae, screen, settings, labels, batches, max_epochs=4, progress=False)
        .validation_loss[1:]
        .mean()
    )


def test_training_is_as_good_as_in_memory(memory, disk, monkeypatch):
    full = late_loss(memory)
    mixed = late_loss(disk)
    monkeypatch.setattr(stream, "BLOCK", 2**14)
    monkeypatch.setattr(stream, "WINDOW", 1)  # one large block at a time: the contrast
    unmixed = late_loss(disk)
    assert abs(mixed - full) < 0.5 * (unmixed - full), (full, mixed, unmixed)


def test_blocks_are_mixed_well_enough(memory, disk, monkeypatch):
    here = Cells(memory, "train")
    there = Cells(disk, "train")
    full = perturbations_in_a_batch(here.loader(32))
    mixed = perturbations_in_a_batch(there.loader(32))
    monkeypatch.setattr(stream, "WINDOW", 1)  # one block at a time
    unmixed = perturbations_in_a_batch(there.loader(32))
    assert mixed > 0.85 * full and unmixed < 0.5 * full, (full, mixed, unmixed)


def growth(memory, tmp_path, work, times=(1, 4)):
    """MB that `work` allocates at most, and MB of the counts.

    By how much they grow from a screen that holds every cell once to one that holds it four
    times.
    """
    found = []
    a = memory.adata
    for k in times:
        obs = pd.concat([a.obs] * k)
        obs.index = [f"c{i}" for i in range(len(obs))]
        path = tmp_path / f"{work.__name__}{k}.h5ad"
        write_screen(path, Source(obs, a.var, lambda k=k: iter([a.X] * k), {}, dict(a.uns)))
        screen = Screen(open_screen(path))
        if not found:
            work(screen)  # what is compiled or cached is not counted
        tracemalloc.start()
        work(screen)
        found.append(
            (
                tracemalloc.get_traced_memory()[1] / 1e6,
                k * (a.X.data.nbytes + a.X.indices.nbytes) / 1e6,
            )
        )
        tracemalloc.stop()
    return found[-1][0] - found[0][0], found[-1][1] - found[0][1]


def around_training(screen):
    "All that training does with the counts, without the optimisation."
    from gpovae.evaluate.effects import noise_variance, observed_effects
    from gpovae.model.prediction import control_context

    vae, labels, batches = build(screen, make_settings())
    for split, shuffle in (("train", True), ("validation", False)):
        for _ in Cells(screen, split, labels, batches).loader(64, shuffle):
            pass
    control_context(vae, screen, batches)
    observed_effects(screen.adata, "train")
    noise_variance(screen.adata, "train")


def test_memory_does_not_follow_the_cells(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(gpovae.data.blocks, "BLOCK", 90 * 200)
    # takes long, and no cells
    monkeypatch.setattr(gpovae.train.build, "fit_network", lambda *_, **__: None)
    whole, counts = growth(memory, tmp_path, lambda screen: screen.counts[:])
    assert whole > 0.9 * counts  # what the bound below would catch
    for name in ("to_memory", "__getitem__"):
        monkeypatch.setattr(ad.abc.CSRDataset, name, None)
    work, counts = growth(memory, tmp_path, around_training)
    per_cell = 1e6 / (3 * memory.adata.n_obs)  # of the cells that the larger screen has more
    # bytes: name, labels and the like (measured: 150), at any number of genes
    assert work * per_cell < 200 < 0.5 * counts * per_cell, (work, counts)


def test_ahead():
    assert list(ahead([])) == [] and list(ahead(range(5), 9)) == list(range(5))

    def broken():
        yield 1
        raise OSError("gone")

    stream = ahead(broken(), 3)
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)


@pytest.mark.parametrize("seed", range(5))
def test_dense_pieces(seed):
    rng = np.random.default_rng(seed)
    X = sp.random(300, 7, 0.3, format="csr", random_state=seed, dtype=np.float32)
    cuts = np.sort(rng.integers(0, 301, rng.integers(0, 9)))
    sizes = np.diff(np.r_[0, np.sort(rng.choice(np.arange(1, 300), 12, replace=False)), 300])
    parts = [tuple(np.sort(rng.integers(0, n + 1, 2)) + [0, 0]) for n in sizes]
    parts = [(a, b) if a < b else (0, n) for (a, b), n in zip(parts, sizes, strict=False)]
    matrices = [
        X[a:b] for a, b in zip(np.r_[0, cuts], np.r_[cuts, 300], strict=False)
    ]  # some of them empty
    start = np.r_[0, np.cumsum(sizes)]
    for piece, at, (a, b) in zip(dense_pieces(matrices, sizes, parts), start, parts, strict=False):
        assert np.array_equal(piece, X[at + a : at + b].toarray())


def change(path, tmp_path, f):
    with h5py.File(shutil.copy(path, tmp_path / "bad.h5ad"), "a") as file:
        f(file)
    return tmp_path / "bad.h5ad"


def beyond(f):
    f["X/indices"][:] = 90


def negative(f):
    f["X/indices"][7] = -1


def short(f):
    f["X/data"].resize((1000,))


def backwards(f):
    f["X/indptr"][5] = 0


def lost(f):
    f["X/indptr"].resize((100,))


@pytest.mark.parametrize(
    "how, message",
    [
        (beyond, "genes beyond its 90"),
        (negative, "genes beyond"),
        (short, "do not belong together"),
        (backwards, "do not belong together"),
        (lost, "do not belong together"),
    ],
)
def test_damaged_counts(path, tmp_path, how, message):
    with pytest.raises(GpovaeError, match=message) as e:
        for _ in Cells(Screen(open_screen(change(path, tmp_path, how))), "train").loader(64):
            pass
    assert "bad.h5ad" in str(e.value)


def test_a_file_that_was_cut_off(path, tmp_path):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(GpovaeError, match="cut.h5ad.*cannot be read.*cut off"):
        open_screen(cut)
    for where in ("--on-disk", "--in-memory"):
        result = CliRunner().invoke(
            main, ["train", str(cut), "--out", str(tmp_path / "run"), where, "--quiet"]
        )
        assert (
            result.exit_code == 2
            and "cannot be read" in result.output
            and not (tmp_path / "run").exists()
        )


def test_a_chunk_that_cannot_be_read(memory, tmp_path):
    path = written(memory, tmp_path, "gzip")
    with h5py.File(path) as f:
        chunk = f["X/data"].id.get_chunk_info(0)
    with path.open("r+b") as f:
        f.seek(chunk.byte_offset)
        f.write(bytes(chunk.size))
    with pytest.raises(GpovaeError, match="gzip.h5ad cannot be read"):
        for _ in Cells(Screen(open_screen(path)), "train").loader(64):
            pass


def test_counts_by_gene_are_refused(memory, tmp_path):
    a = memory.adata
    by_gene = tmp_path / "csc.h5ad"
    ad.AnnData(a.X.tocsc(), obs=a.obs, var=a.var, uns=dict(a.uns)).write_h5ad(by_gene)
    with pytest.raises(GpovaeError, match="by cell"):
        open_screen(by_gene)
    with pytest.raises(GpovaeError, match="by gene.*gpovae prepare"):
        Cells(Screen(ad.read_h5ad(by_gene, backed="r")), "train")
    result = CliRunner().invoke(
        main, ["train", str(by_gene), "--out", str(tmp_path / "run"), "--on-disk"]
    )
    assert result.exit_code == 2 and "gpovae prepare" in result.output


def test_the_published_objective_needs_memory(disk):
    for wanted in (dict(partner="median"), dict(cell_shift=True)):
        with pytest.raises(GpovaeError, match="--in-memory"):
            Cells(disk, "train", **wanted)


LITTLE, ENOUGH, MUCH = "little", "for the disk", "much"


@pytest.fixture
def free(path, monkeypatch):
    "Says what is free; a window is so small that a training from disk takes less."

    def says(amount):
        monkeypatch.setattr(stream, "WINDOW", 1)
        needs = training(sizes(path), make_settings())
        assert needs.on_disk < needs.in_memory
        amounts = {LITTLE: 1000, ENOUGH: int(needs.on_disk / SHARE) + 1, MUCH: 2**40}
        available = amounts[amount]
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=available)
        )
        return path

    return says


@pytest.mark.parametrize(
    "amount, options, expected",
    [
        (MUCH, [], "are read into memory"),
        (ENOUGH, [], "stay on disk"),
        (MUCH, ["--on-disk"], "stay on disk"),
        (LITTLE, ["--on-disk"], "stay on disk"),
        (LITTLE, ["--in-memory"], "are read into memory"),
    ],
)
def test_where_the_counts_lie(tmp_path, monkeypatch, free, amount, options, expected):
    path = free(amount)
    seen = []

    def train(self, **_):
        seen.append(isinstance(self.adata.X, ad.abc.CSRDataset))
        raise GpovaeError("that will do")

    monkeypatch.setattr(GPOVAE, "train", train)
    result = CliRunner().invoke(
        main, ["train", str(path), "--out", str(tmp_path / "run"), *options]
    )
    assert f"Counts {expected}" in result.output, result.output
    assert seen == [expected == "stay on disk"]


@pytest.mark.parametrize(
    "amount, options, needs",
    [
        (LITTLE, [], r"MiB in memory, \d+ MiB on disk"),
        (LITTLE, ["--preset", "paper"], r"MiB in memory, and"),
    ],
)
def test_what_exceeds_the_memory_is_refused(path, tmp_path, free, amount, options, needs):
    free(amount)
    result = CliRunner().invoke(
        main, ["train", str(path), "--out", str(tmp_path / "run"), *options]
    )
    assert result.exit_code == 2 and re.search(needs, result.output)
    for words in ("free by the machine", "70%", "--on-disk", "GPOVAE_MEMORY=16G"):
        assert words in result.output
    assert not (tmp_path / "run/settings.json").exists()


def test_what_the_user_asks_for_is_done_with_a_note():
    needs, little = Needs(3e9, 2e9), Free(1, "the machine")
    for on_disk in (True, False):
        choice = choose("training", needs, little, on_disk)
        assert choice.on_disk == on_disk and "It may be killed" in choice.too_much
    # neither place is better by being larger
    assert not choose(
        "training", Needs(2e9, 3e9), Free(int(2e9 / SHARE) + 1, "the machine")
    ).on_disk


def test_what_the_user_allows_may_be_used(path, tmp_path, monkeypatch, free):
    free(LITTLE)
    monkeypatch.setenv("GPOVAE_MEMORY", "1T")
    options = ["--max-epochs", "1", "--set", "particles=1"]
    result = CliRunner().invoke(
        main, ["train", str(path), "--out", str(tmp_path / "run"), *options]
    )
    assert result.exit_code == 0 and "1024 GiB free by GPOVAE_MEMORY" in result.output


def test_a_run_is_loaded_where_there_is_room(path, tmp_path, free):
    model = GPOVAE(read_screen(path))
    model.train(max_epochs=1, progress=False)
    model.save(tmp_path, data=path)
    free(MUCH)
    expected = GPOVAE.load(tmp_path).evaluate(thorough=False)
    free(LITTLE)
    with pytest.raises(GpovaeError, match="Evaluation takes about .* in memory, .* on disk"):
        GPOVAE.load(tmp_path)
    needs = evaluating(sizes(path), make_settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPOVAE_MEMORY", str(int(needs.on_disk / SHARE) + 1))
        with pytest.warns(UserWarning, match="Counts stay on disk"):
            model = GPOVAE.load(tmp_path)
    assert isinstance(model.adata.X, ad.abc.CSRDataset)
    assert model.evaluate(thorough=False).to_json() == expected.to_json()


def test_train_on_disk_from_the_shell(path, tmp_path):
    result = CliRunner().invoke(
        main,
        ["train", str(path), "--out", str(tmp_path / "run"), "--on-disk", "--max-epochs", "1"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0 and "Counts stay on disk" in result.output
    model = GPOVAE.load(tmp_path / "run")
    assert model.predict().n_obs == 12 and np.isfinite(model.predict().X).all()
