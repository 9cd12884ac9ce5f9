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

import pandas as pd

import gpovae
from gpovae.api import trained_run
from gpovae.evaluate.baselines import baselines
from gpovae.evaluate.comparisons import compare_scores
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
