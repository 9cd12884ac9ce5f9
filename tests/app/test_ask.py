"""The shell answers as Python does; every command has an example, and the README's lines run."""

import json
import re
import shlex
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from click.testing import CliRunner

from gpovae import GPOVAE
from gpovae.app.cli import main

from places import ROOT

pytestmark = pytest.mark.xdist_group("runs")
README = (ROOT / "README.md").read_text(encoding="utf-8")
_SECTION = README.partition("## From the shell")[2].partition("```sh\n")[2].partition("```")[0]
LINES = [line.partition("#")[0].strip() for line in _SECTION.splitlines()]


def gpovae(*words):
    "Exit status and standard output."
    result = CliRunner().invoke(main, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout if result.exit_code == 0 else result.output


@pytest.fixture(scope="module")
def run(run_folder):
    return run_folder / "run"


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5ad"])
def test_files_hold_what_python_predicts_and_its_unit(run, tmp_path, suffix):
    file = tmp_path / f"effects.{suffix}"
    status, _ = gpovae("predict", run, "--out", file, "--quiet")
    expected = GPOVAE.load(run, data=False).predict()
    assert status == 0
    if suffix == "h5ad":
        read = ad.read_h5ad(file)
        effect, spread = read.to_df(), read.to_df("spread")
        assert "log2" in read.uns["gpovae_units"]["effect"]
    else:
        table = pd.read_csv(file) if suffix == "csv" else pd.read_parquet(file)
        effect, spread = (
            table.pivot(index="perturbation", columns="gene", values=f"{name}_log2")
            for name in ("effect", "spread")
        )
    for shown, values in ((effect, expected.to_df()), (spread, expected.to_df("spread"))):
        shown = shown.loc[values.index, values.columns]
        np.testing.assert_allclose(shown, values, rtol=1e-4, atol=1e-5)


def test_strongest_genes_and_combinations(run):
    status, text = gpovae("predict", run, "GATA1", "CEBPA+KLF1", "--top", 3, "--json", "--quiet")
    one, both = json.loads(text)["perturbations"]
    expected = GPOVAE.load(run, data=False).predict(["GATA1", "CEBPA+KLF1"]).to_df()
    for row, name in ((one, "GATA1"), (both, "CEBPA+KLF1")):
        strongest = expected.loc[name].abs().nlargest(3).index
        assert row["perturbation"] == name and [g["gene"] for g in row["genes"]] == list(strongest)
    status, text = gpovae("predict", run, "GATA1", "--top", 3, "--quiet")
    assert status == 0 and "spread" in text and "log2" in text


@pytest.mark.parametrize(
    "words, says",
    [
        (["predict", "{run}", "GATA2"], ["'GATA2'", "GATA1"]),
        (["predict", "{run}", "HBB"], ["'HBB'", "--unseen"]),
        (["predict", "{run}", "GATA1", "GATA1"], ["GATA1", "twice"]),
        (["predict", "{run}", "--out", "e.xlsx"], ["e.xlsx", ".parquet"]),
        (["explain", "{run}", "GATA1", "TAL2"], ["'TAL2'", "TAL1"]),
        (["explain", "{run}", "GATA1", "--out", "why.png"], ["--out"]),
        (["sample", "{run}", "GATA2", "--out", "c.h5ad"], ["'GATA2'", "GATA1"]),
    ],
)
def test_refusals_name_the_culprit_and_what_comes_nearest(run, words, says):
    status, text = gpovae(*(w.format(run=run) for w in words))
    assert status == 2 and all(word in text for word in says) and "Traceback" not in text, text


def test_explain(run, tmp_path):
    why = GPOVAE.load(run, data=False).explain("GATA1", "TAL1")
    figure = tmp_path / "why.svg"
    status, text = gpovae("explain", run, "GATA1", "TAL1", "--out", figure)
    assert status == 0 and why.sentence() in text and "<svg" in figure.read_text()
    values = json.loads(gpovae("explain", run, "GATA1", "TAL1", "--json")[1])
    assert values["sentence"] == why.sentence() and values["paths"][0]["path"] == why.paths.path[0]
    assert json.loads(gpovae("explain", run, "GATA1", "--json")[1])["genes"][0]["total"]


def test_sample_and_latent(run, tmp_path):
    model = GPOVAE.load(run)
    gpovae("sample", run, "GATA1", "--n-cells", 7, "--out", tmp_path / "c.h5ad", "--quiet")
    drawn = ad.read_h5ad(tmp_path / "c.h5ad")
    assert (drawn.X != model.sample("GATA1", 7).X).nnz == 0
    gpovae("latent", run, "--out", tmp_path / "latent.csv", "--quiet")
    table = pd.read_csv(tmp_path / "latent.csv", index_col="cell")
    expected = model.get_latent_representation()
    assert list(table.index) == list(model.adata.obs_names)
    np.testing.assert_allclose(table.filter(like="latent_"), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def workplace(run_folder, tmp_path, monkeypatch):
    "A folder with the files that examples and README name."
    for name in ("raw.h5ad", "prepared.h5ad"):
        shutil.copy(run_folder / name, tmp_path)
    for name in ("run", "other"):
        shutil.copytree(run_folder / "run", tmp_path / name)
    edges = GPOVAE.load(tmp_path / "run", data=False).network(0).head(20)
    edges[["source", "target"]].to_csv(tmp_path / "known.csv", index=False)
    profile = pd.DataFrame(dict(gene=["HBB", "HBE1"], log2_fold_change=[1.0, -1.0]))
    profile.to_csv(tmp_path / "target.csv", index=False)
    prepared = ad.read_h5ad(tmp_path / "prepared.h5ad")
    for name, split in (("predicted", "train"), ("real", "test")):
        part = prepared[(prepared.obs["gpovae_split"] == split) & ~prepared.obs["gpovae_fail"]]
        obs = part.obs[["gene"]].assign(perturbation=part.obs["gene"])
        part = ad.AnnData(part.X.copy(), obs=obs, var=part.var[[]])
        sc.pp.normalize_total(part, target_sum=1e4)
        sc.pp.log1p(part)
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_examples_that_parse_and_the_same_switches(workplace):
    for name, command in main.commands.items():
        status, text = gpovae(name, "--help")
        options = {o for p in command.params for o in p.opts}
        assert status == 0 and command.examples and {"--json", "--quiet"} <= options, name
        for example in command.examples:
            program, chosen, *words = shlex.split(example)
            assert example in text and (program, chosen) == ("gpovae", name)
            command.make_context(name, words)


def test_help_is_grouped_by_purpose():
    text = gpovae("--help")[1]
    places = [text.index(f"{title}:") for title in ("Prepare", "Train", "Ask", "Compare")]
    assert places == sorted(places) and "Exit status" in text
    assert all(re.search(rf"^  {name} ", text, re.M) for name in main.commands)


@pytest.mark.parametrize("typed, completed", [("predict run/ GA", "GATA1"), ("pre", "predict")])
def test_completion(workplace, typed, completed):
    words = typed.split()
    environment = dict(
        _GPOVAE_COMPLETE="bash_complete", COMP_WORDS=f"gpovae {typed}", COMP_CWORD=str(len(words))
    )
    result = CliRunner().invoke(main, [], env=environment, prog_name="gpovae")
    assert f"plain,{completed}" in result.output.splitlines()


@pytest.mark.parametrize("line", LINES)
def test_the_lines_of_the_readme_run(line, workplace):
    program, name, *words = shlex.split(line)
    assert program == "gpovae"
    if name == "demo":  # a download; `demo` itself runs in tests/data/test_screens.py
        main.commands[name].make_context(name, words)
        return
    # the small run was trained for three epochs, and quick scores are scores
    words += dict(train=["--max-epochs", 3], evaluate=["--quick"]).get(name, [])
    status, text = gpovae(name, *words)
    assert status in ((0, 1) if name == "check" else (0,)), text
    if "--out" in words:
        assert (workplace / words[words.index("--out") + 1]).exists()
