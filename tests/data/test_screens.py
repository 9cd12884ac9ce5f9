"""The main job, held against what is known: the network of the simulated screen, and the textbook
answer of a real one."""

import os

import numpy as np
import pytest
from click.testing import CliRunner

import gpovae
from gpovae.app.cli import main
from gpovae.data.blocks import dense
from gpovae.data.screen import Screen

from places import DATA, TAPSEQ_CELLS

GLOBINS = ["HBB", "HBD", "HBE1"]


def loaded(folder):
    "What `gpovae demo` leaves behind."
    assert (folder / "report.html").stat().st_size > 100_000
    return gpovae.GPOVAE.load(folder)


@pytest.fixture(scope="module")
def scores(demo):
    "How good the model of the demo is."
    return loaded(demo[0]).evaluate()


@pytest.mark.xdist_group("demo")
def test_demo_says_how_good_it_is_and_where(demo):
    folder, text = demo
    assert str(folder / "report.html") in text
    assert "correlate with those of unseen cells at" in text
    assert {"prepared.h5ad", "model.safetensors", "report.html", "report.json"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.xdist_group("demo")
def test_simulated_network_is_five_times_better_than_chance(scores):
    truth = scores.truth.loc["direct"]
    assert truth.auprc["model"] >= 5 * truth.chance["model"]
    assert truth.auprc["model"] > truth.auprc["mean difference"]
    assert truth.sign_accuracy["model"] >= 0.95


@pytest.mark.xdist_group("demo")
def test_simulated_effects_beat_the_training_mean(scores):
    rho = scores.response.ate_rho
    assert rho["model"] > rho["training mean"]
    assert rho["model"] > rho["no effect (control mean)"] + 0.2


@pytest.fixture(scope="module")
def tap(tmp_path_factory):
    if not (DATA / "schraivogel2020_tapseq").is_dir():
        pytest.skip(
            f"needs the files of schraivogel2020 at {DATA}/schraivogel2020_tapseq (set GPOVAE_DATA)"
        )
    before = os.environ.get("GPOVAE_DATA")
    os.environ["GPOVAE_DATA"] = str(DATA)
    try:
        folder = tmp_path_factory.mktemp("tap") / "demo"
        arguments = ["demo", "--dataset", "schraivogel2020", "--out", str(folder), "--quiet"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return loaded(folder)
    finally:
        os.environ.pop("GPOVAE_DATA") if before is None else os.environ.update(GPOVAE_DATA=before)


@pytest.mark.xdist_group("tap")
def test_tap_cells_and_library_sizes(tap):
    screen = Screen(tap.adata)
    assert tap.adata.shape == (20_994, 72)
    published = dict(TAPSEQ_CELLS)
    published["control"] = published.pop("non-targeting")
    assert {p: int((screen.labels == p).sum()) for p in published} == published
    # HS2 moves HBE1 so much that it does not count
    assert list(screen.genes[~screen.size_factor]) == ["HBE1"]
    counted = dense(screen.counts)[:, screen.size_factor]
    np.testing.assert_array_equal(screen.library_size, counted.sum(1))


@pytest.mark.xdist_group("tap")
def test_tap_effects_come_near_the_training_mean(tap):
    scores = tap.evaluate().response.ate_rho
    assert scores["model"] > scores["training mean"] - 0.10
    assert scores["model"] > scores["mean of all perturbed cells"] + 0.3


@pytest.mark.xdist_group("tap")
def test_tap_enhancer_lowers_the_globins(tap):
    assert tap.nodes.position["HS2"] == -1 and tap.nodes.perturbed["HS2"]  # a row without a column
    effect = tap.predict(["HS2"]).to_df().loc["HS2"]
    assert (effect[GLOBINS] < 0).all()
    rank = effect.abs().rank(ascending=False)
    assert rank["HBE1"] == 1 and rank["HBD"] == 2 and rank["HBB"] <= 10
    edges = tap.network(min_probability=0)
    detected = (dense(Screen(tap.adata).counts) > 0).mean(0) >= 0.005
    assert "HS2" not in set(edges.target)
    of_hs2 = edges[(edges.source == "HS2") & edges.target.isin(tap.adata.var_names[detected])]
    assert set(of_hs2.target[:3]) == set(GLOBINS)
    assert (of_hs2.sign[:3] == 1).all()  # it activates them
    assert "HBE1" in set(tap.network().query("source == 'HS2'").target)


@pytest.mark.xdist_group("tap")
def test_tap_real_negatives_stay_silent(tap):
    assert not set(tap.network().source) & {"CCNE2", "CPQ", "PHF20L1", "RIPK2", "STK3"}
