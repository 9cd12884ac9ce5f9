"""Is the power that is promised the power that is achieved?

    python benchmarks/power.py [--screens N] [--first SEED]

writes benchmarks/power.json, in fifteen minutes.

Simulated screens that differ in droplets (1,500 to 8,000), genes (200 to 600), perturbations, depth
(2 to 10 UMIs a gene), control share and batches; each is drawn once and prepared as a whole. Truly
changed are genes whose true fold change, relative to the library size, is 0.25 (log2) or more,
without the targets themselves. `achieved` is the share of them that the project's own rule calls
responders (`gpovae.data.nodes.responding`); `promised` is the mean of the power at their true
sizes, promised

- `own`: by the controls of the same screen;
- `pilot`: by a third of its droplets, with cells and controls as in the whole screen;
- `shallow pilot`: by a third of its droplets with half of their counts, with depth as well.
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import gpovae
from gpovae.core.progress import Bar
from gpovae.data.nodes import responding
from gpovae.data.planned import PowerOptions
from gpovae.data.screen import Screen
from gpovae.data.simulate import true_lfc
from gpovae.evaluate.power import Plan, read_pilot
from gpovae.evaluate.rank_power import EFFECTS

ROOT = Path(__file__).resolve().parents[1]
ALPHA, MIN_LFC = 0.01, 0.25
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5, np.inf)


def settings(seed: int) -> dict:
    "What a screen is like."
    rng = np.random.default_rng([seed, 7])
    n_genes = int(rng.choice([200, 300, 450, 600]))
    return dict(
        n_cells=int(rng.choice([1500, 2500, 4000, 6000, 8000])),
        n_genes=n_genes,
        n_perturbations=int(rng.choice([12, 20, 30])),
        depth=float(n_genes * rng.choice([2, 4, 10])),
        control_share=float(rng.choice([0.1, 0.2, 0.35])),
        n_batches=int(rng.choice([1, 1, 2])),
        seed=seed,
    )


def prepared(adata: ad.AnnData) -> ad.AnnData:
    names = dict(perturbation_key="gene", control="non-targeting", batch_key="batch")
    gpovae.prepare(adata, **names, progress=False)
    return adata


def third(adata: ad.AnnData, seed: int, kept_counts: float = 1.0) -> ad.AnnData:
    "A pilot: a third of the droplets, with a share of their counts."
    rng = np.random.default_rng(seed)
    pilot = adata[np.sort(rng.choice(adata.n_obs, adata.n_obs // 3, replace=False))].copy()
    if kept_counts < 1:
        counts = rng.binomial(pilot.X.data.astype(int), kept_counts)
        pilot.X.data = counts.astype(np.float32)
        pilot.X.eliminate_zeros()
    return pilot


def true_effects(screen: Screen, labels: list[str], genes: pd.Index) -> pd.DataFrame:
    "(labels, genes) log2 fold changes of x / l; NaN for the targets."
    lfc = true_lfc(screen.adata.uns["gpovae_truth"], labels, genes)
    controls = screen.rows("train", "control", fail=False)
    share = np.asarray(screen.counts[controls].sum(0)).ravel() * screen.size_factor
    common = np.log(np.exp(lfc) @ (share / share.sum()))
    effects = pd.DataFrame((lfc - common[:, None]) / np.log(2), labels, genes)
    for label in labels:
        if label in effects:
            effects.loc[label, label] = np.nan
    return effects


def promised(screen: Screen, effects: pd.DataFrame, **planned) -> pd.DataFrame:
    "(labels, genes) power at the true effects; NaN where the pilot lacks the perturbation."
    options = PowerOptions(**{k: v for k, v in planned.items() if k != "n"})
    pilot = read_pilot(screen)
    plan = Plan.of(pilot, options, (ALPHA, MIN_LFC), Bar(disable=True))
    power = pd.DataFrame(np.nan, effects.index, effects.columns)
    for row, label in enumerate(pilot.labels):
        n = planned.get("n", {}).get(label)
        by_effect = plan.by_gene(row, None if n is None else n * pilot.tested)
        for j, gene in enumerate(screen.genes):
            power.loc[label, gene] = np.interp(effects.loc[label, gene], EFFECTS, by_effect[j])
    return power


def measured(seed: int) -> pd.DataFrame:
    "A row for each truly changed gene of each perturbation: size, achieved, promised."
    kind = settings(seed)
    adata = gpovae.datasets.simulated(**kind)
    pilots = {"pilot": third(adata, seed), "shallow pilot": third(adata, seed, 0.5)}
    screen = Screen(prepared(adata))
    found = responding(screen, MIN_LFC, ALPHA) >= 0
    effects = true_effects(screen, list(found.index), screen.genes)
    passing = pd.Series(screen.labels[screen.rows(fail=False)]).value_counts()

    powers = dict(own=promised(screen, effects))
    whole = dict(n=passing.to_dict(), controls=int(passing["control"]))
    for name, pilot in pilots.items():
        pilot = Screen(prepared(pilot))
        depth = float(np.median(screen.library_size))
        plan = whole | (dict(depth=depth) if name == "shallow pilot" else {})
        powers[name] = promised(pilot, effects, **plan)

    changed = effects.abs().ge(MIN_LFC).to_numpy()
    table = dict(effect=effects.to_numpy()[changed], achieved=found.to_numpy()[changed])
    table |= {name: power.to_numpy()[changed] for name, power in powers.items()}
    table = pd.DataFrame(table).astype(float).dropna()
    return table.assign(screen=seed, **{k: v for k, v in kind.items() if k != "seed"})


METHODS = ["own", "pilot", "shallow pilot"]


def by_screen(table: pd.DataFrame) -> pd.DataFrame:
    "Shares of each screen."
    kinds = "screen n_cells n_genes n_perturbations depth control_share n_batches".split()
    groups = table.groupby(kinds)
    rows = groups[["achieved", *METHODS]].mean()
    return rows.assign(changed=groups.size()).reset_index()


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    "Shares by size of the effect, and the mean over screens of the differences."
    bins = pd.cut(table["effect"].abs(), SIZES, right=False).astype(str)
    direction = np.where(table["effect"] < 0, "decrease", "increase")
    groups = table.groupby([direction, bins])
    rows = groups[["achieved", *METHODS]].mean().assign(changed=groups.size())
    return rows.rename_axis(["direction", "size"]).reset_index()


def differences(rows: pd.DataFrame) -> list[dict]:
    "Of promised and achieved over screens: mean, mean of absolute values, largest."
    out = []
    for name in METHODS:
        d = rows[name] - rows["achieved"]
        means = dict(mean=d.mean(), mean_absolute=d.abs().mean(), largest=d.abs().max())
        within = int((d.abs() <= 0.05).sum())
        out.append(dict(promised_by=name) | means | dict(screens=len(d), within=within))
    return out


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=int, default=20)
    parser.add_argument("--first", type=int, default=100, help="seed of the first screen")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/power.json")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    tables = []
    for seed in range(options.first, options.first + options.screens):
        tables.append(measured(seed))
        print(by_screen(tables[-1]).round(3).to_string(header=seed == options.first), flush=True)
    table = pd.concat(tables)
    screens = by_screen(table)
    record = dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "benchmarks/power.py", *arguments]),
        machine=f"{platform.machine()}, gpovae {gpovae.__version__}",
        minutes=(time.perf_counter() - start) / 60,
        differences=differences(screens),
        screens=screens.to_dict("records"),
        sizes=by_size(table).to_dict("records"),
    )
    print(pd.DataFrame(record["differences"]).round(3).to_string())
    print(pd.DataFrame(record["sizes"]).round(3).to_string())
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
