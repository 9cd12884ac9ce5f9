"""Cells and perturbations that leave a screen: without counts, none of whose cells passes, or
because the user says so; in memory and from file to file, with the same outcome and record.
"""

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.data.files import open_screen
from gpovae.data.prepare import prepare, prepare_file, record_table
from gpovae.data.register import register
from gpovae.data.responses import Responses
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.steps import stale
from gpovae.train.build import model_responses

FAST = dict(doublets=False, progress=False)


@pytest.fixture(scope="module", autouse=True)
def quick_matching():
    "The search for a bandwidth takes most of a preparation, and is not what is tested here."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpovae.data.matching.choose_rho", lambda *_, **__: 0.1)
        yield


def screen(**settings):
    size = dict(n_cells=300, n_genes=60, n_perturbations=4, control_share=0.5, seed=0)
    return simulated(**size | settings)


def with_X(adata, change):
    X = adata.X.toarray()
    change(X)
    adata.X = sp.csr_matrix(X)
    return adata


def emptied(cells, **settings):
    return with_X(screen(**settings), lambda X: X.__setitem__(cells, 0))


def with_notes(f, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f(*args, **kwargs)
    return [str(w.message) for w in caught]


LAYOUTS = {
    "sparse": lambda a: a,
    "dense": lambda a: ad.AnnData(a.X.toarray(), obs=a.obs, var=a.var),
    "by gene": lambda a: ad.AnnData(a.X.tocsc(), obs=a.obs, var=a.var),
    "stored zeros": lambda a: ad.AnnData(stored_zeros(a.X), obs=a.obs, var=a.var),
    "layer": lambda a: ad.AnnData(a.X * 0, obs=a.obs, var=a.var, layers=dict(counts=a.X)),
}


def stored_zeros(X):
    "The same counts; the empty cell 3 has an entry that is zero."
    indptr = X.indptr.copy()
    indptr[4:] += 1
    data, indices = (np.insert(v, X.indptr[3], 0) for v in (X.data, X.indices))
    return sp.csr_matrix((data, indices, indptr), shape=X.shape)


@pytest.fixture(scope="module")
def expected():
    "The screen without the three cells, prepared."
    raw = screen()
    raw = raw[~np.isin(np.arange(300), [3, 7, 100])].copy()
    prepare(raw, **FAST)
    return raw


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_without_counts_leave_with_a_note(layout, tmp_path, expected):
    "Refused on 0.2.0. In memory, from file to file, and where counts stay on disk: the same."
    raw = LAYOUTS[layout](emptied([3, 7, 100]))
    raw.write_h5ad(tmp_path / "raw.h5ad")
    note = "3 cell(s) have no counts at all and were left out, the first is 'cell003'."

    memory = raw.copy()
    assert [n for n in with_notes(prepare, memory, **FAST) if note in n]
    files = tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad"
    assert [n for n in with_notes(prepare_file, *files, **FAST) if note in n]
    disk = open_screen(files[1])

    for a in (memory, disk):
        assert list(a.obs_names) == list(expected.obs_names) and stale(a) == []
        source = a.uns[Key.prepare]["source"]["result"]
        assert (source["cells"], source["kept"], source["empty_cells"]) == (300, 297, 3)
        # nothing else of the screen is altered
        assert (a.obs[Key.split] == expected.obs[Key.split].to_numpy()).all()
        assert (a.obs[Key.fail] == expected.obs[Key.fail].to_numpy()).all()
        np.testing.assert_allclose(Responses.read(a).lfc, Responses.read(expected).lfc, rtol=1e-6)
        counts = Screen(a).counts[:]
        assert (sp.csr_matrix(counts) != sp.csr_matrix(Screen(expected).counts)).nnz == 0
    # a second call finds nothing to do
    assert not prepare_file(*files, **FAST)


def test_counts_that_stay_on_disk(tmp_path):
    "An opened file, whose counts AnnData does not call backed; a backed one is refused as ever."
    emptied([3, 7]).write_h5ad(tmp_path / "raw.h5ad")
    opened = open_screen(tmp_path / "raw.h5ad")
    assert any("2 cell(s) have no counts" in n for n in with_notes(prepare, opened, **FAST))
    assert opened.n_obs == 298 and stale(opened) == []
    with pytest.raises(GpovaeError, match="prepare_file"):
        prepare(ad.read_h5ad(tmp_path / "raw.h5ad", backed="r"), **FAST)
    with h5py.File(tmp_path / "raw.h5ad") as f:
        assert len(f["obs/_index"]) == 300


def test_the_strict_behaviour(tmp_path):
    raw = emptied([3, 7])
    raw.write_h5ad(tmp_path / "raw.h5ad")
    before = raw.copy()
    says = "2 cell.s. have no counts at all, the first is 'cell003'. Remove them, or prepare"
    with pytest.raises(GpovaeError, match=says):
        prepare(raw, drop_empty=False, **FAST)
    with pytest.raises(GpovaeError, match=says):
        register(raw, drop_empty=False)
    with pytest.raises(GpovaeError, match=says):
        prepare_file(tmp_path / "raw.h5ad", tmp_path / "new.h5ad", drop_empty=False, **FAST)
    assert raw.obs.equals(before.obs) and not (tmp_path / "new.h5ad").exists()


def test_the_command_line_says_how_many_and_can_be_strict(tmp_path):
    emptied([3, 7]).write_h5ad(tmp_path / "raw.h5ad")
    words = ["prepare", str(tmp_path / "raw.h5ad"), str(tmp_path / "new.h5ad"), "--no-doublets"]
    result = CliRunner().invoke(main, [*words, "--no-drop-empty", "--quiet"])
    assert result.exit_code == 2 and "or prepare without --no-drop-empty." in result.output
    result = CliRunner().invoke(main, [*words, "--leave-out", "MYC", "--leave-out", "KLF1"])
    assert result.exit_code == 0 and "2 cell(s) have no counts at all" in result.output
    assert "To have them refused: --no-drop-empty." in result.output
    assert not {"MYC", "KLF1"} & set(open_screen(tmp_path / "new.h5ad").obs[Key.perturbation])


def test_register_alone_leaves_them_out_as_well():
    raw = emptied([3, 7])
    assert any("2 cell(s) have no counts" in n for n in with_notes(register, raw))
    assert raw.n_obs == 298 and "cell003" not in raw.obs_names
    # a refusal alters nothing
    raw = with_X(emptied([3]), lambda X: X.__setitem__((5, 5), 0.5))
    with pytest.raises(GpovaeError, match="whole number"):
        register(raw)
    assert raw.n_obs == 300


def test_cells_without_counts_outside_size_factor_exclude(tmp_path):
    raw = screen()
    gene = raw.var_names[0]
    with_X(raw, lambda X: X.__setitem__((3, slice(1, None)), 0))
    with_X(raw, lambda X: X.__setitem__((3, 0), 9))
    raw.write_h5ad(tmp_path / "raw.h5ad")
    files = tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad"
    settings = FAST | dict(size_factor_exclude=[gene])
    for notes in (
        with_notes(prepare_file, *files, **settings),
        with_notes(prepare, raw, **settings),
    ):
        assert any("1 cell(s) have no counts outside size_factor_exclude" in n for n in notes)
    assert raw.n_obs == open_screen(files[1]).n_obs == 299


def test_a_perturbation_that_becomes_too_small_leaves_too(tmp_path):
    "min_cells counts cells with counts."
    raw = screen()
    cells = np.flatnonzero(raw.obs["gene"] == "MYC")
    with_X(raw, lambda X: X.__setitem__(cells[3:], 0))
    raw.write_h5ad(tmp_path / "raw.h5ad")
    files = tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad"
    with_notes(prepare_file, *files, min_cells=10, **FAST)
    with_notes(prepare, raw, min_cells=10, **FAST)
    disk = open_screen(files[1])
    for a in (raw, disk):
        assert "MYC" not in Screen(a).perturbations and a.n_obs == 300 - len(cells)
        source = a.uns[Key.prepare]["source"]["result"]
        assert (source["empty_cells"], source["few_cells"]) == (len(cells) - 3, 3)


def test_a_screen_without_any_counts_is_refused(tmp_path):
    raw = emptied(slice(None))
    raw.write_h5ad(tmp_path / "raw.h5ad")
    with pytest.raises(GpovaeError, match="The 300 cells have no counts at all"):
        prepare(raw, **FAST)
    with pytest.raises(GpovaeError, match="The 300 cells have no counts at all"):
        prepare_file(tmp_path / "raw.h5ad", tmp_path / "new.h5ad", **FAST)
    assert [p.name for p in tmp_path.iterdir()] == ["raw.h5ad"]


def ruined(*names, **settings):
    "Of all cells of some perturbations nothing is left but mitochondria."
    raw = screen(**settings)
    rows = raw.obs["gene"].isin(names).to_numpy()

    def change(X):
        X[rows] = 0
        X[np.ix_(rows, raw.var_names.str.startswith("MT-"))] = 1

    return with_X(raw, change)


def test_perturbations_none_of_whose_cells_passes_leave_with_a_note(tmp_path):
    """On 0.2.0 they are prepared, and then training is refused, for one name at a time."""
    names = ["KLF1", "MYC"]
    raw = ruined(*names)
    n_left = int((~raw.obs["gene"].isin(names)).sum())
    raw.write_h5ad(tmp_path / "raw.h5ad")
    files = tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad"
    note = "No training cell of 2 perturbation(s) passes quality control: KLF1, MYC."
    assert any(note in n for n in with_notes(prepare, raw, **FAST))
    assert any(note in n for n in with_notes(prepare_file, *files, **FAST))
    disk = open_screen(files[1])
    for a in (raw, disk):
        assert not set(names) & set(Screen(a).perturbations) and a.n_obs == n_left
        result = record_table(a)["value"].loc["unusable"]
        assert (result["cells_in"], result["cells"]) == (300, n_left)
        assert result["left_out"] == "KLF1, MYC" and stale(a) == []
        # and it can be trained on
        model_responses(Screen(a), Screen(a).perturbations)
    assert (raw.obs[Key.fail] == disk.obs[Key.fail]).all()
    again = raw.copy()
    assert not any("No training cell" in n for n in with_notes(prepare, again, **FAST))
    assert again.n_obs == n_left and (again.obs[Key.split] == raw.obs[Key.split]).all()
    assert again.uns[Key.prepare]["unusable"]["result"]["left_out"] == "KLF1, MYC"


def test_strong_and_quality_narrow_a_screen_on_disk_one_after_the_other(tmp_path):
    raw = ruined("KLF1")
    raw.write_h5ad(tmp_path / "raw.h5ad")
    genes = [g for g in raw.obs["gene"].cat.categories if g != "non-targeting"]
    table = pd.DataFrame(dict(perturbation=genes, degs=80, knockdown=0.7, cells=300))
    files = tmp_path / "raw.h5ad", tmp_path / "prepared.h5ad"
    settings = dict(strong=table, **FAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpovae.data.pipeline.strong_cells", all_but_last)
        with_notes(prepare_file, *files, **settings)
    left = open_screen(files[1])
    assert Screen(left).perturbations == sorted(set(genes) - {"KLF1", genes[-1]})
    assert stale(left) == []


def all_but_last(adata, summary):
    "In place of the step *strong*: leaves the last perturbation out."
    s = Screen(adata)
    last = s.perturbations[-1]
    return s.labels != last, pd.DataFrame(dict(outcome=["kept"]))


def test_a_screen_none_of_whose_perturbed_cells_passes_is_refused():
    raw = screen()
    names = sorted(set(raw.obs["gene"]) - {"non-targeting"})
    with pytest.raises(GpovaeError, match=f"passes quality control: {', '.join(names)}. These"):
        prepare(ruined(*names, control_share=0.7), **FAST)


def pairs():
    raw = screen()
    labels = raw.obs["gene"].astype(str)
    genes = sorted(set(labels) - {"non-targeting"})
    return raw, labels.replace({genes[0]: f"{genes[1]}+{genes[0]}"}), genes


def test_leave_out(tmp_path):
    raw, raw.obs["gene"], genes = pairs()
    raw.write_h5ad(tmp_path / "raw.h5ad")
    pair = f"{genes[0]}+{genes[1]}"
    assert pair in Screen(registered(raw)).perturbations
    cases = {
        (genes[1],): {pair, genes[1]},  # with the combinations that it takes part in
        (f"{genes[1]}+{genes[0]}",): {pair},
        (genes[0],): {pair},
        (genes[2], genes[3]): {genes[2], genes[3]},
    }
    for names, gone in cases.items():
        memory = raw.copy()
        prepare(memory, leave_out=list(names), **FAST)
        screens = [memory]
        if pair in names or genes[1] in names:
            target = tmp_path / "prepared.h5ad"
            prepare_file(tmp_path / "raw.h5ad", target, leave_out=names, force=True, **FAST)
            screens.append(open_screen(target))
        for a in screens:
            assert set(Screen(registered(raw)).perturbations) - set(Screen(a).perturbations) == gone
            n = int(np.isin(Screen(registered(raw)).labels, list(gone)).sum())
            assert a.uns[Key.prepare]["source"]["result"]["left_out_cells"] == n == 300 - a.n_obs

    # a second call finds nothing to do, though the names are gone
    split = memory.obs[Key.split].copy()
    prepare(memory, leave_out=list(names), **FAST)
    assert (memory.obs[Key.split] == split).all()


def registered(raw):
    a = raw.copy()
    register(a)
    return a


@pytest.mark.parametrize(
    "names, says",
    [
        (["MYD"], "'MYD', which is no perturbation of this screen. Did you mean MYC"),
        (["non-targeting"], "'non-targeting', the control"),
        (["everything"], "'everything', which is no perturbation"),
    ],
)
def test_leave_out_refuses_what_is_not_there(names, says, tmp_path):
    raw = screen()
    raw.write_h5ad(tmp_path / "raw.h5ad")
    with pytest.raises(GpovaeError, match=says):
        prepare(raw, leave_out=names, **FAST)
    with pytest.raises(GpovaeError, match=says):
        prepare_file(tmp_path / "raw.h5ad", tmp_path / "new.h5ad", leave_out=names, **FAST)
    genes = sorted(set(raw.obs["gene"]) - {"non-targeting"})
    with pytest.raises(GpovaeError, match="every perturbation"):
        prepare(raw, leave_out=genes, **FAST)
    assert raw.n_obs == 300 and [p.name for p in tmp_path.iterdir()] == ["raw.h5ad"]
