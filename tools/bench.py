"""The slow measurements. Each writes NAME.json with date, command and machine; chapters and README take their figures from there.

    python tools/bench.py [NAME ...]     default: all; `--help` lists the options

    demo      `gpovae demo` on the simulated screen: seconds per stage, scores, network against the truth; draws nbs/images/demo.png
    claim     both presets on four simulated screens and on schraivogel2020, five seeds: scores beside baselines and ceiling, by number of training cells, time
    ablation  a small simulated screen with three batches, five seeds: each switch alone set to its published value (the report `ablation`)

Runs go to two worker processes with one thread each. Finished runs of `claim` are kept in .claim.jsonl until all are done, so that a bench
which was interrupted goes on where it stopped, unless the package has changed since. The published settings ask for up to 2,000 epochs;
what is measured here is what both presets reach in EPOCHS.
"""
import argparse, datetime, hashlib, json, os, platform, re, shlex, subprocess, sys, tempfile
from pathlib import Path

import matplotlib
matplotlib.use("agg")
import anndata as ad, matplotlib.pyplot as plt, numpy as np, pandas as pd, psutil, torch
from tqdm import tqdm

from book import real_data
from gpovae import GPOVAE, GpovaeError, datasets, plots, prepare, reports
from gpovae.data.screen import CONTROL
from gpovae.evaluate import causal, response
from gpovae.evaluate.baselines import baselines

ROOT = Path(__file__).resolve().parents[1]
GLOBINS = ["HBE1", "HBD", "HBB"]
SIMULATED = dict(small=dict(n_cells=3000, n_genes=200, n_perturbations=12), medium=dict(n_cells=6000, n_genes=400, n_perturbations=30),
                 uneven=dict(n_cells=6000, n_genes=400, n_perturbations=30), large=dict(n_cells=12000, n_genes=800, n_perturbations=60))
EPOCHS = dict(small=60, medium=40, uneven=40, large=20, schraivogel2020=40)   # of both presets
ABLATION_EPOCHS = 25
STRATA = [0, 30, 60, 120, 300, np.inf]                                        # training cells per perturbation
KEY = ["screen", "seed", "method"]


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


def demo(options):
    with tempfile.TemporaryDirectory() as tmp:
        said = _demo(Path(tmp) / "demo")
        seconds = {k: float(v) for k, v in re.findall(r"^(?:\r.*\r)?(load \w+|prepare|train|evaluate and report): ([\d.]+) s$", said, re.M)}
        picture(GPOVAE.load(Path(tmp) / "demo"))
        report = json.loads((Path(tmp) / "demo/report.json").read_text())
    return dict(seconds=seconds, total_seconds=sum(seconds.values()), **{k: report[k] for k in ("cells", "genes", "perturbations", "epochs", "best_epoch", "scores", "truth")})


def thinned(adata, seed, sizes=(20, 40, 80, 160)):
    "Perturbations cut down to so many cells at most, in turn; all controls stay."
    labels, rng, keep = adata.obs["gene"].astype(str).to_numpy(), np.random.default_rng(seed), []
    for i, name in enumerate(sorted(set(labels))):
        cells = rng.permutation(np.flatnonzero(labels == name))
        keep.append(cells if name == "non-targeting" else cells[:sizes[i % len(sizes)]])
    return adata[np.sort(np.concatenate(keep))].copy()


def screen(name, seed, folder):
    "The prepared screen, made once; the seed decides a simulated screen, and every split."
    path = Path(folder) / f"{name}-{seed}.h5ad"
    if not path.exists():
        adata = datasets.simulated(seed=seed, **SIMULATED[name]) if name in SIMULATED else datasets.load(name)
        if name == "uneven": adata = thinned(adata, seed)
        prepare(adata, seed=seed, progress=False, **datasets.prepare_arguments("simulated" if name in SIMULATED else name))
        with reports.complete(folder) as tmp: adata.write_h5ad(tmp / path.name)
    return ad.read_h5ad(path)


def strata(adata, effects, method, observed):
    "ATE-rho among perturbations of a similar number of training cells."
    n = response.cells(adata, "train").drop(CONTROL).reindex(observed.index)
    for low, high in zip(STRATA, STRATA[1:]):
        few = observed.index[(n > low) & (n <= high)]
        if len(few): yield dict(method=method, above=low, up_to=high, perturbations=len(few), ate_rho=response.pearson(effects.loc[few, observed.columns], observed.loc[few]))


def enhancer(model):
    "What the model says of the enhancer HS2, which regulates the globins."
    effect, edges = model.predict(["HS2"]).to_df().loc["HS2"], model.network(min_probability=0)
    rank = effect.abs().rank(ascending=False)
    return dict(**{f"rank_{g}": int(rank[g]) for g in GLOBINS}, all_down=bool((effect[GLOBINS] < 0).all()), first_edges=list(edges.target[edges.source == "HS2"][:3]), edges=len(model.network()))


def claim_job(name, seed, method, max_epochs, folder):
    "What one preset reaches on one screen, or (method \"simple\") what needs no model."
    key = dict(screen=name, seed=seed, method=method)
    adata = screen(name, seed, folder)
    observed, size = response.observed_effects(adata, "test"), dict(cells=adata.n_obs, genes=adata.n_vars, nodes=len(adata.uns["gpovae_nodes"]["names"]))
    if method == "simple":
        means = {k: v for k, v in baselines(adata).items() if k in reports.YARDSTICKS}
        return key | dict(size=size | dict(perturbations=len(observed)), rows=[dict(row=k) | v for k, v in reports.yardsticks(adata, seed).items()],
                          strata=[s for k, v in means.items() for s in strata(adata, v, k, observed)])
    try: model, row = reports.trial(adata, reports.ablation_settings()[method], max_epochs, seed)
    except GpovaeError as e: return key | dict(rows=[dict(row=method, error=str(e))])
    found = key | dict(rows=[dict(row=method) | row], strata=list(strata(adata, model.predict().to_df(), method, observed)))
    return found | dict(enhancer=enhancer(model)) if "HS2" in observed.index else found


def claim(options):
    names = list(SIMULATED)
    real_data()
    try: datasets.load("schraivogel2020"); names.append("schraivogel2020")
    except GpovaeError as e: print(f"schraivogel2020: not measured. {e}", file=sys.stderr)
    epochs = {k: options.max_epochs or EPOCHS[k] for k in names}
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted((ROOT / "gpovae").rglob("*.py")))).hexdigest()[:16]
    scratch = options.out / ".claim.jsonl"
    kept = [json.loads(line) for line in scratch.read_text().splitlines()] if scratch.exists() else []
    wanted = [dict(name=n, seed=s, method=m, max_epochs=epochs[n]) for m in ("simple", "paper", "corrected") for n in reversed(names) for s in range(options.seeds)]
    state = lambda job: [code, *job.values()]
    done = [r["found"] for r in kept if r["state"] in map(state, wanted)]
    todo = [job for job in wanted if state(job) not in [r["state"] for r in kept]]
    with tempfile.TemporaryDirectory() as folder, scratch.open("a") as keep:
        for found in reports.work(claim_job, [job | dict(folder=folder) for job in todo], options.jobs, "claim"):
            found, job = reports.plain(found), next(j for j in todo if [j["name"], j["seed"], j["method"]] == [found[k] for k in KEY])
            print(json.dumps(dict(state=state(job), found=found)), file=keep, flush=True)
            for row in found["rows"]:
                numbers = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, (int, float))]
                tqdm.write(f"{found['screen']}, seed {found['seed']}, {row['row']}: {', '.join(numbers) or row['error']}", file=sys.stdout)
            done.append(found)
    result = gathered(sorted(done, key=lambda f: (names.index(f["screen"]), f["seed"], f["method"])), epochs)
    scratch.unlink()
    return dict(split="test", seeds=list(range(options.seeds)), **result)


def gathered(done, epochs):
    "Tables of all that was found: screens, summary by screen, strata pooled over screens and seeds, the enhancer, and every run."
    runs = pd.DataFrame([dict(screen=f["screen"], seed=f["seed"]) | r for f in done for r in f["rows"]])
    summary = pd.concat([reports.compared(part).rename_axis("method").reset_index().assign(screen=name) for name, part in runs.groupby("screen", sort=False)])
    cells = pd.DataFrame([dict(screen=f["screen"], seed=f["seed"]) | s for f in done for s in f.get("strata", ())])
    at, pooled = ["above", "up_to"], []
    for bounds, part in cells.fillna(dict(up_to=np.inf)).groupby(at):
        rho = part.pivot(index=["screen", "seed"], columns="method", values="ate_rho")
        one = part[part.method == "training mean"]
        gain = {f"{m} minus shrunken": dict(zip(("difference", "from", "to"), reports.interval(rho[m] - rho["shrunken training mean"]))) for m in ("corrected", "paper") if m in rho}
        pooled.append(dict(zip(at, bounds)) | dict(runs=len(rho), perturbations=int(one.perturbations.sum()), ate_rho=rho.mean().to_dict(), **gain))
    screens = {f["screen"]: f["size"] | dict(max_epochs=epochs[f["screen"]]) for f in done if "size" in f}
    shown = ["ate_rho", "ate_rho_sd", "ate_rho_difference", "share_of_ceiling", "auprc", "auprc_difference", "sign_accuracy", "seconds", "epochs"]
    print(f"\n{summary.set_index(['screen', 'method'])[shown].astype(float).round(3).to_string(na_rep='-')}\n")
    return dict(screens=screens, summary=summary, strata=pooled, enhancer=[dict(method=f["method"], seed=f["seed"]) | f["enhancer"] for f in done if "enhancer" in f], runs=runs)


def ablation(options):
    epochs, screens = options.max_epochs or ABLATION_EPOCHS, {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            adata = datasets.simulated(n_batches=3, seed=seed, **SIMULATED["small"])
            prepare(adata, batch_key="batch", seed=seed, progress=False, **datasets.prepare_arguments("simulated"))
            screens[seed] = Path(folder) / f"{seed}.h5ad"
            adata.write_h5ad(screens[seed])
        table, runs = reports.ablation(screens, max_epochs=epochs, jobs=options.jobs)
    print(table.drop(columns="setting").to_string(na_rep="-", float_format="{:.3f}".format))
    return dict(cells=adata.n_obs, genes=adata.n_vars, batches=3, split="test", seeds=list(range(options.seeds)), max_epochs=epochs, table=table.reset_index(names="row"), runs=runs)


KNOWN = dict(demo=demo, claim=claim, ablation=ablation)


def main(*arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(KNOWN))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--max-epochs", type=int, help="the same for every screen; default: EPOCHS")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder for NAME.json (default benchmarks)")
    options = parser.parse_args(arguments)
    if unknown := [n for n in options.names if n not in KNOWN]: parser.error(f"there is no measurement {unknown[0]!r}. There is: {', '.join(KNOWN)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or KNOWN:
        try: result = KNOWN[name](options)
        except GpovaeError as e:
            print(f"{name}: not measured. {e}", file=sys.stderr)
            continue
        memory = psutil.virtual_memory().total / 2**30
        given = [a for a in arguments if a not in KNOWN]
        reports.write_json(options.out / f"{name}.json", dict(
            date=datetime.date.today().isoformat(), command=shlex.join(["python", "tools/bench.py", name, *given]),
            machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, torch {torch.__version__}", **result))
        print(options.out / f"{name}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
