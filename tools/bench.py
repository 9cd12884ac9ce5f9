"""The slow measurements. Each writes benchmarks/NAME.json with date, command and machine; chapters and README take their figures from there.

    python tools/bench.py [NAME ...]     default: all

    demo             `gpovae demo` on the simulated screen: seconds per stage, scores, network against the truth; draws nbs/images/demo.png
    schraivogel2020  the real screen, five seeds: scores beside baselines and ceiling
    presets          a small simulated screen, three seeds: both presets, and the corrected one with the published perturbation latent
"""
import datetime, json, platform, re, shlex, subprocess, sys, tempfile, time
from pathlib import Path

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt, numpy as np, pandas as pd, psutil, torch

from gpovae import GPOVAE, GpovaeError, datasets, plots, prepare
from gpovae.evaluate import causal, response
from gpovae.reports import write_json

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(5)
GLOBINS = ["HBE1", "HBD", "HBB"]


def _demo(out):
    "Run the command, return what it printed to standard error (the timings)."
    command = [Path(sys.executable).with_name("gpovae"), "demo", "--out", str(out)]
    return subprocess.run(command, check=True, stderr=subprocess.PIPE, stdout=sys.stdout, text=True).stderr


def picture(model):
    "The README's figure: effects, network against truth, network."
    observed, effects, edges = response.observed_effects(model.adata, "test"), model.predict().to_df(), model.network(min_probability=0)
    truth = model.adata.uns["gpovae_truth"]
    found = {"gpovae": causal.truth_scores(edges, truth), "mean difference": causal.truth_scores(causal.mean_difference(model.adata), truth)}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained", width_ratios=[1, 1.1, 1.4])
    plots.predicted_observed(effects, observed, axes[0])
    plots.precision_recall({k: v["curve"] for k, v in found.items()}, found["gpovae"]["chance"], axes[1])
    axes[1].legend(frameon=False, loc="upper right")
    plots.network(edges, 25, axes[2])
    figure.savefig(ROOT / "nbs/images/demo.png", dpi=80)


def demo():
    with tempfile.TemporaryDirectory() as tmp:
        said = _demo(Path(tmp) / "demo")
        seconds = {k: float(v) for k, v in re.findall(r"^(?:\r.*\r)?(load \w+|prepare|train|evaluate and report): ([\d.]+) s$", said, re.M)}
        picture(GPOVAE.load(Path(tmp) / "demo"))
        report = json.loads((Path(tmp) / "demo/report.json").read_text())
    return dict(seconds=seconds, total_seconds=sum(seconds.values()), **{k: report[k] for k in ("cells", "genes", "perturbations", "epochs", "best_epoch", "scores", "truth")})


def schraivogel2020():
    rows, enhancer = [], []
    for seed in SEEDS:
        adata = datasets.load("schraivogel2020")
        prepare(adata, seed=seed, progress=False, **datasets.prepare_arguments("schraivogel2020"))
        model = GPOVAE(adata)
        model.train(max_epochs=40, seed=seed, progress=False)
        scores = model.evaluate()
        rows.append(scores.response.reset_index(names="method").assign(seed=seed, ceiling=scores.ceiling["ceiling"], epochs=len(model.history)))
        effect, edges = model.predict(["HS2"]).to_df().loc["HS2"], model.network(min_probability=0)
        rank = effect.abs().rank(ascending=False)
        enhancer.append(dict(seed=seed, **{f"rank_{g}": int(rank[g]) for g in GLOBINS}, all_down=bool((effect[GLOBINS] < 0).all()), first_edges=list(edges.target[edges.source == "HS2"][:3]), edges=len(model.network())))
        print(f"seed {seed}: {scores.response['ate_rho'].round(3).to_dict()} {enhancer[-1]}", flush=True)
    table = pd.concat(rows)
    return dict(cells=adata.n_obs, genes=adata.n_vars, split="test", seeds=list(SEEDS), max_epochs=40, ate_rho=_summary(table), ceiling=float(table["ceiling"].mean()), enhancer=pd.DataFrame(enhancer), runs=table)


def _summary(table): return table.groupby("method", sort=False)["ate_rho"].agg(["mean", "std"]).reset_index()


def presets():
    rows = []
    for seed in range(3):
        adata = datasets.simulated(n_cells=3000, n_genes=200, n_perturbations=12, seed=seed)
        prepare(adata, perturbation_key="gene", control="non-targeting", seed=seed, progress=False)
        for name, preset, changes in (("corrected", "corrected", {}), ("corrected, published latent", "corrected", dict(latent_effect="mask")), ("paper", "paper", {})):
            start, model = time.perf_counter(), GPOVAE(adata, preset, **changes)
            model.train(max_epochs=60, seed=seed, progress=False)
            scores = model.evaluate()
            rows.append(dict(method=name, seed=seed, epochs=len(model.history), seconds=time.perf_counter() - start, ate_rho=scores.response.ate_rho["model"], auprc=scores.truth.loc["direct"].auprc["model"]))
            print(rows[-1], flush=True)
        rows += [dict(method=m, seed=seed, ate_rho=scores.response.ate_rho[m]) for m in ("training mean", "shrunken training mean")]
        rows += [dict(method=m, seed=seed, auprc=scores.truth.loc["direct"].auprc[m]) for m in ("mean difference", "inverse x z-score")]
    table = pd.DataFrame(rows)
    return dict(cells=adata.n_obs, genes=adata.n_vars, split="test", seeds=[0, 1, 2], max_epochs=60, mean=table.groupby("method", sort=False)[["ate_rho", "auprc", "seconds"]].mean().reset_index(), runs=table)


def main(*names):
    known = ("demo", "schraivogel2020", "presets")
    for name in names or known:
        if name not in known: sys.exit(__doc__)
        try: result = globals()[name]()
        except GpovaeError as e:
            print(f"{name}: not measured. {e}", file=sys.stderr)
            continue
        memory = psutil.virtual_memory().total / 2**30
        write_json(ROOT / "benchmarks" / f"{name}.json", dict(
            date=datetime.date.today().isoformat(), command=shlex.join(["python", "tools/bench.py", name]),
            machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, torch {torch.__version__}", **result))
        print(ROOT / "benchmarks" / f"{name}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
