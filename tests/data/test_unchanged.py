"A screen that was changed after its preparation is noticed by whatever reads it."

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.files import open_screen
from gpovae.data.screen import Key, Screen
from gpovae.data.unchanged import changes, fingerprint
from gpovae.evaluate.effects import observed_effects
from gpovae.evaluate.scores import evaluate

REFUSED = "is no count: the counts were changed after they were prepared"
NOTED = "Changed since this screen was prepared"


@pytest.fixture(scope="module")
def prepared():
    a = gpovae.datasets.simulated(n_cells=600, n_genes=50, n_perturbations=5, seed=2, n_batches=2)
    gpovae.prepare(a, batch_key="batch", progress=False)
    return a


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unchanged")
    prepared.write_h5ad(folder / "prepared.h5ad")
    model = gpovae.GPOVAE(prepared)
    model.train(max_epochs=1, progress=False)
    model.save(folder / "run", data=folder / "prepared.h5ad")
    return folder / "run"


def with_data(a, function):
    b = a.copy()
    b.X = sp.csr_matrix(b.X)
    b.X.data = function(b.X.data.astype(float)).astype(np.float32)
    return b


def normalised(a):
    b = a.copy()
    total = b.X.sum(1).A1
    b.X = sp.diags(1e4 / total) @ b.X
    return b


def one_lane_scaled(a):
    b = a.copy()
    lane = (b.obs["batch"] == b.obs["batch"].iloc[0]).to_numpy()
    X = b.X.toarray()
    X[lane] *= 0.7
    b.X = sp.csr_matrix(X)
    return b


def in_another_layer(a):
    b = normalised(a)
    b.layers["counts"] = a.X.copy()
    return b


def centred(a):
    b = a.copy()
    X = b.X.toarray()
    b.X = X - X.mean(0)
    return b


NO_COUNTS = dict(
    log1p=lambda a: with_data(a, np.log1p),
    normalised=normalised,
    both=lambda a: with_data(normalised(a), np.log1p),
    centred=centred,
    missing=lambda a: with_data(a, lambda x: np.full_like(x, np.nan)),
    infinite=lambda a: with_data(a, lambda x: np.full_like(x, np.inf)),
    lane=one_lane_scaled,
    layer=in_another_layer,
)
READERS = dict(
    train=lambda m: m.train(max_epochs=1, progress=False),
    evaluate=lambda m: m.evaluate(thorough=False),
    latent=lambda m: m.get_latent_representation(),
    iwelbo=lambda m: m.iwelbo(particles=2, most=10),
    scores=lambda m: evaluate(m.adata, m.predict().to_df()),
    effects=lambda m: observed_effects(m.adata),
    setup=lambda m: gpovae.GPOVAE(m.adata),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", NO_COUNTS)
def test_what_is_no_count_is_refused_wherever_it_is_read(prepared, run, change, reader):
    model = gpovae.GPOVAE.load(run, data=False)
    model.adata = NO_COUNTS[change](prepared)
    with pytest.raises(GpovaeError, match=REFUSED):
        READERS[reader](model)


@pytest.mark.parametrize("change", ["log1p", "normalised"])
def test_a_screen_given_to_load_is_refused_when_it_is_scored(prepared, run, change):
    model = gpovae.GPOVAE.load(run, NO_COUNTS[change](prepared))
    assert model.predict().n_obs == len(model.labels)  # which needs no counts
    with pytest.raises(GpovaeError, match=REFUSED):
        model.evaluate(thorough=False)


def test_counts_that_are_gone_are_named(prepared):
    b = prepared.copy()
    b.uns[Key.screen] = dict(b.uns[Key.screen]) | dict(layer="counts")
    with pytest.raises(GpovaeError, match=r"in layers\['counts'\], are gone"):
        gpovae.GPOVAE(b)
    b.uns[Key.screen]["layer"], b.X = "", None
    with pytest.raises(GpovaeError, match="in X, are gone"):
        gpovae.GPOVAE(b)


def permuted(column):
    def change(a):
        b = a.copy()
        values = b.obs[column].to_numpy()
        b.obs[column] = pd.Categorical(np.random.default_rng(0).permutation(values))
        return b

    return change


def thinned(a):
    rng = np.random.default_rng(0)
    return with_data(a, lambda x: rng.binomial(x.astype(int), 0.5).astype(float))


def gene_names_moved(a):
    b = a.copy()
    b.var[Key.gene] = np.roll(b.var[Key.gene].to_numpy(), 1)
    b.var_names = np.roll(b.var_names.to_numpy(), 1)
    return b


def one_gene_emptied(a):
    X = a.X.toarray()
    X[:, int(np.argmax(X.mean(0)))] = 0
    b = a.copy()
    b.X = sp.csr_matrix(X)
    return b


OTHER = dict(
    labels=(permuted("gene"), "labels"),
    canonical=(permuted(Key.perturbation), "labels"),
    batches=(permuted("batch"), "batches"),
    canonical_batches=(permuted(Key.batch), "batches"),
    thinned=(thinned, "the counts"),
    doubled=(lambda a: with_data(a, lambda x: 2 * x), "the counts"),
    rounded=(lambda a: with_data(normalised(a), np.rint), "the counts"),
    one_gene=(one_gene_emptied, "the counts"),
    moved=(gene_names_moved, "genes|counts"),
    cut=(lambda a: a[:, :-5].copy(), "the genes"),
    reordered=(lambda a: a[:, ::-1].copy(), "the order of the genes"),
    dropped=(lambda a: a[:-50].copy(), "the cells"),
)


@pytest.mark.parametrize("change", OTHER)
def test_other_changes_are_noted_alike(prepared, change):
    function, words = OTHER[change]
    assert changes(prepared) == []
    with pytest.warns(UserWarning, match=f"{NOTED}: .*({words})"):
        try:
            gpovae.GPOVAE(function(prepared))
        except GpovaeError:  # a cut gene may be a node
            pass


@pytest.mark.parametrize("reader", ["train", "evaluate", "latent", "iwelbo", "scores"])
def test_thinned_counts_are_noted_wherever_they_are_read(prepared, run, reader):
    model = gpovae.GPOVAE.load(run, data=False)
    model.adata = thinned(prepared)
    with pytest.warns(UserWarning, match=f"{NOTED}: the counts"):
        READERS[reader](model)


def test_an_unchanged_screen_is_silent(prepared, run, tmp_path):
    path = run.parent / "prepared.h5ad"
    model = gpovae.GPOVAE.load(run)
    dense = prepared.copy()
    dense.X = dense.X.toarray().astype(np.int32)
    by_gene = prepared.copy()
    by_gene.X = sp.csc_matrix(by_gene.X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for a in (ad.read_h5ad(path), open_screen(path), ad.read_h5ad(path, backed="r"), dense):
            gpovae.GPOVAE(a)
        gpovae.GPOVAE(by_gene)
        model.evaluate(thorough=False)
        assert changes(prepared[np.random.default_rng(0).permutation(600)].copy()) == []


def test_missing_values_read_the_same_from_a_file(tmp_path):
    a = gpovae.datasets.simulated(n_cells=300, n_genes=30, n_perturbations=3, seed=0)
    guide = a.obs["gene"].astype(str).astype(object) + "_1"
    guide.iloc[3] = None
    a.obs["guide"] = guide
    gpovae.prepare(a, guide_key="guide", progress=False)
    a.write_h5ad(tmp_path / "a.h5ad")
    assert changes(ad.read_h5ad(tmp_path / "a.h5ad")) == []


def test_an_older_file_without_fingerprint_is_held_against_its_library_sizes(prepared):
    old = prepared.copy()
    old.uns[Key.screen] = {k: v for k, v in old.uns[Key.screen].items() if k != "fingerprint"}
    assert changes(old) == []
    assert changes(thinned(old)) == ["the counts, or the genes"]
    with pytest.raises(GpovaeError, match=REFUSED):
        changes(normalised(old))


def test_a_later_version_of_the_fingerprint_is_not_judged_by_ours(prepared):
    later = prepared.copy()
    mark = dict(later.uns[Key.screen]["fingerprint"]) | dict(version=99, counts="?")
    later.uns[Key.screen] = dict(later.uns[Key.screen]) | dict(fingerprint=mark)
    assert changes(later) == []


def test_a_file_that_was_overwritten_is_noticed(prepared, run, tmp_path):
    folder = tmp_path / "run"
    file = tmp_path / "screen.h5ad"
    gpovae.GPOVAE.load(run, data=False).save(folder, data=file)

    # the same cells, prepared again from other counts
    other = thinned(prepared)
    gpovae.prepare(other, batch_key="batch", progress=False)
    other.obs[Key.split] = prepared.obs[Key.split]
    other.write_h5ad(file)
    with pytest.warns(UserWarning, match="the screen was prepared anew since"):
        model = gpovae.GPOVAE.load(folder)
    with pytest.warns(UserWarning, match="the screen was prepared anew since"):
        model.evaluate(thorough=False)

    # normalised in place
    normalised(prepared).write_h5ad(file)
    with pytest.raises(GpovaeError, match=REFUSED):
        gpovae.GPOVAE.load(folder).evaluate(thorough=False)

    # another split of the same cells
    split = prepared.copy()
    split.obs[Key.split] = split.obs[Key.split].to_numpy()[::-1]
    split.write_h5ad(file)
    with pytest.warns(UserWarning, match="another split"):
        gpovae.GPOVAE.load(folder)


def test_genes_that_a_model_does_not_know_are_cut_without_a_word(prepared, run):
    more = prepared.copy()
    model = gpovae.GPOVAE.load(run, data=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from gpovae.train.run import with_genes

        cut = with_genes(more, model.genes[:-1])
        assert cut.n_vars == more.n_vars - 1 and changes(cut) == []


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_commands_refuse_what_is_no_count(prepared, run, tmp_path, command):
    from click.testing import CliRunner

    from gpovae.app.cli import main

    file = tmp_path / "screen.h5ad"
    gpovae.GPOVAE.load(run, data=False).save(tmp_path / "run", data=file)
    normalised(prepared).write_h5ad(file)
    quick = ["--quick"] if command == "evaluate" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "run"), "--quiet", *quick])
    assert result.exit_code == 2 and "is no count" in result.output


def test_it_takes_a_second_on_disk(tmp_path):
    "Not all counts are read: a screen of 100,000 cells costs what 4,096 of them do."
    import time

    rng = np.random.default_rng(0)
    n, genes = 30_000, 200
    X = sp.random(n, genes, 0.2, "csr", rng=rng, data_rvs=lambda k: rng.integers(1, 9, k))
    a = ad.AnnData(X.astype(np.float32), pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    a.obs["gene"] = np.where(np.arange(n) % 3 == 0, "control", "1")
    from gpovae.data.register import register

    with pytest.warns(UserWarning):
        a.var_names = [f"g{i}" for i in range(genes)]
        register(a)
    a.write_h5ad(tmp_path / "a.h5ad")
    screen = Screen(open_screen(tmp_path / "a.h5ad"))
    assert fingerprint(screen)["counts"] == a.uns[Key.screen]["fingerprint"]["counts"]
    start = time.process_time()
    fingerprint(screen)
    assert time.process_time() - start < 3


def test_counts_are_looked_at_once_for_each_screen(prepared, monkeypatch):
    "Blocks of cells are read by the thousand; each asks the screen for its counts."
    looked = []
    monkeypatch.setattr("gpovae.data.screen.refuse_changed", lambda *_: looked.append(1))
    for _ in range(2):
        screen = Screen(prepared)
        for _ in range(5):
            screen.counts[:3]
    assert len(looked) == 2
