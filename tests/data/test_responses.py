"""The table of responses: without names, with noise, with values that fold_changes gives."""

import numpy as np
import pytest

from gpovae.core.errors import GpovaeError
from gpovae.data.responses import Responses


@pytest.fixture
def table():
    "Three rows over four nodes: two single targets, and both together; one node not measured."
    lfc = np.array(
        [[-1.0, 0.2, 0.4, np.nan], [0.1, -2.0, 0.0, np.nan], [-3.0, -0.5, 0.3, np.nan]], np.float32
    )
    return Responses.from_arrays(lfc, np.full_like(lfc, 0.1), [[0], [1], [1, 0]])


def test_a_table_without_names_keeps_its_targets(table):
    assert table.targets == [[0], [1], [1, 0]]
    assert list(table.perturbations) == ["0", "1", "1+0"]
    assert list(table.nodes) == ["0", "1", "2", "3"]
    assert Responses.from_arrays(table.lfc[:1], table.se[:1], [[]]).targets == [[]]


def test_knockdown_is_that_of_single_targets(table):
    np.testing.assert_array_equal(table.own_lfc(), [-1, -2, np.nan, np.nan])


def test_a_table_of_half_the_cells_is_that_of_network_stability(table):
    noise = np.nan_to_num(table.se) * np.random.default_rng([0, 3]).normal(size=(3, 4))
    half = table.with_noise(np.random.default_rng([0, 3]))
    np.testing.assert_array_equal(half.lfc, table.lfc + np.where(table.is_target, 0, noise))
    np.testing.assert_array_equal(half.se, table.se * np.sqrt(2))
    assert half.targets == table.targets


def test_rows_by_name(table):
    chosen = table.select(["1+0", "0"])
    assert chosen.targets == [[1, 0], [0]]
    np.testing.assert_array_equal(chosen.lfc[1], table.lfc[0])
    with pytest.raises(GpovaeError, match="no row for '2'"):
        table.select(["2"])
