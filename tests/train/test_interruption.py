"""What is left when a process is killed, a disk is full, or someone presses Ctrl-C: nothing
half-written, and a training that goes on to the same bits. Kills are real (SIGKILL), at points that
are chosen.
"""

import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import papermill
import pytest
from click.testing import CliRunner
from safetensors import safe_open

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.core.provenance import complete
from gpovae.data import matching, pipeline, prepare, quality, stream
from gpovae.data.files import open_screen
from gpovae.network.grn import GRN
from gpovae.train import build, checkpoint
from gpovae.train.checkpoint import STATE, Checkpoint
from gpovae.train.step import TrainingLoop

# one process prepares the screen for all
pytestmark = pytest.mark.xdist_group("interruption")
SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64)
OPTIONS = [
    "--set",
    "latent=4",
    "--set",
    "basal=16x1",
    "--set",
    "embedding=16x2",
    "--set",
    "decoder=16x2",
    "--set",
    "batch_size=64",
    "--max-epochs",
    "6",
    "--quiet",
]
RUN = ["history.csv", "model.safetensors", "settings.json"]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def in_epoch(epoch, how=die):
    step = TrainingLoop.training_step

    def stopped(self, batch, i):
        if self._trainer is not None and self.current_epoch == epoch and i == 1:
            how()
        return step(self, batch, i)

    TrainingLoop.training_step = stopped


def before_moving(name):
    replace = os.replace
    os.replace = lambda a, b: die() if Path(b).name == name else replace(a, b)


def in_the_middle_of(module, name, target):
    "A writer that writes half and dies."

    def half(*arguments, **_):
        Path(arguments[target]).write_bytes(b"half of it" * 100)
        die()

    setattr(module, name, half)


def small_files():
    # the error of a disk that takes no more, from the system itself
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


POINTS = {
    "none": lambda: None,
    "epoch 1": lambda: in_epoch(1),
    "epoch 3": lambda: in_epoch(3),
    "half a state": lambda: in_the_middle_of(checkpoint, "save_file", 1),
    "full": small_files,
    **{
        f"before {n} is moved": functools.partial(before_moving, n)
        for n in (STATE, *RUN, "prepared.h5ad", "report.html")
    },
    "fourth step": lambda: setattr(pipeline, "graph_nodes", die),
    "all is done": lambda: [
        setattr(module, "choose_rho" if module is matching else "find_doublets", die)
        for module in (quality, matching)
    ],
    "half the annotations": lambda: in_the_middle_of(prepare, "write_annotations", 0),
    "half a notebook": lambda: in_the_middle_of(papermill, "execute_notebook", 1),
}


def die_one_by_one(place, *lines):
    """In a process of its own.

    Forks one for every [point, arguments], and prints what became of it and what it left.
    """
    for point, arguments in lines:
        with open(f"{place}/said", "w") as said:
            if not (child := os.fork()):
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                prepare._WORTH = 0  # results are written after every step
                POINTS[point]()
                try:
                    main(arguments, prog_name="gpovae")
                except SystemExit as e:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(e.code or 0)
                os._exit(99)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        folder = Path(
            arguments[arguments.index("--out") + 1]
            if "--out" in arguments
            else Path(arguments[2]).parent
            if arguments[0] == "prepare"
            else place
        )
        print(
            json.dumps(
                [
                    status,
                    sorted(p.name for p in folder.iterdir()) if folder.exists() else [],
                    Path(f"{place}/said").read_text(),
                    _epochs(folder),
                    _seed(folder),
                ]
            ),
            flush=True,
        )


def _epochs(folder):
    if not (folder / STATE).exists():
        return 0
    with safe_open(folder / STATE, "pt") as f:
        return len(json.loads(f.metadata()["history"]))


def _seed(folder):
    "Of a run that can be loaded."
    try:
        return GPOVAE.load(folder, data=False).seed
    except GpovaeError as e:
        return str(e)


def died(place, lines):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from"
                f" test_interruption import die_one_by_one; die_one_by_one({str(place)!r},"
                f" *{lines!r})"
            ),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    a = gpovae.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=4, seed=0)
    a.write_h5ad(folder / "raw.h5ad")
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    a.write_h5ad(folder / "screen.h5ad")
    return folder


def left(names):
    return [n for n in names if not n.startswith(".gpovae-")]


def test_killed_trainings_go_on_to_the_same_bits(place):
    def train(out, seed):
        return [
            "train",
            f"{place}/screen.h5ad",
            "--out",
            f"{place}/{out}",
            "--seed",
            seed,
            "--force",
            *OPTIONS,
        ]

    points = [
        "epoch 1",
        "half a state",
        f"before {STATE} is moved",
        "epoch 3",
        "full",
        "before history.csv is moved",
        "before model.safetensors is moved",
        "before settings.json is moved",
        "none",
    ]
    whole, older, *found = died(
        place,
        [
            ["none", train("whole", "0")],
            ["none", train("run", "7")],
            *([p, train("run", "0")] for p in points),
        ],
    )
    assert whole[:2] == older[:2] == [0, RUN] and older[4] == 7
    for point, (status, names, said, _, seed) in zip(points, found, strict=True):
        if point == "full":
            assert (
                status == 2
                and said.count("\n") == 1
                and "Cannot write the state of the training" in said
                and os.strerror(errno.EFBIG) in said
                and "Make room" in said
            ), said
        elif point != "none":
            assert status == -signal.SIGKILL, (point, said)
        if point == "none":
            # nothing is left of nine processes
            assert status == 0 and names == RUN and seed == 0, (names, said)
        elif point in points[:6]:
            # the run that was there is as it was
            assert left(names) == [*RUN, STATE] and seed == 7, (point, names, seed)
        else:
            # half old, half new: refused
            assert STATE in names and "does not belong to its settings.json" in seed, (
                point,
                names,
                seed,
            )
    epochs = [f[3] for f in found]
    assert epochs == sorted(epochs[:-1]) + [0] and epochs[0] >= 1 and epochs[-2] == 6, epochs
    for name in RUN[:2]:
        assert (place / "run" / name).read_bytes() == (place / "whole" / name).read_bytes(), name


def test_killed_preparations_go_on_and_reports_leave_nothing(place):
    prepared = [
        "prepare",
        f"{place}/raw.h5ad",
        f"{place}/new/prepared.h5ad",
        "--perturbation-key",
        "gene",
        "--control",
        "non-targeting",
        "--no-doublets",
        "--quiet",
    ]
    train(ad.read_h5ad(place / "screen.h5ad"), epochs=1).save(place / "told")
    *killed, last, report = died(
        place,
        [
            *(
                [p, prepared]
                for p in (
                    "half the annotations",
                    "fourth step",
                    "before prepared.h5ad is moved",
                    "all is done",
                    "none",
                )
            ),
            ["half a notebook", ["report", f"{place}/told", "--quiet"]],
        ],
    )
    assert (
        [k[0] for k in killed] == [-signal.SIGKILL] * 3 + [0]
        and last[0] == 0
        and report[0] == -signal.SIGKILL
    ), (killed, last, report)
    assert [left(k[1]) for k in killed] == [
        [],
        *[["prepared.h5ad.part"]] * 2,
        ["prepared.h5ad"],
    ] and "nothing to do" in last[2]
    assert [p.name for p in (place / "new").iterdir()] == ["prepared.h5ad"]
    again = gpovae.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=4, seed=0)
    gpovae.prepare(
        again, perturbation_key="gene", control="non-targeting", doublets=False, progress=False
    )
    pd.testing.assert_frame_equal(
        ad.read_h5ad(place / "new/prepared.h5ad").obs, again.obs, check_exact=True
    )
    names = sorted(p.name for p in (place / "told").iterdir())
    assert left(names) == RUN != names
    with complete(place / "told"):
        pass  # whoever writes there next tidies up
    assert sorted(p.name for p in (place / "told").iterdir()) == RUN


class Cut(Exception):
    pass


def cut():
    raise Cut


def train(adata, directory=None, cuts=(), preset="corrected", epochs=7, seed=0, **settings):
    "A model, after its training was cut off in these epochs; the calls are the same."
    step = TrainingLoop.training_step
    for epoch in (*cuts, None):
        model = GPOVAE(adata, preset=preset, **SMALL | settings)
        if epoch is not None:
            in_epoch(epoch, cut)
        try:
            model.train(max_epochs=epochs, seed=seed, progress=False, directory=directory)
        except Cut:
            pass
        finally:
            TrainingLoop.training_step = step
    return model


def same_weights(a, b):
    for (name, w), other in zip(
        a.vae.state_dict().items(), b.vae.state_dict().values(), strict=True
    ):
        assert w.numpy().tobytes() == other.numpy().tobytes(), name


def same(a, b):
    same_weights(a, b)
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
    assert a.ended == b.ended and all(
        (x == y).all() for x, y in zip(a.residual, b.residual, strict=True)
    )


@pytest.mark.parametrize("kind", ["in memory", "on disk", "paper", "patience", "best is not last"])
def test_going_on_gives_the_same_bits(place, tmp_path, kind):
    adata = (open_screen if kind == "on disk" else ad.read_h5ad)(place / "screen.h5ad")
    how = (
        dict(preset="paper")
        if kind == "paper"
        else (
            dict(learning_rate=0.0, patience=4)
            if kind == "patience"
            else dict(learning_rate=0.15)
            if kind == "best is not last"
            else {}
        )
    )
    if kind == "best is not last":
        how["seed"] = next(
            s for s in range(9) if train(adata, seed=s, **how).history.validation_loss.idxmin() < 6
        )
    one = train(adata, **how)
    other = train(adata, tmp_path, (1, 2, 4), **how)
    same(one, other)
    assert one.ended["by"] == ("patience" if kind == "patience" else "max_epochs") and [
        p.name for p in tmp_path.iterdir()
    ] == [STATE]
    same(one, train(adata, tmp_path, **how))  # it had ended: nothing is trained
    other.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == RUN


@pytest.fixture
def every_step(monkeypatch):
    "The state is written after every step."
    write = Checkpoint._write

    def write_and_be_due(self, *parts, **header):
        write(self, *parts, **header)
        self.due = self.due_within = 0.0

    monkeypatch.setattr(Checkpoint, "_write", write_and_be_due)
    monkeypatch.setattr(checkpoint, "WITHIN", 0)


@pytest.mark.parametrize("kind", ["in memory", "on disk", "windows", "paper", "listed edges"])
def test_an_epoch_goes_on_where_it_was_cut(place, tmp_path, monkeypatch, every_step, kind):
    if kind == "listed edges":
        listed = []
        list_edges = GRN.list_edges
        of_any_size = dict(cut=0.05, large=2, most=1.0)
        monkeypatch.setattr(
            GRN, "list_edges", lambda grn: listed.append(list_edges(grn, **of_any_size))
        )
    if kind == "windows":
        monkeypatch.setattr(stream, "BLOCK", 2**8)
        monkeypatch.setattr(stream, "WINDOW", 2**11)
    opened = open_screen if kind in ("on disk", "windows") else ad.read_h5ad
    adata = opened(place / "screen.h5ad")
    how = dict(preset="paper") if kind == "paper" else {}

    one = train(adata, epochs=3, **how)
    with monkeypatch.context() as patched:
        # all that is resumed begins in the middle of an epoch
        patched.setattr(Checkpoint, "_write_epoch", lambda *_: None)
        other = train(adata, tmp_path, (0, 1, 2), epochs=3, **how)
    same(one, other)
    assert checkpoint._open_state(tmp_path / STATE).steps == 4  # of five in an epoch
    if kind == "listed edges":
        assert listed == [True] * 5


def test_a_fitted_network_is_not_fitted_again(place, tmp_path, monkeypatch):
    adata = ad.read_h5ad(place / "screen.h5ad")
    fitted = []
    fit = build.fit_network
    monkeypatch.setattr(build, "fit_network", lambda *a, **k: fitted.append(1) or fit(*a, **k))
    one = train(adata, epochs=2)
    other = train(adata, tmp_path, (0, 0), epochs=2)
    same(one, other)
    assert len(fitted) == 2  # one for each training


def test_max_time_within_the_first_epoch(place, tmp_path, monkeypatch):
    adata = ad.read_h5ad(place / "screen.h5ad")
    fit = build.fit_network

    def slow_fit(*arguments, **options):
        found = fit(*arguments, **options)
        time.sleep(1.5)
        return found

    monkeypatch.setattr(build, "fit_network", slow_fit)
    model = GPOVAE(adata, **SMALL)
    start = time.monotonic()
    # over before the first step: fitting the network counts
    model.train(max_epochs=2000, progress=False, directory=tmp_path, max_time="1.5s")
    assert model.ended["by"] == "max_time" and len(model.history) == 1
    assert time.monotonic() - start < 60
    assert np.isfinite(model.predict().X).all()
    assert checkpoint._open_state(tmp_path / STATE).steps == 1
    monkeypatch.undo()
    same(train(adata, epochs=2), train(adata, tmp_path, epochs=2))


def test_ctrl_c_in_the_first_epoch_keeps_the_state(place, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(TrainingLoop, "training_step", TrainingLoop.training_step)
    in_epoch(0, lambda: os.kill(os.getpid(), signal.SIGINT))
    line = ["train", str(place / "screen.h5ad"), "--out", str(tmp_path / "run"), *OPTIONS]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 130, result.output
    assert "its state is kept. To go on: gpovae train" in result.output
    assert [p.name for p in (tmp_path / "run").iterdir()] == [STATE]
    assert checkpoint._open_state(tmp_path / "run" / STATE).steps == 2
    # Lightning leaves SIGINT ignored
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()

    assert CliRunner().invoke(main, line).exit_code == 0
    alone = train(ad.read_h5ad(place / "screen.h5ad"), epochs=6)
    same_weights(alone, GPOVAE.load(tmp_path / "run", data=False))


def test_another_training_is_not_gone_on_with(place, tmp_path):
    adata = ad.read_h5ad(place / "screen.h5ad")
    train(adata, tmp_path, epochs=3)
    before = (tmp_path / STATE).read_bytes()
    other = gpovae.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=4, seed=0)
    gpovae.prepare(other, perturbation_key="gene", control="non-targeting", seed=1, progress=False)
    for what, call in {
        "seed was 0 and is 1": lambda: train(adata, tmp_path, seed=1),
        "beta was 0.1 and is 0.2": lambda: train(adata, tmp_path, beta=0.2),
        "screen was": lambda: train(other, tmp_path),
        "on_disk was False and is True": lambda: train(
            open_screen(place / "screen.h5ad"), tmp_path
        ),
        "it has 3 epochs, and max_epochs is 2": lambda: train(adata, tmp_path, epochs=2),
    }.items():
        with pytest.raises(
            GpovaeError, match="state of another training.*delete it to train from the start"
        ) as e:
            call()
        assert what in str(e.value) and (tmp_path / STATE).read_bytes() == before
    # more epochs are the same training, gone on with
    assert len(train(adata, tmp_path, epochs=5).history) == 5
    for damaged in (before[:-10], before[:10], b"", b"something else"):
        (tmp_path / STATE).write_bytes(damaged)
        with pytest.raises(GpovaeError, match="is no state of a training, or damaged"):
            train(adata, tmp_path)


def test_the_end_of_time_is_no_end(place, tmp_path, monkeypatch):
    "max_time ends in the middle of an epoch; going on forgets that part of it."
    adata = ad.read_h5ad(place / "screen.h5ad")
    write = Checkpoint._write
    # after every epoch

    def write_and_be_due(self, *parts, **header):
        write(self, *parts, **header)
        self.due = 0

    monkeypatch.setattr(Checkpoint, "_write", write_and_be_due)
    model = GPOVAE(adata, **SMALL)
    model.train(max_epochs=2000, progress=False, directory=tmp_path, max_time="0.8s")
    assert model.ended["by"] == "max_time"
    n = _epochs(tmp_path) + 2
    assert n - len(model.history) in (1, 2)  # 2: the time was over just as an epoch was
    same(train(adata, epochs=n), train(adata, tmp_path, epochs=n))


def test_what_the_state_costs(place, tmp_path, monkeypatch):
    "It is written seldom enough to take 2 % of the time."
    times = []
    complete_ = checkpoint.complete
    monkeypatch.setattr(checkpoint, "complete", lambda *a: (times.append(1), complete_(*a))[1])
    # 50 x 0.05 s: not again within 2.5 s
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: __import__("time").sleep(0.05))
    monkeypatch.setattr(os, "replace", lambda *a: None)
    train(ad.read_h5ad(place / "screen.h5ad"), tmp_path, epochs=8)
    assert len(times) == 3  # before the first epoch, after it, and at the end


def test_ctrl_c_says_how_to_go_on(place, tmp_path, monkeypatch):
    def run(*line):
        result = CliRunner().invoke(main, [str(x) for x in line])
        return result.exit_code, result.output

    monkeypatch.setattr(
        TrainingLoop, "training_step", TrainingLoop.training_step
    )  # put back afterwards
    in_epoch(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    line = ["train", place / "screen.h5ad", "--out", tmp_path / "a run", *OPTIONS]
    status, text = run(*line)
    assert (
        status == 130
        and f"To go on: gpovae train {place}/screen.h5ad --out '{tmp_path}/a run' --set latent=4"
        in text
        and len(GPOVAE.load(tmp_path / "a run").history) == 2
    ), text
    monkeypatch.undo()
    status, text = run(*line)
    assert (
        status == 0
        and "6 epochs, all were run" in text
        and sorted(p.name for p in (tmp_path / "a run").iterdir()) == RUN
    )

    def pressed(*_, **__):
        raise KeyboardInterrupt

    # results are written after every step
    monkeypatch.setattr(prepare, "_WORTH", 0)
    monkeypatch.setattr("gpovae.data.pipeline.match_controls", pressed)
    status, text = run("prepare", place / "raw.h5ad", tmp_path / "p.h5ad", "--quiet")
    assert (
        status == 130
        and text.splitlines()[-1]
        == "Interrupted. To go on with the first step that was not done: gpovae prepare"
        f" {place}/raw.h5ad {tmp_path}/p.h5ad --quiet"
        and [p.name for p in tmp_path.glob("p.h5ad*")] == ["p.h5ad.part"]
    )
    monkeypatch.undo()
    # done before, and not done again
    monkeypatch.setattr("gpovae.data.quality.find_doublets", pressed)
    assert run("prepare", place / "raw.h5ad", tmp_path / "p.h5ad", "--quiet")[0] == 0 and [
        p.name for p in tmp_path.glob("p.h5ad*")
    ] == ["p.h5ad"]


def test_a_full_disk_is_one_line(place, tmp_path, monkeypatch):
    "What h5py, safetensors and Python say of it; nothing is left."
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage(p)._replace(free=2**22))
    result = CliRunner().invoke(
        main, ["prepare", str(place / "raw.h5ad"), str(tmp_path / "p.h5ad"), "--quiet"]
    )
    assert result.exit_code == 2 and result.output.splitlines()[-1].startswith(
        f"Error: Cannot write the prepared screen p.h5ad to '{tmp_path}': No space left on device."
        " Make room there"
    ), result.output
    monkeypatch.undo()
    model = (
        GPOVAE.load(place / "whole", data=False)
        if (place / "whole").exists()
        else train(ad.read_h5ad(place / "screen.h5ad"), epochs=1)
    )

    def save_file(*_):
        raise __import__("safetensors").SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"
        )

    monkeypatch.setattr("gpovae.train.run.save_file", save_file)
    with pytest.raises(
        GpovaeError, match=f"Cannot write the run to '{tmp_path}/run': No space left on device"
    ):
        model.save(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):  # no other error is taken for it
        with complete(tmp_path / "x"):
            raise ZeroDivisionError
    with pytest.raises(
        GpovaeError, match="Cannot write it to .*File exists|Not a directory|There is a file"
    ):
        with complete(place / "raw.h5ad/x", "it"):
            pass
