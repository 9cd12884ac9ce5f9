"""Is a prediction ever behind the best simple method? Without `combination`, and with it for each
purpose.

    python benchmarks/simple.py [--splits N] [SCREEN ...]

writes benchmarks/simple.json, a row for each screen and split. Screens are published ones that
are at hand, and simulated ones of two sizes; splits are seeds of `prepare`, which also seed the
training. Simple methods are `gpovae.evaluate.baselines`; scores are those of test cells. A screen
and split that the file has is not run again.
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import gpovae
from gpovae.api import trained_run
from gpovae.evaluate.baselines import baselines
from gpovae.evaluate.comparisons import compare_scores
from gpovae.evaluate.effects import shown_effects
from gpovae.evaluate.observed import observe
from gpovae.model.combination import PURPOSES
from gpovae.train.build import Built

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "simple.json"
METRICS = ["ate_rho", "pearson_delta_perturbed_mean", "discrimination_both", "mae"]
SIMULATED = {
    "simulated, 3,000 cells": dict(n_cells=3000, n_genes=300, n_perturbations=40),
    "simulated, 8,000 cells, 100 genes": dict(n_cells=8000, n_genes=300, n_perturbations=100),
}
PUBLISHED = [
    "schraivogel2020",
    "papalexi2021",
    "norman2019_small",
    "mcfaline2023",
    "scmageck_mcf10a",
]


def prepared(name: str, seed: int):
    if name in SIMULATED:
        adata = gpovae.datasets.simulated(seed=seed, **SIMULATED[name])
        arguments = dict(perturbation_key="gene", control="non-targeting")
    else:
        adata = gpovae.datasets.load(name)
        arguments = gpovae.datasets.prepare_arguments(name)
    gpovae.prepare(adata, seed=seed, progress=False, **arguments)
    return adata


def thirds(values: np.ndarray) -> np.ndarray:
    "(R,) 0, 1 or 2."
    return np.argsort(np.argsort(values)) * 3 // len(values)


def coverage(model: gpovae.GPOVAE, adata) -> dict[str, float]:
    "Share of test effects within 1.96 spreads, noise of both added, in thirds of perturbations."
    prediction = model.predict()
    test = shown_effects(adata, "test", model.labels)
    sd = np.sqrt(prediction.layers["spread"] ** 2 + test.noise + test.control_noise)
    # a gene that no test cell of a perturbation shows has no effect and no noise
    is_seen = test.is_shown()[:, None] & (test.noise > 1e-6)
    is_covered = np.where(is_seen, np.abs(test.effect - prediction.X) < 1.96 * sd, np.nan)
    size = (test.effect**2 - test.noise).mean(1)
    groups = dict(size=thirds(size), cells=thirds(model.run.error.cells))
    shares = {"all": np.nanmean(is_covered)}
    for name, third in groups.items():
        shares |= {f"{name} {t + 1}": np.nanmean(is_covered[third == t]) for t in range(3)}
    return {k: round(float(share), 4) for k, share in shares.items()}


def predictions(model: gpovae.GPOVAE, seed: int) -> dict[str, pd.DataFrame]:
    "Of one training, without the combination and with it, for each purpose."
    run = model.run
    tables = {purpose: model.predict(purpose=purpose).to_df() for purpose in PURPOSES}
    model.settings = replace(model.settings, combination=False)
    built = Built(run.vae, run.labels, run.batches)
    model.run = trained_run(model, built, run.history, seed=seed)
    return {"model alone": model.predict().to_df()} | tables


def measured(name: str, seed: int) -> dict:
    "Scores of every method, and how far each is ahead of every simple one."
    start = time.time()
    adata = prepared(name, seed)
    model = gpovae.GPOVAE(adata)
    model.train(seed=seed, progress=False)
    covered = coverage(model, adata)
    tables = predictions(model, seed) | baselines(adata)
    observed = observe(adata)
    tables = {k: table.loc[observed.effects.index] for k, table in tables.items()}
    values = compare_scores(tables, observed)["value"].unstack("metric")[METRICS]
    return dict(
        screen=name,
        seed=seed,
        cells=adata.n_obs,
        perturbations=len(model.labels),
        seconds=round(time.time() - start),
        coverage=covered,
        scores={k: row.round(5).to_dict() for k, row in values.iterrows()},
    )


def main(screens: list[str], splits: int) -> None:
    rows = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    known = {(row["screen"], row["seed"]) for row in rows}
    for seed in range(splits):
        for name in screens:
            if (name, seed) in known:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.append(measured(name, seed))
            print(json.dumps(rows[-1]), flush=True)
            record = dict(
                date=str(datetime.date.today()),
                command=f"python {shlex.join(sys.argv)}",
                machine=f"{platform.machine()}, gpovae {gpovae.__version__}",
                rows=rows,
            )
            RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("screens", nargs="*", default=[*PUBLISHED, *SIMULATED])
    parser.add_argument("--splits", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.screens, arguments.splits)
