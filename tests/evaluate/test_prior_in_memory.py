"Prior knowledge in memory is read as the same table in a file is."

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.evaluate.curated import read_network

PAIRS = dict(source=["GATA1", "GATA1", "KLF1"], target=["KLF1", "GATA2", "HBE1"])
OMNIPATH = dict(
    source=["P1", "P1", "P2"],
    target=["P2", "P3", "P4"],
    source_genesymbol=PAIRS["source"],
    target_genesymbol=PAIRS["target"],
)
SIGNS = [1, -1, 0]
TABLES = dict(
    weights=PAIRS | dict(weight=[1.0, -1.0, np.nan]),
    mor=PAIRS | dict(mor=[1, -1, 0]),
    mor_and_weight=PAIRS | dict(mor=[1, -1, 0], weight=[0.3, 0.9, 0.4]),
    words=PAIRS | dict(mode=["Activation", "Repression", "Unknown"]),
    signs=PAIRS | dict(sign=["+", "-", ""]),
    missing=PAIRS | dict(sign=["+", "-", None]),
    numbers=PAIRS | dict(sign=[1.0, -1.0, np.nan]),
    upper={"TF": PAIRS["source"], "Gene": PAIRS["target"], "MOR": [1, -1, 0]},
    spaced={"Source ": PAIRS["source"], "Target Gene": PAIRS["target"], "Effect": [1, -1, 0]},
    omnipath=OMNIPATH
    | dict(is_stimulation=[True, False, False], is_inhibition=[False, True, False]),
    omnipath_numbers=OMNIPATH | dict(is_stimulation=[1, 0, 0], is_inhibition=[0, 1, 0]),
    omnipath_floats=OMNIPATH | dict(is_stimulation=[1.0, 0, np.nan], is_inhibition=[0.0, 1, 0]),
)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_in_memory_is_read_like_the_file(kind, tmp_path):
    table = pd.DataFrame(TABLES[kind])
    table.to_csv(tmp_path / "table.csv", index=False)
    of_file = read_network(tmp_path / "table.csv")
    in_memory = read_network(table)
    assert in_memory.set_index(["source", "target"])["sign"].to_dict() == dict(
        zip(zip(*PAIRS.values(), strict=True), SIGNS, strict=True)
    )
    pd.testing.assert_frame_equal(in_memory, of_file)


def test_pairs_in_the_index_categories_and_graphs():
    table = pd.DataFrame(PAIRS | dict(weight=[1.0, -1.0, 1.0]))
    expected = read_network(table)
    indexed = table.set_index(["source", "target"])
    pd.testing.assert_frame_equal(read_network(indexed), expected)
    pd.testing.assert_frame_equal(read_network(table.astype("category")), expected)
    graph = nx.from_pandas_edgelist(table, edge_attr=True, create_using=nx.DiGraph)
    pd.testing.assert_frame_equal(read_network(graph), expected)
    assert len(read_network(graph.to_undirected())) == 6


def test_what_it_gave_is_taken_again():
    table = read_network(pd.DataFrame(PAIRS | dict(mor=SIGNS)))
    again = read_network(table)
    pd.testing.assert_frame_equal(again, table)
    undirected = read_network(pd.DataFrame(PAIRS), directed=False)
    pd.testing.assert_frame_equal(read_network(undirected), undirected)


def test_what_is_no_table_of_edges_is_refused_by_name():
    with pytest.raises(GpovaeError, match="no column 'target'.*source, weight"):
        read_network(pd.DataFrame(dict(source=["A"], weight=[1])))
    with pytest.raises(GpovaeError, match="sign of the edge from 'GATA1' to 'GATA2'.*'perhaps'"):
        read_network(pd.DataFrame(PAIRS | dict(sign=["+", "perhaps", "-"])))


@pytest.fixture(scope="module")
def model():
    a = gpovae.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=4, seed=1)
    a.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(a.n_vars)]
    gpovae.prepare(a, progress=False)
    return gpovae.GPOVAE(a)


def test_training_keeps_the_signs_of_a_decoupler_table(model):
    genes = list(model.nodes.index[:3])
    pairs = dict(source=[genes[0], genes[1]], target=[genes[1], genes[2]])
    for column in ("mor", "weight"):
        table = pd.DataFrame(pairs | {column: [1, -1]})
        model.train(max_epochs=1, prior=table, progress=False)
        assert [sign for *_, sign in model.prior["edges"]] == [1.0, -1.0]


def test_ids_of_the_screen_are_understood_in_memory_as_in_a_file(model):
    ids = model.adata.var["gene_ids"]
    names = list(model.nodes.index[model.nodes.position >= 0][:2])
    pairs = dict(tf=[ids[names[0]]], gene=[ids[names[1]]], mor=[-1])
    model.train(max_epochs=1, prior=pd.DataFrame(pairs), progress=False)
    assert model.prior["edges"] == [[*names, -1.0]]


def test_predictions_of_unseen_targets_take_the_same_tables(model, tmp_path):
    model.train(max_epochs=2, progress=False)
    trained = model.run.trained_genes
    unseen = next(g for g in model.genes if g not in trained)
    others = [g for g in model.nodes.index if g != unseen][:3]
    plain = pd.DataFrame(dict(source=[unseen] * 3, target=others, sign=[1, -1, 1]))
    decoupler = plain.rename(columns=dict(sign="mor"))
    decoupler.to_csv(tmp_path / "net.csv", index=False)
    expected = model.predict(unseen, unseen="network", prior=plain).X
    for prior in (decoupler, tmp_path / "net.csv", str(tmp_path / "net.csv")):
        found = model.predict(unseen, unseen="network", prior=prior).X
        np.testing.assert_array_equal(found, expected)
