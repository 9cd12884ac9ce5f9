"""A training step of a network of thousands of nodes: along a list of edges, and dense.

    python benchmarks/step.py [--nodes N ...]     writes benchmarks/step.json

Ten edges a node, two thirds of the nodes perturbed, 8,563 genes, 256 cells a step, the settings of
the preset `corrected`. A step is loss, gradients, clipping and Adam; its cells are at hand. Given
are the least processor seconds of several steps, which other work on the machine disturbs little.
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gpovae.data.minibatch import Batch
from gpovae.data.responses import Responses
from gpovae.model.objective import draw, objective
from gpovae.model.presets import make_settings
from gpovae.model.response_buffers import ResponseBuffers
from gpovae.model.vae import VAE
from gpovae.network.grn import GRN

ROOT = Path(__file__).resolve().parents[1]
CELLS, GENES, EDGES_PER_NODE = 256, 8563, 10
SETTINGS = make_settings()


def fitted_model(n: int) -> VAE:
    "Random weights around a random network."
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    perturbed = 2 * n // 3
    lfc = rng.normal(0, 0.3, (perturbed, n)).astype(np.float32)
    names = pd.Index(np.arange(n).astype(str))
    cells = np.full(perturbed, 100.0)
    table = Responses(lfc, np.full_like(lfc, 0.1), cells, names[:perturbed], names)

    is_edge = (rng.random((n, n)) < EDGES_PER_NODE / n) & ~np.eye(n, dtype=bool)
    probability = np.where(is_edge, 0.8, 1e-4).astype(np.float32)
    effect = np.where(is_edge, rng.normal(0, 0.2, (n, n)), 0).astype(np.float32)
    grn = GRN(n)
    grn.start_from(probability, effect, np.full((n, n), 0.1, np.float32))
    known = ResponseBuffers(table, n_fail=50, n_controls=500)
    return VAE(GENES, torch.arange(n), grn, known, **SETTINGS.architecture())


def batch_of(n: int) -> Batch:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.poisson(1.0, (CELLS, GENES)).astype(np.float32))
    label = np.where(rng.random(CELLS) < 0.1, -1, rng.integers(0, 2 * n // 3, CELLS))
    return Batch(
        x=x,
        library=x.sum(1),
        label=torch.from_numpy(label),
        fail=torch.from_numpy((rng.random(CELLS) < 0.2).astype(np.float32)),
        lane=torch.zeros(CELLS, dtype=torch.long),
        partner=x.roll(1, 0),
        paired=torch.ones(CELLS, dtype=torch.bool),
        row=torch.arange(CELLS),
    )


def step_seconds(vae: VAE, batch: Batch, steps: int) -> float:
    "The least processor seconds of a step."
    adam = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], lr=1e-3, fused=True)
    noise = torch.Generator().manual_seed(1)
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        adam.zero_grad()
        objective(vae, batch, SETTINGS, *draw(vae, batch, SETTINGS, noise))["total"].backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), SETTINGS.clip_norm)
        adam.step()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measured(n: int) -> dict:
    vae, batch = fitted_model(n), batch_of(n)
    dense = step_seconds(vae, batch, 2)
    assert vae.grn.list_edges()
    listed = step_seconds(vae, batch, 8)
    return dict(nodes=n, edges=len(vae.grn.listed.edges), dense=dense, listed=listed)


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 620, 1500, 3057])
    options = parser.parse_args(arguments)
    rows = []
    for n in options.nodes:
        rows.append(measured(n))
        print(rows[-1], flush=True)
    record = dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "benchmarks/step.py", *arguments]),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}",
        rows=rows,
    )
    (ROOT / "benchmarks/step.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
