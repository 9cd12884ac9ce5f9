"""What tells most is chosen: uncertain edges, cells, and no two that tell the same."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.data.responses import Responses
from gpovae.network.design import (
    Edges,
    NextOptions,
    Pilot,
    Plan,
    added,
    as_frequent,
    choose,
    entropy,
    expected_entropy,
    fitted_edges,
    honest_edges,
    next_table,
)
from gpovae.network.grn import GRN

N = 12
OFF = ~np.eye(N, dtype=bool)


def edges(probability, effect=0.4, std=0.1) -> Edges:
    "Row = regulator; of the shape (N, N)."
    parts = (np.broadcast_to(x, (N, N)).astype(float) for x in (probability, effect, std))
    return Edges(*(x * OFF for x in parts))


def plan(known: Edges, done=(), cells=100.0, misfit=0.0) -> Plan:
    "Doses of -1 and a noise of 1 / cells; each `done` node was perturbed in so many cells."
    count = np.zeros(N)
    count[list(done)] = cells
    pilot = Pilot(-np.ones(N), count, np.ones(N), misfit)
    square = np.eye(N) + 0.01 * OFF  # nobody moves much but the target
    return Plan(known, pilot, square)


def test_the_entropy_that_is_left_lies_between_all_and_none():
    known = edges(np.linspace(0.02, 0.98, N)[:, None])
    left = [expected_entropy(known, np.full((N, N), x)) for x in (0, 1, 10, 100, 1e5)]
    np.testing.assert_allclose(left[0], entropy(known.probability))
    assert all((a >= b - 1e-6).all() for a, b in zip(left, left[1:], strict=False))
    assert (left[-1][OFF] < 0.05).all()


def test_probabilities_are_raised_to_a_density_in_their_order():
    p = np.random.default_rng(0).random(200) * 0.02
    raised = as_frequent(p, 0.05)
    assert raised.mean() == pytest.approx(0.05)
    assert (np.argsort(raised) == np.argsort(p)).all() and (raised > p).all()


def test_the_uncertain_regulator_comes_first():
    p = np.full((N, N), 0.001)
    p[[3, 7]] = [[0.5], [0.2]]
    chosen = choose(plan(edges(p)), range(N), 3, 100)
    assert [g for g, _ in chosen[:2]] == [3, 7]
    assert chosen[0][1].loss.sum() > chosen[1][1].loss.sum() > 10 * chosen[2][1].loss.sum()


def test_what_is_chosen_is_known_afterwards():
    "The second time gains less, and the bits of all rows are those that went."
    ahead = plan(edges(0.3, effect=0.15))
    first = added(ahead, 0, 30).loss.sum()
    start = ahead.left.sum()
    chosen = choose(ahead, [0], 3, 30, at_most=3)
    losses = [best.loss.sum() for _, best in chosen]
    assert losses[0] == pytest.approx(first) and losses[0] > losses[1] > losses[2] > 0
    assert start - ahead.left.sum() == pytest.approx(sum(losses))
    assert ahead.cells[0] == 90


def test_more_cells_do_not_help_against_what_is_not_noise():
    noisy, misfit = (plan(edges(0.3), done=[0], misfit=x) for x in (0.0, 0.5))
    assert added(noisy, 0, 100).loss.sum() > 20 * added(misfit, 0, 100).loss.sum()
    assert added(noisy, 0, 200).loss.sum() > added(noisy, 0, 100).loss.sum()
    assert (added(noisy, 0, 100).precision[:, 0] == 0).all()


def table_of(done: list[int], cells=80) -> Responses:
    nodes = pd.Index([f"g{i}" for i in range(N)])
    lfc = np.zeros((len(done), N))
    lfc[np.arange(len(done)), done] = -1
    se = np.full(lfc.shape, 0.1)
    return Responses(lfc, se, np.full(len(done), cells), nodes[done].to_numpy(), nodes)


def test_regulators_that_a_fit_left_out_are_as_uncertain_as_others():
    "Of a structural fit: no effect, and nothing but the least probability."
    done = [0, 1, 2]
    p = np.full((N, N), 0.001)
    p[:3] = 0.1
    known = edges(p, effect=np.arange(N)[:, None] < 3, std=1e-3)
    honest = honest_edges(known, table_of(done))
    assert honest.probability[3:][OFF[3:]].mean() == pytest.approx(0.1)
    assert (honest.std[3:][OFF[3:]] > 0.5).all() and (honest.std[:3] <= 1e-3).all()
    rows = next_table(known, table_of(done), None, NextOptions(n=N))
    assert set(rows["perturbation"][:9]) == {f"g{i}" for i in range(3, N)}
    assert list(rows["kind"]) == ["new"] * 9 + ["repeat"] * 3
    assert (rows["cells"] == 80).all()


def test_what_cannot_be_chosen_is_named():
    known, table = edges(0.1), table_of([0])
    with pytest.raises(GpovaeError, match="NOSUCH is no node"):
        next_table(known, table, ["NOSUCH"], NextOptions())
    with pytest.raises(GpovaeError, match="among='repeat' leaves no gene"):
        next_table(known, table, ["g1"], NextOptions(among="repeat"))
    for wrong in (dict(n=0), dict(cells=0), dict(most=0), dict(among="old")):
        with pytest.raises(GpovaeError, match=next(iter(wrong))):
            NextOptions(**wrong)
    with pytest.raises(GpovaeError, match="preset='corrected'"):
        fitted_edges(GRN(N, signed=False))


def test_the_shell_answers_as_python(run_folder, tmp_path):
    model = GPOVAE.load(run_folder / "run", data=False)
    expected = model.next_perturbations(n=4, cells=150, most=2)
    words = ["next", str(run_folder / "run"), *"--n 4 --cells 150 --most 2 --quiet".split()]
    said = CliRunner().invoke(main, [*words, "--json"])
    answer = json.loads(said.stdout)
    rows = pd.DataFrame(answer["perturbations"])
    assert rows["perturbation"].tolist() == expected["perturbation"].tolist()
    assert answer["entropy"] == pytest.approx(expected.attrs["entropy"])
    assert (np.diff(expected["loss"]) < 1e-9).all() and (expected["loss"] > 0).all()
    files = [tmp_path / "next.csv", tmp_path / "next.png"]
    said = CliRunner().invoke(main, [*words, "--out", str(files[0]), "--figure", str(files[1])])
    assert said.exit_code == 0 and answer["sentence"] in said.stdout
    assert len(pd.read_csv(files[0])) == 4 and files[1].stat().st_size > 1000
    wrong = CliRunner().invoke(main, ["next", str(run_folder / "run"), "NOSUCH"])
    assert wrong.exit_code == 2 and "NOSUCH is no node" in wrong.output
