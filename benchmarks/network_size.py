"""The network's sampler by the number of nodes: processor seconds, memory, and whether draws that
visit candidates only find what draws of all pairs find.

    python benchmarks/network_size.py [--nodes N ...]     writes benchmarks/network_size.json

Tables are simulated: four regulators a node, two nodes of three knocked down by 50 to 95 %, and
standard errors of 0.04 to 0.12. Each measurement is a process of its own, one at a time; what
numba compiles is compiled before.

Equality is that of one chain, not recalibrated: the candidates beside the full sampler of the same
seed, and the full sampler of another seed beside it. Differences are those of probabilities
where either is above 0.05.
"""

import argparse
import datetime
import json
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
from scipy import sparse
from sklearn.metrics import average_precision_score

import gpovae
from gpovae.data.responses import Responses
from gpovae.network.candidates import CandidateChain
from gpovae.network.chain import Chain, prepare_table
from gpovae.network.regression import fit_network
from gpovae.network.runs import run_chains

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks/network_size.json"
REGULATORS, SE, PERTURBED = 4, 0.08, 2 / 3
BURN, DRAWS = 50, 100  # the default of `fit_network`
SAMPLERS = {"all pairs": Chain, "candidates": CandidateChain}


def network(n: int, rng: np.random.Generator) -> sparse.csr_matrix:
    "Effects (n, n), row = regulator, whose spectral radius is 0.7 at most."
    size = REGULATORS * n
    effect = rng.uniform(0.2, 0.6, size) * rng.choice([-1, 1], size, p=[0.3, 0.7])
    pairs = rng.integers(0, n, (2, size))
    pairs = pairs[:, pairs[0] != pairs[1]]
    W = sparse.csr_matrix((effect[: pairs.shape[1]], pairs), shape=(n, n))
    v = rng.normal(size=n)
    for _ in range(100):
        v = W @ v
        norm = np.linalg.norm(v)
        v /= norm
    return W * min(1, 0.7 / norm)


def screen(n: int, seed: int) -> tuple[np.ndarray, Responses]:
    "Edges (n, n) bool, and the table of responses."
    rng = np.random.default_rng(seed)
    W = network(n, rng)
    rows = np.arange(int(n * PERTURBED))
    wave = np.eye(len(rows), n)
    total = wave.copy()
    for _ in range(60):
        wave = (W.T @ wave.T).T
        total += wave
    dose = np.log(1 - rng.uniform(0.5, 0.95, len(rows)))
    lfc = dose[:, None] * total / total[rows, rows][:, None]
    se = rng.uniform(0.5, 1.5, (len(rows), 1)) * np.full(n, SE)
    lfc += se * rng.normal(size=lfc.shape)
    return W.toarray() != 0, Responses.from_arrays(lfc, se, [[i] for i in rows])


def compile_first() -> None:
    "So that no measurement holds the time of the compiler."
    table = prepare_table(screen(30, 0)[1])
    for sampler in SAMPLERS.values():
        run_chains(table, [[0]], burn=2, draws=2, tick=int, kind=sampler)


def chain(sampler: str, n: int, seed: int, other: int = 0):
    "Seconds of one chain, the probabilities of possible edges and which are true."
    true, responses = screen(n, seed)
    table = prepare_table(responses)
    start = time.process_time()
    pace = dict(burn=BURN, draws=DRAWS, tick=int, kind=SAMPLERS[sampler])
    p = run_chains(table, [[seed, other]], **pace).probability
    seconds = time.process_time() - start
    possible = np.zeros_like(true)
    possible[: len(responses.lfc)] = True
    np.fill_diagonal(possible, False)
    return seconds, p[possible], true[possible]


def error(p: np.ndarray, true: np.ndarray) -> float:
    "Expected calibration error of pairs above 0.05, in ten bins of equal count."
    order = np.argsort(p)
    order = order[p[order] > 0.05]
    bins = np.array_split(order, 10)
    return sum(abs(p[b].mean() - true[b].mean()) * len(b) for b in bins) / len(order)


def scores(p: np.ndarray, true: np.ndarray) -> dict:
    return dict(auprc=float(average_precision_score(true, p)), ece=float(error(p, true)))


def difference(p: np.ndarray, q: np.ndarray) -> dict:
    apart = np.abs(p - q)[np.maximum(p, q) > 0.05]
    return dict(mean=float(apart.mean()), q95=float(np.quantile(apart, 0.95)))


def sampled(sampler: str, n: int) -> dict:
    "Cost of one chain."
    seconds, p, true = chain(sampler, n, 0)
    return dict(sampler=sampler, nodes=n, seconds=seconds, **scores(p, true))


def fitted(n: int) -> dict:
    "Cost of `fit_network` by default."
    responses = screen(n, 0)[1]
    start = time.process_time()
    fit = fit_network(responses, progress=False)
    return dict(
        nodes=n, seconds=time.process_time() - start, likely=int((fit.probability > 0.5).sum())
    )


def equal(n: int, seed: int) -> dict:
    "The samplers side by side."
    _, full, true = chain("all pairs", n, seed)
    again = chain("all pairs", n, seed, 1)[1]
    found = chain("candidates", n, seed)[1]
    kinds = {"all pairs": full, "another seed": again, "candidates": found}
    rows = {kind: scores(p, true) for kind, p in kinds.items()}
    rows["candidates"] |= difference(found, full)
    rows["another seed"] |= difference(again, full)
    return dict(nodes=n, seed=seed, **rows)


MEASUREMENTS = {"sampled": sampled, "fitted": fitted, "equal": equal}


def measured(what: str, *arguments) -> dict:
    "In a process of its own."
    command = [sys.executable, __file__, "--one", json.dumps([what, *arguments])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(what, row, flush=True)
    return row


def one(what: str, *arguments) -> None:
    compile_first()
    row = MEASUREMENTS[what](*arguments)
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(row))


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 600, 1000, 2000, 3000])
    parser.add_argument("--all-pairs", type=int, nargs="+", default=[150, 300, 600, 1000])
    parser.add_argument("--equal", type=int, nargs="*", default=[300, 600])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fits", type=int, nargs="*", default=[300, 600, 1000, 2000, 3000])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        return one(*json.loads(options.one))

    jobs = [("equality", "equal", n, seed) for n in options.equal for seed in range(options.seeds)]
    jobs += [("samplers", "sampled", "all pairs", n) for n in options.all_pairs]
    jobs += [("samplers", "sampled", "candidates", n) for n in options.nodes]
    jobs += [("fits", "fitted", n) for n in options.fits]
    record = dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "benchmarks/network_size.py", *arguments]),
        machine=f"{platform.machine()}, {numba.get_num_threads()} threads",
        versions={m.__name__: m.__version__ for m in (gpovae, np, numba)},
        equality=[],
        samplers=[],
        fits=[],
    )
    for kind, *job in jobs:
        record[kind].append(measured(*job))
        FILE.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
