"""Do two seeds, or another order of nodes or of perturbations, give the same network?

    python benchmarks/stability.py [--screen NAME ...] [--max-error 0.03] [--seeds 3]

Writes benchmarks/stability.json: by screen and setting, for each kind of change the overlap of the
edges above one half (Jaccard), the largest move of a probability, the share of those edges whose
probability moves by more than 0.1; seconds, chains and the largest standard error between chains.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

import gpovae
from gpovae.data.responses import Responses
from gpovae.network.regression import fit_network

HERE = Path(__file__).parent
SCREENS = ("simulated", "schraivogel2020", "papalexi2021")


def responses(name: str) -> Responses:
    "The table of a screen: training cells that pass quality control."
    if name == "papalexi2021":  # the table that the tests hold
        with np.load(HERE.parent / "tests/fixtures/papalexi/responses.npz") as f:
            stored = dict(f)
        return Responses(**stored | dict(nodes=pd.Index(stored["nodes"])))
    adata = gpovae.datasets.load(name)
    gpovae.prepare(adata, seed=0, progress=False, **gpovae.datasets.prepare_arguments(name))
    return Responses.read(adata)


def compare(p: np.ndarray, q: np.ndarray) -> dict:
    "How far two tables (n, n) of probabilities are apart."
    found, again = p > 0.5, q > 0.5
    moved = np.abs(p - q)
    either = found | again
    return dict(
        jaccard=round(float((found & again).sum() / max(either.sum(), 1)), 3),
        largest_move=round(float(moved.max()), 3),
        share_moved=round(float((moved[either] > 0.1).mean()) if either.any() else 0.0, 3),
    )


def measure(table: Responses, seeds: int, **how) -> dict:
    "One screen: all pairs of seeds (the worst pair), and two other orders of the first."
    fits, seconds = [], []
    for seed in range(seeds):
        start = perf_counter()
        fits.append(fit_network(table, seed=seed, progress=False, **how))
        seconds.append(perf_counter() - start)
    pairs = [compare(a.probability, b.probability) for a, b in combinations(fits, 2)]
    rng = np.random.default_rng(0)
    rows, nodes = (np.arange(len(x)) for x in (table.perturbations, table.nodes))
    orders = {
        "permuted nodes": (rows, rng.permutation(nodes)),
        "permuted perturbations": (rng.permutation(rows), nodes),
    }
    short = dict(draws=10, copies=1, chains=2, progress=False)
    first = fit_network(table, **short).probability
    same = {
        name: compare(first[np.ix_(n, n)], fit_network(table.take(r, n), **short).probability)
        for name, (r, n) in orders.items()
    }
    worst = dict(
        jaccard=min(pair["jaccard"] for pair in pairs),
        largest_move=max(pair["largest_move"] for pair in pairs),
        share_moved=max(pair["share_moved"] for pair in pairs),
    )
    return (
        {"two seeds, worst pair": worst, "two seeds, each pair": pairs}
        | same
        | dict(
            seconds=round(float(np.mean(seconds)), 1),
            chains=[fit.chains for fit in fits],
            standard_error=[round(float(fit.error.max()), 3) for fit in fits],
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screen", action="append", choices=SCREENS)
    parser.add_argument("--max-error", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    file = HERE / "stability.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    setting = "default" if options.max_error is None else f"max_error={options.max_error}"
    for name in options.screen or SCREENS:
        found = measure(responses(name), options.seeds, max_error=options.max_error)
        results.setdefault(name, {})[setting] = found
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(name, setting, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
