"""The training step: the plain formulation of nbs/studies/30_speed.ipynb against ours, on the CPU
or on a GPU, in one run.

    python benchmarks/bench.py speed                                     on this machine's CPU;
    writes benchmarks/speed.json
    python benchmarks/bench_speed.py --device cuda --out speed-gpu.json  alone, with fewer
    packages, on a machine with a GPU

    python benchmarks/bench_speed.py --load 0 6                          beside so many processes
    that compute; writes benchmarks/speed-load.json

A step draws its noise, and is loss, gradients, clipping and Adam, of the published preset with
the sizes and settings published for each screen. Rounds are interleaved (one plain step, then two
of each other kind), and medians are reported.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpovae.model.fused import likelihood_pass, one_pass, use_compiled
from gpovae.train.threads import SOONEST, TRIED, Threads

ROOT = Path(__file__).resolve().parents[1]


class Shape(NamedTuple):
    "Of a batch, with what was published for its screen; 5 particles."

    cells: int
    genes: int
    nodes: int
    settings: dict


ADAMSON = dict(basal=(400, 1), eps=0.4, sparsity=1.0)
K562 = dict(basal=(200, 1), eps=0.8, sparsity=5.0)
SHAPES = dict(
    small=Shape(512, 5000, 80, ADAMSON),
    large=Shape(512, 8563, 620, K562),
    many=Shape(4096, 8563, 620, K562),
)


def chapter():
    """What the cells marked `#| plain` of nbs/studies/30_speed.ipynb define.

    The plain formulation, and a batch to try it on.
    """
    cells = json.loads((ROOT / "nbs/studies/30_speed.ipynb").read_text(encoding="utf-8"))["cells"]
    names = dict(np=np, pd=pd)
    for c in cells:
        if "".join(c["source"]).startswith("#| plain"):
            exec("".join(c["source"]), names)
    return argparse.Namespace(**names)


def made(shape, **others):
    "Model, batch and settings."
    return chapter().make(*shape[:3], **shape.settings, **others)


class Products(TorchDispatchMode):
    "Takes down every matrix product, so that it can be counted and done again alone."

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm"):
            self.done.append(
                (
                    tuple(args[-2].shape),
                    args[-2].stride(),
                    tuple(args[-1].shape),
                    args[-1].stride(),
                    args[-1].dtype,
                )
            )
        return f(*args, **(kwargs or {}))

    def gflop(self):
        return sum(2 * int(np.prod(a)) * b[-1] for a, _, b, *_ in self.done) / 1e9

    def again(self, device):
        "A function that does them all again, on other numbers in the same layout."

        made = {}

        def like(shape, stride, dtype):
            key = shape, stride, dtype, device
            if key not in made:
                made[key] = torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
            return made[key]

        pairs = [(like(a, sa, t), like(b, sb, t)) for a, sa, b, sb, t in self.done]

        def run():
            for a, b in pairs:
                torch.matmul(a, b)

        return run


def synchronised(device):
    torch.cuda.synchronize() if device == "cuda" else None


def seconds(f, device):
    synchronised(device)
    start = time.perf_counter()
    f()
    synchronised(device)
    return time.perf_counter() - start


def graphed(vae, batch, s, low=False, seed=1):
    "The lean loss as training launches it on a GPU: a CUDA graph."
    from gpovae.model.objective import draw
    from gpovae.train.cuda_graph import GraphedStep

    noise = draw(vae, batch, s, torch.Generator().manual_seed(seed))
    launched = GraphedStep(vae, s, low)
    with use_compiled():
        launched(batch, noise)
    return lambda: launched(batch, noise)["total"]


def steps(shape, device, rounds, ladder=True):
    "Seconds of every kind of step, and what the lean one consists of."
    c = chapter()
    vae, batch, s = made(shape, device=device)
    lean, naive = c.both(vae, batch, s, fresh=True)
    kinds = {"plain": (naive, ())} | (
        {
            f"saved {i}": (lambda i=i: naive(frozenset(c.SAVINGS[:i])), ())
            for i in range(1, len(c.SAVINGS) + 1)
        }
        if ladder
        else {}
    )

    def low():
        return torch.autocast(device, torch.bfloat16)

    gpu = device == "cuda"
    kinds |= (
        {
            "lean": (lean, ()),
            "lean, compiled": (lean, (use_compiled,)),
            "lean, bf16": (lean, (use_compiled, low)),
        }
        if gpu
        else {"lean": (lean, ()), "lean, bf16": (lean, (low,))}
    )
    if device == "cuda":
        for name, low in (("lean, graphed", False), ("lean, graphed, bf16", True)):
            try:
                kinds[name] = graphed(vae, batch, s, low), ()
            except Exception as e:
                print(f"{name}: {type(e).__name__}: {e}")
    # learning rate 0: all kinds stay at the same weights
    adam = {
        k: torch.optim.Adam(vae.parameters(), lr=0.0, weight_decay=1e-6, fused=k.startswith("lean"))
        for k in kinds
    }

    def step(kind):
        loss, around = kinds[kind]
        with contextlib.ExitStack() as stack:
            for a in around:
                stack.enter_context(a())
            adam[kind].zero_grad()
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 100.0)
        adam[kind].step()
        return value.item()

    with Products() as products:
        step("lean")
    again = products.again(device)
    peak = {}
    loss = {k: step(k) for k in kinds}
    took = collections.defaultdict(list)
    same = c.differences(*(c.gradients(vae, loss) for loss in c.both(vae, batch, s)))
    for _ in range(rounds):
        for k in kinds:
            for _ in range(2 if k.startswith("lean") else 1):
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                took[k].append(seconds(functools.partial(step, k), device))
                if device == "cuda":
                    peak[k] = torch.cuda.max_memory_allocated() / 2**30
        took["products alone"].append(seconds(again, device))
    middle = {k: statistics.median(v) for k, v in took.items()}
    with Products() as all_products:
        naive()
    return dict(
        cells=shape[0],
        genes=shape[1],
        nodes=shape[2],
        particles=s.particles,
        perturbations_in_batch=len(vae.perturbations.nodes_of(batch.label)),
        rounds=rounds,
        seconds=middle,
        all_seconds=dict(took),
        times_faster={k: middle["plain"] / v for k, v in middle.items()},
        gflop=products.gflop(),
        plain_forward_gflop=all_products.gflop(),
        share_of_products=middle["products alone"]
        / min(v for k, v in middle.items() if k in ("lean", "lean, compiled", "lean, graphed")),
        difference_of_loss=same[0],
        difference_of_gradients=same[1],
        loss=loss,
        savings=c.SAVINGS,
        peak_gib=peak,
    )


def memory(shape):
    "Peak memory in GiB of a fresh process that takes five lean steps."
    code = f"""
import re, sys, torch
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import bench_speed as b
from gpovae.model.objective import draw, objective

def peak():  # ru_maxrss would be that of the parent
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 2**20

vae, batch, s = b.made(b.Shape(*{tuple(shape)!r}))
g = torch.Generator().manual_seed(0)
adam = torch.optim.Adam(vae.parameters(), fused=True)
before = peak()
for _ in range(5):
    adam.zero_grad()
    objective(vae, batch, s, *draw(vae, batch, s, g))["total"].backward()
    adam.step()
print(before, peak())"""
    return dict(
        zip(
            ("before the first step", "peak"),
            map(
                float,
                subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                ).stdout.split(),
            ),
        )
    )


def equality(shape, seeds=5):
    """Relative differences of loss and of all gradients between the plain and the lean step.

    Float32 for several seeds of the noise, float64 once; and products by number of perturbations
    in the batch.
    """
    c = chapter()
    rows = []
    for dtype, some in ((torch.float32, range(1, seeds + 1)), (torch.float64, [1])):
        vae, batch, s = made(shape, dtype=dtype)
        for seed in some:
            lean, naive = c.both(vae, batch, s, seed)
            rows.append(
                dict(dtype=str(dtype)[6:], seed=seed)
                | dict(
                    zip(
                        ("loss", "gradients"),
                        c.differences(c.gradients(vae, lean), c.gradients(vae, naive)),
                    )
                )
            )
    vae, batch, s = made(shape)

    def products(keep):
        some = batch._replace(label=torch.where(batch.label >= 0, batch.label % keep, -1))
        with Products() as p:
            c.both(vae, some, s)[0]().backward()
        return dict(perturbations=len(vae.perturbations.nodes_of(some.label)), gflop=p.gflop())

    return dict(differences=rows, products=[products(k) for k in (10, 100, shape.nodes)])


def limits(device):
    "What the machine can do: bytes moved by a copy, and matrix products."
    n, out = (8192, {}) if device == "cuda" else (2048, {})
    a = torch.randn(n, n, device=device)

    def best(f, k=5):
        return min(seconds(f, device) for _ in range(k + 2))

    big = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(big)
    out["copy_gb_s"] = 2 * big.numel() * 4 / best(lambda: target.copy_(big)) / 1e9
    out["float32_gflop_s"] = 2 * n**3 / best(lambda: a @ a) / 1e9
    b = a.bfloat16() if device == "cuda" else a[:512, :512].bfloat16()
    out["bf16_gflop_s"] = 2 * len(b) ** 3 / best(lambda: b @ b) / 1e9
    return out


def one_pass_rate(shape, device, particles=5):
    """GB/s of the pass over logits.

    What it must read and write (logits, counts; two derivatives), and what it takes beside one
    copy.
    """
    B, G = shape[:2]
    S = particles if device == "cuda" else 1
    f = torch.randn(S, B, G, device=device)
    x = torch.poisson(torch.ones(B, G, device=device))
    weight = torch.ones(B, device=device)
    arguments = f, x, x.sum(1), torch.ones(G, device=device), torch.ones(G, device=device), weight
    # on the CPU it overwrites the logits
    run = torch.compile(one_pass, dynamic=True) if device == "cuda" else likelihood_pass
    run(*arguments)
    times = [seconds(lambda: run(*arguments), device) for _ in range(8)]
    return dict(
        ns_per_entry=1e9 * min(times) / f.numel(),
        gb_s=(3 * f.numel() + x.numel()) * 4 / min(times) / 1e9,
        particles=S,
    )


def machine(device):
    return (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )


def measure(device="cpu", rounds=5, shapes=None):
    torch._dynamo.config.cache_size_limit = 64
    found = dict(device=machine(device), torch=torch.__version__, limits=limits(device), shapes={})
    for name, shape in (shapes or {k: SHAPES[k] for k in ("small", "large")}).items():
        r = found["shapes"][name] = steps(shape, device, rounds)
        r["one_pass"] = one_pass_rate(shape, device)
        if device == "cpu":
            r |= dict(memory_gib=memory(shape), equality=equality(shape))
        print(
            f"\n{machine(device)}: {shape[0]} cells x {shape[1]:,} genes x {shape[2]} nodes x"
            f" {r['particles']} particles, {r['perturbations_in_batch']} perturbations in the"
            f" batch; {r['gflop']:.0f} GFLOP of products, {r['share_of_products']:.0%} of the step;"
            f" loss differs by {r['difference_of_loss']:.0e}, gradients by"
            f" {r['difference_of_gradients']:.0e}"
            + (f"; peak {r['memory_gib']['peak']:.2f} GiB" if device == "cpu" else "")
        )
        print(
            pd.DataFrame(dict(seconds=r["seconds"], times_faster=r["times_faster"]))
            .round(4)
            .to_string(),
            flush=True,
        )
    return found


def busy(n):
    "So many processes that compute without a pause."
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]


def loaded(shape, others, rounds=2):
    "Seconds of a step by threads, beside so many other processes; `ours` chooses them."
    vae, batch, s = made(shape)
    lean, naive = chapter().both(vae, batch, s, fresh=True)
    adam = torch.optim.Adam(vae.parameters(), lr=0.0, weight_decay=1e-6, fused=True)

    def step(loss):
        adam.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 100.0)
        adam.step()

    most = torch.get_num_threads()
    fixed = {
        "plain, all threads": (naive, most, rounds),
        "lean, all threads": (lean, most, 2 * rounds),
        "lean, one thread": (lean, 1, 2 * rounds),
    }
    row = {}
    step(lean)
    processes = busy(others)
    try:
        for name, (loss, n, times) in fixed.items():
            torch.set_num_threads(n)
            took = [seconds(functools.partial(step, loss), "cpu") for _ in range(times)]
            row[name] = statistics.median(took)
        threads = Threads(most, shape.genes)
        took = []
        for _ in range(2 * TRIED + 20):  # a trial, and some of the steps that follow it
            threads.begin()
            took.append(seconds(functools.partial(step, lean), "cpu"))
            threads.end()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        torch.set_num_threads(most)
    return row | {
        "ours": statistics.median(took[2 * TRIED :]),
        "threads": threads.chosen,
        "ours, with its trials": sum(took[: 2 * TRIED]) / SOONEST
        + statistics.median(took[2 * TRIED :]),
    }


def load(shapes, others):
    rows = [
        {"shape": f"{shape.cells} x {shape.genes:,} x {shape.nodes}", "other processes": n}
        | loaded(shape, n)
        for shape in shapes
        for n in others
    ]
    print(pd.DataFrame(rows).round(3).to_string())
    return dict(device=machine("cpu"), torch=torch.__version__, rows=rows)


def speed(options):
    return measure("cpu", rounds=3)


QUALITY = dict(n_cells=20_000, n_genes=2000, n_perturbations=100)


def quality_run(preset, path, budget, every, seed, threads=1):
    """Train a preset on a prepared screen.

    ATE-rho on test cells against the seconds spent on building and training, scoring aside.
    """
    import anndata as ad

    from gpovae import GPOVAE
    from gpovae.api import trained_run
    from gpovae.data.minibatch import Cells
    from gpovae.data.screen import Screen
    from gpovae.evaluate.effects import observed_effects
    from gpovae.evaluate.response import pearson
    from gpovae.model.objective import draw, objective
    from gpovae.train.build import build

    torch.set_num_threads(threads)
    model, real = GPOVAE(adata := ad.read_h5ad(path), preset), observed_effects(adata, "test")
    s = model.settings
    screen = Screen(adata)
    noise = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    built = build(screen, s, seed)
    per_cell = s.alignment_target == "cells"
    cells = Cells(screen, "train", built.labels, built.batches, s.partner, per_cell, seed=seed)
    spent = time.perf_counter() - start
    scored = 0.0
    curve = []
    vae = built.vae
    loader = cells.loader(s.batch_size, True, seed)
    adam = torch.optim.Adam(
        vae.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay, fused=True
    )
    for epoch in range(10_000):
        start = time.perf_counter()
        for batch in loader:
            adam.zero_grad()
            objective(vae, batch, s, *draw(vae, batch, s, noise))["total"].backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), s.clip_norm)
            adam.step()
        spent += time.perf_counter() - start
        if spent - scored < every and epoch:
            continue
        scored = spent
        with torch.no_grad():
            model.run = trained_run(model, built, pd.DataFrame(), seed=seed)
            predicted = model.predict(list(real.index)).to_df()
        curve.append(
            dict(preset=preset, epoch=epoch + 1, seconds=spent, ate_rho=pearson(predicted, real))
        )
        print(curve[-1], flush=True)
        if spent > budget:
            return curve


def prepared_for_quality(path, seed=0):
    from gpovae import datasets, prepare

    adata = datasets.simulated(**QUALITY, seed=seed)
    prepare(adata, "gene", "non-targeting", doublets=False, progress=False)
    adata.write_h5ad(path)


def quality(options):
    "Both presets on the same screen at the same time, one thread each."
    import multiprocessing
    import tempfile
    from concurrent.futures import ProcessPoolExecutor

    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        path = Path(folder) / "screen.h5ad"
        prepared_for_quality(path)
        runs = [
            pool.submit(quality_run, preset, path, budget, every, 0)
            for preset, budget, every in (
                ("paper", options.minutes * 60, 30),
                ("corrected", options.minutes * 12, 5),
            )
        ]
        curves = [row for r in runs for row in r.result()]
    best = max((r for r in curves if r["preset"] == "paper"), key=lambda r: r["ate_rho"])
    first = next(
        (r for r in curves if r["preset"] == "corrected" and r["ate_rho"] >= best["ate_rho"]), None
    )
    return dict(
        screen=QUALITY,
        curves=curves,
        paper_best=best,
        corrected_first=first,
        times_faster=first and best["seconds"] / first["seconds"],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", default="small,large", help="of " + ", ".join(SHAPES))
    parser.add_argument("--load", type=int, nargs="+", help="other processes that compute")
    options = parser.parse_args()
    shapes = {k: SHAPES[k] for k in options.shapes.split(",")}
    found = dict(date=datetime.date.today().isoformat(), command=" ".join(["python", *sys.argv]))
    if options.load:
        found |= load(shapes.values(), options.load)
        options.out = options.out or ROOT / "benchmarks/speed-load.json"
    else:
        found |= measure(options.device, options.rounds, shapes)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
