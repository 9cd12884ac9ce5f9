"""Files of `gpovae export`, held against the tools that read them, where these are installed."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.app.export import FORMATS, as_catalogue, as_genernib

pytestmark = pytest.mark.xdist_group("runs")


def export(run, *words):
    "Exit status and what was printed."
    result = CliRunner().invoke(main, ["export", str(run), *map(str, words), "--quiet"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def run(run_folder):
    return run_folder / "run"


def test_genernib_reads_the_network(run, tmp_path):
    "As its own code does: three columns, weight as text, ranked by size, no self-loops."
    file = tmp_path / "network.h5ad"
    words = ["--to", "genernib", "--min-probability", 0, "--out", file]
    assert export(run, *words, "--dataset", "norman")[0] == 0
    uns = ad.read_h5ad(file).uns
    assert (uns["dataset_id"], uns["method_id"]) == ("norman", "gpovae")
    prediction = uns["prediction"]
    assert list(prediction) == ["source", "target", "weight"]
    assert all(isinstance(weight, str) for weight in prediction["weight"])
    ranked = prediction.astype(dict(weight=float)).sort_values(
        "weight", key=abs, ascending=False, kind="stable"
    )
    edges = GPOVAE.load(run, data=False).network(0)
    assert list(ranked["source"]) == list(edges["source"])
    np.testing.assert_allclose(ranked["weight"], edges["probability"] * edges["sign"], rtol=1e-5)
    loop = pd.DataFrame(dict(source=["A", "A"], target=["A", "B"], probability=[0.9, 0.8], sign=0))
    assert list(as_genernib(loop, "norman").uns["prediction"]["target"]) == ["B"]


@pytest.fixture(scope="module")
def predicted(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("cells") / "predicted.h5ad"
    assert export(run, "--to", "cell-eval", "--n-cells", 30, "--seed", 4, "--out", file)[0] == 0
    return file


def test_predicted_cells_are_those_of_python(run, predicted):
    cells = GPOVAE.load(run, data=False).sample(n_cells=30, seed=4)
    read = ad.read_h5ad(predicted)
    assert list(read.obs) == ["target_gene"] and list(read.var_names) == list(cells.var_names)
    counts = cells.X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(read.X.toarray(), expected, rtol=1e-5)
    assert read.X.dtype == np.float32
    controls = read.obs["target_gene"] == "non-targeting"
    assert list(controls) == list(cells.obs["perturbation"] == "control")


@pytest.fixture(scope="module")
def real(run_folder, predicted):
    "Measured cells of the same perturbations, likewise."
    import scanpy as sc

    screen = ad.read_h5ad(run_folder / "prepared.h5ad")
    label = screen.obs["gene"].astype(str)
    known = label.isin(ad.read_h5ad(predicted).obs["target_gene"].unique())
    measured = ad.AnnData(screen.X, obs=pd.DataFrame(dict(target_gene=label)), var=screen.var[[]])
    measured = measured[known.to_numpy()].copy()
    sc.pp.normalize_total(measured, target_sum=1e4)
    sc.pp.log1p(measured)
    file = predicted.with_name("real.h5ad")
    measured.write_h5ad(file)
    return file


def test_cell_eval_takes_the_two_files(predicted, real):
    reason = "cell-eval is not installed: pip install cell-eval"
    pytest.importorskip("cell_eval", reason=reason)
    from cell_eval._cli._const import DEFAULT_NTC_NAME, DEFAULT_PERT_COL
    from cell_eval._types import PerturbationAnndataPair
    from cell_eval.utils import guess_is_lognorm

    names = dict(pert_col=DEFAULT_PERT_COL, control_pert=DEFAULT_NTC_NAME)
    files = dict(real=ad.read_h5ad(real), pred=ad.read_h5ad(predicted))
    pair = PerturbationAnndataPair(**files, **names)
    assert len(pair.perts) == 6
    assert guess_is_lognorm(files["pred"])


def test_and_so_does_score(predicted, real):
    line = ["score", predicted, real, "--perturbation-key", "target_gene", "--json", "--quiet"]
    result = CliRunner().invoke(main, [str(word) for word in line])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ate_rho"] is not None


def test_multiqc_has_a_row_with_scores_where_there_are_any(run, tmp_path):
    file = tmp_path / "run_mqc.json"
    alone = tmp_path / "alone"  # other tests may have scored the run
    alone.mkdir()
    for part in ("settings.json", "model.safetensors", "history.csv"):
        (alone / part).write_bytes((run / part).read_bytes())

    def section():
        assert export(alone, "--to", "multiqc", "--out", file)[0] == 0
        return json.loads(file.read_text())

    found = section()
    keys = ["id", "section_name", "description", "plot_type", "pconfig", "data"]
    assert list(found) == keys and found["plot_type"] == "table"
    row = found["data"]["alone"]
    model = GPOVAE.load(alone, data=False)
    assert row["epochs"] == len(model.history) and row["perturbations"] == len(model.labels)
    assert row["validation loss"] == round(model.history["validation_loss"].min(), 4)

    scores = dict(response=dict(model=dict(ate_rho=0.5, mae=None)))
    (alone / "evaluate.json").write_text(json.dumps(dict(scores=scores)))
    assert set(section()["data"]["alone"]) - set(row) == {"ATE-rho"}


# required of every cell by ObsSchema (nullable=False), and known from a screen
REQUIRED = ("sample_id", "data_modality", "perturbation_name", "perturbed_target_number")
REQUIRED += ("perturbation_type_label", "number_of_perturbed_targets")


def test_metadata_of_the_catalogue(run, run_folder, tmp_path):
    file = tmp_path / "metadata.csv"
    words = ["--to", "catalogue", "--perturbation-type", "CRISPRi", "--out", file]
    assert export(run, *words)[0] == 0
    table = pd.read_csv(file, keep_default_na=False)
    screen = ad.read_h5ad(run_folder / "prepared.h5ad")
    assert list(table["cell_barcode"]) == list(screen.obs_names)
    assert set(REQUIRED) <= set(table) and (table[list(REQUIRED)] != "").all(axis=None)
    assert table["sample_id"].is_unique
    assert set(table["perturbation_type_label"]) == {"CRISPRi"}
    controls = table["perturbed_target_symbol"] == "control_nontargeting"
    assert list(controls) == list(screen.obs["gene"] == "non-targeting")


@pytest.mark.parametrize(
    "said, label",
    [("shRNA", "RNAi"), ("CRISPRi", "CRISPRi"), ("knockdown", None), ("how", "RNAi"), ("", None)],
)
def test_the_catalogue_says_how_only_where_that_is_known(run_folder, said, label):
    screen = ad.read_h5ad(run_folder / "prepared.h5ad")
    screen.uns["gpovae_prepare"]["source"]["parameters"]["perturbation_type"] = said
    screen.obs["how"] = "siRNA"
    assert as_catalogue(screen).get("perturbation_type_label", pd.Series([None]))[0] == label
    assert set(as_catalogue(screen, "CRISPRoff")["perturbation_type_label"]) == {"CRISPRoff"}


def test_pairs_and_several_types_in_the_catalogue(run_folder):
    screen = ad.read_h5ad(run_folder / "prepared.h5ad")
    first = screen.obs_names[screen.obs["gene"] != "non-targeting"][0]
    screen.obs["gpovae_perturbation"] = screen.obs["gpovae_perturbation"].astype(str)
    screen.obs.loc[first, "gpovae_perturbation"] = "CEBPA+KLF1"
    row = as_catalogue(screen).set_index("cell_barcode").loc[first]
    assert row["perturbed_target_symbol"] == "CEBPA|KLF1" and row["perturbed_target_number"] == 2
    screen.obs["gpovae_perturbation_type"] = screen.obs["gpovae_perturbation_type"].astype(str)
    screen.obs.loc[first, "gpovae_perturbation_type"] = "activation"
    with pytest.raises(GpovaeError, match="several types .activation, knockdown."):
        as_catalogue(screen)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--to", "multiqc", "--out", "run.json"], "_mqc.json"),
        (["--to", "cell-eval", "--out", "cells.csv"], ".h5ad"),
        (["--to", "catalogue", "--out", "table.h5ad"], ".csv or .parquet"),
        (["--to", "genernib", "--out", "network.h5ad"], "--dataset"),
        (["--to", "vcc", "--out", "cells.vcc"], "cell-eval"),
    ],
)
def test_refusals_come_before_the_work(run, words, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpovae.app.export._load", lambda run: pytest.fail("work was done"))
    status, text = export(run, *words)
    assert status == 2 and says in text and not list(tmp_path.iterdir())


def test_every_format_is_tested_here():
    assert set(FORMATS) == {"genernib", "cell-eval", "multiqc", "catalogue"}
