"""gpovae.data.summary and gpovae.data.strong: summary statistics, strong perturbations."""

import warnings

import numpy as np
import pandas as pd
import pytest

import gpovae.data.summary as module
from gpovae.core.errors import GpovaeError
from gpovae.data.quality import quality_labels
from gpovae.data.register import register
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.strong import strong_cells, strong_rows
from gpovae.data.summary import perturbation_name, read_summary, summary_from_data

from annotated import annotated, raw
from places import DATA, needs

warnings.filterwarnings("ignore", category=FutureWarning)
FOLDER = DATA / "replogle2022_summary"
needs_tables = needs(FOLDER / "summary_stats.xlsx")


@pytest.fixture(scope="module")
def screen():
    return annotated(raw(n_batches=2), batch_key="batch")


# published tables


@needs_tables
@pytest.mark.parametrize(
    "file, sheet, expected",
    [
        ("summary_stats.xlsx", "TabA_K562_day8_summary_stat", (10673, 585, 1931, 1928, 1463, None)),
        ("summary_stats.xlsx", "day6", (2176, 109, 1092, 1092, 721, 622)),
        ("summary_stats.xlsx", "rpe1", (2550, 130, 1564, 1543, 441, 383)),
        ("summary_stats_adamson.csv", None, (89, 1, 69, 69, 66, 68)),
    ],
)
def test_published_tables(file, sheet, expected):
    """Sizes in spec/data.md are those of the graphs, after the choice of cells.

    K562 622, RPE1 383, Adamson 68 perturbed genes. The table bounds them from above; the genes
    with more than 100 cells before that choice are a seventh more for K562 and RPE1. Adamson's 68
    exceed the 66 genes with more than 100 cells in the table: another count.
    """
    rows, controls, strong, genes, large, published = expected
    t = read_summary(FOLDER / file, sheet)
    everything = (
        pd.read_csv(FOLDER / file)
        if file.endswith("csv")
        else module._read_table(FOLDER / file, sheet)
    )
    assert (len(t), len(everything) - len(t)) == (
        rows,
        controls,
    ) and not t.perturbation.str.contains("non-targeting").any()
    ok = strong_rows(t) == "strong"
    assert (
        ok.sum(),
        t.perturbation[ok].nunique(),
        t.perturbation[ok & (t.cells > 100)].nunique(),
    ) == (strong, genes, large)
    if published:
        assert published <= genes and (file.endswith("csv") or published < large < 1.2 * published)
    assert (
        not t.perturbation.str.contains("_").any()
        and t.gene_id.str.fullmatch(r"(ENSG\d{11})?").all()
        and (t.gene_id == "").sum() <= 17
    )
    assert t.knockdown[ok].between(0.3, 1).all() and (t.degs[ok] > 50).all()


@needs_tables
def test_the_two_tests_of_the_published_table_agree():
    raw = module._read_table(FOLDER / "summary_stats.xlsx", "day6")
    raw = raw[~raw["genetic perturbation"].str.contains("non-targeting")]
    a, r = (raw[f"Number of DEGs ({k})"] > 50 for k in ("anderson-darling", "Mann-Whitney"))
    assert (a == r).mean() > 0.97


@pytest.mark.parametrize(
    "name, found",
    [
        ("10005_ZBTB4_P1_ENSG00000174282", ("ZBTB4", "ENSG00000174282")),
        ("10598_ZNF735_NM_001159524_ENSG00000223614", ("ZNF735", "ENSG00000223614")),
        ("1_A_ENST00000402038.3,ENST00000402039.1_ENSG00000000001", ("A", "ENSG00000000001")),
        ("10269_ZNF286B_P1P2_nan", ("ZNF286B", "")),
        ("10753_non-targeting_non-targeting_non-targeting", ("non-targeting", "")),
        ("ENSG00000228474", ("ENSG00000228474", "ENSG00000228474")),
        ("GATA1", ("GATA1", "")),
        ("HLA-A", ("HLA-A", "")),
        ("NKX2_1", ("NKX2_1", "")),
    ],
)
def test_names(name, found):
    assert perturbation_name(name) == found


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_unreadable_tables_are_named(tmp_path, monkeypatch):
    with pytest.raises(GpovaeError, match="no file .*nowhere.csv.*--strong data"):
        read_summary(tmp_path / "nowhere.csv")
    (tmp_path / "bad.xlsx").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(GpovaeError, match="bad.xlsx cannot be read"):
        read_summary(tmp_path / "bad.xlsx")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(GpovaeError, match="empty.csv cannot be read"):
        read_summary(tmp_path / "empty.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(GpovaeError, match="bytes.csv"):
        read_summary(tmp_path / "bytes.csv")
    with pytest.raises(GpovaeError, match="is a folder|cannot be read"):
        read_summary(tmp_path)
    with pytest.raises(GpovaeError, match="no column 'degs'.*perturbation, n"):
        read_summary(write(tmp_path / "few.csv", perturbation=["A"], n=[3]))
    with pytest.raises(GpovaeError, match="no column 'percent knockdown'"):
        read_summary(
            write(
                tmp_path / "theirs.csv",
                **{"genetic perturbation": ["A"], "Number of DEGs (anderson-darling)": [3]},
            )
        )
    pd.DataFrame(dict(a=[1])).to_excel(tmp_path / "one.xlsx", sheet_name="only")
    with pytest.raises(GpovaeError, match="sheets only; 'RPE1' is none"):
        read_summary(tmp_path / "one.xlsx", "RPE1")
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        for name in ("description", "K562 a", "K562 b"):
            pd.DataFrame(dict(a=[1])).to_excel(book, sheet_name=name)
    for sheet, message in (
        (None, "sheets K562 a, K562 b. Name one"),
        ("K562", "'K562' is not one"),
    ):
        with pytest.raises(GpovaeError, match=message):
            read_summary(tmp_path / "two.xlsx", sheet)

    def missing(*args, **kw):
        raise ImportError("Missing optional dependency 'openpyxl'.")

    monkeypatch.setattr(pd, "ExcelFile", missing)
    with pytest.raises(GpovaeError, match=r"pip install 'gpovae\[excel\]'"):
        read_summary(tmp_path / "one.xlsx")


def test_a_summary_computed_here_can_be_stored_and_read(screen, tmp_path):
    s = summary_from_data(screen)
    s.to_csv(tmp_path / "s.csv", index=False)
    t = read_summary(tmp_path / "s.csv")
    pd.testing.assert_frame_equal(
        t[["degs", "knockdown", "cells"]],
        s[["degs", "knockdown", "cells"]],
        check_dtype=False,
        check_names=False,
    )
    assert strong_cells(screen, t, min_degs=0, min_kept=5)[1].equals(
        strong_cells(screen, s.astype(dict(degs=float, cells=float)), min_degs=0, min_kept=5)[1]
    )


def test_summary_counts_what_the_simulation_did(screen):
    s = summary_from_data(screen)
    truth = screen.uns[Key.truth]
    kappa = pd.Series(truth["knockdown"], truth["genes"])[s.index]
    assert np.abs(s.knockdown - (1 - np.exp(kappa))).median() < 0.06
    total = pd.DataFrame(truth["total"], truth["genes"], truth["genes"]).loc[s.index]
    moved = (total.mul(kappa / np.diag(total[s.index]), axis=0).abs() > 0.5).sum(axis=1)
    assert moved.corr(s.degs, "spearman") > 0.4


# strong perturbations


def table_for(s, **kw):
    return pd.DataFrame(
        dict(perturbation=s.perturbations, degs=99.0, knockdown=0.8, cells=99.0)
    ).assign(**kw)


def test_rule_at_its_bounds():
    t = pd.DataFrame(
        dict(
            perturbation=list("ABCDEFGH"),
            degs=[51, 50, np.nan, 60, 60, 60, 60, 60],
            knockdown=[0.3, 0.9, 0.9, 0.2999, np.nan, -0.5, 0.9, 0.9],
            cells=[26, 99, 99, 99, 99, 99, 25, np.nan],
        )
    )
    assert strong_rows(t).tolist() == [
        "strong",
        "50 DEGs or fewer",
        "50 DEGs or fewer",
        "knockdown below 30%",
        "knockdown not known",
        "knockdown below 30%",
        "25 cells or fewer",
        "25 cells or fewer",
    ]


def test_cells_are_judged_by_normalised_counts(screen):
    s = Screen(screen)
    before = screen.copy()
    keep, table = strong_cells(screen, table_for(s), min_kept=0)
    y = screen.X.toarray() / s.library_size[:, None].astype(float)
    control = s.rows(label="control", fail=False)
    want = s.labels == "control"
    for p in s.perturbations:
        j = s.genes.get_loc(p)
        rows = s.rows(label=p)
        want[rows] = y[rows, j] <= np.percentile(y[control, j], 10)
        assert table.kept[p] == want[rows].sum()
    assert (keep == want).all()
    for frame in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(screen, frame), getattr(before, frame))
    most = table.kept.sort_values()
    keep, table = strong_cells(screen, table_for(s), min_kept=int(most.iloc[-2]))
    assert (
        table.outcome[table.outcome == "strong"].index.tolist() == [most.index[-1]]
        if most.iloc[-1] > most.iloc[-2]
        else True
    )
    assert table.outcome[most.index[-2]] == f"{most.iloc[-2]} cells or fewer left" and set(
        s.labels[keep]
    ) == {"control", most.index[-1]}


def test_rows_are_found_by_name_symbol_and_identifier():
    a = raw(n_perturbations=4, n_cells=700)
    a.var["ensembl_id"] = [f"ENSG{i:011d}" for i in range(a.n_vars)]
    register(a, "gene", "non-targeting")
    quality_labels(a, doublets=False)
    s = Screen(a)
    ids = a.var["ensembl_id"].loc[s.perturbations].tolist()
    by_symbol = strong_cells(a, table_for(s), min_kept=0)
    by_id = strong_cells(a, table_for(s, perturbation=ids), min_kept=0)
    by_pair = strong_cells(
        a, table_for(s, perturbation=[f"x{i}" for i in range(4)], gene_id=ids), min_kept=0
    )
    for keep, table in (by_id, by_pair):
        assert (keep == by_symbol[0]).all() and table.equals(by_symbol[1])
    b = a.copy()
    b.obs["gene"] = (
        b.obs["gene"]
        .astype(str)
        .map(dict(zip(s.perturbations, ids, strict=True)) | {"non-targeting": "non-targeting"})
    )
    b.var["gene_symbol"] = b.var_names
    b.var_names = b.var.pop("ensembl_id").to_numpy()
    register(b, "gene", "non-targeting")
    quality_labels(b, doublets=False)
    assert (
        strong_cells(
            b, table_for(s, perturbation=[f"x{i}" for i in range(4)], gene_id=ids), min_kept=0
        )[0]
        == by_symbol[0]
    ).all()


def test_a_gene_passes_with_one_of_its_rows():
    a = raw(n_perturbations=4, n_cells=700)
    register(a, "gene", "non-targeting")
    quality_labels(a, doublets=False)
    s = Screen(a)
    p, q = s.perturbations[:2]
    rows = pd.DataFrame(
        [
            (p, 900, -0.6, 99),
            (p, 60, 0.9, 80),
            (p, 55, 0.9, 70),
            (q, 90, 0.1, 99),
            (q, 40, 0.9, 99),
        ],
        columns=["perturbation", "degs", "knockdown", "cells"],
    )
    table = strong_cells(a, rows, min_kept=0)[1]
    assert tuple(table.loc[p, ["degs", "cells", "outcome"]]) == (60, 80, "strong") and tuple(
        table.loc[q, ["degs", "outcome"]]
    ) == (90, "knockdown below 30%")
    assert set(table.outcome[2:]) == {"not in the summary"}


def test_pairs_and_unmeasured_targets():
    a = raw(n_cells=1500, unmeasured=2)
    label = a.obs.gene.astype(str).to_numpy()
    names = sorted(set(label) & set(a.var_names))
    label[label == names[0]] = f"{names[0]}+{names[1]}"
    a.obs["gene"] = label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register(a, "gene", "non-targeting")
    quality_labels(a, doublets=False)
    s = Screen(a)
    pair = f"{names[0]}+{names[1]}"
    keep, table = strong_cells(a, table_for(s), min_kept=0)
    assert (table.outcome == "target not measured").sum() == 2 and table.outcome[pair] == "strong"
    rows = s.rows(label=pair)
    y = a[:, names[:2]].X.toarray() / s.library_size[:, None].astype(float)
    assert (
        keep[rows]
        == (y[rows] <= np.percentile(y[s.rows(label="control", fail=False)], 10, axis=0)).all(1)
    ).all()


@pytest.mark.parametrize("seed", [3, 4])
def test_shallow_cells_are_not_preferred(seed):
    """Erratum 14.

    By raw counts low quality is many times commoner among the kept cells; depth-normalised it is
    nearly as common among the dropped.
    """
    a = simulated(
        n_cells=4000,
        n_genes=120,
        n_perturbations=12,
        fail_share=0.15,
        doublet_share=0,
        seed=seed,
        depth=120 * 40,
    )
    register(a, "gene", "non-targeting")
    quality_labels(a, doublets=False)
    s = Screen(a)
    kept = strong_cells(a, table_for(s), min_kept=0)[0]
    low = a.obs.true_fail.to_numpy()
    perturbed = ~s.is_control
    X = a.X.toarray()
    raw = np.zeros(a.n_obs, bool)
    for p in s.perturbations:
        j = s.genes.get_loc(p)
        rows = s.rows(label=p)
        raw[rows] = X[rows, j] <= np.percentile(X[s.rows(label="control", fail=False), j], 10)

    def share(k):
        return (low[perturbed & k].mean(), low[perturbed & ~k].mean())

    assert share(raw)[0] > 5 * share(raw)[1] and 0.7 < share(kept)[0] / share(kept)[1] < 1.7


def test_nothing_left_and_nothing_in_common(screen):
    s = Screen(screen)
    with pytest.raises(
        GpovaeError,
        match="names none of the screen's perturbations: it has X0, X1, X2.*symbol|Ensembl",
    ):
        strong_cells(
            screen, table_for(s, perturbation=[f"X{i}" for i in range(len(s.perturbations))])
        )
    with pytest.raises(
        GpovaeError, match="No perturbation is strong: 14 have '1000 cells or fewer left'.*min_kept"
    ):
        strong_cells(screen, table_for(s), min_kept=1000)
    with pytest.raises(GpovaeError, match="No perturbation is strong: 14 have '500 DEGs or fewer'"):
        strong_cells(screen, table_for(s), min_degs=500)
    with pytest.raises(GpovaeError, match="no column 'knockdown'"):
        strong_cells(screen, table_for(s).drop(columns="knockdown"))
