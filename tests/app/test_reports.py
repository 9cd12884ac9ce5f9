"""The reports as papermill runs: smoke runs with their defaults,
a run of the command line, what lands in the JSON beside them.
"""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from gpovae import GPOVAE
from gpovae.app import page, reports
from gpovae.core.errors import GpovaeError
from gpovae.experiments import ablation as studies

from places import ROOT

pytestmark = pytest.mark.xdist_group("runs")
NAMES = ["ablation", "compare", "evaluate", "network", "paper", "prepare", "report", "train"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_help_and_a_literal_default(name):
    table = reports.parameters(name)
    assert (table["help"].str.len() > 10).all() and (table["type"] != "None").all()
    source = "\n".join(
        c.source
        for c in nbformat.read(reports.notebook(name), 4).cells
        if "parameters" in c.metadata.get("tags", [])
    )
    assert (
        len(table)
        == len(re.findall(r"^\w+: \w+ = ", source, re.M))
        == len(source.strip().splitlines())
    )


def outside(text):
    "A page without its explorable network."
    return re.sub(r'<iframe [^>]*srcdoc="[^"]*"[^>]*></iframe>', "", text)


def stored(text, name):
    "The rows that a table of a page holds."
    page_rows = {
        re.search(r'"filename": "([^"]+)"', one)[1]: re.search(r'"data_json": (".*")', one)[1]
        for one in text.split("let dt_args = {")[1:]
        if "table_html" in one and "data_json" in one
    }
    return json.loads(json.loads(page_rows[name]))


def asks_for_nothing(text):
    "Scripts and styles are those that travel in it; the browser is told to fetch none."
    text = outside(text)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; ") and "http" not in policy
    assert not re.search(r"<script[^>]* src=|<link|src=\"(?!data:)|@import", text)


def one_look(name, path):
    """Contents, code to be folded out, tables to be taken away, light and dark and paper.

    All in one file below 5 MB.
    """
    text = path.read_text()
    assert path.stat().st_size < 5e6
    asks_for_nothing(text)
    heads = re.findall(r'<h2 id="([^"]+)"', outside(text))
    assert (
        all(f'<a href="#{h}">' in text for h in heads)
        and heads
        and 'id="show"' in text
        and '<pre class="code">' in text
    )
    css = "".join(text.split())
    assert "prefers-color-scheme:dark" in css and "@mediaprint" in css
    assert "img{max-width:100%;height:auto;background:#fff}" in css
    assert text.count('class="zoom"') == text.count('src="data:image/png')
    # every table of the notebook can be searched and saved in the page
    notebook = nbformat.read(path.with_suffix(".ipynb"), 4)
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    tables = sum(page._MIME in o.get("data", {}) for o in outputs)
    assert tables == text.count('"extend": "csvHtml5"') > 0
    for _, f in re.findall(
        r'download="([\w-]+\.csv)" href="data:text/csv;base64,([\w+/=]+)"', text
    ):
        assert len(pd.read_csv(io.StringIO(base64.b64decode(f).decode()))) >= 0
    if name in ("report", "evaluate", "network"):
        asked = re.findall(r"<li><b>([^<]+[?])</b>", text)
        assert asked == [
            "Which perturbations worked?",
            "What changed?",
            "Why?",
            "How sure is that?",
        ]
        assert text.index("<li><b>Which") < text.index("<h2")


@pytest.mark.parametrize("name", NAMES)
def test_smoke_run(name, tmp_path):
    made = reports.run(name, tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{name}.{k}" for k in ("html", "ipynb", "json")
    )
    results = json.loads(made["json"].read_text())
    one_look(name, made["html"])
    if name in ("prepare", "report"):
        assert "The screen has 8 knockdowns (a transcript is lowered)" in made["html"].read_text()
    if name == "prepare":
        assert (
            results["worked"]["yes"] > 4
            and results["nodes"] > results["perturbed_nodes"] == 8
            and results["cells"]
            == sum(r["passing"] + r["failing"] for r in results["cells_per_perturbation"])
        )
    if name == "train":
        assert results["epochs"] == 5 and results["seed"] == 0
    if name == "evaluate":
        scores = results["scores"]
        assert (
            scores["evidence"].keys() == {"MYC"}
            and scores["unseen"]["model"]["ate_rho"]["value"]
            > scores["unseen"]["no effect (control mean)"]["ate_rho"]["value"]
            and "one perturbation that was held out" in scores["details"]
        )
        assert (
            scores["likelihood"]["model"]
            > scores["likelihood"]["called control"]
            > scores["likelihood"]["labels shuffled"]
            and 0 < scores["qc"]["3"]["model"] <= 1
        )
        assert (
            {"gradient boosting", "random", "mean difference"} < set(scores["network"])
            and scores["calibration"]["brier_skill"] > 0
            and scores["strata"].keys() == {"effect size", "cells"}
        )
        energy = pd.DataFrame(scores["energy"]).T.mean()
        assert (
            energy["model"] < energy["all perturbed cells"]
            and energy["training cells"] < energy["all perturbed cells"]
        )
        text = made["html"].read_text()
        points = re.findall(r"<li><b>([^<]+:)</b> ([^<]+)</li>", text)
        said = "\n".join(f"- {name} {html.unescape(point)}" for name, point in points)
        assert said == scores["verdict"] and len(points) == 5
        assert scores["details"] in html.unescape(text)
        assert "<details><summary>All numbers" in text
        assert results["text"].endswith(scores["verdict"])
    if name == "network":
        edges = pd.DataFrame(results["edges"])
        page_text = made["html"].read_text()
        assert (
            len(edges) == results["n_edges"]
            and (edges.probability >= 0.5).all()
            and results["activations"] + results["repressions"] == len(edges)
        )
        table = {r["regulator"]: r for r in results["regulators"]}
        assert (
            sum(r["targets"] for r in table.values()) == len(edges)
            and not set(table) & set(results["without_edges"]["all"])
            and len(table) + len(results["without_edges"]["all"]) == results["perturbed"]
        )
        why = results["explanation"]
        assert sum(p["contribution"] for p in why["paths"]) == pytest.approx(why["total"], rel=1e-3)
        assert (
            results["truth"]["auprc"]["gpovae"] > results["truth"]["chance"]
            and made["html"].stat().st_size < 5e6
        )
        saved = stored(page_text, "network")
        assert [tuple(row[:2]) for row in saved] == list(
            zip(edges.source, edges.target, strict=True)
        )
    if name == "report":
        assert results["truth"]["auprc"]["gpovae"] > results["truth"]["chance"]
        assert (
            "ate_rho" in results["scores"]["response"]["model"]
            and 0 <= results["scores"]["ceiling"]["ceiling"] <= 1
        )
    if name == "ablation":
        rows = {r["row"]: r for r in results["table"]}
        assert list(rows) == [*studies.ablation_settings(), *studies.YARDSTICKS]
        assert rows["covariate"]["runs"] is None and "one batch" in rows["covariate"]["note"]
        for r in (rows[k] for k in ("kl", "paper")):
            assert (
                r["runs"] == 2
                and r["ate_rho_from"] <= r["ate_rho_difference"] <= r["ate_rho_to"]
                and "failed" not in r["note"]
            )
        assert (
            rows["shrunken training mean"]["ate_rho"] <= rows["ceiling"]["ate_rho"]
            and rows["kl"]["auprc"] > rows["chance"]["auprc"]
        )
        assert {(r["row"], r["seed"]) for r in results["runs"]} >= {
            ("corrected", 0),
            ("corrected", 1),
            ("ceiling", 1),
        }
    if name == "compare":
        assert (
            {(r["method"], r["seed"]) for r in results["runs"]}
            == {(p, s) for p in ("corrected", "paper") for s in range(3)}
            and len(results["screens"]) == 3
            and not results["left_out"]
        )
        value = {(r["method"], r["metric"]): r for r in results["summary"]}
        assert (
            value["corrected", "ate_rho"]["n"] == 3
            and value["corrected", "ate_rho"]["over"] == "screens"
            and value["training mean", "ate_rho"]["n"] == 3
        )
        assert all(
            r["from"] <= r["difference"] <= r["to"]
            for r in results["pairs"]
            if r["from"] is not None
        )
        assert {r["method"] for r in results["ranks"]} >= {
            "corrected",
            "paper",
            "shrunken training mean",
            "random",
        } and "questions." in results["verdict"]
    if name == "paper":
        mean = {(r["screen"], r["method"], r["cells"]): r["ate_rho"] for r in results["table"]}
        assert [mean[s, "published", "all"] for s in ("RPE1", "K562", "Adamson")] == [
            0.651,
            0.766,
            0.864,
        ] and "784cbec" in results["source"]
        # scored on the cells that it was taken from
        assert all(
            mean[s, "training mean", "all"] > mean[s, "training mean", "test"]
            for s in ("RPE1", "K562", "Adamson")
        )
        assert all(
            f["word"] in ("reproduced", "refuted", "undecided") for f in results["finding"].values()
        ) and list(results["finding"]) == ["RPE1", "K562", "Adamson", "all"]
        assert (
            "simulated" in results["label"]
            and "cannot be compared with the published ones" in results["note"]
        )


def test_compare_of_runs(run_folder, tmp_path):
    shutil.copytree(run_folder / "run", tmp_path / "gone")
    settings = json.loads((tmp_path / "gone/settings.json").read_text())
    (tmp_path / "gone/settings.json").write_text(json.dumps(settings | dict(data="/nowhere.h5ad")))
    results = json.loads(
        reports.run(
            "compare",
            tmp_path / "a",
            progress=False,
            runs=f"mine={run_folder}/run, {tmp_path}/gone",
        )["json"].read_text()
    )
    assert (
        results["reference"] == "mine"
        and "its screen is gone" in results["left_out"][str(tmp_path / "gone")]
    )
    pair = next(
        r
        for r in results["pairs"]
        if (r["metric"], r["a"], r["b"]) == ("ate_rho", "mine", "no effect (control mean)")
    )
    # one run: perturbations alone
    assert pair["from"] is None and pair["drawn_from"] <= pair["difference"] <= pair["drawn_to"]
    with pytest.raises(GpovaeError, match="None of the runs can be used"):
        reports.run("compare", tmp_path / "b", progress=False, runs=str(tmp_path / "gone"))
    assert not (tmp_path / "b").exists()


def test_paper_of_a_prepared_screen(run_folder, tmp_path):
    values = dict(screens=f"Adamson={run_folder / 'prepared.h5ad'}", seeds=1, max_epochs=1)
    results = json.loads(
        reports.run("paper", tmp_path / "a", progress=False, **values)["json"].read_text()
    )
    assert (
        results["label"] == "the real screens"
        and results["scale"] is None
        and list(results["finding"]) == ["Adamson"]
        and results["finding"]["Adamson"]["word"] == "undecided"
    )
    assert {r["method"] for r in results["runs"]} == {
        "paper",
        "corrected",
        "training mean",
        "shrunken training mean",
        "ceiling",
        "training half against half",
    }
    for bad, message in (
        (dict(screens="HeLa=x.h5ad"), "no data set 'HeLa'"),
        (dict(seeds=0), "seeds=0"),
    ):
        with pytest.raises(GpovaeError, match=message):
            reports.run("paper", tmp_path / "b", progress=False, **bad)
    assert not (tmp_path / "b").exists()


def test_ablation_of_a_file(run_folder, tmp_path):
    values = dict(
        data=str(run_folder / "prepared.h5ad"),
        switches="kl, accumulation",
        seeds=1,
        max_epochs=1,
        jobs=2,
    )
    results = json.loads(
        reports.run("ablation", tmp_path / "a", progress=False, **values)["json"].read_text()
    )
    assert [r["row"] for r in results["table"]][:5] == [
        "corrected",
        "kl",
        "accumulation",
        "latent_effect",
        "paper",
    ] and "those of the file" in results["varies"]
    # one seed, no interval
    assert (
        results["table"][1]["ate_rho_difference"] is not None
        and results["table"][1]["ate_rho_from"] is None
    )
    with pytest.raises(
        GpovaeError, match="no switch 'signs'. There is: reconstruction, divergence"
    ):
        reports.run("ablation", tmp_path / "b", progress=False, switches="kl,signs")
    with pytest.raises(GpovaeError, match="there is no such file"):
        reports.run("ablation", tmp_path / "b", progress=False, data="nowhere.h5ad")
    with pytest.raises(GpovaeError, match="seeds=0"):
        reports.run("ablation", tmp_path / "b", progress=False, seeds=0)
    assert not (tmp_path / "b").exists()


def test_network_of_a_run(run_folder, tmp_path):
    ranking = GPOVAE.load(run_folder / "run").network(min_probability=0)
    least = float(ranking.probability[19])
    (tmp_path / "known.tsv").write_text(
        "source\ttarget\n"
        + "".join(f"{e.source}\t{e.target}\n" for e in ranking.head(8).itertuples())
    )
    results = json.loads(
        reports.run(
            "network",
            tmp_path / "a",
            progress=False,
            run=str(run_folder / "run"),
            min_probability=least,
            top=5,
            known=str(tmp_path / "known.tsv"),
        )["json"].read_text()
    )
    assert (
        results["n_edges"] == (ranking.probability >= least).sum()
        and results["known"]["precision"] > 0
        and results["known"]["recall"] == 1
    )
    for bad, message in (
        (dict(min_probability=2.0), "is no probability"),
        (dict(top=0), "at least one edge"),
        (dict(min_probability=1.0), "Lower min_probability"),
    ):
        with pytest.raises(GpovaeError, match=message):
            reports.run(
                "network", tmp_path / "b", progress=False, run=str(run_folder / "run"), **bad
            )
    assert not (tmp_path / "b").exists()


def test_page_is_self_contained(run_folder, tmp_path):
    made = reports.run("report", tmp_path, progress=False, run=str(run_folder / "run"))
    text = made["html"].read_text()
    # the explorable network, in a frame that may ask for nothing
    frame = re.search(r'<iframe [^>]*srcdoc="([^"]*)"[^>]*></iframe>', text)
    assert (
        text.count("<iframe") == 1
        and 'sandbox="allow-scripts allow-forms allow-downloads"' in text
        and "default-src 'none'" in html.unescape(frame[1])
    )
    asks_for_nothing(text)
    # what the library of tables brings is not looked at
    text = text.replace(frame[0], "")
    text = text.replace(page._library(), "").split("<main>")[1]
    heads = re.findall(r'<h2 id="([^"]+)"', text)
    assert len(heads) >= 6
    assert text.count("data:image/png") >= 8
    for figure in text.split("data:image/png")[1:]:
        assert re.search(r"<p>[^<]{40,}", figure), "a figure without its sentence"
    assert "Traceback" not in text and not re.search(
        r"\bnan\b",
        re.sub(
            r'data:image/png[^"]*', "", re.sub(r'<pre class="code">.*?</pre>', "", text, flags=re.S)
        ),
    )


def test_train_as_papermill_calls_it(run_folder, tmp_path):
    papermill.execute_notebook(
        str(reports.notebook("train")),
        str(tmp_path / "out.ipynb"),
        dict(
            data=str(run_folder / "prepared.h5ad"), out=str(tmp_path / "run"), max_epochs=3, seed=0
        ),
        kernel_name="python3",
        kernel_manager_class=reports.ThisInterpreter,
        progress_bar=False,
    )
    results = json.loads((tmp_path / "run/train.json").read_text())
    assert results["epochs"] == 3 and results["data"] == str(run_folder / "prepared.h5ad")
    history = [pd.read_csv(f / "run/history.csv") for f in (tmp_path, run_folder)]
    # what the shell's run got
    np.testing.assert_allclose(*(h[["train_loss", "validation_loss"]] for h in history), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_parameters_as_papermill_puts_them(name):
    "Its cells up to the check, with one more cell after the parameters."
    cells = [
        c.source for c in nbformat.read(reports.notebook(name), 4).cells if c.cell_type == "code"
    ]
    assert cells[1] == "from gpovae.app.reports import check_parameters"
    assert "".join(cells[2].split()).startswith("check_parameters(dict(globals())")
    table = reports.parameters(name)
    example = dict(str="'a'", int="3", float="0.5", bool="True")

    def told(line):
        try:
            exec("\n".join([cells[0], line, *cells[1:3]]), dict(__name__="__main__"))
        except GpovaeError as e:
            return str(e)

    assert told("") is None and all(
        told(f"{k} = {example[t]}") is None for k, t in table["type"].items()
    )
    for line in [
        "sede = 1",
        *(
            f"{k} = {v}"
            for k, t in table["type"].items()
            for v in [
                *(v for other, v in example.items() if other not in (t, "int" * (t == "float"))),
                "None",
                "float('nan')",
            ]
        ),
    ]:
        said = told(line)
        assert (
            said
            and line.split(" ")[0] in said
            and all(f"{k} ({t})" in said for k, t in table["type"].items())
        ), (line, said)


def test_parameters_in_a_shell(run_folder, tmp_path):
    from click.testing import CliRunner

    from gpovae.app.cli import main

    def said(*words):
        return (r := CliRunner().invoke(main, ["report", *map(str, words)])) and (
            r.exit_code,
            r.output,
        )

    status, text = said("--list")
    assert (
        status == 0
        and all(re.search(rf"^{n}: \w.{{5,70}}$", text, re.M) for n in NAMES)
        and text.count("\n    ") == sum(len(reports.parameters(n)) for n in NAMES)
    )
    for words, culprit in (
        (["-p", "tops=3"], "'tops'"),
        (["-p", "top=many"], "top='many'"),
        (["-p", "top=2.5"], "top='2.5'"),
        (["-p", "top"], "NAME=VALUE"),
    ):
        status, text = said(
            run_folder / "run", "--name", "network", "--out", tmp_path / "n", *words
        )
        assert (
            status == 2
            and culprit in text
            and ("min_probability (float), top (int)" in text or culprit == "NAME=VALUE")
            and not (tmp_path / "n").exists()
        ), text
    for words, culprit in (
        ([run_folder / "run", "--name", "weather"], "There are: ablation, compare"),
        ([], "--out"),
        ([run_folder / "run", "--name", "prepare"], "no parameter 'run'"),
    ):
        status, text = said(*words)
        assert status == 2 and culprit in text, text
    status, text = said(
        "--name",
        "prepare",
        "--out",
        tmp_path / "p",
        "-p",
        f"data={run_folder / 'prepared.h5ad'}",
        "--quiet",
    )
    assert status == 0 and json.loads((tmp_path / "p/prepare.json").read_text())["cells"] == 900, (
        text
    )


def test_refusals(tmp_path):
    with pytest.raises(
        GpovaeError, match="no parameter 'epochs'. The report 'train' has: .*max_epochs"
    ):
        reports.run("train", tmp_path / "a", epochs=3)
    with pytest.raises(
        GpovaeError, match="no report 'trian'. There are: ablation, compare, .*report, train"
    ):
        reports.run("trian", tmp_path / "a")
    with pytest.raises(GpovaeError, match="improved"):
        reports.run("train", tmp_path / "a", progress=False, preset="improved")
    assert not (tmp_path / "a").exists()


def test_reports_travel_in_the_wheel(tmp_path):
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, root],
        capture_output=True,
        text=True,
    )
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("no network to fetch the build tools from")
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"gpovae/notebooks/{n}.ipynb" for n in NAMES} | {
        f"gpovae/static/{n}"
        for n in ("cytoscape.min.js", "cytoscape.LICENSE", "explorer.html", "explorer.js")
    } <= set(names)
