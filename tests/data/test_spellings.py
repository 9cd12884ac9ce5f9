"""Labels and features that are not what they seem: each is read as what it names, left out, or
noted by name; in memory, from file to file and on the command line alike.
"""

import json
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import gpovae
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.data.files import open_screen
from gpovae.data.labels import canonical, means_unknown
from gpovae.data.layouts import source
from gpovae.data.options import PrepareOptions
from gpovae.data.prepare import prepare, prepare_file
from gpovae.data.register import register
from gpovae.data.responses import Responses
from gpovae.data.screen import CONTROL, Key, Screen
from gpovae.data.spellings import Names, genes_of_guides, read_label

FAST = dict(doublets=False, progress=False)
SMALL = dict(latent=2, basal=(4, 1), embedding=(4, 1), decoder=(4, 1))
GENES = ["KLF1", "CEBPA", "NKX2-1", "HLA-DRA", "MT-CO1", "C1orf43", "CTRL", "H2-K1"]


@pytest.fixture(scope="module", autouse=True)
def quick_matching():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpovae.data.matching.choose_rho", lambda *_, **__: 0.1)
        yield


def screen(labels=("KLF1", "CEBPA", "NKX2-1"), control="non-targeting", n=60, genes=GENES):
    "Forty controls per perturbation of `n` cells, which halves its gene, whatever its spelling."
    rng = np.random.default_rng(0)
    names = [*genes, *(f"G{i}" for i in range(22))]
    label = np.repeat([control, *labels], [3 * n] + [n] * len(labels))
    mean = np.full((len(label), len(names)), 6.0)
    for k, p in enumerate(labels):
        mean[label == p, k] /= 3
    X = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    cells = [f"c{i}" for i in range(len(label))]
    return ad.AnnData(X, pd.DataFrame(dict(gene=label), cells), pd.DataFrame(index=names))


def noted(function, *args, **kwargs):
    "What a call gives, and its notes."
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, "\n".join(str(note.message) for note in notes)


def both_ways(adata, folder, **settings):
    "The screen prepared in memory and from file to file, which agree; and the notes of both."
    adata.write_h5ad(folder / "raw.h5ad")
    _, on_disk = noted(
        prepare_file, folder / "raw.h5ad", folder / "new.h5ad", force=True, **FAST | settings
    )
    _, in_memory = noted(prepare, adata, **FAST | settings)
    left = open_screen(folder / "new.h5ad")
    assert Screen(left).perturbations == Screen(adata).perturbations
    assert list(Screen(left).genes) == list(Screen(adata).genes)
    assert list(Screen(left).labels) == list(Screen(adata).labels)
    assert (left.X[:] != adata.X).nnz == 0
    return Screen(adata), in_memory, on_disk


# features that are no genes


def with_features(types, names, column="feature_types"):
    a = screen()
    other = sp.csr_matrix(np.random.default_rng(1).poisson(3, (a.n_obs, len(names))), dtype="f4")
    var = pd.concat([a.var, pd.DataFrame(index=names)])
    if column:
        var[column] = ["Gene Expression"] * a.n_vars + types
    return ad.AnnData(sp.hstack([a.X, other]).tocsr(), a.obs, var)


FEATURES = {
    "guides": (["CRISPR Guide Capture"] * 2, ["KLF1_g1", "CEBPA_g2"], "feature_types"),
    "antibodies": (["Antibody Capture"] * 2, ["CD3", "CD34"], "feature_types"),
    "custom and hashtags": (["Custom", "Multiplexing Capture"], ["GFP", "CMO301"], "feature_type"),
    "as a category": (pd.Categorical(["peaks", "Peaks"]).tolist(), ["p1", "p2"], "feature_types"),
    "of MuData": (["prot", "atac"], ["CD3", "chr1:1-9"], "modality"),
    "by name": (None, ["sgKLF1", "CD4_TotalSeqB"], None),
    "guides by name": (None, ["CEBPA_sg2", "NKX2-1-g1"], None),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_features_that_are_no_genes_leave(kind, tmp_path):
    types, names, column = FEATURES[kind]
    s, in_memory, on_disk = both_ways(with_features(types, names, column), tmp_path)
    assert not set(names) & {*s.genes, *s.nodes.index} and s.adata.n_vars == 30
    for notes in (in_memory, on_disk):
        assert "2 of 32 features are no genes (" in notes
        assert names[0] in notes
    # the result is that of the screen without them
    plain = screen()
    prepare(plain, **FAST)
    np.testing.assert_array_equal(Screen(plain).library_size, s.library_size)
    np.testing.assert_array_equal(Responses.read(plain).lfc, Responses.read(s.adata).lfc)


def test_features_of_a_registered_screen_and_of_zarr(tmp_path):
    a = with_features(*FEATURES["guides"])
    a.write_zarr(tmp_path / "raw.zarr")
    with pytest.warns(UserWarning, match="2 of 32 features.*CRISPR Guide Capture: KLF1_g1"):
        with source(tmp_path / "raw.zarr") as opened:
            assert len(opened.var) == 30 and next(opened.blocks()).shape[1] == 30
    with pytest.warns(UserWarning, match="2 of 32 features"):
        assert len(register(a).genes) == 30 == a.n_vars


def test_types_of_genes_stay():
    a = screen()
    a.var["feature_type"] = np.resize(["protein_coding", "lncRNA", "pseudogene"], a.n_vars)
    a.var["feature_types"] = "Gene Expression"
    prepare(a, **FAST)
    assert a.n_vars == 30
    a.var["feature_types"] = "Antibody Capture"
    with pytest.raises(GpovaeError, match="None of the 30 features is a gene"):
        prepare(a, **FAST)


# labels that are not the gene's name

NAMES = Names(GENES, {"ENSG00000105610": "KLF1"})


@pytest.mark.parametrize(
    "label, gene",
    [
        *(
            (f"{word}CEBPA", "CEBPA")
            for word in ("sg", "sh", "si", "p", "pooled_", "sgRNA_", "sg-")
        ),
        *((f"KLF1{end}", "KLF1") for end in ("g1", "_1", ".2", "-g1", "_sgRNA3", "_gRNA2", "-KO")),
        ("Cebpa", "CEBPA"),
        ("KLF1_pDS258", "KLF1"),
        ("sgKLF1_2", "KLF1"),
        ("ENSG00000105610.7", "KLF1"),
        ("GRCh38_KLF1", "KLF1"),
        ("hg38_CEBPA", "CEBPA"),
        ("GRCh38_ENSG00000105610", "KLF1"),
        ("C1ORF43", "C1orf43"),
        ("NKX2-1_2", "NKX2-1"),
        ("HLA-DRA", "HLA-DRA"),
        ("HLA-DRA_1", "HLA-DRA"),
        ("MT-CO1", "MT-CO1"),
        ("H2-K1", "H2-K1"),
        ("NKX2-5_1", "NKX2-5_1"),  # is not measured
        ("enhancer_3", "enhancer_3"),
        ("KLF1_CEBPA", "CEBPA+KLF1"),
        ("KLF1|ctrl", "KLF1"),
        ("ctrl_KLF1", "KLF1"),
        ("KLF1+ctrl", "KLF1"),
        ("sgKLF1+CEBPA_2", "CEBPA+KLF1"),
        ("KLF1_1+KLF1_2", "KLF1"),
        ("NT_NT", CONTROL),
        ("negative_control_3", CONTROL),
        ("non-targeting_00012", CONTROL),
        ("NTC", CONTROL),
        ("sgNT", CONTROL),
    ],
)
def test_a_label_finds_its_gene(label, gene):
    assert read_label(label, None, NAMES) == gene


def test_labels_of_guides_lead_to_no_edge_of_a_gene_to_itself(tmp_path):
    spelt = {"KLF1": "sgKLF1", "CEBPA": "Cebpa", "NKX2-1": "NKX2-1_2"}
    a = screen()
    a.obs["gene"] = a.obs["gene"].replace(spelt)
    s, *notes = both_ways(a, tmp_path)
    for said in notes:
        assert "3 label(s) are not the name of a measured gene" in said
        assert all(f"{label} as {gene}" in said for gene, label in spelt.items())
        assert "not among the measured" not in said
    assert s.perturbations == sorted(spelt) and not (s.nodes.position < 0).any()
    model = gpovae.GPOVAE(a, **SMALL)
    model.train(max_epochs=1, progress=False)
    edges = model.network(min_probability=0)
    assert not (edges.source == edges.target).any() and set(edges.source) == set(spelt)
    plain = screen()
    prepare(plain, **FAST)
    np.testing.assert_array_equal(Responses.read(plain).lfc, Responses.read(a).lfc)


@pytest.mark.parametrize("prefix", ["GRCh38_", "mm10___", "hg38_"])
def test_genomes_before_the_names(prefix, tmp_path):
    a = screen()
    a.var_names = prefix + a.var_names
    s, *notes = both_ways(a, tmp_path)
    assert s.perturbations == ["CEBPA", "KLF1", "NKX2-1"] and s.measured(s.targets).all()
    assert "measured" not in "".join(notes)


@pytest.mark.parametrize(
    "ids", ["ENSG{:011d}", "ENSMUSG{:011d}.3", "GRCh38_ENSG{:011d}", "FBgn{:07d}", "{}", "tx{}"]
)
def test_ids_in_the_index_and_symbols_in_a_column(ids, tmp_path):
    a = screen()
    a.var["gene_name"] = a.var_names.to_numpy()
    a.var_names = [ids.format(i) for i in range(a.n_vars)]
    s, *notes = both_ways(a, tmp_path)
    assert s.measured(s.targets).all() and not (s.nodes.position < 0).any()
    perturbed = {a.var["gene_name"].iloc[i] for i in s.nodes.position[:3]}
    assert perturbed == {"CEBPA", "KLF1", "NKX2-1"}
    assert "measured" not in "".join(notes)


def test_an_alarm_where_no_target_is_measured():
    a = screen()
    a.var_names = [f"X{i}" for i in range(a.n_vars)]
    _, notes = noted(prepare, a, **FAST)
    assert "No target is measured: CEBPA, KLF1, NKX2-1 are not among the measured genes" in notes
    assert "X0" in notes and "gene_key=" in notes


# a batch without controls


def in_lane(share=1.0, controls=0):
    "KLF1 and CEBPA stand in a lane where other genes read 1.7 times higher."
    a = screen()
    rng = np.random.default_rng(3)
    alone = a.obs["gene"].isin(["KLF1", "CEBPA"]).to_numpy() & (rng.random(a.n_obs) < share)
    alone[np.flatnonzero(a.obs["gene"] == "non-targeting")[:controls]] = True
    X = a.X.toarray()
    X[np.ix_(alone, np.arange(15, 30))] = rng.poisson(1.7 * 6, (alone.sum(), 15))
    a.X = sp.csr_matrix(X)
    a.obs["lane"] = np.where(alone, "beta", "alpha")
    return a, alone


@pytest.mark.parametrize("controls", [0, 4])
def test_a_lane_without_controls_takes_no_part(controls, tmp_path):
    a, alone = in_lane(0.5, controls)
    s, *notes = both_ways(a, tmp_path, batch_key="lane")
    for said in notes:
        n = (alone & ~s.is_control & (s.split == "train") & ~s.fail).sum()
        assert f"1 batch(es) lack controls: 'beta' ({n} cells" in said
        assert "pool_controls=True" in said
    table = Responses.read(a)
    z = np.abs(table.lfc / table.se)[:, ~table.is_target.any(0)]
    assert s.perturbations == ["CEBPA", "KLF1", "NKX2-1"] and (z < 4).all()
    train = (s.split == "train") & ~s.fail
    assert table.cells[1] == (train & (s.labels == "KLF1") & ~alone).sum()

    pooled, _ = in_lane(0.5, controls)
    noted(prepare, pooled, batch_key="lane", pool_controls=True, **FAST)
    assert Responses.read(pooled).cells[1] == (train & (s.labels == "KLF1")).sum()


def test_perturbations_in_a_lane_without_controls_leave(tmp_path):
    a, _ = in_lane()
    s, *notes = both_ways(a, tmp_path, batch_key="lane")
    assert s.perturbations == ["NKX2-1"]
    for said in notes:
        assert "2 perturbation(s) lie in batches that lack controls alone: CEBPA, KLF1" in said
        assert "'beta' (" in said and "0 controls" in said
    pooled, _ = in_lane()
    noted(prepare, pooled, batch_key="lane", pool_controls=True, **FAST)
    assert Screen(pooled).perturbations == ["CEBPA", "KLF1", "NKX2-1"]


@pytest.mark.parametrize("key", ["gene", "cell"])
def test_a_batch_that_is_the_perturbation_or_the_cell(key, tmp_path):
    a = screen()
    a.obs["cell"] = a.obs_names
    a.write_h5ad(tmp_path / "raw.h5ad")
    says = "No perturbed cell lies in a batch with enough controls.*batch_key.*pool_controls=True"
    with pytest.raises(GpovaeError, match=says):
        prepare(a, batch_key=key, **FAST)
    with pytest.raises(GpovaeError, match=says):
        prepare_file(tmp_path / "raw.h5ad", tmp_path / "new.h5ad", batch_key=key, **FAST)
    noted(prepare, a, batch_key=key, pool_controls=True, **FAST)
    assert len(Screen(a).perturbations) == 3


def test_small_lanes_with_their_share_of_controls_are_pooled_as_before():
    a = screen()
    a.obs["lane"] = np.arange(a.n_obs) % 9
    _, notes = noted(prepare, a, batch_key="lane", **FAST)
    assert "lack controls" not in notes
    s = Screen(a)
    assert Responses.read(a).cells.sum() == ((s.split == "train") & ~s.fail & ~s.is_control).sum()


# several controls, and words with a meaning


def with_labels(**becomes):
    "Some of the controls under other labels."
    a = screen()
    label = a.obs["gene"].to_numpy(object)
    rows = np.flatnonzero(label == "non-targeting")
    for name, n in becomes.items():
        label[rows[:n]], rows = name.replace("_", "-"), rows[n:]
    a.obs["gene"] = label
    return a


@pytest.mark.parametrize("control", [["non-targeting", "safe-targeting"], ("AAVS1", "NT")])
def test_several_controls(control, tmp_path):
    a = with_labels(safe_targeting=40) if "NT" not in control else with_labels(AAVS1=90, NT=90)
    a.write_h5ad(tmp_path / "raw.h5ad")
    words = ["prepare", str(tmp_path / "raw.h5ad"), str(tmp_path / "cli.h5ad"), "--no-doublets"]
    result = CliRunner().invoke(main, [*words, *(w for c in control for w in ("--control", c))])
    assert result.exit_code == 0, result.output
    s, *notes = both_ways(a, tmp_path, control=control)
    assert s.perturbations == ["CEBPA", "KLF1", "NKX2-1"] and s.is_control.sum() == 180
    assert Screen(open_screen(tmp_path / "cli.h5ad")).is_control.sum() == 180
    assert "control" not in "".join(notes)
    assert a.uns[Key.screen]["control"] == ", ".join(control)


def test_other_controls_are_noted_and_the_model_predicts_its_labels(tmp_path):
    a = with_labels(safe_targeting=90, NT=60)
    a.obs["gene"] = a.obs["gene"].replace({"non-targeting": "safe-targeting"})
    s, *notes = both_ways(a, tmp_path, control="safe-targeting")
    for said in notes:
        assert "NT look(s) like a control beside safe-targeting" in said
        assert "control=['safe-targeting', 'NT']" in said
    model = gpovae.GPOVAE(a, **SMALL)
    model.train(max_epochs=1, progress=False)
    assert model.labels == ["CEBPA", "KLF1", "NKX2-1", "NT"]
    assert list(model.predict(model.labels).obs_names) == model.labels
    assert np.isfinite(model.evaluate(thorough=False).response.loc["model", "ate_rho"])
    assert len(model.explain("NT"))
    with pytest.raises(GpovaeError, match="is the control"):
        model.predict("control")


def test_controls_of_another_kind_beside_a_common_one_are_noted():
    a = with_labels(AAVS1=30, safe_targeting=20)
    _, notes = noted(prepare, a, **FAST)
    assert "AAVS1, safe-targeting look(s) like a control beside non-targeting" in notes
    assert "control=['non-targeting', 'AAVS1', 'safe-targeting']" in notes


def test_one_control_that_is_named_is_the_only_one(tmp_path):
    a = with_labels(control=40, AAVS1=140)
    s, *notes = both_ways(a, tmp_path, control="AAVS1")
    assert s.is_control.sum() == 140
    assert all("control look(s) like a control beside AAVS1" in said for said in notes)
    assert s.perturbations == ["CEBPA", "KLF1", "NKX2-1", "control (label)"]
    assert canonical("KLF1+CTRL", control="NT") == "CTRL+KLF1"


@pytest.mark.parametrize("control", ["non-targeting", None])
def test_a_gene_called_ctrl(control):
    a = screen(("KLF1", "CTRL", "KLF1+CTRL"))
    _, notes = noted(prepare, a, control=control, **FAST)
    assert Screen(a).perturbations == ["CTRL", "CTRL+KLF1", "KLF1"] and "control" not in notes
    model = gpovae.GPOVAE(a, **SMALL)
    model.train(max_epochs=1, progress=False)
    assert list(model.predict().obs_names) == model.labels == ["CTRL", "CTRL+KLF1", "KLF1"]
    assert list(model.predict("KLF1+CTRL").obs["perturbation"]) == ["CTRL+KLF1"]
    # where it stands for the only controls, it is the control
    b = screen(control="CTRL")
    prepare(b, **FAST)
    assert Screen(b).is_control.sum() == 180


UNKNOWN = (
    "unassigned multiple None N/A * negative doublet unknown multiplet ambiguous NA Unassigned"
)


def test_words_for_nothing_known_leave_with_a_note(tmp_path):
    a = screen()
    label = a.obs["gene"].to_numpy(object)
    words = [*UNKNOWN.split(), "not assigned", "no_guide", "KLF1+None"]
    label[: len(words)] = words
    a.obs["gene"] = label
    s, *notes = both_ways(a, tmp_path)
    assert s.perturbations == ["CEBPA", "KLF1", "NKX2-1"] and a.n_obs == 360 - len(words)
    for said in notes:
        assert f"{len(words)} cell(s) have a label that says that nothing is known" in said
        assert all(f"{word!r} (1)" in said for word in words)
    assert a.uns[Key.prepare]["source"]["result"]["unknown_cells"] == len(words)


def test_a_word_for_nothing_known_may_be_named_as_the_control():
    a = screen(control="negative")
    with pytest.raises(GpovaeError, match="No control cells"), pytest.warns(match="name it"):
        prepare(a, **FAST)
    prepare(a, control="negative", **FAST)
    assert Screen(a).is_control.sum() == 180
    assert not any(map(means_unknown, ["KLF1", "NONO", "NAT1", "MULTI1", "control", "N4BP1"]))


# guides without a table of their genes


def cell_ranger(path, guides, targets=None):
    "A .h5 of Cell Ranger 3 with `guides`, each of which dominates twenty cells."
    a = screen()
    n = 20 * len(guides)
    rows = np.arange(n)
    umis = sp.csr_matrix((np.full(n, 9.0), (rows, rows // 20)), shape=(n, len(guides)))
    counts = sp.hstack([a.X[:n], umis]).tocsr()
    table = dict(
        id=[*(f"ENSG{i:011d}" for i in range(a.n_vars)), *guides],
        name=[*a.var_names, *guides],
        feature_type=["Gene Expression"] * a.n_vars + ["CRISPR Guide Capture"] * len(guides),
    )
    if targets:
        table["target_gene_name"] = [""] * a.n_vars + targets
    with h5py.File(path, "w") as f:
        for key in ("data", "indices", "indptr"):
            f[f"matrix/{key}"] = getattr(counts, key)
        f["matrix/shape"] = counts.shape[::-1]
        f["matrix/barcodes"] = np.array([f"b{i}" for i in range(n)], "S")
        for key, values in table.items():
            f[f"matrix/features/{key}"] = np.array(values, "S")


def test_guides_lose_their_number_only(tmp_path):
    guides = "NKX2-5_1 NKX2-8_1 HLA-DRA_1 HLA-DRB1_2 NO_SITE_1 KLF1_g3 H2-K1_2 NTC_4 AAVS1_1"
    cell_ranger(tmp_path / "raw.h5", guides.split())
    with source(tmp_path / "raw.h5") as opened:
        labels = list(opened.obs["perturbation"].astype(str))[::20]
    wanted = "NKX2-5 NKX2-8 HLA-DRA HLA-DRB1 NO_SITE KLF1 H2-K1 NTC AAVS1"
    assert labels == wanted.split()
    assert canonical("NTC") == CONTROL


def test_guides_of_a_file_and_their_controls(tmp_path):
    guides = ["NT_1", "NT_2", "NT_3", "NT_4", "KLF1_1", "CEBPA_1", "NKX2-5_1", "NO_SITE_1"]
    cell_ranger(tmp_path / "raw.h5", guides)
    for control in (None, "NT"):
        settings = FAST | dict(control=control, force=True)
        _, notes = noted(prepare_file, tmp_path / "raw.h5", tmp_path / "new.h5ad", **settings)
        s = Screen(open_screen(tmp_path / "new.h5ad"))
        assert s.perturbations == ["CEBPA", "KLF1", "NKX2-5", "NO_SITE"]
        assert s.is_control.sum() == 80 and "NO_SITE look(s) like a control" in notes


def test_hyphens_are_numbers_only_where_all_guides_have_one():
    names = Names(["KLF1"], {})
    assert genes_of_guides(["HS2-1", "HS2-2", "NT-1"], names) == {
        "HS2-1": "HS2",
        "HS2-2": "HS2",
        "NT-1": "NT",
    }
    kept = ["NKX2-5", "HLA-DRA", "MYC_1"]
    assert list(genes_of_guides(kept, names).values()) == ["NKX2-5", "HLA-DRA", "MYC"]


# ambiguous genes


def twice(second, spelt):
    "KLF1 has two columns; the second one, with `second` times the counts, is the target."
    a = screen()
    rng = np.random.default_rng(5)
    low = rng.poisson(0.3, a.n_obs)
    column = a.X[:, 0].toarray()
    X = sp.hstack([sp.csr_matrix(low[:, None]), a.X[:, 1:], second * column]).tocsr()
    if second == 1:
        X = sp.hstack([column, a.X[:, 1:], sp.csr_matrix(low[:, None])]).tocsr()
    names = [*a.var_names, spelt]
    var = pd.DataFrame(index=names)
    if spelt == "KLF1":
        var = pd.DataFrame(dict(gene_name=names), [f"ENSG{i:011d}" for i in range(len(names))])
    return ad.AnnData(X.astype(np.float32), a.obs, var)


@pytest.mark.parametrize("spelt", ["KLF1", "KLF1-1", "KLF1.1"])
@pytest.mark.parametrize("second", [1, 2])
def test_of_two_columns_of_a_target_the_one_with_more_counts(spelt, second, tmp_path):
    a = twice(second, spelt)
    best = 0 if second == 1 else 30
    totals = np.asarray(a.X[:, [0, 30]].sum(0)).ravel()
    s, *notes = both_ways(a, tmp_path)
    assert s.genes.get_loc("KLF1") == best == s.nodes.position["KLF1"]
    own = Responses.read(a).to_frame().loc["KLF1", "KLF1"]
    assert -1.4 < own < -0.8
    for said in notes:
        assert f"KLF1 ({totals[0]:g}, {totals[1]:g} counts)" in said and "gene_key=" in said


def test_a_gene_key_says_which_copy_is_meant():
    a = twice(2, "KLF1")
    a.var["mine"] = ["KLF1", *a.var["gene_name"][1:-1], "KLF1_other"]
    _, notes = noted(prepare, a, gene_key="mine", **FAST)
    assert Screen(a).genes.get_loc("KLF1") == 0 and "columns" not in notes


# one bad perturbation


def test_perturbations_whose_cells_fail_are_left_out_of_the_model_all_named():
    a = screen(("KLF1", "CEBPA", "NKX2-1", "KLF1+CEBPA", "HLA-DRA"))
    prepare(a, **FAST)
    bad = ["CEBPA", "CEBPA+KLF1"]
    a.obs.loc[a.obs[Key.perturbation].isin(bad), Key.fail] = True
    model, _ = noted(gpovae.GPOVAE, a, **SMALL)
    with pytest.warns(UserWarning, match=r"2 perturbation\(s\).*CEBPA, CEBPA\+KLF1.*left out"):
        model.train(max_epochs=1, progress=False)
    assert model.labels == ["HLA-DRA", "KLF1", "NKX2-1"]
    assert np.isfinite(model.predict().X).all()
    assert np.isfinite(model.evaluate(thorough=False).response.loc["model", "ate_rho"])


# settings


def test_lists_of_controls_from_every_side(tmp_path):
    assert PrepareOptions(control=[]).control is None
    assert PrepareOptions(control=("NT",)).control == "NT"
    settings = json.loads('{"control": ["non-targeting", "AAVS1"]}')
    a = with_labels(AAVS1=30)
    prepare(a, **settings, **FAST)
    assert Screen(a).is_control.sum() == 180
    s = register(with_labels(AAVS1=30), "gene", ["AAVS1", "non-targeting"])
    assert s.is_control.sum() == 180
