"""The loop around the step: what it costs to know the cost, how training ends, and what is kept
when it does.
"""

import os
import signal
import threading

import numba
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.data import minibatch as batches
from gpovae.data.files import open_screen
from gpovae.data.screen import Screen
from gpovae.experiments.runner import whole
from gpovae.model.presets import make_settings
from gpovae.train import step
from gpovae.train.build import build
from gpovae.train.checkpoint import STATE
from gpovae.train.loop import fit
from gpovae.train.step import TrainingLoop

SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64)


@pytest.fixture(scope="module")
def adata():
    a = gpovae.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=4, seed=0)
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    return a


def trained(adata, preset="corrected", epochs=3, **options):
    "Model and history of a small fit."
    screen = Screen(adata)
    s = make_settings(preset, **SMALL)
    vae, *names = build(screen, s)
    return vae, fit(vae, screen, s, *names, max_epochs=epochs, **dict(progress=False) | options)


@pytest.mark.parametrize("preset", ["corrected", "paper"])
def test_measuring_the_cost_changes_nothing(adata, preset, capsys):
    a, first = trained(adata, preset)
    b, second = trained(adata, preset, progress=True)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    for (name, w), other in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(w, other), name
    said = capsys.readouterr().err
    assert (
        said.index("steps and about") < said.index("3 epochs, all were run")
        and "GiB of memory" in said
    )


def test_global_state_is_as_before(adata):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    exact = torch.are_deterministic_algorithms_enabled()
    screen = Screen(adata)
    s = make_settings(**SMALL)
    vae, *names = build(screen, s)
    after_build = torch.get_rng_state()
    fit(vae, screen, s, *names, max_epochs=1, progress=True)
    assert torch.equal(torch.get_rng_state(), after_build)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (
        threads,
        exact,
    )


def test_progress_counts_steps(adata, monkeypatch):
    bars = []

    class Kept(step.Bar):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            bars.append(self)

    monkeypatch.setattr(step, "Bar", Kept)
    trained(adata, epochs=3, progress=True)
    n_steps = 3 * -(-len(Screen(adata).rows("train")) // SMALL["batch_size"])
    assert [(bar.n, bar.total) for bar in bars] == [(n_steps, n_steps)]


def test_fit_runs_outside_the_main_thread(adata):
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(adata, epochs=1)[1]))
    thread.start()
    thread.join()
    assert len(found[0]) == 1


def validated(vae, adata, held_out="validation"):
    "The held-out criterion of these weights, recomputed."
    from gpovae.data.minibatch import Cells
    from gpovae.model.objective import draw, objective

    s = make_settings(**SMALL)
    screen = Screen(adata)
    labels = sorted(set(screen.labels[screen.rows("train")]) - {"control"})
    total = 0.0
    n = 0
    generator = torch.Generator().manual_seed(1)
    for batch in Cells(screen, held_out, labels).loader(s.batch_size, False):
        with torch.no_grad():
            t = objective(vae, batch, s, *draw(vae, batch, s, generator))
        total += (t["elbo"] + t["alignment"]).item() * len(batch.label)
        n += len(batch.label)
    return total / n


def test_max_time_ends_in_the_middle_of_an_epoch(adata):
    vae, history = trained(adata, epochs=1000, max_time=0.02)  # less than an epoch
    assert (
        len(history) == 1
        and history.attrs["by"] == "max_time"
        and "max_time was reached" in history.attrs["summary"]
    )
    assert (
        history.validation_loss[0] == pytest.approx(validated(vae, adata), rel=1e-5)
        and np.isfinite(history.to_numpy(float)).all()
    )
    _, whole = trained(adata, epochs=1)
    assert history.validation_loss[0] != whole.validation_loss[0]


def test_max_time_keeps_the_best(adata):
    vae, history = trained(adata, epochs=100_000, max_time="2s")
    assert 1 < len(history) < 1000 and history.attrs["by"] == "max_time"
    assert history.validation_loss.min() == pytest.approx(validated(vae, adata), rel=1e-5)


def test_patience(adata):
    screen = Screen(adata)
    s = make_settings(**SMALL, patience=2, learning_rate=0.0)
    vae, *names = build(screen, s)
    history = fit(vae, screen, s, *names, max_epochs=50, progress=False)
    assert (
        len(history) == 3
        and history.attrs["by"] == "patience"
        and "kept are the weights of epoch 0" in history.attrs["summary"]
    )


def stop_in(epoch, how):
    "A training step that is interrupted in this epoch."
    step = TrainingLoop.training_step

    def interrupted(self, batch, i):
        if self._trainer is not None and self.current_epoch == epoch and i == 1:
            how()
        return step(self, batch, i)

    return interrupted


SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}


@pytest.mark.parametrize("kind", SIGNALS)
def test_interruption_keeps_the_best(adata, monkeypatch, kind):
    handlers = [signal.getsignal(s) for s in SIGNALS.values()]
    monkeypatch.setattr(
        TrainingLoop, "training_step", stop_in(2, lambda: os.kill(os.getpid(), SIGNALS[kind]))
    )
    model = GPOVAE(adata, **SMALL)
    with pytest.raises(
        KeyboardInterrupt, match="The model can be used: 2 epochs, as it was interrupted"
    ):
        model.train(max_epochs=5, progress=False)
    assert [signal.getsignal(s) for s in SIGNALS.values()] == handlers
    assert model.history.epoch.tolist() == [0, 1] and np.isfinite(model.predict().X).all()
    assert model.history.validation_loss.min() == pytest.approx(
        validated(model.vae, adata), rel=1e-5
    )


def test_interruption_before_there_is_anything(adata, monkeypatch):
    monkeypatch.setattr(
        TrainingLoop, "training_step", stop_in(0, lambda: os.kill(os.getpid(), signal.SIGINT))
    )
    model = GPOVAE(adata, **SMALL)
    with pytest.raises(KeyboardInterrupt, match="nothing to keep"):
        model.train(max_epochs=5, progress=False)
    with pytest.raises(GpovaeError, match="was not trained"):
        model.predict()


def test_shell(adata, tmp_path, monkeypatch):
    "--max-time, Ctrl-C with and without something to keep, and wrong options."
    adata.write_h5ad(tmp_path / "prepared.h5ad")

    def train(out, *options):
        result = CliRunner().invoke(
            main,
            [
                "train",
                str(tmp_path / "prepared.h5ad"),
                "--out",
                str(tmp_path / out),
                "--quiet",
                *options,
            ],
        )
        return result.exit_code, result.output

    status, text = train("timed", "--max-time", "1s", "--max-epochs", "100000")
    assert status == 0 and "as max_time was reached; kept are the weights of epoch" in text
    assert GPOVAE.load(tmp_path / "timed").ended["by"] == "max_time"
    for option in (
        (["--max-time", "soon"], ["--accelerator", "gpu"])
        if not torch.cuda.is_available()
        else (["--max-time", "soon"],)
    ):
        status, text = train("wrong", *option)
        assert (
            status == 2
            and option[1] in text
            and text.startswith("Error: ")
            and not (tmp_path / "wrong").exists()
        ), text
    monkeypatch.setattr(
        TrainingLoop, "training_step", stop_in(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    )
    status, text = train("cut", "--max-epochs", "4")
    assert (
        status == 130
        and "1 epoch, as it was interrupted" in text
        and "To go on: gpovae train " in text
        and text.rstrip().endswith("cut --quiet --max-epochs 4")
    )
    assert np.isfinite(GPOVAE.load(tmp_path / "cut").predict().X).all()
    # a sweep trains what was cut off again
    assert whole(tmp_path / "timed") and not whole(tmp_path / "cut")
    monkeypatch.setattr(
        TrainingLoop, "training_step", stop_in(0, lambda: os.kill(os.getpid(), signal.SIGINT))
    )
    status, text = train("nothing", "--max-epochs", "4")
    assert status == 130 and "its state is kept. To go on: gpovae train " in text
    assert [p.name for p in (tmp_path / "nothing").iterdir()] == [STATE]


def test_bf16_stays_near(adata):
    _, exact = trained(adata)
    vae, half = trained(adata, precision="bf16")
    assert half.validation_loss.iloc[-1] == pytest.approx(
        exact.validation_loss.iloc[-1], rel=2e-3
    ) and not np.array_equal(half.train_loss, exact.train_loss)
    assert {w.dtype for w in vae.parameters()} == {torch.float32}


def test_several_devices_are_refused_in_a_session(adata):
    with pytest.raises(GpovaeError, match="gpovae train prepared.h5ad --out run --devices 2"):
        GPOVAE(adata).train(devices=2)
    with pytest.raises(GpovaeError, match="'dpp'"):
        GPOVAE(adata).train(strategy="dpp")


@pytest.mark.parametrize("kind", ["in memory", "on disk", "paper"])
def test_same_bits_whatever_works_ahead(adata, tmp_path, monkeypatch, kind):
    """Batches made ahead, threads of PyTorch, threads that make counterfactual profiles.

    None of them is in the result.
    """
    ahead = batches.ahead
    threads = torch.get_num_threads()
    found = []
    adata.write_h5ad(tmp_path / "prepared.h5ad")
    try:
        for n in (1, 2, 5):
            monkeypatch.setattr(batches, "ahead", lambda items, _=1, n=n: ahead(items, n))
            monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", n)
            torch.set_num_threads(n)
            vae, history = trained(
                open_screen(tmp_path / "prepared.h5ad") if kind == "on disk" else adata,
                "paper" if kind == "paper" else "corrected",
                epochs=2,
            )
            found.append(
                (
                    history.to_numpy().tobytes(),
                    *(w.numpy().tobytes() for w in vae.state_dict().values()),
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    other = trained(adata, epochs=2, seed=1)[0]
    assert [w.numpy().tobytes() for w in other.state_dict().values()] != list(found[0][1:])
