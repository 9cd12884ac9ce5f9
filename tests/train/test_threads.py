"""Threads of a training: as many as are measured to be the fastest, or as somebody asked for."""

import numba
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.data.screen import Screen
from gpovae.model.presets import make_settings
from gpovae.train import build as building
from gpovae.train.loop import fit
from gpovae.train.threads import LATEST, SOONEST, TRIED, Threads

SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adata():
    a = gpovae.datasets.simulated(n_cells=300, n_genes=2050, n_perturbations=4, seed=0)
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    return a


def taken(threads: Threads, seconds: list[dict[int, float]]) -> list[int]:
    "Threads of each step, where `seconds` says what a step takes with so many."
    now = 0.0
    threads.clock = lambda: now
    found = []
    for step in seconds:
        threads.begin()
        found.append(torch.get_num_threads())
        now += step[found[-1]]
        threads.end()
    return found


QUIET = {1: 0.8, 2: 0.5}
BUSY = {1: 1.1, 2: 5.7}


def test_the_faster_number_is_kept():
    for step, best in ((QUIET, 2), (BUSY, 1)):
        found = taken(Threads(2, 8563), 500 * [step])
        assert found[: 2 * TRIED] == TRIED * [2, 1]
        assert found[2 * TRIED : 2 * TRIED + SOONEST] == SOONEST * [best]
        assert found.count(best) > 0.95 * len(found)


def test_one_slow_step_does_not_decide():
    steps = 100 * [QUIET]
    steps[2] = {1: 9.0, 2: 9.0}
    assert taken(Threads(2, 8563), steps)[-1] == 2


def test_a_machine_that_becomes_busy_is_noticed():
    found = taken(Threads(2, 8563), 1000 * [QUIET] + 2000 * [BUSY] + 2 * LATEST * [QUIET])
    assert found[1000 : 1000 + 10 * TRIED].count(2) <= 3 * TRIED
    assert found[3000 + LATEST + 2 * TRIED :].count(2) > 0.95 * (LATEST - 2 * TRIED)


def test_a_machine_that_stays_busy_is_disturbed_less_and_less():
    found = taken(Threads(2, 8563), 5 * LATEST * [BUSY])
    assert found[2 * LATEST :].count(2) <= 4 * TRIED


@pytest.mark.parametrize("most, genes, asked, choices", [(4, 500, None, [1]), (1, 8563, None, [1])])
def test_few_genes_or_one_core_have_one_thread(most, genes, asked, choices):
    assert Threads(most, genes, asked).choices == choices


def trained(adata, monkeypatch, **options):
    "Threads of every step and of the fit of the network, and the history."
    steps, network = [], []
    step = Threads.end
    monkeypatch.setattr(
        Threads, "end", lambda self: (steps.append(torch.get_num_threads()), step(self))
    )
    fit_network = building.fit_network
    monkeypatch.setattr(
        building,
        "fit_network",
        lambda *a, **k: network.append(numba.get_num_threads()) or fit_network(*a, **k),
    )
    model = GPOVAE(adata, **SMALL)
    history = model.train(max_epochs=2, progress=False, **options)
    return steps, network, history


def test_steps_try_both_numbers(adata, monkeypatch):
    steps, _, _ = trained(adata, monkeypatch)
    assert set(steps[: 2 * TRIED]) == {1, 2}
    assert torch.get_num_threads() == 2


def test_the_number_that_was_asked_for(adata, monkeypatch):
    before = numba.get_num_threads()
    steps, network, history = trained(adata, monkeypatch, threads=1)
    assert set(steps) == {1} and network == [1]
    assert (torch.get_num_threads(), numba.get_num_threads()) == (2, before)
    torch.set_num_threads(1)
    again = GPOVAE(adata, **SMALL)
    pd.testing.assert_frame_equal(
        again.train(max_epochs=2, progress=False, threads=1), history, check_exact=True
    )


def test_no_threads_are_refused(adata, tmp_path):
    with pytest.raises(GpovaeError, match="threads is 0; at least one"):
        GPOVAE(adata, **SMALL).train(threads=0)
    screen = Screen(adata)
    settings = make_settings(**SMALL)
    vae, *names = building.build(screen, settings)
    with pytest.raises(GpovaeError, match="threads is 0"):
        fit(vae, screen, settings, *names, threads=0)

    adata.write_h5ad(tmp_path / "prepared.h5ad")
    command = ["train", str(tmp_path / "prepared.h5ad"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*command, "--threads", "0"])
    assert result.exit_code == 2 and "--threads" in result.output
