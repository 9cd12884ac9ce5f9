"""Do perturbations that were chosen tell more of the network than random ones?

    python benchmarks/next.py [--screens N] [--first SEED] [--random K]

writes benchmarks/next.json, in a quarter of an hour. The same command goes on after the screens
that the file holds already.

Simulated screens of 72 genes, all of them perturbed, in about 200 cells each. A pilot has half of
the cells of 26 of them; twenty more perturbations are then done with as many cells each, and
`fit_network` is run anew on the whole table. A perturbation of the pilot is repeated with the other
half of its cells. Chosen are the twenty of `gpovae.network.design`, from new ones and repeats;
random ones are drawn from the same, or from new ones alone, K times each.

The entropy counts regulators that nobody perturbed as frequent as others, before and after.
`log_loss` is the same in bits against the true edges, `auprc` of all pairs.
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
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

import gpovae
from gpovae.data.register import register
from gpovae.data.responses import Responses, node_responses
from gpovae.data.screen import Key
from gpovae.data.simulate import simulated
from gpovae.network.design import Edges, Plan, added, choose, entropy, honest_edges, take
from gpovae.network.regression import fit_network

ROOT = Path(__file__).resolve().parents[1]
GENES, PILOT, NEXT = 72, 26, 20
CELLS = 200  # of each perturbation, of which an experiment has half


def tables(seed: int) -> tuple[Responses, Responses, np.ndarray]:
    "Responses with half of the cells and with all, and the true edges."
    n_cells = int(GENES * CELLS / 0.8 / 0.88)
    adata = simulated(n_cells, 300, GENES, seed=seed, n_downstream=0)
    register(adata, "gene")
    adata.obs[Key.fail] = (adata.obs.true_fail | adata.obs.true_doublet).to_numpy()
    names = adata.uns[Key.truth]["genes"].astype(str)
    adata.uns[Key.nodes] = dict(names=names, perturbed=np.ones(len(names), bool))
    kept = np.random.default_rng([seed, 3]).random(adata.n_obs) < 0.5
    kept |= (adata.obs["gene"] == "non-targeting").to_numpy()
    halves = []
    for rows in (kept, np.ones_like(kept)):
        adata.obs[Key.split] = np.where(rows, "train", "test")
        node_responses(adata)
        halves.append(Responses.read(adata))
    return *halves, adata.uns[Key.truth]["direct"] != 0


def after(half: Responses, full: Responses, pilot: list, done: list) -> Responses:
    "The pilot and what was done then; repeats have all of their cells."
    new = [name for name in done if name not in pilot]
    table = half.select([*pilot, *new])
    repeats = [name for name in done if name in pilot]
    if not repeats:
        return table
    place = [pilot.index(name) for name in repeats]
    longer = full.select(repeats)
    values = {name: np.array(getattr(table, name)) for name in ("lfc", "se", "cells")}
    for name, array in values.items():
        array[place] = getattr(longer, name)
    return replace(table, **values)


def scores(responses: Responses, true: np.ndarray) -> tuple[Edges, dict]:
    "Of a fit to a table."
    options = dict(seed=0, copies=1, regulators="all", progress=False)
    edges = Edges(*fit_network(responses, **options)[:3])
    p = honest_edges(edges, responses).probability
    off = ~np.eye(len(p), dtype=bool)
    bounded = np.clip(p, 1e-3, 1 - 1e-3)
    surprise = -np.log2(np.where(true, bounded, 1 - bounded))
    auprc = average_precision_score(true[off], p[off])
    return edges, dict(entropy=entropy(p).sum(), log_loss=surprise[off].sum(), auprc=auprc)


def predicted(edges: Edges, responses: Responses, names: list, cells: float) -> float:
    "Bits that the criterion expects of these."
    plan = Plan.of(edges, responses)
    start = plan.left.sum()
    for g in responses.nodes.get_indexer(names):
        take(plan, g, cells, added(plan, g, cells))
    return start - plan.left.sum()


def measured(seed: int, n_random: int) -> list[dict]:
    "A row for each set of twenty: what it takes away."
    half, full, true = tables(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(half.perturbations).tolist()
    pilot, new = order[:PILOT], order[PILOT:]
    responses = half.select(pilot)
    edges, before = scores(responses, true)
    cells = float(np.median(responses.cells))

    begin = time.perf_counter()
    nodes = half.nodes.get_indexer(order)
    best = choose(Plan.of(edges, responses), nodes, NEXT, cells)
    seconds = time.perf_counter() - begin
    sets = [("chosen", [half.nodes[g] for g, _ in best])]
    for name, pool in (("random of all", order), ("random new", new)):
        sets += [(name, rng.permutation(pool)[:NEXT].tolist()) for _ in range(n_random)]

    rows = []
    for name, done in sets:
        remaining = scores(after(half, full, pilot, done), true)[1]
        row = dict(screen=seed, set=name, repeats=sum(x in pilot for x in done), seconds=seconds)
        row |= {f"{key}_before": before[key] for key in before}
        row |= {key: before[key] - remaining[key] for key in ("entropy", "log_loss")}
        row |= dict(auprc=remaining["auprc"] - before["auprc"])
        rows.append(row | dict(predicted=predicted(edges, responses, done, cells)))
    return rows


def ratios(table: pd.DataFrame) -> list[dict]:
    """Chosen to random, with 95 % intervals over screens.

    `ratio` is that of the means over screens, its interval by the jackknife over screens.
    """
    rows = []
    for among, name in (("all", "random of all"), ("new", "random new")):
        for of in ("entropy", "log_loss", "auprc", "predicted"):
            means = table.pivot_table(of, "screen", "set")
            chosen, other = means["chosen"].to_numpy(), means[name].to_numpy()
            k = len(means)
            ratio = chosen.sum() / other.sum()
            without = (chosen.sum() - chosen) / (other.sum() - other)
            spread = np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum())
            reach = student.ppf(0.975, k - 1) * spread
            row = dict(random_among=among, of=of, ratio=ratio, low=ratio - reach)
            rows.append(row | dict(high=ratio + reach, screens=k))
    return rows


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=int, default=6)
    parser.add_argument("--first", type=int, default=10, help="seed of the first screen")
    parser.add_argument("--random", type=int, default=4, help="random sets of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/next.json")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    command = shlex.join(["python", "benchmarks/next.py", *arguments])
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    record = record if record.get("command") == command else dict(sets=[], minutes=0)
    rows, earlier = record["sets"], record["minutes"]
    done = {row["screen"] for row in rows}
    for seed in range(options.first, options.first + options.screens):
        if seed in done:
            continue
        rows += measured(seed, options.random)
        table = pd.DataFrame(rows)
        record = dict(
            date=datetime.date.today().isoformat(),
            command=command,
            machine=f"{platform.machine()}, gpovae {gpovae.__version__}",
            minutes=earlier + (time.perf_counter() - start) / 60,
            screens=table["screen"].nunique(),
            ratios=ratios(table) if table["screen"].nunique() > 1 else [],
            sets=rows,
        )
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        print(table[table["screen"] == seed].groupby("set").mean().round(2).to_string(), flush=True)
    print(pd.DataFrame(record["ratios"]).round(2).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
