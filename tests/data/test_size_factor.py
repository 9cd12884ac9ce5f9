"""A size factor that perturbed programmes cannot move.

Log fold changes of genes that do nothing stay at nothing, in simulated and in real panels; a
screen in which nothing is moved keeps its library size to the bit.
"""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

import gpovae.data.blocks
import gpovae.data.matching
import gpovae.data.pipeline
import gpovae.data.steps
from gpovae.core.errors import GpovaeError
from gpovae.data import datasets
from gpovae.data.prepare import prepare, prepare_file, record_table
from gpovae.data.responses import fold_changes
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import true_lfc
from gpovae.data.steps import stale

from annotated import STEPS
from places import DATA, needs

pytestmark = pytest.mark.filterwarnings("ignore")
PAPALEXI = DATA / "papalexi2021_eccite" / "lowmoi_example_data.rda"
TAPSEQ = DATA / "schraivogel2020_tapseq"
NORMAN = DATA / "perturbench_devel"
LATER = STEPS[2:]  # all after the size factor
QUICK = dict(doublets=False, progress=False)


def with_library(adata, **settings) -> Screen:
    "A copy prepared up to its library size, and the notes on it."
    adata = adata.copy()
    with warnings.catch_warnings(record=True) as notes, pytest.MonkeyPatch.context() as m:
        warnings.simplefilter("always")
        for step in LATER:
            m.setattr(gpovae.data.pipeline, step, lambda *_, **__: {})
        screen = prepare(adata, **QUICK | settings)
    screen.notes = [str(n.message) for n in notes if "size_factor=" in str(n.message)]
    return screen


def changed(screen, label) -> tuple[list[str], list[str]]:
    "Genes that are up and down after a perturbation: Mann-Whitney on x / l, Bonferroni."
    X = screen.counts
    share = (X.toarray() if sp.issparse(X) else X) / screen.library_size[:, None]
    cells = share[screen.rows(label=label, fail=False)]
    controls = share[screen.rows(label="control", fail=False)]
    p = mannwhitneyu(cells, controls).pvalue
    is_up = cells.mean(0) > controls.mean(0)
    significant = p < 0.05 / X.shape[1]
    return list(screen.genes[significant & is_up]), list(screen.genes[significant & ~is_up])


# ---- real panels


@pytest.fixture(scope="module")
def papalexi():
    "Labels as in the README of the data: the top guide with 5 UMIs and 80 % of all."
    rdata = pytest.importorskip("rdata")

    def slots(_, given):
        return given

    classes = rdata.conversion.DEFAULT_CLASS_MAP | dict(dgTMatrix=slots)
    stored = rdata.conversion.convert(rdata.parser.parse_file(PAPALEXI), classes)
    stored = stored.get("lowmoi_example_data", stored)

    def matrix(slot):
        return sp.csr_matrix((slot["x"], (slot["j"], slot["i"])), shape=tuple(slot["Dim"])[::-1])

    counts, guides = stored["response_matrix"], stored["grna_matrix"]
    umis = matrix(guides).toarray()
    top = umis.max(1)
    keep = (top >= 5) & (top > 0.8 * umis.sum(1))
    table = stored["grna_target_data_frame"].astype(str).set_index("grna_id")["grna_target"]
    guide = np.asarray(guides["Dimnames"][0]).astype(str)[umis.argmax(1)]
    obs = pd.DataFrame(dict(gene=table.loc[guide[keep]].to_numpy()))
    obs.index = [f"c{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=np.asarray(counts["Dimnames"][0]).astype(str))
    adata = ad.AnnData(matrix(counts)[keep].astype(np.float32), obs=obs, var=var)
    assert adata.shape == (16_093, 299)
    return with_library(adata, perturbation_key="gene", control="non-targeting")


@needs(PAPALEXI)
@pytest.mark.parametrize("knockout", ["IFNGR1", "IFNGR2", "JAK2", "STAT1"])
def test_interferon_knockouts_have_no_more_genes_up_than_down(papalexi, knockout):
    up, down = changed(papalexi, knockout)
    assert len(up) <= len(down) and 30 <= len(up) + len(down) <= 60
    # the table of responses agrees
    changes = fold_changes(papalexi, papalexi.rows(fail=False))
    p = changes.labels.index(knockout)
    z = changes.lfc[p] / changes.se[p]
    assert (z > 4).sum() <= (z < -4).sum()


@needs(PAPALEXI)
def test_knockouts_that_do_nothing_and_others(papalexi):
    for nothing in ("ATF2", "CD86", "CAV1", "MARCH8"):
        assert changed(papalexi, nothing) == ([], [])
    assert sum(map(len, changed(papalexi, "SMAD4"))) > 30
    assert not papalexi.size_factor[papalexi.genes.get_loc("PSMB9")]
    assert len(papalexi.notes) == 1 and "IFNGR1" in papalexi.notes[0]


@pytest.fixture(scope="module")
def tapseq():
    with pytest.MonkeyPatch.context() as m:
        m.setenv("GPOVAE_DATA", str(DATA))
        adata = datasets.load("schraivogel2020")
    # globins are no damage here
    settings = dict(perturbation_key="gene", control="non-targeting", n_mads=50)
    return with_library(adata, **settings)


@needs(TAPSEQ)
def test_the_enhancer_changes_its_globins(tapseq):
    assert not tapseq.fail.any()
    assert changed(tapseq, "HS2")[0] == [] and set(changed(tapseq, "HS2")[1]) == {
        "HBE1",
        "HBD",
        "HBB",
    }
    for alone in ("CCNE2", "CPQ", "PHF20L1", "RIPK2", "STK3"):
        assert changed(tapseq, alone) == ([], [alone])
    number = {p: sum(map(len, changed(tapseq, p))) for p in ("UBR5", "GATA1", "DSCC1")}
    assert number == pytest.approx(dict(UBR5=17, GATA1=10, DSCC1=5), abs=1)


@needs(TAPSEQ)
def test_the_note_names_genes_and_perturbations(tapseq):
    (note,) = tapseq.notes
    assert "HBE1" in note and "HS2" in note and "size_factor='all'" in note
    record = record_table(tapseq.adata).loc["size_factor"]["value"]
    assert record["genes_left_out"] == "HBE1" and record["moved_by"].startswith("HS2")
    assert record["largest_offset_all"] > 0.2 > 0.02 > record["largest_offset"]


@needs(NORMAN)
def test_genes_that_activations_move(monkeypatch):
    "The four that the chapter on public screens leaves out are found; nothing else matters."
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    a = datasets.load("norman2019_small")
    screen = with_library(a, perturbation_key="perturbation", control="control", n_mads=50)
    left_out = set(screen.genes[~screen.size_factor])
    assert left_out >= {"AVP", "HBG2", "HBZ", "TMSB4X"}
    assert screen.counts[:, screen.size_factor].sum() > 0.25 * screen.counts.sum()


# ---- simulated panels


def panel(programme, effect, *, n_genes=80, n=150, seed=0):
    "SIGNAL moves a programme of 10 genes that carries a share of the counts; true effects."
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 0.8, n_genes)
    share[:10] *= programme / share[:10].sum()
    share[10:] *= (1 - programme) / share[10:].sum()
    names = np.array(["control", "SIGNAL", "G10", "G11"])
    lfc = np.zeros((4, n_genes))
    lfc[1, :10] = effect
    lfc[[2, 3], [10, 11]] = -1
    which = np.repeat(np.arange(4), [600, n, n, n])
    depth = 300 * rng.lognormal(0, 0.4, (len(which), 1))
    noise = rng.gamma(8, 1 / 8, (len(which), n_genes))
    x = rng.poisson(depth * share * np.exp(lfc[which]) * noise).astype(np.float32)
    obs = pd.DataFrame(dict(gene=names[which]), index=[f"c{i}" for i in range(len(x))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=var), lfc[1]


@pytest.fixture(scope="module")
def moved():
    return panel(0.3, -1.5)[0]


@pytest.mark.parametrize(
    "programme, effect", [(0.3, -1.5), (0.3, 0.7), (0.5, -1.2), (0.5, 0.5), (0.15, 1.5)]
)
def test_total_effects_have_no_bias(programme, effect):
    unmoved, moved = [], []
    for seed in range(4):
        adata, truth = panel(programme, effect, seed=seed)
        # so strong a programme is not taken for damage here
        screen = with_library(adata, n_mads=30)
        changes = fold_changes(screen, screen.rows(fail=False))
        lfc = changes.lfc[changes.labels.index("SIGNAL")]
        unmoved.append(lfc[truth == 0].mean())
        moved.append(lfc[truth != 0].mean())
        assert not screen.size_factor[:10].all() and screen.size_factor[10:].mean() > 0.95
    plain = -np.log1p(programme * np.expm1(effect))  # what all genes would seem to do
    assert abs(np.mean(unmoved)) < 0.015 < 0.1 < abs(plain)
    assert abs(np.mean(moved) - effect) < 0.03


def test_table_of_a_moved_network_is_nearer_to_the_truth():
    "120 genes, of which the network is a part: with the plain library size, 0.06 off on average."
    adata = datasets.simulated(n_cells=1500, n_genes=120, n_perturbations=8, seed=0)
    bias, error = {}, {}
    for setting in ("all", "auto"):
        screen = with_library(adata, size_factor=setting)
        changes = fold_changes(screen, screen.rows(fail=False))
        truth = true_lfc(adata.uns[Key.truth], changes.labels, adata.var_names)
        weights = 1 / (changes.se**2 + 0.05**2)
        unmoved = weights * (truth == 0)
        mean = (changes.lfc * unmoved).sum(1) / unmoved.sum(1)
        bias[setting] = np.sqrt((mean**2).mean())
        error[setting] = np.sqrt(np.average((changes.lfc - truth) ** 2, weights=weights))
    assert bias["auto"] < 0.02 < 0.05 < bias["all"]
    assert error["auto"] < 0.9 * error["all"]


def test_a_plain_screen_keeps_its_library_size_to_the_bit():
    adata = datasets.simulated(n_cells=1500, n_genes=400, n_perturbations=15, seed=2)
    screen = with_library(adata)
    np.testing.assert_array_equal(screen.library_size, adata.X.sum(1).A1)
    assert screen.size_factor.all() and screen.notes == []


def test_controls_that_are_dealt_out_move_nothing():
    adata, _ = panel(0.4, 0.0, n=0)
    for n in (3, 10, 60):
        names = np.array(["control"] * 300 + [f"p{i // n}" for i in range(300)])
        adata.obs["gene"] = names
        screen = with_library(adata)
        assert screen.size_factor.all() and screen.notes == []


def test_the_settings(moved):
    total = moved.X.sum(1).A1
    plain = with_library(moved, size_factor="all")
    np.testing.assert_array_equal(plain.library_size, total)
    assert plain.size_factor.all() and plain.notes == []

    chosen = with_library(moved)
    counted = moved.X[:, chosen.size_factor].sum(1).A1
    np.testing.assert_array_equal(chosen.library_size, counted)
    assert not chosen.size_factor.all() and len(chosen.notes) == 1

    # what the user leaves out stays out, on top
    named = with_library(moved, size_factor_exclude=["G20"])
    assert set(named.genes[~named.size_factor]) == set(chosen.genes[~chosen.size_factor]) | {"G20"}
    with pytest.raises(GpovaeError, match="size_factor='median'"):
        with_library(moved, size_factor="median")


def test_stable_goes_below_the_tolerance():
    adata, _ = panel(0.06, -1)
    assert with_library(adata).size_factor.all()
    assert not with_library(adata, size_factor="stable").size_factor.all()


def test_the_order_of_cells_and_genes_decides_nothing(moved):
    rng = np.random.default_rng(1)
    other = moved[rng.permutation(moved.n_obs), rng.permutation(moved.n_vars)].copy()
    a, b = with_library(moved), with_library(other)
    assert set(a.genes[~a.size_factor]) == set(b.genes[~b.size_factor])
    library = b.adata.obs[Key.library_size]
    np.testing.assert_array_equal(library[a.adata.obs_names], a.library_size)
    assert a.notes == b.notes


def test_a_cell_without_a_stable_count(moved):
    adata = moved.copy()
    X = adata.X.tolil()
    X[0] = 0
    X[0, :3] = 30
    adata.X = X.tocsr()
    assert with_library(adata, n_mads=30).library_size[0] == 1


def test_shares_of_gene_families_do_not_depend_on_it(moved):
    "A mitochondrial programme that leaves the library size still counts as mitochondrial."
    adata = moved.copy()
    adata.var_names = [f"MT-{g}" if i < 10 else g for i, g in enumerate(adata.var_names)]
    screen = with_library(adata)
    before = adata.X[:, :10].sum(1).A1 / adata.X.sum(1).A1
    again = with_library(screen.adata, n_mads=5)  # once more, with the genes chosen
    for s in (screen, again):
        np.testing.assert_allclose(s.adata.obs["gpovae_share_mitochondrial"], before, atol=1e-6)
        assert not s.size_factor.all()


# ---- as a step of the preparation


@pytest.fixture
def given_rho(monkeypatch):
    monkeypatch.setattr(gpovae.data.matching, "choose_rho", lambda *_: 0.05)


def forbid_measuring(monkeypatch):
    def measured_again(*_):
        raise AssertionError("shares were measured again")

    monkeypatch.setattr("gpovae.data.size_factor.fold_changes", measured_again)


def test_a_second_call_has_nothing_to_do(moved, given_rho, monkeypatch):
    a = moved.copy()
    prepare(a, **QUICK)
    library = a.obs[Key.library_size].copy()
    responses = a.uns[Key.responses]["mean"].copy()
    assert stale(a) == [] and not a.var[Key.size_factor].all()
    with monkeypatch.context() as m:
        forbid_measuring(m)
        prepare(a, **QUICK)
    assert stale(a) == [] and a.obs[Key.library_size].equals(library)

    # another setting makes it anew, and what reads it
    prepare(a, **QUICK, size_factor="all")
    np.testing.assert_array_equal(a.obs[Key.library_size], moved.X.sum(1).A1)
    assert stale(a) == [] and not np.array_equal(a.uns[Key.responses]["mean"], responses)
    prepare(a, **QUICK)
    assert a.obs[Key.library_size].equals(library)
    np.testing.assert_array_equal(a.uns[Key.responses]["mean"], responses)

    # a change by hand is noticed and put right
    a.obs[Key.library_size] *= 2
    later = ["nodes", "matching", "responses", "perturbations"]
    assert stale(a) == ["size_factor", *later]
    prepare(a, **QUICK)
    assert a.obs[Key.library_size].equals(library) and stale(a) == []


def test_from_file_to_file_in_blocks(moved, given_rho, tmp_path, monkeypatch):
    a = moved.copy()
    prepare(a, **QUICK)
    moved.write_h5ad(tmp_path / "raw.h5ad")
    monkeypatch.setattr(gpovae.data.blocks, "BLOCK", 80 * 100)
    assert prepare_file(tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad", **QUICK)
    assert not prepare_file(tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad", **QUICK)
    b = ad.read_h5ad(tmp_path / "prepared.h5ad")
    np.testing.assert_array_equal(b.obs[Key.library_size], a.obs[Key.library_size])
    np.testing.assert_array_equal(b.var[Key.size_factor], a.var[Key.size_factor])
    assert stale(b) == []
    with monkeypatch.context() as m:
        forbid_measuring(m)
        prepare(b, **QUICK)  # nor anew from what the file says
    assert stale(b) == []


def test_a_file_without_this_step_is_not_stale(moved, given_rho):
    "As 0.2.0 wrote it: the step is neither recorded nor among what others read."
    a = moved.copy()
    prepare(a, **QUICK, size_factor="all")
    del a.uns[Key.prepare]["size_factor"]
    for name in ("nodes", "matching", "responses", "perturbations"):
        gpovae.data.steps.sign(a, name)
    assert stale(a) == []
    assert "size_factor" not in record_table(a).index.get_level_values("step")
