"""The perturbation behind a profile is found again, and chance is not taken for nearness."""

import json
import time
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from gpovae import GPOVAE, GpovaeError
from gpovae.app.cli import main
from gpovae.data.simulate import true_lfc
from gpovae.evaluate.reach import Candidates, Wanted, by_correlation, nearest, read_profile

GENES = [f"g{j}" for j in range(40)]


def known(effects: dict, spread: float | dict = 0.1, genes=GENES) -> Candidates:
    "A model that predicts sums of given effects (name -> (genes,)) with a given spread."

    def spread_of(name):
        return spread[name] if isinstance(spread, dict) else spread

    def predict(names):
        parts = [name.split("+") for name in names]
        x = np.array([sum(effects[p] for p in split) for split in parts])
        s = np.array([np.sqrt(sum(spread_of(p) ** 2 for p in split)) for split in parts])
        return ad.AnnData(
            x,
            obs=pd.DataFrame(dict(perturbation=names, trained=True), index=names),
            var=pd.DataFrame(index=genes),
            layers=dict(spread=np.repeat(s[:, None], len(genes), 1)),
        )

    def draws(names):
        rng = np.random.default_rng(0)
        s = np.array([np.hypot.reduce([spread_of(p) for p in name.split("+")]) for name in names])
        return rng.normal(size=(len(names), 400, len(genes))) * s[:, None, None]

    return Candidates(predict, draws, list(effects), list(effects), np.zeros(len(genes)))


def some_effects(n: int, seed: int = 0, genes=GENES) -> dict:
    rng = np.random.default_rng(seed)
    return {f"P{k:03}": rng.normal(size=len(genes)) for k in range(n)}


def ranked(candidates, profile, genes=GENES, pairs=True, others="unchanged", top=20):
    profile = pd.Series(profile, genes)
    return nearest(candidates, Wanted.of(profile, genes, others), pairs=pairs, top=top)


def test_single_perturbations_and_pairs_are_found():
    effects = some_effects(12)
    model = known(effects)
    assert ranked(model, effects["P003"]).perturbation[0] == "P003"
    table = ranked(model, effects["P003"] + effects["P007"])
    assert table.perturbation[0] == "P003+P007" and table.reached[0] > 0.95
    assert (
        not ranked(model, effects["P003"], pairs=False)
        .perturbation.str.contains("+", regex=False)
        .any()
    )


def test_all_pairs_are_considered_as_if_each_were_predicted():
    effects = some_effects(30, seed=1)
    spread = {name: 0.05 * (k % 5) for k, name in enumerate(effects)}
    model = known(effects, spread)
    rng = np.random.default_rng(2)
    wanted = rng.normal(size=len(GENES))
    pairs = [f"{a}+{b}" for a in effects for b in effects if a < b]
    every = model.predict([*effects, *pairs])
    distance = ((every.X - wanted) ** 2 + every.layers["spread"] ** 2).sum(1)
    share = pd.Series(1 - distance / (wanted**2).sum(), every.obs_names)
    model = model._replace(draws=lambda names: np.zeros((len(names), 2, len(GENES))))
    table = ranked(model, wanted, top=40)
    nearest_pairs = table.perturbation[table.perturbation.str.contains("+", regex=False)]
    assert list(nearest_pairs) == list(share[pairs].nlargest(len(nearest_pairs)).index)
    np.testing.assert_allclose(table.reached, share[table.perturbation], rtol=1e-6)


def test_a_noisy_perturbation_does_not_win_by_chance():
    wanted = np.r_[np.ones(10), np.zeros(30)]
    effects = dict(known=0.8 * wanted, vague=0.9 * wanted)
    table = ranked(known(effects, dict(known=0.05, vague=0.5)), wanted, pairs=False)
    assert list(table.perturbation) == ["known", "vague"]
    table = ranked(known(effects, dict(known=0.05, vague=0.05)), wanted, pairs=False)
    assert list(table.perturbation) == ["vague", "known"]


def test_pairs_do_not_win_by_fitting_the_noise_of_a_profile():
    first, by_reach = [], []
    for seed in range(10):
        effects = {name: 0.1 * e for name, e in some_effects(60, seed).items()}
        effects["P005"] *= 10  # the others are weak, as most are
        noise = np.random.default_rng(100 + seed).normal(size=len(GENES)) * 0.3
        table = ranked(known(effects, 0.01), effects["P005"] + noise)
        first.append(table.perturbation[0] == "P005")
        by_reach.append(table.perturbation[table.reached.idxmax()] == "P005")
    # by nearness alone a pair with one of the others wins
    assert np.mean(first) >= 0.8 and np.mean(by_reach) <= 0.2, (first, by_reach)


def test_uncertainty_is_that_of_what_is_reached():
    effects = some_effects(3)
    wanted = effects["P000"] * 1.5
    table = ranked(known(effects, 0.2), wanted, pairs=False)
    # of independent genes: Var |w - e|^2 = sum 4 (w - e)^2 s^2 + 2 s^4
    row = table[table.perturbation == "P000"].iloc[0]
    off = wanted - effects["P000"]
    expected = np.sqrt((4 * off**2 * 0.04 + 2 * 0.2**4).sum()) / (wanted**2).sum()
    assert row.uncertainty == pytest.approx(expected, rel=0.15)


def test_off_target_is_what_nobody_asked_for():
    wanted = pd.Series(dict(g0=1.0, g1=-1.0))
    effect = np.zeros(40)
    effect[:4] = [1.0, 1.0, 2.0, -0.5]  # as wanted, against, and of two others
    model = known(dict(P000=effect))
    row = nearest(model, Wanted.of(wanted, GENES), pairs=False, top=1).iloc[0]
    assert row.off_target == pytest.approx((1 + 4 + 0.25) / (1 + 1 + 4 + 0.25))
    assert row.off_target_genes == "g2 +2.00, g1 +1.00, g3 -0.50"
    row = nearest(model, Wanted.of(wanted, GENES, "ignore"), pairs=False, top=1).iloc[0]
    assert row.off_target == pytest.approx(0.5) and row.off_target_genes == "g1 +1.00"


def test_a_perturbed_gene_itself_counts_only_where_it_is_named():
    effect = np.zeros(40)
    effect[:2] = [-3.0, 1.0]
    model = known(dict(g0=effect), 0.0)
    alone = nearest(model, Wanted.of(pd.Series(dict(g1=1.0)), GENES), pairs=False, top=1)
    assert alone.reached[0] == pytest.approx(1) and alone.off_target[0] == 0
    named = Wanted.of(pd.Series(dict(g0=0.0, g1=1.0)), GENES)
    assert nearest(model, named, pairs=False, top=1).reached[0] == pytest.approx(-8)


def test_correlation_of_sums_is_that_of_pairs():
    effects = pd.DataFrame(some_effects(6), GENES).T
    profile = pd.Series(np.random.default_rng(5).normal(size=40), GENES)
    scores = by_correlation(effects, profile)
    assert len(scores) == 6 + 15
    for name, score in scores.items():
        total = effects.loc[name.split("+")].sum()
        assert score == pytest.approx(np.corrcoef(total, profile)[0, 1])


def test_two_hundred_perturbations_take_seconds():
    genes = [f"g{j}" for j in range(2000)]
    model = known(some_effects(200, genes=genes), 0.1, genes)
    model = model._replace(draws=lambda names: np.zeros((len(names), 2, len(genes))))
    start = time.process_time()
    table = ranked(model, model.predict(["P010+P150"]).X[0], genes)
    assert table.perturbation[0] == "P010+P150" and time.process_time() - start < 3


@pytest.fixture(scope="module")
def trained(run_folder):
    return GPOVAE.load(run_folder / "run", data=False)


def test_true_profiles_find_their_perturbation(trained, screen):
    "Genes that nobody perturbed, in fold changes: single perturbations and pairs."
    labels = trained.labels
    genes = [gene for gene in trained.genes if gene not in labels]
    lfc = pd.DataFrame(true_lfc(screen.uns["gpovae_truth"], labels, genes), labels, genes)
    told = [name for name in labels if (lfc.loc[name].abs() > 0.2).sum() >= 3]
    tasks = [*told, *(f"{a}+{b}" for a in told for b in told if a < b)]
    found = []
    for name in tasks:
        profile = (lfc.loc[name.split("+")].sum() / np.log(2)).rename("log2_fold_change")
        table = trained.reach(profile, others="ignore", top=5)
        found.append(name in list(table.perturbation))
    assert len(tasks) >= 6 and np.mean(found) >= 0.6, dict(zip(tasks, found, strict=True))


def test_fold_changes_are_brought_to_the_unit_of_effects(trained):
    "A doubling is an effect of another size in each gene, and back it is a doubling."
    from gpovae.evaluate.reach import wanted_effects
    from gpovae.model.attribution import log_fold

    run = trained.run
    profile = pd.Series(1.0, trained.genes, name="log2_fold_change")
    effects = wanted_effects(run, profile)
    assert effects.min() > 0 and effects.max() > 2 * effects.min()
    back = log_fold(run.vae, run.context, list(range(len(effects))), effects.to_numpy())
    np.testing.assert_allclose(back, np.log(2), atol=1e-4)


def test_the_spread_of_draws_is_the_spread_of_predictions(trained):
    from gpovae.evaluate.reach import candidates
    from gpovae.train.predictions import predict_effects

    names = trained.labels[:2]
    run = replace(trained.run, error=None)  # draws are of the posterior alone
    draws = candidates(run).draws(names)
    expected = predict_effects(run, names, {}).layers["spread"]
    np.testing.assert_allclose(draws.std(1, ddof=1), expected, rtol=1e-3, atol=1e-6)


WRONG = {
    "gene,log2_fold_change\nGATA1,1\nGATA9,1\n": ["GATA9", "GATA1", "--unknown"],
    "gene,lfc\nGATA1,1\n": ["columns gene, lfc", "log2_fold_change", "Rename"],
    "symbol,effect_log2\nGATA1,1\n": ["symbol", "gene"],
    "gene,effect_log2\nGATA1,much\n": ["GATA1", "much"],
    "gene,effect_log2\nGATA1,\n": ["GATA1", "finite"],
    "gene,effect_log2\nGATA1,1\nGATA1,2\n": ["GATA1", "more than once"],
    "gene,effect_log2\nGATA1,0\n": ["no change"],
    "gene,effect_log2\n": ["no change"],
    "": ["cannot be read"],
}


def gpovae(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout if result.exit_code == 0 else result.output


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_a_profile_is_refused(run_folder, tmp_path, text):
    (tmp_path / "target.csv").write_text(text)
    status, said = gpovae("reach", run_folder / "run", tmp_path / "target.csv")
    assert status == 2 and all(word in said for word in WRONG[text]), said


def test_the_shell_answers_as_python(run_folder, trained, tmp_path):
    pair = "+".join(trained.labels[:2])
    profile = trained.predict(pair).to_df().iloc[0].rename("effect_log2")
    file = tmp_path / "target.csv"
    profile.rename_axis("gene").to_csv(file)
    expected = trained.reach(file, top=7)
    assert expected.perturbation[0] == pair
    words = ["reach", run_folder / "run", file, "--top", 7, "--quiet"]
    rows = json.loads(gpovae(*words, "--json")[1])["perturbations"]
    assert [row["perturbation"] for row in rows] == list(expected.perturbation)
    assert rows[0]["reached"] == pytest.approx(expected.reached[0], abs=1e-6)
    status, text = gpovae(*words)
    assert status == 0 and pair in text and "±" in text
    assert gpovae(*words, "--out", tmp_path / "nearest.csv")[0] == 0
    written = pd.read_csv(tmp_path / "nearest.csv")
    assert list(written.perturbation) == list(expected.perturbation)
    single = json.loads(gpovae(*words, "--json", "--no-pairs")[1])["perturbations"]
    assert not any("+" in row["perturbation"] for row in single)


def test_unknown_genes_can_be_ignored(trained):
    profile = pd.Series({trained.genes[0]: 1.0, "NOSUCH": 2.0})
    with pytest.raises(GpovaeError, match="NOSUCH.*unknown='ignore'"):
        trained.reach(profile)
    assert len(trained.reach(profile, unknown="ignore", top=3)) == 3
    with pytest.raises(GpovaeError, match="one species"):
        trained.reach(profile[["NOSUCH"]], unknown="ignore")
    for choice in ("others", "unknown"):
        with pytest.raises(GpovaeError, match=f"{choice}='drop'.*one of: .*ignore"):
            trained.reach(profile, **{choice: "drop"})


def test_profiles_are_read_in_every_form(tmp_path):
    table = pd.DataFrame(dict(gene=["A", "NA"], effect_log2=[1.0, -2.0]))
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    for form in (
        table,
        tmp_path / "p.tsv",
        str(tmp_path / "p.tsv"),
        pd.Series(dict(A=1.0, NA=-2.0)),
    ):
        pd.testing.assert_series_equal(
            read_profile(form),
            pd.Series([1.0, -2.0], ["A", "NA"], name="effect_log2"),
            check_names=False,
        )
