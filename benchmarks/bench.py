"""The slow measurements. Each writes NAME.json with date, command and machine; chapters and README
take their figures from there.

    python benchmarks/bench.py [NAME ...]     default: all; `--help` lists the options

    demo      `gpovae demo` on the simulated screen: seconds per stage, scores, network against
              the truth; draws nbs/images/demo.png
    claim     both presets on four simulated screens and on schraivogel2020, five seeds: scores
              beside baselines and ceiling, by number of training cells, time
    finding   does the mean beat the published model on held-out cells? Trained until it stops, on
              simulated and real screens (--seeds 3: about an hour and a half)
    ablation  a small simulated screen with three batches, five seeds: each switch alone set to
              its published value (the report `ablation`)
    unseen    perturbations held out of training, predicted from the network, on simulated
              screens, five seeds, both presets, with and without prior network
    prepare   raw screens of 8,563 genes, 620 perturbations and 48 batches on disk, 20,000 to
              310,000 cells: time and peak memory of writing and of
              preparing them; counterfactual profiles of 60,000 cells x 5,000 genes (about half
              an hour; needs 15 GB of disk, see --scratch)
    predict   average effects of 620 perturbations on 8,563 genes and IWELBO of 100 particles,
              both presets: time against the plain formulations
              (benchmarks/bench_predict.py), Monte Carlo errors, and on trained models the bias
              of taking the mean latent (about ten minutes)
    speed     the training step, plain and lean, at two sizes, three rounds: seconds, products,
              equality, memory (benchmarks/bench_speed.py; about a quarter of an hour)
    network   `fit_network` on tables of shifts of twelve simulated screens, 20 to 600 perturbed
              genes, five seeds: AUPRC beside mean difference and the inverse,
              calibration, signs, direct against indirect (benchmarks/bench_network.py; about
              half an hour)
    quality   both presets side by side on 20,000 cells x 2,000 genes x 100 perturbations: ATE-rho
              on test cells against seconds (see --minutes)
    tapseq    the table of shifts of the TAP-seq screen, for the chapter on networks
    explorer  the explorable network in headless Chromium: seconds to the first drawing and per
              move of the filter (benchmarks/bench_explorer.py; needs Chromium)
    verdict   controls dealt out as perturbations: how often they are said to have worked;
              knockdowns and knockouts: how often these are (benchmarks/bench_verdict.py; about a
              quarter of an hour)
    scale     screens of 600 genes and 50,000 to 1,000,000 cells on disk: peak memory and cells a
              second of loading all cells and, for the smallest and the
              largest, of training for 250 steps, beside counts in memory where they are few;
              loading at 2,000 and
              8,563 genes, plain and compressed (half an hour; needs 6 GB of disk, see --scratch)

Runs go to two worker processes with one thread each. Finished runs of `claim` and `finding` are
kept in .NAME.jsonl until all are
done, so that a bench which was interrupted goes on where it stopped, unless the package has
changed since. The published settings ask for up to 2,000 epochs;
what is measured here is what both presets reach in EPOCHS.
"""

import argparse
import datetime
import hashlib
import json
import multiprocessing
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import anndata as ad
import matplotlib.pyplot as plt
import numba
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from gpovae import GPOVAE, GpovaeError, api, datasets, plots, prepare
from gpovae.app import page
from gpovae.core.provenance import complete
from gpovae.data import pipeline, stream
from gpovae.data import prepare as preparation
from gpovae.data.expression import log2_expression
from gpovae.data.files import open_screen, write_annotations
from gpovae.data.labels import CONTROL
from gpovae.data.minibatch import Cells
from gpovae.data.quality import quality_labels
from gpovae.data.register import register
from gpovae.data.responses import node_responses
from gpovae.data.screen import Key, Screen
from gpovae.data.split import split_cells
from gpovae.evaluate import effects as measured
from gpovae.evaluate import rankings as rivals
from gpovae.evaluate import response
from gpovae.evaluate.baselines import baselines
from gpovae.evaluate.ceiling import ceiling
from gpovae.evaluate.truth import truth_scores
from gpovae.experiments import ablation as studies
from gpovae.model.prediction import effects_of

from bench_explorer import explorer
from bench_network import network, tapseq
from bench_predict import predict
from bench_speed import quality, speed
from bench_verdict import verdicts

ROOT = Path(__file__).resolve().parents[1]
GLOBINS = ["HBE1", "HBD", "HBB"]
SIMULATED = dict(
    small=dict(n_cells=3000, n_genes=200, n_perturbations=12),
    medium=dict(n_cells=6000, n_genes=400, n_perturbations=30),
    uneven=dict(n_cells=6000, n_genes=400, n_perturbations=30),
    large=dict(n_cells=12000, n_genes=800, n_perturbations=60),
)
EPOCHS = dict(small=60, medium=40, uneven=40, large=20, schraivogel2020=40)  # of both presets
ABLATION_EPOCHS = 25
# depth: 37 % of the entries are above zero, as in K562
LARGE = dict(n_genes=8563, n_perturbations=620, n_batches=48, depth=8200, control_share=0.05)
SIZES = (20_000, 60_000, 130_000, 310_000)  # cells of these
STRATA = [0, 30, 60, 120, 300, np.inf]  # training cells per perturbation
KEY = ["screen", "seed", "method"]


def _find_data():
    "Point GPOVAE_DATA at the shared folder, where it is not set and there is one."
    sys.path.append(str(ROOT / "tools"))
    from book import real_data

    real_data()


def _demo(out):
    "Run the command, return what it printed to standard error (the timings)."
    command = [Path(sys.executable).with_name("gpovae"), "demo", "--out", str(out)]
    return subprocess.run(
        command, check=True, stderr=subprocess.PIPE, stdout=sys.stdout, text=True
    ).stderr


def picture(model):
    "The README's figure: effects, network against truth, network."
    observed = measured.observed_effects(model.adata, "test")
    effects = model.predict().to_df()
    edges = model.network(min_probability=0)
    truth = model.adata.uns["gpovae_truth"]
    found = {
        "gpovae": truth_scores(edges, truth),
        "mean difference": truth_scores(rivals.mean_difference(model.adata), truth),
    }
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 4), layout="constrained", width_ratios=[1, 1.1, 1.4]
    )
    plots.predicted_observed(effects, observed, axes[0])
    plots.precision_recall(
        {k: v["curve"] for k, v in found.items()}, found["gpovae"]["chance"], axes[1]
    )
    axes[1].legend(frameon=False, loc="lower left")
    plots.network(edges, 25, axes[2])
    figure.savefig(ROOT / "nbs/images/demo.png", dpi=80)


def demo(options):
    with tempfile.TemporaryDirectory() as tmp:
        said = _demo(Path(tmp) / "demo")
        seconds = {
            k: float(v)
            for k, v in re.findall(
                r"^(?:\r.*\r)?(load \w+|prepare|train|evaluate and report): ([\d.]+) s$", said, re.M
            )
        }
        picture(GPOVAE.load(Path(tmp) / "demo"))
        report = json.loads((Path(tmp) / "demo/report.json").read_text())
    return dict(
        seconds=seconds,
        total_seconds=sum(seconds.values()),
        **{
            k: report[k]
            for k in ("cells", "genes", "perturbations", "epochs", "best_epoch", "scores", "truth")
        },
    )


def thinned(adata, seed, sizes=(20, 40, 80, 160)):
    "Perturbations cut down to so many cells at most, in turn; all controls stay."
    labels = adata.obs["gene"].astype(str).to_numpy()
    rng = np.random.default_rng(seed)
    keep = []
    for i, name in enumerate(sorted(set(labels))):
        cells = rng.permutation(np.flatnonzero(labels == name))
        keep.append(cells if name == "non-targeting" else cells[: sizes[i % len(sizes)]])
    return adata[np.sort(np.concatenate(keep))].copy()


def screen(name, seed, folder, few=None):
    "The prepared screen, made once; the seed decides a simulated screen, and every split."
    path = Path(folder) / f"{name}-{seed}-{few}.h5ad"
    if not path.exists():
        adata = (
            datasets.simulated(seed=seed, **SIMULATED[name])
            if name in SIMULATED
            else datasets.load(name)
        )
        if name == "uneven":
            adata = thinned(adata, seed)
        if few:
            adata = adata[
                np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[:few])
            ].copy()
        prepare(
            adata,
            seed=seed,
            progress=False,
            **datasets.prepare_arguments("simulated" if name in SIMULATED else name),
        )
        with complete(folder) as tmp:
            adata.write_h5ad(tmp / path.name)
    return ad.read_h5ad(path)


def strata(adata, effects, method, observed):
    "ATE-rho among perturbations of a similar number of training cells."
    n = measured.cells(adata, "train").drop(CONTROL).reindex(observed.index)
    for low, high in zip(STRATA, STRATA[1:]):
        few = observed.index[(n > low) & (n <= high)]
        if len(few):
            yield dict(
                method=method,
                above=low,
                up_to=high,
                perturbations=len(few),
                ate_rho=response.pearson(effects.loc[few, observed.columns], observed.loc[few]),
            )


def enhancer(model):
    "What the model says of the enhancer HS2, which regulates the globins."
    effect = model.predict(["HS2"]).to_df().loc["HS2"]
    edges = model.network(min_probability=0)
    rank = effect.abs().rank(ascending=False)
    return dict(
        **{f"rank_{g}": int(rank[g]) for g in GLOBINS},
        all_down=bool((effect[GLOBINS] < 0).all()),
        first_edges=list(edges.target[edges.source == "HS2"][:3]),
        edges=len(model.network()),
    )


def claim_job(name, seed, method, max_epochs, folder):
    'What one preset reaches on one screen, or (method "simple") what needs no model.'
    key = dict(screen=name, seed=seed, method=method)
    adata = screen(name, seed, folder)
    observed = measured.observed_effects(adata, "test")
    size = dict(
        cells=adata.n_obs, genes=adata.n_vars, nodes=len(adata.uns["gpovae_nodes"]["names"])
    )
    if method == "simple":
        means = {k: v for k, v in baselines(adata).items() if k in studies.YARDSTICKS}
        return key | dict(
            size=size | dict(perturbations=len(observed)),
            rows=[dict(row=k) | v for k, v in studies.yardsticks(adata, seed).items()],
            strata=[s for k, v in means.items() for s in strata(adata, v, k, observed)],
        )
    try:
        model, row = studies.trial(adata, studies.ablation_settings()[method], max_epochs, seed)
    except GpovaeError as e:
        return key | dict(rows=[dict(row=method, error=str(e))])
    found = key | dict(
        rows=[dict(row=method) | row],
        strata=list(strata(adata, model.predict().to_df(), method, observed)),
    )
    return found | dict(enhancer=enhancer(model)) if "HS2" in observed.index else found


def resumed(name, function, wanted, options):
    """What `function` finds in every job.

    Finished jobs are kept in .NAME.jsonl until all are done, so that an interrupted bench goes on
    where it stopped, unless the package has changed since.
    """
    code = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted((ROOT / "gpovae").rglob("*.py")))
    ).hexdigest()[:16]
    scratch = options.out / f".{name}.jsonl"
    kept = (
        [json.loads(line) for line in scratch.read_text().splitlines()] if scratch.exists() else []
    )

    def state(job):
        return [code, *job.values()]

    done = [r["found"] for r in kept if r["state"] in map(state, wanted)]
    todo = [job for job in wanted if state(job) not in [r["state"] for r in kept]]
    with tempfile.TemporaryDirectory() as folder, scratch.open("a") as keep:
        for found in studies.work(
            function, [job | dict(folder=folder) for job in todo], options.jobs, name
        ):
            found, job = (
                page.plain(found),
                next(
                    j
                    for j in todo
                    if [j["name"], j["seed"], j["method"]] == [found[k] for k in KEY]
                ),
            )
            print(json.dumps(dict(state=state(job), found=found)), file=keep, flush=True)
            for row in found["rows"]:
                numbers = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, (int, float))]
                tqdm.write(
                    f"{found['screen']}, seed {found['seed']}, {row['row']}:"
                    f" {', '.join(numbers) or row['error']}",
                    file=sys.stdout,
                )
            done.append(found)
    scratch.unlink()
    return done


def claim(options):
    names = list(SIMULATED)
    _find_data()
    try:
        datasets.load("schraivogel2020")
        names.append("schraivogel2020")
    except GpovaeError as e:
        print(f"schraivogel2020: not measured. {e}", file=sys.stderr)
    epochs = {k: options.max_epochs or EPOCHS[k] for k in names}
    wanted = [
        dict(name=n, seed=s, method=m, max_epochs=epochs[n])
        for m in ("simple", "paper", "corrected")
        for n in reversed(names)
        for s in range(options.seeds)
    ]
    done = resumed("claim", claim_job, wanted, options)
    result = gathered(
        sorted(done, key=lambda f: (names.index(f["screen"]), f["seed"], f["method"])), epochs
    )
    return dict(split="test", seeds=list(range(options.seeds)), **result)


def gathered(done, epochs):
    """Tables of all that was found.

    Screens, summary by screen, strata pooled over screens and seeds, the enhancer, and every run.
    """
    runs = pd.DataFrame(
        [dict(screen=f["screen"], seed=f["seed"]) | r for f in done for r in f["rows"]]
    )
    summary = pd.concat(
        [
            studies.compared(part).rename_axis("method").reset_index().assign(screen=name)
            for name, part in runs.groupby("screen", sort=False)
        ]
    )
    cells = pd.DataFrame(
        [dict(screen=f["screen"], seed=f["seed"]) | s for f in done for s in f.get("strata", ())]
    )
    at = ["above", "up_to"]
    pooled = []
    for bounds, part in cells.fillna(dict(up_to=np.inf)).groupby(at):
        rho = part.pivot(index=["screen", "seed"], columns="method", values="ate_rho")
        one = part[part.method == "training mean"]
        gain = {
            f"{m} minus shrunken": dict(
                zip(
                    ("difference", "from", "to"),
                    studies.interval(rho[m] - rho["shrunken training mean"]),
                )
            )
            for m in ("corrected", "paper")
            if m in rho
        }
        pooled.append(
            dict(zip(at, bounds))
            | dict(
                runs=len(rho),
                perturbations=int(one.perturbations.sum()),
                ate_rho=rho.mean().to_dict(),
                **gain,
            )
        )
    screens = {
        f["screen"]: f["size"] | dict(max_epochs=epochs[f["screen"]]) for f in done if "size" in f
    }
    shown = [
        "ate_rho",
        "ate_rho_sd",
        "ate_rho_difference",
        "share_of_ceiling",
        "auprc",
        "auprc_difference",
        "sign_accuracy",
        "seconds",
        "epochs",
    ]
    table = summary.set_index(["screen", "method"])[shown].astype(float).round(3)
    print(f"\n{table.to_string(na_rep='-')}\n")
    return dict(
        screens=screens,
        summary=summary,
        strata=pooled,
        enhancer=[
            dict(method=f["method"], seed=f["seed"]) | f["enhancer"]
            for f in done
            if "enhancer" in f
        ],
        runs=runs,
    )


FINDING = dict(
    small="simulated",
    medium="simulated",
    schraivogel2020="real",
    mcfaline2023="real",
    norman2019_small="real",
)
QUICK = dict(particles=1, learning_rate=1e-3)  # the published objective with less work per step
# hold genes that are silent in training, on which the published standardisation ends in NaN: it
# gets a floor there
SILENT = ("mcfaline2023", "norman2019_small")
TAP_CELLS = 5000  # of schraivogel2020, drawn at random


def finding_job(name, seed, method, folder):
    "ATE-rho on test cells and on all, of the published model or of what needs none."
    adata = screen(name, seed, folder, TAP_CELLS if name == "schraivogel2020" else None)
    everything = adata.copy()
    everything.obs[Key.split] = "test"
    seen = {
        k: measured.observed_effects(a, "test") for k, a in dict(test=adata, all=everything).items()
    }

    def score(effects):
        return {
            f"ate_rho_{k}": response.pearson(effects.loc[r.index, r.columns], r)
            for k, r in seen.items()
        }

    key = dict(screen=name, seed=seed, method=method)
    if method == "simple":
        rows = [
            dict(row=k, **score(v)) for k, v in baselines(adata).items() if k in studies.YARDSTICKS
        ]
        return key | dict(
            rows=[
                *rows,
                dict(row="ceiling", ate_rho_test=ceiling(adata, "test", seed=seed)["ceiling"]),
            ]
        )
    start = time.perf_counter()
    model = GPOVAE(
        adata,
        preset="corrected" if method == "corrected" else "paper",
        **(
            QUICK | (dict(scale_floor=0.05) if name in SILENT else {})
            if method == "paper, quick"
            else {}
        ),
    )
    try:
        epochs = len(model.train(seed=seed, progress=False))
    except GpovaeError as e:
        return key | dict(rows=[dict(row=method, error=str(e))])
    return key | dict(
        rows=[
            dict(
                row=method,
                epochs=epochs,
                seconds=time.perf_counter() - start,
                **score(model.predict().to_df()),
            )
        ]
    )


def finding(options):
    _find_data()
    names = [
        n for n, kind in FINDING.items() if kind == "simulated" or datasets.available().at_hand[n]
    ]
    wanted = [
        dict(name=n, seed=s, method=m)
        for m in ("simple", "corrected", "paper, quick")
        for n in names
        for s in range(options.seeds)
    ] + [dict(name="small", seed=0, method="paper")]
    done = resumed("finding", finding_job, wanted, options)
    runs = pd.DataFrame(
        [dict(screen=f["screen"], seed=f["seed"]) | r for f in done for r in f["rows"]]
    )
    rho = runs.pivot_table(index=["screen", "seed"], columns="row", values="ate_rho_test")
    summary = []
    for name, part in rho.groupby(level="screen"):
        for row in [
            c for c in ("paper", "paper, quick", "corrected") if c in part and part[c].notna().any()
        ]:
            for other in ("training mean", "shrunken training mean"):
                summary.append(
                    dict(
                        screen=name,
                        row=row,
                        minus=other,
                        **dict(
                            zip(
                                ("difference", "from", "to"),
                                studies.interval(part[row] - part[other]),
                            )
                        ),
                    )
                )
    mean = runs.groupby(["screen", "row"])[
        ["ate_rho_test", "ate_rho_all", "epochs", "seconds"]
    ].mean()
    print(
        f"\n{mean.round(3).to_string(na_rep='-')}\n\n{pd.DataFrame(summary).round(3).to_string()}\n"
    )
    return dict(
        split="test",
        seeds=list(range(options.seeds)),
        quick=QUICK,
        tap_cells=TAP_CELLS,
        screens=FINDING,
        summary=summary,
        means=mean.reset_index(),
        runs=runs,
    )


def ablation(options):
    epochs = options.max_epochs or ABLATION_EPOCHS
    screens = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            adata = datasets.simulated(n_batches=3, seed=seed, **SIMULATED["small"])
            prepare(
                adata,
                batch_key="batch",
                seed=seed,
                progress=False,
                **datasets.prepare_arguments("simulated"),
            )
            screens[seed] = Path(folder) / f"{seed}.h5ad"
            adata.write_h5ad(screens[seed])
        table, runs = studies.ablation(screens, max_epochs=epochs, jobs=options.jobs)
    print(table.drop(columns="setting").to_string(na_rep="-", float_format="{:.3f}".format))
    return dict(
        cells=adata.n_obs,
        genes=adata.n_vars,
        batches=3,
        split="test",
        seeds=list(range(options.seeds)),
        max_epochs=epochs,
        table=table.reset_index(names="row"),
        runs=runs,
    )


def median_screen(n_cells=60_000, n_genes=5_000, n_perturbations=300, seed=0):
    "One split: 20 % controls, 10 % failing cells, 30 % entries above zero, some above 1,000."
    rng = np.random.default_rng(seed)
    blocks = []
    mean = rng.lognormal(-1.5, 1.9, n_genes).astype(np.float32)
    depth = rng.lognormal(0, 0.3, n_cells).astype(np.float32)
    for a in range(0, n_cells, 2000):
        level = (
            rng.standard_gamma(2, (len(depth[a : a + 2000]), n_genes), dtype=np.float32)
            * (mean / 2)
            * depth[a : a + 2000, None]
        )
        blocks.append(sp.csr_matrix(rng.poisson(level).astype(np.float32)))
    gene = np.where(
        rng.random(n_cells) < 0.2,
        CONTROL,
        np.char.mod("P%03d", rng.integers(0, n_perturbations, n_cells)),
    )
    adata = ad.AnnData(
        sp.vstack(blocks, format="csr"),
        obs=pd.DataFrame(dict(gene=gene), index=np.char.mod("c%d", np.arange(n_cells))),
        var=pd.DataFrame(index=np.char.mod("P%03d", np.arange(n_genes))),
    )
    register(adata, perturbation_key="gene")
    adata.obs[Key.fail] = rng.random(n_cells) < 0.1
    adata.obs[Key.split] = "train"
    return Screen(adata)


def lower_medians_agree(cells, seed=0, n=200, draws=50):
    "Are the partners of `n` random cells numpy's lower median of the same drawn cells?"
    rng = np.random.default_rng(seed)
    drawn = {}
    for g in np.unique(cells.label):
        at = np.flatnonzero(cells.label == g)
        pool = at[cells.fail[at]]
        drawn |= dict(zip(at, pool[rng.integers(0, len(pool), (len(at), draws))]))
    chosen = np.random.default_rng(1).choice(len(cells), n, replace=False)
    expected = np.stack(
        [np.sort(cells.X[drawn[i]].toarray(), axis=0)[(draws - 1) // 2] for i in chosen]
    )
    return bool(np.array_equal(cells[chosen].partner.numpy(), expected))


def counterfactual():
    """Seconds to make the partners of every cell and to hand them out in batches of 512.

    Median of three.
    """
    screen = median_screen()
    found = {}

    def everything(definition):
        cells = Cells(screen, "train", partner=definition)
        for a in range(0, len(cells), 512):
            _ = cells[np.arange(a, min(a + 512, len(cells)))].partner
        return cells

    for preset, definition in (("paper", "median"), ("corrected", "mean")):
        Cells(screen, "train", partner=definition)  # compiles, once a machine
        wall = []
        cpu = []
        for _ in range(3):
            start = time.perf_counter(), time.process_time()
            cells = everything(definition)
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
        found[preset] = dict(
            seconds=float(np.median(wall)), cpu_seconds=float(np.median(cpu)), all_seconds=wall
        )
        if definition == "median":
            found[preset]["equals_numpy"] = lower_medians_agree(cells)
    X = screen.counts
    return dict(
        cells=X.shape[0],
        genes=X.shape[1],
        perturbations=len(screen.perturbations),
        failing_controls=int((screen.fail & screen.is_control).sum()),
        density=X.nnz / X.shape[0] / X.shape[1],
        largest_count=int(X.data.max()),
        draws=50,
        batch_size=512,
        threads=numba.config.NUMBA_NUM_THREADS,
        **found,
    )


def used(start):
    "Seconds since `start`, and the most memory that this process has held."
    peak = (
        re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]
        if Path("/proc/self/status").exists()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return dict(seconds=time.perf_counter() - start, peak_gib=int(peak) / 2**20)


def write_large(n_cells, path):
    "In a process of its own: a simulated raw screen, written to disk."
    start = time.perf_counter()
    datasets.simulated(n_cells, path=path, **LARGE)
    return used(start)


def prepare_large(path, target):
    "In a process of its own: a screen prepared from file to file, with the seconds of every step."
    steps = {}

    def timed(name):
        module = pipeline if hasattr(pipeline, name) else preparation
        f = getattr(module, name)

        def run(*a, **k):
            start = time.perf_counter()
            out = f(*a, **k)
            steps[name] = steps.get(name, 0) + time.perf_counter() - start
            return out

        setattr(module, name, run)

    for name in (
        "write_screen",
        "register",
        "quality_labels",
        "split_cells",
        "graph_nodes",
        "match_controls",
        "node_responses",
        "judge_perturbations",
        "write_annotations",
    ):
        timed(name)
    start = time.perf_counter()
    preparation.prepare_file(
        path,
        target,
        perturbation_key="gene",
        control="non-targeting",
        batch_key="batch",
        force=True,
    )
    return used(start) | dict(steps=steps)


def alone(f, *arguments, **settings):
    "The result of a function in a fresh process."
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(f, *arguments, **settings).result()


def large(options):
    runs = []
    with (
        tempfile.TemporaryDirectory() if options.scratch is None else nullcontext(options.scratch)
    ) as folder:
        for n in SIZES:
            raw = Path(folder) / f"raw{n}.h5ad"
            target = Path(folder) / f"prepared{n}.h5ad"
            written = None if raw.exists() else alone(write_large, n, raw)
            found = alone(prepare_large, raw, target)
            X = preparation.open_screen(target)
            row = dict(
                cells=n,
                counts=int(X.X.group["data"].shape[0]),
                file_gib=raw.stat().st_size / 2**30,
                writing=written,
                **found,
                record={s: r["result"] for s, r in X.uns[Key.prepare].items()},
            )
            X.X.group.file.close()
            target.unlink()
            if options.scratch is None:
                raw.unlink()
            runs.append(row)
            print(
                json.dumps(page.plain({k: v for k, v in row.items() if k != "record"})), flush=True
            )
    return dict(
        screen=LARGE,
        threads=numba.config.NUMBA_NUM_THREADS,
        runs=runs,
        counterfactual=counterfactual(),
    )


SCALE = dict(n_genes=600, n_perturbations=100, depth=900)
SCALE_SIZES = (50_000, 200_000, 1_000_000)
STEPS = 250
LOADING = {
    2000: dict(n_cells=40_000, n_genes=2000, n_perturbations=100, depth=3000),
    8563: dict(n_cells=10_000, n_genes=8563, n_perturbations=100, depth=8200),
}


def annotate(path):
    """What training reads and no more.

    Cells are not matched, and the nodes are the perturbed genes alone; both would take hours for
    a million cells.
    """
    adata = open_screen(path)
    register(adata, "gene", "non-targeting")
    quality_labels(adata, doublets=False)
    split_cells(adata)
    targets = Screen(adata).targets
    adata.uns[Key.nodes] = dict(names=np.array(targets), perturbed=np.ones(len(targets), bool))
    node_responses(adata)
    adata.obsm[Key.match] = np.full((adata.n_obs, 10), -1, np.int32)  # for its size
    adata.X.group.file.close()
    write_annotations(path, adata)


def write_scale(path, **screen):
    "In a process of its own: a simulated screen, annotated for training."
    start = time.perf_counter()
    datasets.simulated(path=path, **screen).X.group.file.close()
    annotate(path)
    return used(start)


def opened(path, where):
    return open_screen(path) if where == "disk" else ad.read_h5ad(path)


def load_scale(path, where):
    """In a process of its own.

    All training cells in random order, then all validation cells in order.
    """
    torch.set_num_threads(1)
    screen = Screen(opened(path, where))
    found = {}
    for split, shuffle in (("train", True), ("validation", False)):
        start = time.perf_counter()
        cells = Cells(screen, split)
        cells._pair(np.arange(1))
        found |= {f"{split}_start": time.perf_counter() - start, f"{split}_cells": len(cells)}
        loader = cells.loader(512, shuffle)
        rates = []
        for _ in range(2 if len(cells) > 200_000 else 3):
            start = time.perf_counter()
            cpu = time.process_time()
            n = sum(len(b.x) for b in loader)
            rates.append((n / (time.perf_counter() - start), n / (time.process_time() - cpu)))
            assert n == len(cells)
        found[f"{split}_per_second"], found[f"{split}_per_cpu_second"] = map(max, zip(*rates))
    return found | used(time.perf_counter())


class Shortened:
    "The first batches of a loader, and how long each was waited for."

    def __init__(self, loader):
        self.loader = loader
        self.waited = []
        self.cells = 0

    def __len__(self):
        return min(len(self.loader), STEPS)

    def __iter__(self):
        batches = iter(self.loader)
        for i in range(len(self)):
            start = time.perf_counter()
            b = next(batches)
            self.waited.append(time.perf_counter() - start)
            if i == 0:
                self.start = time.perf_counter()
            self.cells += len(b.x) * (i > 0)
            yield b
            self.seconds = time.perf_counter() - self.start


def train_scale(path, where):
    "In a process of its own: `GPOVAE.train`, but for so many steps instead of an epoch."
    torch.set_num_threads(1)
    start = time.perf_counter()
    seconds = {}
    loaders = []
    loader = Cells.loader

    def timed(name):
        f = getattr(api, name)

        def run(*a, **k):
            s = time.perf_counter()
            out = f(*a, **k)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - s
            return out

        setattr(api, name, run)

    for name in (
        "build",
        "fit",
        "control_context",
        "average_effects",
        "observed_effects",
        "noise_variance",
    ):
        timed(name)
    Cells.loader = lambda *a, **k: loaders.append(Shortened(loader(*a, **k))) or loaders[-1]
    GPOVAE(opened(path, where)).train(max_epochs=1, progress=False)
    train = loaders[0]  # its first batch waits for the partners' means, which are made once
    return used(start) | dict(
        steps=seconds,
        trained_cells=train.cells,
        per_second=train.cells / train.seconds,
        waiting=sum(train.waited[1:]) / train.seconds,
    )


def scale(options):
    runs = []
    loading = []
    with (
        tempfile.TemporaryDirectory() if options.scratch is None else nullcontext(options.scratch)
    ) as folder:
        for n in SCALE_SIZES:
            path = Path(folder) / f"scale{n}.h5ad"
            written = None if path.exists() else alone(write_scale, path, n_cells=n, **SCALE)
            row = dict(
                cells=n,
                file_gib=path.stat().st_size / 2**30,
                counts=int(open_screen(path).X.group["data"].shape[0]),
                writing=written,
            )
            row["loading"] = {
                where: alone(load_scale, path, where)
                for where in ("disk", "memory")[: 1 + (n < 500_000)]
            }
            row["training"] = (
                {
                    where: alone(train_scale, path, where)
                    for where in ("disk", "memory")
                    if where == "disk" or n == SCALE_SIZES[0]
                }
                if n in (SCALE_SIZES[0], SCALE_SIZES[-1])
                else {}
            )
            runs.append(row)
            print(json.dumps(page.plain(row)), flush=True)
        for genes, screen in LOADING.items():
            path = Path(folder) / f"loading{genes}.h5ad"
            if not path.exists():
                alone(write_scale, path, **screen)
            packed = path.with_suffix(".gz.h5ad")
            if not packed.exists():
                ad.read_h5ad(path).write_h5ad(packed, compression="gzip")
            for name, p, where in (
                ("on disk", path, "disk"),
                ("on disk, gzip", packed, "disk"),
                ("in memory", path, "memory"),
            ):
                row = dict(
                    genes=genes,
                    counts_per_cell=int(open_screen(path).X.group["data"].shape[0])
                    / screen["n_cells"],
                    layout=name,
                    file_gib=p.stat().st_size / 2**30,
                ) | alone(load_scale, p, where)
                loading.append(row)
                print(json.dumps(page.plain(row)), flush=True)
    return dict(
        screen=SCALE,
        block=stream.BLOCK,
        window=stream.WINDOW,
        loading_batch=512,
        steps=STEPS,
        threads=1,
        runs=runs,
        loading=loading,
    )


UNSEEN = dict(n_cells=4000, n_genes=200, n_perturbations=30)
HELD = 6
UNSEEN_EPOCHS = dict(corrected=25, paper=10)
CHOICES = ("regulated", "random", "unregulated")  # how the held-out perturbations are chosen
UNSEEN_METRICS = [
    "discrimination",
    "pearson_delta",
    "pearson_delta_others",
    "mae",
    "ate_rho_others",
]


def chosen(adata, how, seed):
    """Perturbations to hold out.

    Those with the most, or the fewest, direct regulators among the perturbed genes that stay in
    training; or any.
    """
    truth = adata.uns["gpovae_truth"]
    genes = np.asarray(truth["genes"]).astype(str)
    n = UNSEEN["n_perturbations"]
    out = []
    if how == "random":
        return sorted(np.random.default_rng(seed).choice(genes[:n], HELD, replace=False))
    edge = truth["direct"][:n, :n] != 0
    sign = 1 if how == "regulated" else -1
    for _ in range(HELD):
        stay = [i for i in range(n) if i not in out]
        out.append(max(stay, key=lambda i: (sign * edge[stay, i].sum(), -i)))
    return sorted(genes[out])


def unseen_screen(how, seed, folder):
    "A prepared screen without the held-out perturbations in training."
    path = Path(folder) / f"unseen-{how}-{seed}.h5ad"
    if not path.exists():
        adata = datasets.simulated(seed=seed, **UNSEEN)
        prepare(
            adata,
            held_out=chosen(adata, how, seed),
            seed=seed,
            progress=False,
            **datasets.prepare_arguments("simulated"),
        )
        with complete(folder) as tmp:
            adata.write_h5ad(tmp / path.name)
    return ad.read_h5ad(path)


def changed(edges, share, genes, rng):
    "True edges, of which a share is replaced by others of the same regulators, with random signs."
    edges, have = edges.copy(), set(zip(edges.source, edges.target))
    for i in rng.choice(len(edges), round(share * len(edges)), replace=False):
        source = edges.source[i]
        target = next(g for g in rng.permutation(genes) if g != source and (source, g) not in have)
        have.add((source, target))
        edges.loc[i, ["target", "sign"]] = target, rng.choice([-1, 1])
    return edges


def priors(truth, seed):
    "Prior networks by how right they are."
    genes = np.asarray(truth["genes"]).astype(str)
    W = truth["direct"]
    rng = np.random.default_rng(seed)
    edges = pd.DataFrame(
        [(genes[i], genes[j], int(np.sign(W[i, j]))) for i, j in zip(*np.nonzero(W))],
        columns=["source", "target", "sign"],
    )
    return {
        "prior right": edges,
        "prior right, no signs": edges[["source", "target"]],
        "prior half right": changed(edges, 0.5, genes, rng),
        "prior all wrong": changed(edges, 1, genes, rng),
    }


def in_all_cells(adata):
    """Effects of every perturbation in all its cells, against the controls of the test.

    Held-out ones lie among others that are measured as well as they are.
    """
    adata = adata.copy()
    adata.obs[Key.split] = pd.Categorical(
        np.where(Screen(adata).is_control, Screen(adata).split, "test"),
        categories=["train", "validation", "test"],
    )
    return measured.observed_effects(adata, "test")


def unseen_scores(pred, everyone, held, shared):
    """Metrics of each held-out perturbation.

    PDS among all perturbations; `_others` leave the target itself out.
    """
    for p in held:
        x = pred.loc[p, everyone.columns].to_numpy(float)
        y = everyone.loc[p].to_numpy(float)
        s = shared[everyone.columns].to_numpy(float)
        other = everyone.columns != p
        d = np.abs(everyone.to_numpy()[:, other] - x[other]).sum(1)
        mine = d[everyone.index.get_loc(p)]
        yield dict(
            perturbation=p,
            discrimination=1 - ((d < mine).sum() + ((d == mine).sum() - 1) / 2) / len(d),
            mae=np.abs(x - y).mean(),
            pearson_delta=response.pearson(x - s, y - s),
            pearson_delta_others=response.pearson((x - s)[other], (y - s)[other]),
            ate_rho_others=response.pearson(x[other], y[other]),
        )


def true_effects(model, held):
    """What the true network and the true knockdown predict, through the model's decoder.

    What could be reached.
    """
    truth = model.adata.uns["gpovae_truth"]
    context = model.context
    vae = model.vae
    T = pd.DataFrame(truth["total"], truth["genes"], truth["genes"])
    rest = torch.zeros(vae.grn.n)

    def row(p):
        return torch.from_numpy(
            (truth["knockdown"][T.index.get_loc(p)] * T.loc[p] / T.loc[p, p])
            .reindex(model.genes)
            .fillna(0)
            .to_numpy(np.float32)
        )

    return pd.DataFrame(
        effects_of(
            vae,
            context,
            rest.expand(len(held), 1, -1),
            [[]] * len(held),
            torch.stack([row(p) for p in held])[:, None],
        )[0],
        held,
        model.genes,
    )


def honest(predicted, real, noise):
    """Squared standardised errors and whether they lie within the spread, on genes other than the
    targets; by perturbation.
    """
    for p in predicted.obs_names:
        other = predicted.var_names != p
        z = (
            np.abs(predicted[p].X[0] - real.loc[p, predicted.var_names])
            / np.sqrt(predicted[p].layers["spread"][0] ** 2 + noise.loc[p] + noise.loc[CONTROL])
        )[other]
        yield dict(
            perturbation=p,
            evidence=predicted.obs.evidence[p],
            spread=float(predicted[p].layers["spread"][0][other].mean()),
            **{f"within_{q}": float((z < norm.ppf(0.5 + q / 200)).mean()) for q in (50, 80, 95)},
        )


def covariance_in_controls(adata):
    "AUPRC of correlation among control cells for the true direct edges, and chance."
    truth = adata.uns["gpovae_truth"]
    screen = Screen(adata)
    genes = [g for g in np.asarray(truth["genes"]).astype(str) if g in adata.var_names]
    Y = log2_expression(screen, screen.rows("train", CONTROL, False)).toarray()[
        :, adata.var_names.get_indexer(genes)
    ]
    W = (
        pd.DataFrame(truth["direct"], truth["genes"], truth["genes"]).loc[genes, genes].to_numpy()
        != 0
    )
    off = ~np.eye(len(genes), dtype=bool)
    return dict(
        auprc=float(average_precision_score(W[off], np.abs(np.corrcoef(Y.T))[off])),
        chance=float(W[off].mean()),
    )


def unseen_job(how, seed, method, max_epochs, folder):
    """Scores of the held-out perturbations of one screen.

    Without a model (method "simple"), or by one preset.
    """
    key = dict(choice=how, seed=seed, method=method)
    adata = unseen_screen(how, seed, folder)
    screen = Screen(adata)
    everyone = in_all_cells(adata)
    train = measured.observed_effects(adata, "train")
    held = [p for p in screen.perturbations if p not in train.index]
    real = measured.observed_effects(adata, "test").loc[held]
    n = measured.cells(adata, "train").drop(CONTROL)
    shared = train.mul(n[train.index], axis=0).sum() / n[train.index].sum()

    def score(row, pred, **more):
        return [key | dict(row=row) | s | more for s in unseen_scores(pred, everyone, held, shared)]

    if method == "simple":
        tables = baselines(adata, held)
        rows = [
            r
            for k in (
                "no effect (control mean)",
                "mean of all perturbed cells",
                "ridge (low-rank linear)",
            )
            for r in score(k, tables[k])
        ]
        r = np.mean(
            [
                response.pearson(a, b)
                for a, b in measured.halves(
                    adata[np.isin(screen.labels, [*held, CONTROL])].copy(), "test", 20, seed
                )
            ]
        )
        return key | dict(
            rows=rows,
            ceiling=float(np.sqrt(2 * max(r, 0) / (1 + max(r, 0)))),
            controls=covariance_in_controls(adata),
            cells=adata.n_obs,
            genes=adata.n_vars,
            held=held,
            regulators={
                p: int(
                    (
                        adata.uns["gpovae_truth"]["direct"][
                            np.isin(adata.uns["gpovae_truth"]["genes"], list(train.index)),
                            list(adata.uns["gpovae_truth"]["genes"]).index(p),
                        ]
                        != 0
                    ).sum()
                )
                for p in held
            },
        )
    model = GPOVAE(adata, preset=method)
    model.train(max_epochs=max_epochs, seed=seed, progress=False)
    noise = measured.noise_variance(adata, "test")
    rows = []
    spreads = []
    fits = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some have no evidence is among the results
        for name, prior in (
            {method: None}
            | (
                {f"{method}, {k}": v for k, v in priors(adata.uns["gpovae_truth"], seed).items()}
                if method == "corrected"
                else {}
            )
        ).items():
            p = model.predict(held, unseen="network", prior=prior)
            if name == "corrected":
                own = p.to_df()
            rows += score(name, p.to_df())
            spreads += [key | dict(row=name) | s for s in honest(p, real, noise)]
            if method == "corrected":
                fits[name] = {
                    k: getattr(
                        list(model._unseen["fits"].values())[-1 if prior is not None else 0], k
                    )
                    for k in ("slope", "explained", "listed", "trusted")
                }
    logits = model.vae.grn.edge_logit.numpy()
    trained = model.nodes.perturbed.to_numpy()
    found = key | dict(
        spreads=spreads,
        logits={
            k: np.quantile(logits[at], [0.025, 0.25, 0.5, 0.75, 0.975])
            for k, at in (("perturbed", trained), ("never perturbed", ~trained))
        },
    )
    if method == "paper":
        return found | dict(rows=rows)
    knockdown = pd.DataFrame(np.repeat(shared.to_numpy()[None], len(held), 0), held, train.columns)
    for p in held:
        knockdown.loc[p, p] = float(own.loc[p, p])
    return found | dict(
        rows=rows
        + score("mean of all perturbed cells, and the knockdown itself", knockdown)
        + score("true network", true_effects(model, held)),
        fits=fits,
    )


def unseen(options):
    jobs = [
        dict(
            how=how,
            seed=seed,
            method=method,
            max_epochs=options.max_epochs or UNSEEN_EPOCHS.get(method),
        )
        for method in ("paper", "corrected", "simple")
        for how in CHOICES
        for seed in range(options.seeds)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for how in CHOICES:
            for seed in range(options.seeds):
                unseen_screen(how, seed, folder)
        done = list(
            studies.work(
                unseen_job, [job | dict(folder=folder) for job in jobs], options.jobs, "unseen"
            )
        )
    done.sort(key=lambda f: (CHOICES.index(f["choice"]), f["seed"], f["method"]))
    each = pd.DataFrame([r for f in done for r in f["rows"]])
    runs = each.groupby(["choice", "row", "seed"], sort=False)[UNSEEN_METRICS].mean().reset_index()
    mean = "mean of all perturbed cells"
    summary = []
    for (how, row), part in runs.groupby(["choice", "row"], sort=False):
        values, reference = (
            p.set_index("seed")
            for p in (part, runs[(runs["choice"] == how) & (runs["row"] == mean)])
        )
        for m in UNSEEN_METRICS:
            both = (
                dict(zip(("value", "from", "to"), studies.interval(values[m]))),
                dict(
                    zip(
                        ("difference", "difference_from", "difference_to"),
                        studies.interval(values[m] - reference[m]),
                    )
                ),
            )
            summary.append(dict(choice=how, row=row, metric=m) | both[0] | both[1])
    table = pd.DataFrame(summary).pivot_table(
        index=["choice", "row"], columns="metric", values="value", sort=False
    )
    print(f"\n{table.round(3).to_string()}\n")

    def take(k):
        return [{x: f[x] for x in ("choice", "seed", "method")} | {k: f[k]} for f in done if k in f]

    return dict(
        screens=UNSEEN,
        held_out=HELD,
        split="test",
        seeds=list(range(options.seeds)),
        max_epochs=UNSEEN_EPOCHS if options.max_epochs is None else options.max_epochs,
        summary=pd.DataFrame(summary).round(5),
        runs=runs.round(5),
        each=each[each["row"].isin(["corrected", "paper"])].round(4),
        spreads=pd.DataFrame([s for f in done for s in f.get("spreads", ())]).round(4),
        fits=take("fits"),
        logits=take("logits"),
        ceiling=take("ceiling"),
        controls=take("controls"),
        regulators=take("regulators"),
    )


KNOWN = dict(
    demo=demo,
    claim=claim,
    finding=finding,
    ablation=ablation,
    prepare=large,
    unseen=unseen,
    predict=predict,
    scale=scale,
    speed=speed,
    quality=quality,
    network=network,
    tapseq=tapseq,
    explorer=explorer,
    verdict=verdicts,
)


def main(*arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(KNOWN))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--max-epochs", type=int, help="the same for every screen; default: EPOCHS")
    parser.add_argument(
        "--minutes",
        type=float,
        default=30,
        help="of training of the published preset, in `quality` (default 30)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="worker processes, one thread each (default 2)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks",
        help="folder for NAME.json (default benchmarks)",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        help=(
            "folder for the large files of `prepare` and `scale`; raw screens that lie there are"
            " used again (default: a temporary one)"
        ),
    )
    options = parser.parse_args(arguments)
    if unknown := [n for n in options.names if n not in KNOWN]:
        parser.error(f"there is no measurement {unknown[0]!r}. There is: {', '.join(KNOWN)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or KNOWN:
        try:
            result = KNOWN[name](options)
        except GpovaeError as e:
            print(f"{name}: not measured. {e}", file=sys.stderr)
            continue
        memory = psutil.virtual_memory().total / 2**30
        given = [a for a in arguments if a not in KNOWN]
        page.write_json(
            options.out / f"{name}.json",
            dict(
                date=datetime.date.today().isoformat(),
                command=shlex.join(["python", "benchmarks/bench.py", name, *given]),
                machine=(
                    f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python"
                    f" {platform.python_version()}, torch {torch.__version__}"
                ),
                **result,
            ),
        )
        print(options.out / f"{name}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
