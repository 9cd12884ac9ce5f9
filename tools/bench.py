"""The slow measurements. Each writes NAME.json with date, command and machine; chapters and README take their figures from there.

    python tools/bench.py [NAME ...]     default: all; `--help` lists the options

    demo      `gpovae demo` on the simulated screen: seconds per stage, scores, network against the truth; draws nbs/images/demo.png
    claim     both presets on four simulated screens and on schraivogel2020, five seeds: scores beside baselines and ceiling, by number of training cells, time
    ablation  a small simulated screen with three batches, five seeds: each switch alone set to its published value (the report `ablation`)
    prepare   raw screens of 8,563 genes, 620 perturbations and 48 batches on disk, 20,000 to 310,000 cells: time and peak memory of writing and of
              preparing them; counterfactual profiles of 60,000 cells x 5,000 genes (about half an hour; needs 15 GB of disk, see --scratch)

Runs go to two worker processes with one thread each. Finished runs of `claim` are kept in .claim.jsonl until all are done, so that a bench
which was interrupted goes on where it stopped, unless the package has changed since. The published settings ask for up to 2,000 epochs;
what is measured here is what both presets reach in EPOCHS.
"""
import argparse, datetime, hashlib, json, multiprocessing, platform, re, resource, shlex, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import matplotlib
matplotlib.use("agg")
import anndata as ad, matplotlib.pyplot as plt, numba, numpy as np, pandas as pd, psutil, scipy.sparse as sp, torch
from tqdm import tqdm

from book import real_data
from gpovae import GPOVAE, GpovaeError, datasets, plots, prepare, reports
from gpovae.data import prepare as preparation
from gpovae.data.batches import Cells
from gpovae.data.files import complete
from gpovae.data.register import register
from gpovae.data.screen import CONTROL, Key, Screen
from gpovae.evaluate import causal, response
from gpovae.evaluate.baselines import baselines

ROOT = Path(__file__).resolve().parents[1]
GLOBINS = ["HBE1", "HBD", "HBB"]
SIMULATED = dict(small=dict(n_cells=3000, n_genes=200, n_perturbations=12), medium=dict(n_cells=6000, n_genes=400, n_perturbations=30),
                 uneven=dict(n_cells=6000, n_genes=400, n_perturbations=30), large=dict(n_cells=12000, n_genes=800, n_perturbations=60))
EPOCHS = dict(small=60, medium=40, uneven=40, large=20, schraivogel2020=40)   # of both presets
ABLATION_EPOCHS = 25
LARGE = dict(n_genes=8563, n_perturbations=620, n_batches=48, depth=8200, control_share=0.05)   # depth: 37 % of the entries are above zero, as in K562
SIZES = (20_000, 60_000, 130_000, 310_000)                                    # cells of these
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
        with complete(folder) as tmp: adata.write_h5ad(tmp / path.name)
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


def median_screen(n_cells=60_000, n_genes=5_000, n_perturbations=300, seed=0):
    "One split: 20 % controls, 10 % of the cells fail, three in ten entries above zero, the largest counts above 1,000."
    rng, blocks = np.random.default_rng(seed), []
    mean, depth = rng.lognormal(-1.5, 1.9, n_genes).astype(np.float32), rng.lognormal(0, 0.3, n_cells).astype(np.float32)
    for a in range(0, n_cells, 2000):
        level = rng.standard_gamma(2, (len(depth[a:a + 2000]), n_genes), dtype=np.float32) * (mean / 2) * depth[a:a + 2000, None]
        blocks.append(sp.csr_matrix(rng.poisson(level).astype(np.float32)))
    gene = np.where(rng.random(n_cells) < 0.2, CONTROL, np.char.mod("P%03d", rng.integers(0, n_perturbations, n_cells)))
    adata = ad.AnnData(sp.vstack(blocks, format="csr"), obs=pd.DataFrame(dict(gene=gene), index=np.char.mod("c%d", np.arange(n_cells))), var=pd.DataFrame(index=np.char.mod("P%03d", np.arange(n_genes))))
    register(adata, perturbation_key="gene")
    adata.obs[Key.fail], adata.obs[Key.split] = rng.random(n_cells) < 0.1, "train"
    return Screen(adata)


def lower_medians_agree(cells, seed=0, n=200, draws=50):
    "Are the partners of `n` random cells numpy's lower median of the same drawn cells?"
    rng, drawn = np.random.default_rng(seed), {}
    for g in np.unique(cells.label):
        at = np.flatnonzero(cells.label == g); pool = at[cells.fail[at]]
        drawn |= dict(zip(at, pool[rng.integers(0, len(pool), (len(at), draws))]))
    chosen = np.random.default_rng(1).choice(len(cells), n, replace=False)
    expected = np.stack([np.sort(cells.X[drawn[i]].toarray(), axis=0)[(draws - 1) // 2] for i in chosen])
    return bool(np.array_equal(cells[chosen].partner.numpy(), expected))


def counterfactual():
    "Seconds to make the partners of every cell and to hand them out in batches of 512; median of three."
    screen, found = median_screen(), {}
    def everything(definition):
        cells = Cells(screen, "train", partner=definition)
        for a in range(0, len(cells), 512): cells[np.arange(a, min(a + 512, len(cells)))].partner
        return cells
    for preset, definition in (("paper", "median"), ("corrected", "mean")):
        Cells(screen, "train", partner=definition)                              # compiles, once a machine
        wall, cpu = [], []
        for _ in range(3):
            start = time.perf_counter(), time.process_time()
            cells = everything(definition)
            wall.append(time.perf_counter() - start[0]); cpu.append(time.process_time() - start[1])
        found[preset] = dict(seconds=float(np.median(wall)), cpu_seconds=float(np.median(cpu)), all_seconds=wall)
        if definition == "median": found[preset]["equals_numpy"] = lower_medians_agree(cells)
    X = screen.counts
    return dict(cells=X.shape[0], genes=X.shape[1], perturbations=len(screen.perturbations), failing_controls=int((screen.fail & screen.is_control).sum()),
                density=X.nnz / X.shape[0] / X.shape[1], largest_count=int(X.data.max()), draws=50, batch_size=512, threads=numba.config.NUMBA_NUM_THREADS, **found)


def used(start):
    "Seconds since `start`, and the most memory that this process has held."
    return dict(seconds=time.perf_counter() - start, peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def write_large(n_cells, path):
    "In a process of its own: a simulated raw screen, written to disk."
    start = time.perf_counter()
    datasets.simulated(n_cells, path=path, **LARGE)
    return used(start)


def prepare_large(path, target):
    "In a process of its own: a screen prepared from file to file, with the seconds of every step."
    steps = {}
    def timed(name):
        f = getattr(preparation, name)
        def run(*a, **k):
            start = time.perf_counter(); out = f(*a, **k); steps[name] = steps.get(name, 0) + time.perf_counter() - start
            return out
        setattr(preparation, name, run)
    for name in ("write_screen", "register", "quality_labels", "split_cells", "graph_nodes", "match_controls", "node_shifts", "judge_perturbations", "write_annotations"): timed(name)
    start = time.perf_counter()
    preparation.prepare_file(path, target, perturbation_key="gene", control="non-targeting", batch_key="batch", force=True)
    return used(start) | dict(steps=steps)


def alone(f, *arguments):
    "The result of a function in a fresh process."
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool: return pool.submit(f, *arguments).result()


def large(options):
    runs = []
    with tempfile.TemporaryDirectory() if options.scratch is None else nullcontext(options.scratch) as folder:
        for n in SIZES:
            raw, target = Path(folder) / f"raw{n}.h5ad", Path(folder) / f"prepared{n}.h5ad"
            written = None if raw.exists() else alone(write_large, n, raw)
            found = alone(prepare_large, raw, target)
            X = preparation.open_screen(target)
            row = dict(cells=n, counts=int(X.X.group["data"].shape[0]), file_gib=raw.stat().st_size / 2**30, writing=written, **found, record={s: r["result"] for s, r in X.uns[Key.prepare].items()})
            X.X.group.file.close(); target.unlink()
            if options.scratch is None: raw.unlink()
            runs.append(row); print(json.dumps(reports.plain({k: v for k, v in row.items() if k != "record"})), flush=True)
    return dict(screen=LARGE, threads=numba.config.NUMBA_NUM_THREADS, runs=runs, counterfactual=counterfactual())


KNOWN = dict(demo=demo, claim=claim, ablation=ablation, prepare=large)


def main(*arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(KNOWN))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--max-epochs", type=int, help="the same for every screen; default: EPOCHS")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder for NAME.json (default benchmarks)")
    parser.add_argument("--scratch", type=Path, help="folder for the large files of `prepare`; raw screens that lie there are used again (default: a temporary one)")
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
