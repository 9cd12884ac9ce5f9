"""A cluster of two processes gives what one process gives, also where a worker is killed."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from on_workers import counted, deep, fails

import gpovae
from gpovae.core import cluster as clusters
from gpovae.core.cluster import cluster, mapped, summed
from gpovae.core.errors import GpovaeError
from gpovae.data.expression import group_means
from gpovae.data.files import open_screen
from gpovae.data.parts import for_each_cell, sum_over_cells
from gpovae.data.prepare import prepare_file
from gpovae.data.rank_sum import rank_sum_test
from gpovae.data.register import register
from gpovae.data.responses import fold_changes
from gpovae.data.screen import Key, Screen
from gpovae.evaluate.effects import effects_in
from gpovae.evaluate.observed import observe
from gpovae.evaluate.scores import evaluate
from gpovae.experiments import sweep

import forked

PRETEND = [sys.executable, "-S", "-c"]
PRETEND.append((Path(__file__).parents[1] / "experiments/pretend.py").read_text())


@pytest.fixture(scope="module")
def machines():
    "Two processes of one thread, which are started again when they die."
    dask = pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    look = dict(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL")
    # forked from a process that has the libraries
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context().set_forkserver_preload(forked.HEAVY)
        with distributed.LocalCluster(**look) as local:
            yield local


@pytest.fixture
def address(machines):
    machines.wait_for_workers(2)  # one may have been killed
    return machines.scheduler_address


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "A screen, raw and prepared, and what one process finds."
    folder = tmp_path_factory.mktemp("cluster")
    gpovae.datasets.simulated(900, 60, 6, seed=1).write_h5ad(folder / "raw.h5ad")
    prepare_file(folder / "raw.h5ad", folder / "prepared.h5ad", progress=False, doublets=False)
    return folder


def test_a_worker_that_dies_is_made_up_for(address, prepared, tmp_path):
    X = open_screen(prepared / "prepared.h5ad").X
    rows = np.flatnonzero(np.arange(X.shape[0]) % 7)
    flag = tmp_path / "killed"
    with cluster(address):
        counts, n = sum_over_cells(counted, X, rows, shared=(str(flag),))
    assert flag.exists() and n == len(rows)
    # whole numbers: to the bit
    assert np.array_equal(counts, np.asarray(X[rows].sum(0, dtype=float)).ravel())


def test_effects_and_responses_are_those_of_one_process(address, prepared):
    screens = open_screen(prepared / "prepared.h5ad"), ad.read_h5ad(prepared / "prepared.h5ad")
    for adata in screens:
        screen = Screen(adata)
        rows = screen.rows("train", fail=False)
        codes = np.arange(len(rows)) % 3

        def look(screen=screen, rows=rows, codes=codes):
            changes = fold_changes(screen, rows, np.arange(5, 25))
            squares = group_means(screen, rows[::-1], codes, 3, power=2)
            return *changes[1:], effects_in(screen, rows)[0].to_numpy(), squares

        here = look()
        with cluster(address):
            there = look()
        for a, b in zip(here, there, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


def test_what_each_cell_gives_comes_back_in_order(address, prepared):
    X = open_screen(prepared / "prepared.h5ad").X
    rows = np.arange(3, X.shape[0], 2)
    weight = np.arange(len(rows))
    with cluster(address):
        found, _ = for_each_cell(deep, X, rows, (weight,))
        assert list(mapped(pow, [(2, k) for k in range(20)])) == [2**k for k in range(20)]
        assert summed(np.full, [(2, k) for k in range(5)]).tolist() == [10, 10]
    assert np.array_equal(found, np.asarray(X[rows].sum(1)).ravel() * weight)


def test_rank_sums_by_strata(address, prepared):
    "Five batches, one of them with too few controls of its own."
    adata = ad.read_h5ad(prepared / "prepared.h5ad")
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 4, adata.n_obs)
    batch[np.flatnonzero(adata.obs["gene"] != "non-targeting")[:30]] = 4
    adata.obs["batch"] = np.char.add("b", batch.astype(str))
    register(adata, "gene", "non-targeting", batch_key="batch")
    screen = Screen(adata)
    rows = screen.rows("train", fail=False)
    here = rank_sum_test(screen, rows)
    with cluster(address):
        np.testing.assert_allclose(rank_sum_test(screen, rows), here, rtol=1e-9)


def test_a_prepared_file_is_that_of_one_process(address, prepared):
    target = prepared / "there.h5ad"
    prepare_file(prepared / "raw.h5ad", target, progress=False, doublets=False, scheduler=address)
    here, there = open_screen(prepared / "prepared.h5ad"), open_screen(target)
    assert (there.X[:] != here.X[:]).nnz == 0
    for key in (Key.library_size, Key.fail, Key.split):
        assert (there.obs[key] == here.obs[key]).all(), key
    for name, value in here.uns[Key.responses].items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(there.uns[Key.responses][name], value, rtol=1e-6, atol=1e-7)
        else:
            assert np.array_equal(there.uns[Key.responses][name], value), name
    pd.testing.assert_frame_equal(
        there.uns[Key.perturbations], here.uns[Key.perturbations], rtol=1e-6, atol=1e-7
    )
    assert prepare_file(prepared / "raw.h5ad", target, progress=False, doublets=False) is False


def _numbers(values) -> list:
    "All numbers of nested dicts and lists, in order."
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [x for value in values for x in _numbers(value)]
    return [values] if isinstance(values, (int, float)) else []


def test_an_evaluation_is_that_of_one_process(address, prepared):
    in_memory = ad.read_h5ad(prepared / "prepared.h5ad")
    on_disk = open_screen(prepared / "prepared.h5ad")
    train = observe(in_memory, "train").effects
    # no prediction ties with a baseline, where rounding would decide
    predicted = train + np.random.default_rng(0).normal(0, 0.1, train.shape)
    here = evaluate(in_memory, predicted)
    with cluster(address):
        there = evaluate(on_disk, predicted)
    assert there.verdict() == here.verdict()
    numbers = _numbers(here.to_dict())
    assert len(numbers) > 100
    np.testing.assert_allclose(_numbers(there.to_dict()), numbers, rtol=1e-6, atol=1e-7)


def test_no_cluster_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "_PATIENCE", (0.5, 1))
    for bad in ("tcp://127.0.0.1:9", "nowhere:1", "tcp:/x"):
        with pytest.raises(GpovaeError, match="No Dask scheduler answers at"), cluster(bad):
            pass
    with pytest.raises(GpovaeError, match="no scheduler file"), cluster(str(tmp_path / "x.json")):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(GpovaeError, match=r"pip install 'gpovae\[cluster\]'"), cluster("tcp://a:1"):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp:/x"])
def test_a_failed_connection_leaves_no_event_loop(monkeypatch, address):
    "One that the garbage collector stops may be the loop that the next connection starts."
    pytest.importorskip("distributed")

    def loops():
        return {thread for thread in threading.enumerate() if thread.name.startswith("IO loop")}

    monkeypatch.setattr(clusters, "_PATIENCE", (0.3, 600))
    before = loops()
    with pytest.raises(GpovaeError, match="No Dask scheduler") as held, cluster(address):
        pass
    assert held and not loops() - before


def test_a_mistake_arrives_as_it_was_made(address):
    with cluster(address), pytest.raises(GpovaeError, match="Gene 3 is bad"):
        summed(fails, [(3,), (3,)])


# sweeps


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    "Four trainings of a file that looks prepared."
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5ad", "w") as f:
        f.create_group("uns/gpovae_responses")
    return sweep.plan(["a.h5ad"], "s", seeds=range(4))


def _pretend(fate: dict) -> list[str]:
    "The environment of the workers is not that of the test."
    setting = f"import os; os.environ['PRETEND'] = {json.dumps(json.dumps(fate))}\n"
    return [*PRETEND[:3], setting + PRETEND[3]]


def starts(job):
    path = job.folder.with_name(f"{job.folder.name}.starts")
    return len(path.read_text()) if path.exists() else 0


def test_a_sweep_outlives_a_run_that_fails_and_a_worker(address, machines, jobs):
    def kill():
        while not starts(jobs[0]):
            time.sleep(0.02)
        # whichever has no training, or has one that goes on alone
        os.kill(next(iter(machines.workers.values())).pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    command = _pretend(dict(corrected0="1", corrected1="1", corrected2="error"))
    table, page = sweep.sweep(jobs, "s", progress=False, command=command, scheduler=address)
    assert table.state.tolist() == ["done", "done", "failed", "done"]
    assert page.exists() and [starts(job) for job in jobs] == [1, 1, 1, 1]
    # what failed is tried again, what is done is not
    again, _ = sweep.sweep(jobs, "s", progress=False, command=_pretend({}), scheduler=address)
    assert again.state.tolist() == ["done"] * 4 and [starts(job) for job in jobs] == [1, 1, 2, 1]


def test_ctrl_c_reaches_trainings_of_the_cluster(address, jobs):
    def ask():
        while not (starts(jobs[0]) and starts(jobs[1])):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    command = _pretend({f"corrected{k}": "sleep" for k in range(4)})
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(jobs, "s", progress=False, command=command, scheduler=address)
    assert [sweep.state(job).name for job in jobs] == ["interrupted"] * 2 + ["waiting"] * 2
    assert "KeyboardInterrupt" in jobs[0].log.read_text()
    table, page = sweep.sweep(jobs, "s", progress=False, command=_pretend({}), scheduler=address)
    assert page and table.state.tolist() == ["done"] * 4
    shutil.rmtree("s")


def test_a_cluster_decides_how_many(jobs):
    with pytest.raises(GpovaeError, match="Leave out workers= or scheduler="):
        sweep.sweep(jobs, "s", workers=2, scheduler="tcp://127.0.0.1:9")
