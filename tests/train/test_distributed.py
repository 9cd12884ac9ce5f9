"""Two processes on the CPU make the step that one makes, write once, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.data.screen import Screen
from gpovae.model.presets import make_settings
from gpovae.train.build import build
from gpovae.train.checkpoint import STATE
from gpovae.train.distributed import group, launch
from gpovae.train.loop import fit
from gpovae.train.step import TrainingLoop

# weights stay, so that every step can be compared
SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), learning_rate=0.0)
# some without control, without perturbed or without failing cells
RUNS = {
    "corrected": dict(batch_size=100),
    "paper": dict(batch_size=100),
    "tiny batches": dict(batch_size=7),
}
pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    a = gpovae.datasets.simulated(n_cells=400, n_genes=40, n_perturbations=4, seed=0)
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    path = tmp_path_factory.mktemp("processes") / "prepared.h5ad"
    a.write_h5ad(path)
    return path


def steps(prepared, folder):
    """Train as one of the processes there are.

    The first stores the gradients of every step and the history.
    """
    import anndata as ad

    screen = Screen(ad.read_h5ad(prepared))
    rank = group().rank
    gradients = []
    TrainingLoop.on_before_optimizer_step = lambda self, _: gradients.append(
        torch.cat([p.grad.flatten() for p in self.vae.parameters() if p.requires_grad])
    )
    try:
        for name, changes in RUNS.items():
            s = make_settings("paper" if name == "paper" else "corrected", **SMALL | changes)
            vae, *names = build(screen, s)
            history = fit(
                vae,
                screen,
                s,
                *names,
                max_epochs=2,
                progress=False,
                directory=folder / name / str(rank),
            )
            if rank == 0:
                torch.save(
                    [torch.stack(gradients), history, history.attrs, vae.state_dict()],
                    folder / f"{name}.pt",
                )
            gradients.clear()
    finally:
        del TrainingLoop.on_before_optimizer_step


@pytest.fixture(scope="module")
def both(prepared, tmp_path_factory):
    one, two = (tmp_path_factory.mktemp(n) for n in ("one", "two"))
    launch(
        [
            sys.executable,
            "-c",
            (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib"
                f" import Path; from test_distributed import steps\nsteps(Path({str(prepared)!r}),"
                f" Path({str(two)!r}))"
            ),
        ],
        2,
    )
    steps(prepared, one)
    return one, two


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_those_of_one_process(both, name):
    (one, first, ended, _), (two, second, ended_too, _) = (
        torch.load(folder / f"{name}.pt", weights_only=False) for folder in both
    )
    assert len(one) == len(two) > 5 and ended == ended_too
    error = (one - two).abs().amax(1) / one.abs().max()
    assert error.max() <= 1e-6, error
    # every term, of training and validation
    pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_one_process_writes(both, name):
    "The state and nothing else, by the first process."
    assert sorted(p.name for p in (both[1] / name / "0").rglob("*") if p.is_file()) == sorted(
        p.name for p in (both[0] / name / "0").rglob("*") if p.is_file()
    )
    assert not [p for p in (both[1] / name / "1").rglob("*") if p.is_file()]
    assert [p.name for p in (both[1] / name / "0").iterdir()] == [STATE]


def started(prepared, out, *options):
    "`gpovae train` in a shell of its own, in two processes."
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return subprocess.Popen(
        [
            Path(sys.executable).with_name("gpovae"),
            "train",
            prepared,
            "--out",
            out,
            "--devices",
            "2",
            "--strategy",
            "ddp",
            "--accelerator",
            "cpu",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=open(out.with_suffix(".err"), "w"),
        text=True,
        env=environment,
    )


def until(process, out, text):
    "Wait for an epoch."
    end = time.monotonic() + 180
    while text not in (said := out.with_suffix(".err").read_text()):
        assert process.poll() is None and time.monotonic() < end, said
        time.sleep(0.1)


def test_ctrl_c_keeps_the_run_and_all_is_said_once(prepared, tmp_path):
    out = tmp_path / "run"
    p = started(prepared, out, "--max-epochs", "100000")
    until(p, out, " of 100000 steps, ")
    p.send_signal(signal.SIGINT)
    said, _ = p.communicate(timeout=90)
    messages = out.with_suffix(".err").read_text()
    assert (
        p.returncode == 130
        and said.count("epochs, as it was interrupted") == 1
        and said.startswith(str(out))
    ), (said, messages)
    assert sorted(f.name for f in out.iterdir()) == [
        "history.csv",
        "model.safetensors",
        "settings.json",
        STATE,
    ]
    assert (
        messages.count("steps and about") == messages.count("The run can be used") == 1
        and "Traceback" not in messages
        and "Warning" not in messages
    ), messages
    model = GPOVAE.load(out)
    assert len(model.history) >= 3 and np.isfinite(model.predict().X).all()


def children(parent):
    "Processes started by a process, and their environments."
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(stat.parent.name), (stat.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            pass


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a process by /proc")
def test_a_killed_process_ends_the_run(prepared, tmp_path):
    out = tmp_path / "run"
    p = started(prepared, out, "--max-epochs", "100000")
    until(p, out, " of 100000 steps, ")
    os.kill(
        next(pid for pid, environment in children(p.pid) if b"RANK=1" in environment),
        signal.SIGKILL,
    )
    start = time.monotonic()
    p.communicate(timeout=90)
    messages = out.with_suffix(".err").read_text()
    assert (
        p.returncode == 2
        and messages.rstrip()
        .splitlines()[-1]
        .startswith("Error: Process 2 of 2 was ended by signal 9")
        and "Traceback" not in messages
    ), messages
    assert (
        STATE in (left := {f.name for f in out.iterdir()})
        and left <= {STATE, "history.csv", "model.safetensors", "settings.json"}
        and not list(children(p.pid))
        and time.monotonic() - start < 60
    )


def test_a_mistake_is_said_once(capfd):
    "One process refuses while the other waits for it."
    script = """
import time, click
from gpovae.train.distributed import group, run_worker
def run():
    if group().rank == 0: time.sleep(120)
    refusal = click.ClickException("Cell 'c17' has no counts."); refusal.exit_code = 2
    raise refusal
run_worker(run)"""
    start = time.monotonic()
    with pytest.raises(GpovaeError, match="^Cell 'c17' has no counts.$"):
        launch([sys.executable, "-c", script], 2)
    assert time.monotonic() - start < 100 and "c17" not in "".join(capfd.readouterr())
