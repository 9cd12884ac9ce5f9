"""The network in other tools: every format and back, names that break things, AnnData, the
command; modules and gene sets.
"""

import json

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from gpovae import GPOVAE
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.evaluate.curated import read_network
from gpovae.network.export import as_networkx, node_table, read_edges, write_network
from gpovae.network.modules import enriched, modules, read_gmt

NAMES = [
    "GATA1",
    "<script>alert(1)</script>",
    'say "hi"',
    "R&D",
    "two words",
    "tab\there",
    "ΔNp63-β",
    "NA",
    "nan",
    "1",
    "it's",
    "a,b;c",
    "HLA-A*02:01",
]


@pytest.fixture(scope="module")
def edges():
    rng = np.random.default_rng(0)
    n = len(NAMES)
    pairs = [(s, NAMES[(i + k) % n]) for i, s in enumerate(NAMES) for k in (1, 3)]
    e = pd.DataFrame(pairs, columns=["source", "target"])
    e["weight"] = rng.normal(size=len(e)).astype(np.float32)
    e["probability"] = rng.random(len(e)).astype(np.float32)
    return e.assign(
        sign=np.sign(e.weight).astype(int),
        shift=np.where(rng.random(len(e)) < 0.3, np.nan, rng.normal(size=len(e))),
        cells=np.where(rng.random(len(e)) < 0.3, np.nan, 40.0),
        relative=rng.random(len(e)) < 0.5,
    )


@pytest.fixture(scope="module")
def nodes():
    return pd.DataFrame(
        dict(
            perturbed=[True] * 6 + [False] * 7,
            measured=True,
            kappa=[-1.5] * 6 + [np.nan] * 7,
            cells=range(13),
        ),
        index=NAMES,
    )


def same(found, expected):
    assert list(found.columns) == list(expected.columns)
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), expected, check_dtype=False, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["n.tsv", "n.csv"])
def test_tables_and_back(edges, tmp_path, name):
    path = write_network(edges, tmp_path / name)
    assert path.read_text(encoding="utf-8").splitlines()[0].replace(",", "\t").split("\t") == list(
        edges
    )
    same(read_edges(path), edges)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name, read",
    [
        ("n.graphml", nx.read_graphml),
        ("n.cyjs", lambda p: nx.cytoscape_graph(json.loads(p.read_text(encoding="utf-8")))),
    ],
)
def test_graphs_and_back(edges, nodes, tmp_path, name, read):
    G = as_networkx(edges, nodes)
    back = read(write_network(edges, tmp_path / name, nodes=nodes))
    assert (
        isinstance(back, nx.DiGraph)
        and set(back) == set(NAMES)
        and set(back.edges) == set(zip(edges.source, edges.target, strict=False))
    )
    for e in edges.to_dict("records"):
        have = back.edges[e.pop("source"), e.pop("target")]
        there = {k: v for k, v in e.items() if not pd.isna(v)}
        assert set(there) <= set(have) and not {k for k in e if k not in there} & set(have)
        for k, v in there.items():
            assert have[k] == pytest.approx(v, rel=1e-6)
    for g, row in nodes.iterrows():
        assert (
            back.nodes[g]["perturbed"] == row.perturbed
            and ("kappa" in back.nodes[g]) == (not np.isnan(row.kappa))
            and back.nodes[g]["cells"] == row.cells
        )
    assert G.number_of_edges() == back.number_of_edges()


def test_cytoscape_format(edges, tmp_path):
    text = write_network(edges, tmp_path / "n.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert {n["data"]["id"] for n in found["elements"]["nodes"]} == set(NAMES) and isinstance(
        found["data"], dict
    )
    assert all(
        {"source", "target", "weight"} <= set(e["data"]) for e in found["elements"]["edges"]
    ) and len(found["elements"]["edges"]) == len(edges)


@pytest.mark.parametrize("name, sep", [("n.decoupler.csv", ","), ("n.decoupler.tsv", "\t")])
def test_decoupler(edges, tmp_path, name, sep):
    net = pd.read_csv(write_network(edges, tmp_path / name), sep=sep, keep_default_na=False)
    assert (
        list(net) == ["source", "target", "weight"]
        and not net.duplicated(["source", "target"]).any()
        and net.weight.notna().all()
        and len(net) == len(edges)
    )


def test_anndata(edges, tmp_path):
    from gpovae.network.export import store_network

    adata = ad.AnnData(np.zeros((2, 3), np.float32))
    store_network(adata, edges)
    adata.write_h5ad(tmp_path / "a.h5ad")
    same(ad.read_h5ad(tmp_path / "a.h5ad").uns["gpovae_network"], edges)


def test_empty_network(edges, nodes, tmp_path):
    none = edges[:0]
    assert as_networkx(none, nodes).number_of_nodes() == len(NAMES)
    for name in ("n.tsv", "n.csv", "n.graphml", "n.cyjs", "n.decoupler.csv"):
        write_network(none, tmp_path / name, nodes=nodes)
    assert len(read_edges(tmp_path / "n.tsv")) == 0 and nx.read_graphml(
        tmp_path / "n.graphml"
    ).number_of_nodes() == len(NAMES)


def test_errors_leave_nothing(edges, tmp_path):
    (tmp_path / "n.tsv").write_text("before")
    for arguments, message in (
        ((edges, "n.xlsx"), "no known suffix"),
        ((edges, "n.tsv", "sif"), "no format 'sif'"),
        ((pd.concat([edges, edges]), "n.tsv"), "listed twice"),
        ((edges.drop(columns="weight"), "n.tsv"), "no column 'weight'"),
        ((edges.replace("GATA1", "GATA\x001"), "n.graphml"), "XML cannot hold"),
    ):
        frame, name, *rest = arguments
        with pytest.raises(GpovaeError, match=message):
            write_network(frame, tmp_path / name, *rest)
    assert [p.name for p in tmp_path.iterdir()] == ["n.tsv"] and (
        tmp_path / "n.tsv"
    ).read_text() == "before"
    with pytest.raises(GpovaeError, match="no column 'source'"):
        read_edges(tmp_path / "n.tsv")
    with pytest.raises(GpovaeError, match="no file"):
        read_edges(tmp_path / "none.tsv")
    with pytest.raises(GpovaeError, match="Cannot write"):
        write_network(edges, tmp_path / "n.tsv" / "below.tsv")


# ---- from a model


def test_of_a_model(run_folder, tmp_path):
    model = GPOVAE.load(run_folder / "run")
    # ten edges, or more where the last are level
    least = float(model.network(0).probability.iloc[9])
    for name in ("n.tsv", "n.graphml", "n.cyjs", "n.decoupler.csv"):
        model.export_network(tmp_path / name, min_probability=least)
    table = model.network(least, evidence=True)
    assert len(table) >= 10
    same(read_edges(tmp_path / "n.tsv"), table)
    G = nx.read_graphml(tmp_path / "n.graphml")
    assert set(G) == set(model.nodes.index) and G.number_of_edges() == len(table)
    P = model.vae.perturbations
    known = node_table(model.nodes, P.own_lfc, P.node_cells, P.dose)
    for g in model.labels:
        assert (
            G.nodes[g]["perturbed"]
            and G.nodes[g]["cells"] == known.cells[g] > 0
            and G.nodes[g]["kappa"] == pytest.approx(float(P.own_lfc[model.nodes.index.get_loc(g)]))
        )
    assert known.cells[~known.perturbed].eq(0).all() and known.kappa[~known.perturbed].isna().all()
    model.export_network(min_probability=least)
    same(model.adata.uns["gpovae_network"], table)
    assert len(read_network(tmp_path / "n.tsv")) == len(table)  # as a known network of another run
    bare = GPOVAE.load(run_folder / "run", data=False)
    assert (
        bare.adata is None
        and len(bare.network(least)) == len(table)
        and bare.graph(least).number_of_edges() == len(table)
    )
    with pytest.raises(GpovaeError, match="needs the screen"):
        bare.export_network()


def test_command(run_folder, tmp_path):
    def gpovae(*words):
        r = CliRunner().invoke(main, ["network", *map(str, words)])
        return r.exit_code, r.output

    model = GPOVAE.load(run_folder / "run")
    least = float(model.network(0).probability.iloc[9])
    n = len(model.network(least))
    some = ("--min-probability", repr(least))
    assert n >= 10
    status, text = gpovae(run_folder / "run", *some)
    assert (
        status == 0
        and text.splitlines()[0] == "source\ttarget\tweight\tprobability\tsign"
        and len(text.splitlines()) == 1 + n
    )
    # without being told
    assert len(gpovae(run_folder / "run")[1].splitlines()) == 1 + len(model.network(0.5))
    assert "shift" in gpovae(run_folder / "run", "--evidence")[1].splitlines()[0]
    status, text = gpovae(run_folder / "run", *some, "--out", tmp_path / "n.graphml")
    assert (
        status == 0
        and f"{n} edges" in text
        and nx.read_graphml(tmp_path / "n.graphml").number_of_edges() == n
    )
    assert (
        gpovae(run_folder / "run", *some, "--out", tmp_path / "n.txt", "--format", "cytoscape")[0]
        == 0
        and len(json.loads((tmp_path / "n.txt").read_text())["elements"]["edges"]) == n
    )
    status, text = gpovae(run_folder / "run", "--out", tmp_path / "n.xlsx")
    assert status == 2 and "no known suffix" in text and not (tmp_path / "n.xlsx").exists()
    assert gpovae(run_folder / "run", "--min-probability", 2)[0] == 2 and gpovae(tmp_path)[0] == 2


# ---- modules


def planted(seed, groups=3, size=7):
    rng = np.random.default_rng(seed)
    of = {f"{'ABC'[k]}{i}": k for k in range(groups) for i in range(size)}
    pairs = [(s, t) for s in of for t in of if s != t]
    inside = np.array([of[s] == of[t] for s, t in pairs])
    keep = rng.random(len(pairs)) < np.where(inside, 0.6, 0.08)
    e = pd.DataFrame(pairs, columns=["source", "target"]).assign(
        weight=np.where(inside, 0.6, 0.1) * rng.choice([-1, 1], len(pairs)), probability=0.9
    )[keep]
    return e.reset_index(drop=True), of


@pytest.mark.parametrize("seed", range(5))
def test_planted_modules(seed, tmp_path):
    e, of = planted(seed)
    found = modules(e, seed=1)
    assert {frozenset(g) for _, g in found.groupby("module").gene} == {
        frozenset(g for g in of if of[g] == k) for k in range(3)
    }
    pd.testing.assert_frame_equal(found, modules(e.sample(frac=1, random_state=seed), seed=1))
    rng = np.random.default_rng(seed)
    background = [*of, *(f"D{i}" for i in range(80))]
    path = tmp_path / "s.gmt"
    path.write_text(
        "\n".join(
            "\t".join([name, "", *genes])
            for name, genes in [
                ("planted", ["B0", "B1", "B2", "B3", "B4", "D1", "not measured"]),
                *((f"random {i}", rng.choice(background, 7, replace=False)) for i in range(40)),
            ]
        )
        + "\n"
    )
    table = enriched(found, read_gmt(path), background)
    best = table.iloc[0]
    assert (
        best.set == "planted"
        and best.q < 0.01
        and best.genes == "B0, B1, B2, B3, B4"
        and best.in_set == 6
        and found.set_index("gene").module["B0"] == best.module
    )
    assert (table.q[table.set != "planted"] > 0.05).all() and len(table) == 3 * 41


def test_enrichment_is_fishers_exact_test():
    from scipy.stats import fisher_exact

    found = pd.DataFrame(dict(gene=[f"g{i}" for i in range(10)], module=[1] * 6 + [2] * 4))
    table = enriched(found, dict(s=["g0", "g1", "g2", "g9", "g15"]), [f"g{i}" for i in range(30)])
    for r in table.itertuples():
        assert r.p == pytest.approx(
            fisher_exact(
                [[r.both, r.in_module - r.both], [5 - r.both, 25 - r.in_module + r.both]],
                alternative="greater",
            ).pvalue
        )
    assert table.q.min() == pytest.approx(min(2 * table.p.min(), table.p.max()))


def test_modules_of_a_cut_graph_and_errors(tmp_path):
    e, of = planted(0)
    one = modules(e[:1])
    assert one.module.tolist() == [1, 1]
    for call, message in (
        (lambda: modules(e[:0]), "no edges"),
        (lambda: enriched(modules(e), dict(s=["x", "y", "z"]), list(of)), "No gene of the sets"),
        (lambda: enriched(modules(e), dict(s=["A1"]), ["A1"]), "not in the background"),
        (lambda: enriched(modules(e), dict(s=["A1"]), list(of)), "Lower min_size"),
        (lambda: read_gmt(tmp_path / "no.gmt"), "no file"),
    ):
        with pytest.raises(GpovaeError, match=message):
            call()
    for content, message in (
        (b"a\tb\n", "Line 1 of .* 2 field"),
        (b"\n# c\n", "no gene set"),
        (b"a\t\tx\na\t\ty\n", "repeats the set 'a'"),
        (b"\x1f\x8b\xff", "is not text"),
    ):
        (tmp_path / "s.gmt").write_bytes(content)
        with pytest.raises(GpovaeError, match=message):
            read_gmt(tmp_path / "s.gmt")
    (tmp_path / "s.gmt").write_bytes("\ufeffs\turl\tA\tB\tA\t\n".encode())
    assert read_gmt(tmp_path / "s.gmt") == dict(s=["A", "B"])


def test_what_is_no_number_and_what_weighs_nothing(edges, tmp_path):
    """An interval without an end is left out of formats that know no infinity.

    Edges that weigh nothing bind no genes.
    """
    odd = edges.assign(low=-np.inf, high=np.where(np.arange(len(edges)) % 2, np.inf, 1.0))
    write_network(odd, tmp_path / "n.cyjs")
    data = [e["data"] for e in json.loads((tmp_path / "n.cyjs").read_text())["elements"]["edges"]]
    assert (
        not any("low" in d for d in data)
        and sum("high" in d for d in data) == (odd.high == 1).sum()
    )
    alone = modules(edges.assign(weight=0.0))
    assert (
        len(alone) == alone.module.nunique() == len(set(edges.source) | set(edges.target))
        and (alone.ties == 0).all()
    )
