"""Sweeps: what makes a job, what counts as done, and what survives.

A killed job, a killed sweep, two sweeps at once, Ctrl-C. Most of it with something that pretends
to be `gpovae`; one sweep is real.
"""

import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import h5py
import joblib
import pandas as pd
import pytest
from click.testing import CliRunner

from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.core.options import read_settings, setting_text
from gpovae.experiments import jobs as sweep_jobs
from gpovae.experiments import sweep
from gpovae.model.presets import PRESETS, Settings, make_settings

# Writes the run, or the report, that it is asked for; the environment variable PRETEND says what
# goes wrong for which preset and seed.
SCRIPT = Path(__file__).with_name("pretend.py").read_text()
PRETEND = [sys.executable, "-S", "-c", SCRIPT]
quick = functools.partial(sweep.sweep, progress=False, command=PRETEND)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder to work in, with two files that look prepared and one that does not."
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "raw"):
        with h5py.File(f"{name}.h5ad", "w") as f:
            f["name"] = name
            if name != "raw":
                f.create_group("uns/gpovae_responses")
    return tmp_path


def plan(screens=("a.h5ad",), seeds=range(3), **rest):
    return sweep.plan(screens, "s", seeds=seeds, **rest)


def states(jobs):
    return [sweep.state(j).name for j in jobs]


def starts(job):
    return (
        len(p.read_text())
        if (p := job.folder.with_name(f"{job.folder.name}.starts")).exists()
        else 0
    )


def test_settings_from_text_and_back():
    for preset, s in PRESETS.items():
        texts = [setting_text(k, v) for k, v in asdict(s).items()]
        values = {k: v for k, (v,) in read_settings(Settings, texts).items()}
        assert values == asdict(s)
        assert make_settings(preset, **values) == s
    for bad in (
        "particles=0",
        "particles=1.5",
        "particles=",
        "beta=-1",
        "beta=inf",
        "beta=none",
        "residual_correction=1",
        "embedding=200x0",
        "kl=CLOSED",
        "learning_rate=1e",
        "nothing=1",
        "particles=5,5",
    ):
        with pytest.raises(GpovaeError, match=bad.split("=")[0]):
            read_settings(Settings, [bad])
    for bad in ("=5", "beta"):
        with pytest.raises(GpovaeError, match="Write NAME=VALUE"):
            read_settings(Settings, [bad])
    with pytest.raises(GpovaeError, match="twice"):
        read_settings(Settings, ["beta=1", "beta=2"])


def test_jobs_are_the_product_and_a_hash_knows_each(place):
    jobs = plan(
        ("a.h5ad", "b.h5ad"),
        presets=["corrected", "paper"],
        settings=dict(particles=[1, 5], beta=[0.1]),
        max_epochs=3,
    )
    assert len(jobs) == 2 * 2 * 2 * 3 == len({j.folder for j in jobs})
    assert [j.folder for j in jobs] == [
        j.folder
        for j in plan(
            ("a.h5ad", "b.h5ad"),
            presets=["corrected", "paper"],
            settings=dict(particles=[1, 5], beta=[0.1]),
            max_epochs=3,
        )
    ]
    assert {j.label for j in jobs} == {"a", "b"} and all(len(j.folder.name) < 200 for j in jobs)


def mark(**changes):
    return sweep.plan(
        **dict(
            screens=["a.h5ad"],
            folder="s",
            presets=["corrected"],
            seeds=[0],
            settings={},
            max_epochs=3,
        )
        | changes
    )[0].folder.name[-10:]


def test_what_decides_a_training_decides_the_hash(place, monkeypatch):
    same = mark()
    shutil.copy("a.h5ad", "c.h5ad")
    os.utime("a.h5ad", (1, 1))
    # 1 is the preset's
    assert (
        same
        == mark()
        == mark(screens=["c.h5ad"])
        == mark(screens=[place / "a.h5ad"], folder="elsewhere")
        == mark(settings=dict(particles=[1]))
    )
    assert mark(max_epochs=None) == mark(max_epochs=PRESETS["corrected"].max_epochs)
    others = [
        mark(seeds=[1]),
        mark(presets=["paper"]),
        mark(settings=dict(particles=[2])),
        mark(max_epochs=4),
        mark(screens=["b.h5ad"]),
    ]
    with monkeypatch.context() as m:
        m.setattr("gpovae.__version__", "9.9")
        others.append(mark())
    with monkeypatch.context() as m:
        m.setattr(sweep_jobs, "code_version", lambda: "0.1.0 other code")
        others.append(mark())
    with monkeypatch.context() as m:
        m.setitem(PRESETS, "corrected", make_settings("corrected", beta=0.2))
        others.append(mark())
    with h5py.File("a.h5ad", "a") as f:
        f["count"] = 1
    others.append(mark())
    assert len({same, *others}) == len(others) + 1


def test_the_code_counts(tmp_path, monkeypatch):
    shutil.copytree(
        Path(sweep_jobs.gpovae.__file__).parent,
        tmp_path / "gpovae",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    monkeypatch.setattr(sweep_jobs.gpovae, "__file__", str(tmp_path / "gpovae/__init__.py"))
    before = sweep_jobs.code_version()
    for name, counts in {
        "app/cli.py": False,
        "plots/tables.py": False,
        "api.py": True,
        "core/options.py": True,
        "data/screen.py": True,
        "network/grn.py": True,
        "model/vae.py": True,
        "train/loop.py": True,
        "evaluate/baselines.py": True,
    }.items():
        with open(tmp_path / "gpovae" / name, "a") as f:
            f.write("\n# changed\n")
        assert (sweep_jobs.code_version() != before) == counts, name
        before = sweep_jobs.code_version()


def test_a_crash_is_one_job_less(place, monkeypatch):
    monkeypatch.setenv(
        "PRETEND", json.dumps(dict(corrected0="kill", corrected1="error", corrected2="nothing"))
    )
    jobs = plan(seeds=range(5), max_epochs=2)
    found, page = quick(jobs, "s", workers=2)
    assert states(jobs) == ["failed"] * 3 + ["done"] * 2 and [starts(j) for j in jobs] == [1] * 5
    why = [sweep.state(j).why for j in jobs]
    assert (
        why[0].startswith("signal 9")
        and "memory" in why[0]
        and why[1] == "exit status 1: RuntimeError: the screen is broken"
        and why[2].startswith("no complete run")
    )
    assert page and {
        Path(r["run"]).name for r in json.loads(Path("s/compare.json").read_text())["runs"]
    } == {j.folder.name for j in jobs[3:]}
    table = pd.read_csv("s/sweep.csv")
    assert (
        table.state.tolist() == states(jobs)
        and table.epochs.tolist()[3:] == [2, 2]
        and table.ate_rho.tolist()[3:] == [0, 0.1]
        and table.ate_rho.isna().sum() == 3
    )
    monkeypatch.delenv("PRETEND")
    found, page = quick(jobs, "s")  # once more, and nothing goes wrong
    assert states(jobs) == ["done"] * 5 and [starts(j) for j in jobs] == [2] * 3 + [1] * 2
    assert (
        not list(Path("s").rglob(".gpovae-*"))
        and len(json.loads(Path("s/compare.json").read_text())["runs"]) == 5
    )
    before = page.stat().st_mtime_ns
    # nothing to do
    assert (
        quick(jobs, "s")[1] == page
        and page.stat().st_mtime_ns == before
        and sum(starts(j) for j in jobs) == 8
    )
    quick(plan(seeds=range(6), max_epochs=2), "s")
    assert len(pd.read_csv("s/sweep.csv")) == 6 and sum(starts(j) for j in jobs) == 8


def test_half_a_run_does_not_count(place):
    (job,) = jobs = plan(seeds=[0])
    quick(jobs, "s")
    for damage in (
        lambda f: (f / "settings.json").unlink(),
        lambda f: (f / "settings.json").write_text('{"weights":'),
        lambda f: (f / "model.safetensors").write_text("weight"),
        lambda f: (f / "history.csv").unlink(),
        shutil.rmtree,
    ):
        damage(job.folder)
        n = starts(job)
        assert states(jobs) == ["waiting"]
        quick(jobs, "s")
        assert states(jobs) == ["done"] and starts(job) == n + 1


def test_threads_are_shared_and_slurm_is_hidden(place, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 7)
    jobs = plan(seeds=range(4))
    sweep.run_jobs(jobs, workers=3, progress=False, command=PRETEND)
    assert all("threads 2 of Slurm: []" in j.log.read_text() for j in jobs)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    jobs = plan(seeds=range(4, 6))
    sweep.run_jobs(jobs, workers=5, progress=False, command=PRETEND)
    assert all("threads 1 of" in j.log.read_text() for j in jobs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = plan(seeds=[6])
    sweep.run_jobs(jobs, progress=False, command=PRETEND)
    assert "threads 1 of" in jobs[0].log.read_text()  # no more than the user allows


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_continued(place, monkeypatch, how):
    monkeypatch.setenv("PRETEND", json.dumps(dict(corrected1="sleep", corrected2="sleep")))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    jobs = plan(seeds=range(4))

    def ask():
        while not (starts(jobs[1]) and starts(jobs[2])):
            time.sleep(0.05)
        os.kill(os.getpid(), how)

    threading.Thread(target=ask, daemon=True).start()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        quick(jobs, "s", workers=2)
    assert (
        time.monotonic() - start < 20
        and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    )
    # asked first, not killed
    assert all("KeyboardInterrupt" in j.log.read_text() for j in jobs[1:3])
    assert (
        states(jobs) == ["done", "interrupted", "interrupted", "waiting"]
        and pd.read_csv("s/sweep.csv").state.tolist() == states(jobs)
        and not Path("s/compare.html").exists()
    )
    monkeypatch.delenv("PRETEND")
    assert (
        quick(jobs, "s", workers=2)[1]
        and states(jobs) == ["done"] * 4
        and [starts(j) for j in jobs] == [1, 2, 2, 1]
    )


def fork(f, *arguments):
    "Call a function in a copy of this process; returns its number."
    if child := os.fork():
        return child
    try:
        f(*arguments)
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_a_killed_sweep_leaves_its_training_in_peace(place, monkeypatch):
    monkeypatch.setenv("PRETEND", json.dumps(dict(corrected0="sleep")))
    jobs = plan(seeds=[0])
    child = fork(quick, jobs, "s")
    while not starts(jobs[0]):
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert states(jobs) == ["running"]  # the training holds the lock
    assert (
        quick(jobs, "s")[1] is None
        and starts(jobs[0]) == 1
        and pd.read_csv("s/sweep.csv").state.tolist() == ["running"]
    )
    training = (
        next(
            int(p.name)
            for p in Path("/proc").iterdir()
            if p.name.isdigit() and str(jobs[0].folder).encode() in _command(p)
        )
        if Path("/proc/self").exists()
        else pytest.skip("no /proc")
    )
    os.kill(training, signal.SIGKILL)
    for _ in range(100):
        if states(jobs) == ["waiting"]:
            break
        time.sleep(0.05)
    monkeypatch.delenv("PRETEND")
    assert quick(jobs, "s")[1] and states(jobs) == ["done"] and starts(jobs[0]) == 2


def _command(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_two_sweeps_at_once_share_the_work(place, monkeypatch):
    monkeypatch.setenv("PRETEND", json.dumps({f"corrected{i}": ".1" for i in range(8)}))
    jobs = plan(seeds=range(8))
    children = [fork(quick, jobs, "s") for _ in range(3)]
    assert [os.waitpid(c, 0)[1] for c in children] == [0, 0, 0]
    assert (
        states(jobs) == ["done"] * 8
        and [starts(j) for j in jobs] == [1] * 8
        and Path("s/compare.html").exists()
    )


def test_parts_cover_every_job_once(place):
    jobs = plan(("a.h5ad", "b.h5ad"), seeds=range(5))
    array = [
        dict(
            SLURM_ARRAY_TASK_ID=str(i),
            SLURM_ARRAY_TASK_MIN="3",
            SLURM_ARRAY_TASK_MAX="9",
            SLURM_ARRAY_TASK_STEP="2",
            SLURM_ARRAY_TASK_COUNT="4",
        )
        for i in (3, 5, 7, 9)
    ]
    parts = [sweep.read_part(None, e) for e in array]
    assert parts == [sweep.read_part(f"{i}/4") for i in range(1, 5)]
    pages = [quick(jobs, "s", part=p)[1] for p in parts]
    # the last one collects
    assert [starts(j) for j in jobs] == [1] * 10 and pages[:3] == [None] * 3 and pages[3]
    assert len(json.loads(Path("s/compare.json").read_text())["runs"]) == 10
    assert Counter(j.label for j in jobs[0::2]) == {"a": 3, "b": 2}  # fair
    for bad in ("0/2", "3/2", "1/0", "x", "1/2/3", "-1/2"):
        with pytest.raises(GpovaeError, match="no part"):
            sweep.read_part(bad)


def test_a_screen_that_moved_takes_its_runs_along(place):
    jobs = plan(seeds=range(2))
    quick(jobs, "s")
    Path("data").mkdir()
    shutil.move("a.h5ad", "data/a.h5ad")
    moved = plan(("data/a.h5ad",), seeds=range(2))
    quick(moved, "s")
    assert [j.folder for j in moved] == [j.folder for j in jobs] and [starts(j) for j in jobs] == [
        1,
        1,
    ]
    assert all(
        json.loads((j.folder / "settings.json").read_text())["data"] == str(place / "data/a.h5ad")
        for j in jobs
    )


def shell(*arguments):
    result = CliRunner().invoke(main, ["sweep", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_mistakes(place):
    (place / "other").mkdir()
    (place / "other/notes.txt").write_text("")
    (place / "text.h5ad").write_text("text")
    (place / "file").write_text("")
    shutil.copy("a.h5ad", "twin.h5ad")
    for culprit, arguments in {
        "gone.h5ad": ["gone.h5ad"],
        "was not prepared": ["raw.h5ad"],
        "'text.h5ad' is no prepared screen": ["text.h5ad"],
        "same screen": ["a.h5ad", "a.h5ad"],
        "'twin.h5ad' and 'a.h5ad'": ["a.h5ad", "twin.h5ad"],
        "'improved'": ["a.h5ad", "--presets", "paper,improved"],
        "preset paper is named twice": ["a.h5ad", "--presets", "paper,paper"],
        "seed 1 is": ["a.h5ad", "--seeds", "0-2,1"],
        "'x'": ["a.h5ad", "--seeds", "x"],
        "'particle'": ["a.h5ad", "--set", "particle=5"],
        "particles=none": ["a.h5ad", "--set", "particles=none"],
        "latent_effect": ["a.h5ad", "--presets", "paper", "--set", "latent_effect=network"],
        "given twice": ["a.h5ad", "--set", "max_epochs=3", "--max-epochs", 3],
        "5/4": ["a.h5ad", "--part", "5/4"],
        "notes.txt": ["a.h5ad", "--out", "other"],
        "'file'": ["a.h5ad", "--out", "file"],
        "'--workers'": ["a.h5ad", "--workers", 0],
    }.items():
        status, text = shell(*([] if "--out" in arguments else ["--out", "s"]), *arguments)
        assert status == 2 and culprit in text and "Traceback" not in text, (arguments, text)
    assert not Path("s").exists()


def test_in_a_shell(place, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", functools.partial(sweep.sweep, command=PRETEND))
    line = [
        "a.h5ad",
        "--out",
        "s",
        "--seeds",
        "0-1",
        "--presets",
        "corrected,paper",
        "--max-epochs",
        2,
    ]
    status, text = shell(*line, "--dry-run")
    assert (
        status == 0
        and text.count("waiting     gpovae train a.h5ad --out s/a-") == 4
        and not Path("s").exists()
    )
    monkeypatch.setenv("PRETEND", json.dumps(dict(paper1="error")))
    status, text = shell(*line, "--quiet")
    assert (
        status == 1
        and "s: 3 of 4 jobs done\ns/compare.html" in text
        and "1 failed" in text
        and "-paper-seed1-" in text
        and text.rstrip().endswith("RuntimeError: the screen is broken")
    ), text
    status, text = shell(*line, "--dry-run")
    assert text.count("done ") == 3 and text.count("failed ") == 1
    monkeypatch.delenv("PRETEND")
    status, text = shell(*line, "--quiet", "--part", "2/2")  # corrected 1, paper 1
    assert status == 0 and text == "s, part 2 of 2: 2 of 2 jobs done\ns/compare.html\n"
    for k, v in dict(ID=7, MIN=7, MAX=8, STEP=1, COUNT=2).items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{k}", str(v))
    assert shell(*line, "--quiet") == (0, "s, part 1 of 2: 2 of 2 jobs done\ns/compare.html\n")
    assert (
        "4 running" not in (text := shell("b.h5ad", "--out", "s", "--quiet", "--part", "2/2")[1])
        and "0 of 0 jobs done; the report follows" in text
    )


def test_what_the_report_leaves_out_is_said(place, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", functools.partial(sweep.sweep, command=PRETEND))
    shell(*(line := ["a.h5ad", "--out", "s", "--seeds", "0-1", "--quiet"]))
    told = json.loads(Path("s/compare.json").read_text())
    left = told["runs"].pop()["run"]
    monkeypatch.setattr(
        sweep,
        "collect",
        lambda *_: (
            Path("s/compare.json").write_text(
                json.dumps(told | dict(left_out={left: "it is no good"}))
            ),
            Path("s/compare.html"),
        )[1],
    )
    status, text = shell(*line[:-1])  # what --quiet leaves out
    assert (
        status == 0
        and f"Note: {Path(left).name} is not in the report: it is no good." in text
        and pd.read_csv("s/sweep.csv").why.tolist()[1] == "it is no good"
    ), text


def test_a_report_that_fails_loses_nothing(place, monkeypatch):
    broken = """import sys
if sys.argv[1] == "compare":
    sys.exit("Error: no kernel")
"""
    failing = [*PRETEND[:3], broken + SCRIPT]
    jobs = plan()
    with pytest.raises(
        GpovaeError, match=r"no kernel \(exit status 1\). Once more: gpovae compare s/a-"
    ):
        sweep.sweep(jobs, "s", progress=False, command=failing)
    assert (
        pd.read_csv("s/sweep.csv").state.tolist() == ["done"] * 3
        and quick(jobs, "s")[1]
        and [starts(j) for j in jobs] == [1] * 3
    )


@pytest.mark.xdist_group("runs")
def test_a_real_sweep(run_folder, tmp_path, monkeypatch):
    "Trained, where a killed process left half a run, and compared."
    monkeypatch.chdir(tmp_path)
    (job,) = sweep.plan(
        [run_folder / "prepared.h5ad"],
        "s",
        settings=dict(particles=[2], basal=[(20, 1)]),
        max_epochs=1,
    )
    (job.folder / ".gpovae-left").mkdir(parents=True)
    (job.folder / "model.safetensors").write_text("half")
    Path("s/sweep.csv").write_text("")
    status, text = shell(
        run_folder / "prepared.h5ad",
        "--out",
        "s",
        "--set",
        "particles=2",
        "--set",
        "basal=20x1",
        "--max-epochs",
        1,
        "--quiet",
    )
    (row,) = pd.read_csv("s/sweep.csv").to_dict("records")
    assert (
        status == 0
        and text == "s: 1 of 1 jobs done\ns/compare.html\n"
        and row["job"] == job.folder.name
        and (row["screen"], row["state"], row["particles"], row["basal"], row["epochs"])
        == ("prepared", "done", 2, "20x1", 1)
    ), text
    s = json.loads((Path("s") / row["job"] / "settings.json").read_text())
    assert make_settings("corrected", **s["settings"]) == make_settings(
        "corrected", particles=2, basal=(20, 1)
    )
    assert {"compare.html", "compare.ipynb", "compare.json"} <= {
        p.name for p in Path("s").iterdir()
    } and 0 < row["ate_rho"] < 1
    (told,) = json.loads(Path("s/compare.json").read_text())["runs"]
    assert told["method"] == "corrected (basal = (20, 1), particles = 2)" and told["run"] == str(
        tmp_path / "s" / row["job"]
    )
