"""The command line on a small simulated screen; and what each bad input of the data contract gets:
status 2, the culprit's name, no traceback, no file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from click.testing import CliRunner

from gpovae import GPOVAE, datasets
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.evaluate.response import METRICS

pytestmark = pytest.mark.xdist_group("runs")  # one worker trains the small model for all


def gpovae(*arguments):
    "Exit status and output; an error that the CLI does not handle is raised."
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))


def test_prepare_and_train_leave_complete_files(run_folder):
    prepared = ad.read_h5ad(run_folder / "prepared.h5ad")
    assert {"gpovae_perturbation", "gpovae_fail", "gpovae_split"} <= set(
        prepared.obs
    ) and "gpovae_responses" in prepared.uns
    assert {"model.safetensors", "settings.json", "history.csv"} <= {
        p.name for p in (run_folder / "run").iterdir()
    }
    assert not [f for f in files(run_folder) if ".gpovae-" in f]


def test_evaluate_prints_tables_and_writes_a_report(run_folder, tmp_path):
    known = tmp_path / "known.csv"
    edges = GPOVAE.load(run_folder / "run").network(min_probability=0).head(20)
    edges[["source", "target"]].to_csv(known, index=False)
    status, text = gpovae(
        "evaluate",
        run_folder / "run",
        "--known",
        known,
        "--other",
        run_folder / "run",
        "--quick",
        "--quiet",
    )
    assert (
        status == 0
        and "ATE-rho" in text
        and "training mean" in text
        and "ceiling" in text
        and "gradient boosting" not in text
    ), text
    scores = json.loads((run_folder / "run/evaluate.json").read_text())["scores"]
    assert {"evaluate.html", "evaluate.ipynb"} <= {p.name for p in (run_folder / "run").iterdir()}
    # the same run, as another one
    assert (
        scores["response"]["run"] == scores["response"]["model"]
        and scores["difference"]["run"]["difference"] == 0
    )
    assert scores["biology"]["known.csv"]["model"]["known"] == 20 and scores["energy"] is None


def test_score_of_any_model(run_folder, tmp_path):
    prepared = ad.read_h5ad(run_folder / "prepared.h5ad")
    for split in ("train", "test"):
        part = prepared[(prepared.obs["gpovae_split"] == split) & ~prepared.obs["gpovae_fail"]]
        part = ad.AnnData(part.X.copy(), obs=part.obs[["gene"]], var=part.var[[]])
        sc.pp.normalize_total(part, target_sum=1e4)
        sc.pp.log1p(part)
        part.write_h5ad(tmp_path / f"{split}.h5ad")
    status, text = gpovae(
        "score",
        tmp_path / "train.h5ad",
        tmp_path / "test.h5ad",
        "--perturbation-key",
        "gene",
        "--out",
        tmp_path / "s.json",
    )
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (
        status == 0
        and list(scores) == list(METRICS)
        and 0 < scores["ate_rho"] < 1
        and f"{scores['ate_rho']:.4f}" in text
    )
    status, text = gpovae(
        "score",
        tmp_path / "test.h5ad",
        tmp_path / "test.h5ad",
        "--perturbation-key",
        "gene",
        "--quiet",
    )
    assert status == 0 and text.splitlines()[0].split() == ["ATE-rho", "1.0000"]
    status, text = gpovae(
        "score", tmp_path / "test.h5ad", tmp_path / "test.h5ad", "--perturbation-key", "drug"
    )
    assert status == 2 and "'drug'" in text


def test_report(run_folder):
    status, text = gpovae("report", run_folder / "run", "--quiet")
    assert status == 0, text
    assert {"report.html", "report.ipynb", "report.json"} <= {
        p.name for p in (run_folder / "run").iterdir()
    }


def test_same_seed_same_run(run_folder):
    for name in ("again", "other"):
        status, text = gpovae(
            "train",
            run_folder / "prepared.h5ad",
            "--out",
            run_folder / name,
            "--max-epochs",
            3,
            "--seed",
            int(name == "other"),
            "--quiet",
        )
        assert status == 0, text
    history = {n: pd.read_csv(run_folder / n / "history.csv") for n in ("run", "again", "other")}
    pd.testing.assert_frame_equal(
        history["run"][["train_loss", "validation_loss"]],
        history["again"][["train_loss", "validation_loss"]],
    )
    assert not np.allclose(history["run"]["train_loss"], history["other"]["train_loss"])


def test_demo_does_what_it_is_asked(tmp_path, screen, monkeypatch):
    "What it leaves is looked at in tests/data/test_screens.py."
    asked = {}

    class Model:
        def __init__(self, adata, **settings):
            assert adata is screen

        def train(self, **options):
            asked["train"] = options
            raise GpovaeError("far enough")

    monkeypatch.setattr("gpovae.datasets.load", lambda name: screen)
    monkeypatch.setattr("gpovae.prepare", lambda adata, **options: asked.update(prepare=options))
    monkeypatch.setattr("gpovae.GPOVAE", Model)
    out = tmp_path / "demo"
    status, text = gpovae("demo", "--out", out, "--max-epochs", 1, "--seed", 3, "--quiet")
    assert status == 2 and "far enough" in text and not out.exists()
    assert asked["train"] == dict(max_epochs=1, seed=3, progress=False)
    assert asked["prepare"].pop("seed") == 3 and not asked["prepare"].pop("progress")
    assert asked["prepare"] == datasets.prepare_arguments("simulated")


def change(screen, **to):
    "A copy of the raw screen with something wrong in it."
    a = screen.copy()
    a.uns = {}
    x = a.X.toarray()
    obs = a.obs.copy()
    labels = obs["gene"].astype(str)
    kind = to["kind"]
    if kind == "log-normalised":
        x = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    if kind == "negative":
        x[3, 5] = -1
    if kind == "fraction":
        x[3, 5] = 1.5
    if kind == "NaN":
        x[3, 5] = np.nan
    if kind == "no counts":
        x[:] = 0
    if kind == "no control":
        labels[labels == "non-targeting"] = "LUZP1"
    if kind == "one cell":
        labels.iloc[3] = "LONELY1"
    if kind == "no column":
        obs = obs.rename(columns={"gene": "treatment"})
    else:
        obs["gene"] = pd.Categorical(labels)
    b = ad.AnnData(x.astype(np.float32), obs=obs, var=a.var)
    if kind == "duplicate gene":
        b.var_names = [b.var_names[0], *b.var_names[:-1]]
    if kind == "duplicate cell":
        b.obs_names = [b.obs_names[0], *b.obs_names[:-1]]
    return b


BAD = {
    "log-normalised": "not a whole number",
    "negative": "negative",
    "fraction": "1.5",
    "NaN": "not a number",
    "no counts": "no counts at all",
    "no control": "No control cells",
    "one cell": "LONELY1",
    "no column": "treatment",
    "duplicate gene": "{gene0}",
    "duplicate cell": "{cell0}",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore")
def test_bad_screens(kind, screen, tmp_path):
    change(screen, kind=kind).write_h5ad(tmp_path / "bad.h5ad")
    status, text = gpovae("prepare", tmp_path / "bad.h5ad", tmp_path / "out.h5ad", "--quiet")
    assert status == 2 and text.startswith("Error: ") and "Traceback" not in text
    assert (
        BAD[kind].format(
            cell=screen.obs_names[3], cell0=screen.obs_names[0], gene0=screen.var_names[0]
        )
        in text
    )
    if kind in ("negative", "fraction", "NaN"):
        assert screen.obs_names[3] in text and screen.var_names[5] in text
    assert files(tmp_path) == ["bad.h5ad"]


def test_other_mistakes(screen, run_folder, tmp_path):
    raw = run_folder / "raw.h5ad"
    prepared = run_folder / "prepared.h5ad"
    (tmp_path / "text.h5ad").write_text("not a screen")
    (tmp_path / "file").write_text("")
    for culprit, command in {
        "nowhere.h5ad": ["prepare", tmp_path / "nowhere.h5ad", tmp_path / "out.h5ad"],
        "text.h5ad": ["prepare", tmp_path / "text.h5ad", tmp_path / "out.h5ad"],
        "lane": ["prepare", raw, tmp_path / "out.h5ad", "--batch-key", "lane"],
        "HBX": ["prepare", raw, tmp_path / "out.h5ad", "--size-factor-exclude", "HBX"],
        "treatment": ["prepare", raw, tmp_path / "out.h5ad", "--perturbation-key", "treatment"],
        str(tmp_path / "file"): ["prepare", raw, tmp_path / "file/out.h5ad"],
        "was not prepared": ["train", raw, "--out", tmp_path / "run"],
        "improved": ["train", prepared, "--out", tmp_path / "run", "--preset", "improved"],
        "--out": ["train", prepared],
        "'file'": ["train", prepared, "--out", tmp_path / "file"],
        "norman": ["demo", "--dataset", "norman", "--out", tmp_path / "demo"],
    }.items():
        status, text = gpovae(*command)
        assert (
            status == 2
            and culprit.strip("'") in text.replace("\n", " ")
            and "Traceback" not in text
        ), (command, text)
    (tmp_path / "empty").mkdir()
    for command in ("evaluate", "report"):
        status, text = gpovae(command, tmp_path / "empty", "--quiet")
        assert status == 2 and "empty" in text and text.startswith("Error: "), text
    assert files(tmp_path) == ["empty", "file", "text.h5ad"]


def test_a_run_whose_data_was_exchanged(screen, run_folder, tmp_path):
    "No gene in common with a saved model."
    status, text = gpovae(
        "train",
        run_folder / "prepared.h5ad",
        "--out",
        tmp_path / "run",
        "--max-epochs",
        1,
        "--quiet",
    )
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    other = screen.copy()
    other.uns = {}
    other.var_names = [f"OTHER{i}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "other.h5ad")
    gpovae("prepare", tmp_path / "other.h5ad", tmp_path / "other_prepared.h5ad", "--quiet")
    settings["data"] = str(tmp_path / "other_prepared.h5ad")
    (tmp_path / "run/settings.json").write_text(json.dumps(settings))
    status, text = gpovae("evaluate", tmp_path / "run", "--quiet")
    assert status == 2 and "gene" in text and text.startswith("Error: "), text
    settings["data"] = str(tmp_path / "gone.h5ad")
    (tmp_path / "run/settings.json").write_text(json.dumps(settings))
    status, text = gpovae("evaluate", tmp_path / "run", "--quiet")
    assert status == 2 and "settings.json" in text and text.startswith("Error: "), text


def test_in_a_shell(tmp_path):
    "As a user sees it: one line on standard error."
    (tmp_path / "text.h5ad").write_text("not a screen")
    done = subprocess.run(
        [Path(sys.executable).with_name("gpovae"), "prepare", "text.h5ad", "out.h5ad", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("Error: 'text.h5ad'")
        and done.stderr.count("\n") == 1
    )
    assert files(tmp_path) == ["text.h5ad"]


def test_a_finished_run_is_left_alone(run_folder, tmp_path):
    line = [
        "train",
        run_folder / "prepared.h5ad",
        "--out",
        tmp_path / "run",
        "--max-epochs",
        2,
        "--set",
        "particles=2",
    ]
    status, text = gpovae(*line, "--quiet")
    assert status == 0, text

    def state():
        return {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    (tmp_path / "run/report.html").write_text("a report of it")
    before = state()
    status, text = gpovae(*line)
    assert (
        status == 0
        and "2 epochs, all were run" in text
        and "nothing to do" in text
        and state() == before
    )
    for more, says in (
        (["--seed", 1], "(seed was 0 and is 1)"),
        (["--max-epochs", 3], "(max_epochs was 2 and is 3)".replace("max_epochs", "--max-epochs")),
        (["--preset", "paper"], "preset was corrected and is paper"),
        (["--set", "max_path_length=2"], "(max_path_length was 6 and is 2)"),
    ):
        status, text = gpovae(*line, *more)
        assert (
            status == 2
            and f"{tmp_path / 'run'} holds a finished run of another training" in text
            and says in text
            and "--force" in text
            and state() == before
        ), text
    status, text = gpovae(*line, "--seed", 1, "--force", "--quiet")
    assert (
        status == 0
        and json.loads((tmp_path / "run/settings.json").read_text())["seed"] == 1
        and "report.html" not in state()
    ), text
    (tmp_path / "run/history.csv").write_text("epoch\n")  # damaged: nothing worth keeping
    status, text = gpovae(*line, "--quiet")
    assert status == 0 and json.loads((tmp_path / "run/settings.json").read_text())["seed"] == 0, (
        text
    )


def test_messages_speak_of_options(run_folder, tmp_path):
    a = datasets.simulated(n_cells=300, n_genes=30, n_perturbations=3, seed=0)
    a.obs = a.obs.rename(columns=dict(gene="treatment"))
    a.write_h5ad(tmp_path / "raw.h5ad")
    status, text = gpovae("prepare", tmp_path / "raw.h5ad", tmp_path / "p.h5ad", "--quiet")
    assert (
        status == 2
        and "Name yours as --perturbation-key." in text
        and "perturbation_key" not in text
    ), text
    status, text = gpovae(
        "prepare",
        tmp_path / "raw.h5ad",
        tmp_path / "p.h5ad",
        "--perturbation-key",
        "treatment",
        "--control",
        "nothing",
        "--quiet",
    )
    assert (
        status == 2
        and "Name the control label: --control." in text
        and "(its labels: non-targeting, " in text
    ), text


def test_compare_says_what_it_left_out(run_folder, tmp_path):
    for name in "ab":
        shutil.copytree(run_folder / "run", tmp_path / name)
    settings = json.loads((tmp_path / "b/settings.json").read_text())
    settings["data"] = str(tmp_path / "gone.h5ad")
    (tmp_path / "b/settings.json").write_text(json.dumps(settings))
    status, text = gpovae("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert (
        status == 0
        and f"Note: {tmp_path / 'b'} was left out: its screen is gone" in text
        and "RuntimeWarning" not in text
    ), text


def logged(folder, *words, quiet):
    "Output, and what stands in the log, of a command whose standard error is a file."
    with (folder / "log").open("w+") as log:
        done = subprocess.run(
            [Path(sys.executable).with_name("gpovae"), *map(str, words), *["--quiet"] * quiet],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=os.environ,
        )
        log.seek(0)
        text = log.read()
    assert done.returncode == 0, text
    return done.stdout, text


@pytest.mark.parametrize("quiet", [False, True])
def test_logs_of_commands(run_folder, tmp_path, quiet):
    "An evaluation takes long enough for its report to say how far it is."
    for words in (
        ["train", run_folder / "prepared.h5ad", "--out", tmp_path / "run", "--max-epochs", 1],
        ["network" if quiet else "evaluate", tmp_path / "run"],
    ):
        out, log = logged(tmp_path, *words, quiet=quiet)
        assert out and "\r" not in log and "\x1b" not in log and len(log.splitlines()) < 30, log
        if quiet:
            assert log == "", log
        elif words[0] == "evaluate":
            assert re.search(r"evaluate: \d+ of \d+ cells, [\d:]+ gone, [\d:?]+ left", log), log
        else:
            assert "at most" in log and "kept are the weights" in log
