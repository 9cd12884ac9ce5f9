"""Validation cells decide how much simple methods count beside the decoder."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from gpovae import GPOVAE, prepare
from gpovae.api import trained_run
from gpovae.core.errors import GpovaeError
from gpovae.data.simulate import simulated
from gpovae.evaluate.baselines import simple_effects
from gpovae.evaluate.effects import shown_effects
from gpovae.model.combination import PURPOSES, combined, evidence, low_rank, weights
from gpovae.model.presets import Purpose
from gpovae.model.residual import Shown
from gpovae.train.build import Built

SMALL = dict(latent=8, basal=(32, 1), embedding=(32, 2), decoder=(32, 2))


def shown(truth, rng, noise=1.0):
    variance = np.full_like(truth, noise**2)
    effect = truth + noise * rng.normal(size=truth.shape)
    return Shown(effect, variance, variance[0], np.full(len(truth), 50.0))


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_never_behind_its_best_part(seed):
    "In truth, which neither training nor validation cells show without noise."
    rng = np.random.default_rng(seed)
    size = np.geomspace(0.1, 3, 40)[:, None]  # of the effects of each perturbation
    truth = size * (rng.normal(size=(40, 5)) @ rng.normal(size=(5, 300)) / 2)
    training, validation = shown(truth, rng), shown(truth, rng)
    decoder = 0.6 * truth + 0.3 * rng.normal(size=truth.shape)
    methods = [decoder, *simple_effects(training), low_rank(training)]
    error = [((m - truth) ** 2).mean() for m in methods]
    assert ((combined(methods, training, validation) - truth) ** 2).mean() < 0.9 * min(error)


def test_nothing_is_predicted_where_nothing_happens():
    rng = np.random.default_rng(0)
    nothing = np.zeros((20, 400))
    training, validation = shown(nothing, rng), shown(nothing, rng)
    assert np.abs(evidence(training)).max() < 0.2
    methods = [rng.normal(size=nothing.shape), *simple_effects(training)]
    assert (combined(methods, training, validation) ** 2).mean() < 0.02


def test_perturbations_without_validation_cells_do_not_decide():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(10, 50))
    training, validation = shown(truth, rng), shown(truth, rng)
    methods = [truth, training.effect]
    effect = validation.effect.copy()
    effect[:4] = np.nan
    some = weights(methods, evidence(training), validation._replace(effect=effect))
    rest = Shown(*(x[4:] if len(x) == 10 else x for x in validation))
    kept = weights([m[4:] for m in methods], evidence(training)[4:], rest)
    np.testing.assert_allclose(some, kept, atol=1e-8)


def prepared():
    adata = simulated(n_cells=1500, n_genes=60, n_perturbations=6, seed=1)
    prepare(adata, perturbation_key="gene", control="non-targeting", progress=False)
    return adata


def test_a_model_keeps_its_weights_and_without_the_option_there_are_none(tmp_path):
    adata = prepared()
    plain, weighed = (GPOVAE(adata, combination=on, **SMALL) for on in (False, True))
    for model in (plain, weighed):
        model.train(max_epochs=5, seed=0, progress=False)
    before, after = plain.predict(), weighed.predict()
    assert np.abs(before.X - after.X).max() > 0.01
    # the decoder is the same, what is added to it is not
    decoder = [p.X - p.layers["residual"] for p in (before, after)]
    np.testing.assert_allclose(*decoder, atol=1e-5)
    weighed.save(tmp_path / "run")
    again = GPOVAE.load(tmp_path / "run", data=False)
    np.testing.assert_array_equal(again.predict().X, after.X)
    validation = shown_effects(adata, "validation", weighed.labels).effect
    error = [((p[weighed.labels].X - validation) ** 2).mean() for p in (before, after)]
    assert error[1] < error[0]


def test_a_screen_without_validation_controls_is_predicted_without_weights():
    adata = prepared()
    model = GPOVAE(adata, combination=True, **SMALL)
    model.train(max_epochs=2, seed=0, progress=False)
    weighed = model.predict().X
    is_validation = adata.obs["gpovae_split"] == "validation"
    adata.obs.loc[is_validation & (adata.obs["gene"] == "non-targeting"), "gpovae_fail"] = True
    run = model.run
    model.run = trained_run(model, Built(run.vae, run.labels, run.batches), run.history, seed=0)
    plain = model.predict().X
    assert np.abs(plain - weighed).max() > 0.01
    model.settings = replace(model.settings, combination=False)
    model.run = trained_run(model, Built(run.vae, run.labels, run.batches), run.history, seed=0)
    np.testing.assert_array_equal(model.predict().X, plain)


def test_purposes_lie_between_least_error_and_the_training_mean():
    adata = prepared()
    model = GPOVAE(adata, **SMALL)
    model.train(max_epochs=5, seed=0, progress=False)
    effects = {purpose: model.predict(purpose=purpose).X for purpose in PURPOSES}
    mean = shown_effects(adata, "train", model.labels).effect
    for purpose, share in PURPOSES.items():
        expected = (1 - share) * effects["accuracy"] + share * mean
        np.testing.assert_allclose(effects[purpose], expected, atol=1e-5)
    np.testing.assert_array_equal(model.predict().X, effects["balanced"])
    assert np.abs(effects["accuracy"] - mean).max() > 0.1


def test_a_purpose_that_changes_nothing_is_refused():
    model = GPOVAE(prepared(), combination=False, **SMALL)
    model.train(max_epochs=2, seed=0, progress=False)
    model.predict(purpose="balanced")
    with pytest.raises(GpovaeError, match="combination=False"):
        model.predict(purpose="accuracy")


def test_every_purpose_that_may_be_named_is_known():
    assert set(get_args(Purpose)) == set(PURPOSES)


def test_noise_of_the_controls_decides_nothing_about_what_is_special():
    "It is the same in the effects of all perturbations."
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 200))
    training, validation = shown(truth, rng), shown(truth, rng)
    methods = [truth + rng.normal(size=truth.shape), *simple_effects(training)]
    q = evidence(training)
    moved = validation._replace(effect=validation.effect + 3 * rng.normal(size=200))
    np.testing.assert_allclose(
        weights(methods, q, moved), weights(methods, q, validation), atol=1e-6
    )


def test_the_less_is_shrunken_the_more_noise_of_training_cells_is_in_the_spread():
    model = GPOVAE(prepared(), **SMALL)
    model.train(max_epochs=5, seed=0, progress=False)
    spread = {p: np.median(model.predict(purpose=p).layers["spread"]) for p in PURPOSES}
    assert spread["discrimination"] > spread["accuracy"]
