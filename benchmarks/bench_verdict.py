"""How often is a perturbation said to have worked: the measurement `verdict` of
benchmarks/bench.py. Controls are dealt out as perturbations of every kind, on simulated and real
screens; knockdowns are judged by this rule and by that of 0.2.0, which asked the own target or,
where it is not measured, the node that moved most and the energy distance.
"""

import warnings

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from scipy.stats import t as student

import gpovae
from gpovae.data import datasets
from gpovae.data.kinds import KINDS
from gpovae.data.labels import CONTROL
from gpovae.data.nodes import graph_nodes
from gpovae.data.quality import quality_labels
from gpovae.data.register import register
from gpovae.data.responses import Responses, node_responses
from gpovae.data.screen import Key, Screen
from gpovae.data.simulate import simulated
from gpovae.data.split import split_cells
from gpovae.data.verdict import perturbation_table, tests, verdict

SIZES = (10, 30, 100, 300)  # cells
PANELS = (28, 120, 300)  # genes
BATCHES = (1, 4)
GROUPS = 120  # at least, of each size and screen; a third of them of each kind
DEALT = 40  # at most, at a time
REAL = ("schraivogel2020", "papalexi2021")


def annotated(adata, perturbation_key="gene", control="non-targeting", **settings):
    "A screen with quality labels and split."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # targets that are not measured
        register(adata, perturbation_key, control, **settings)
    quality_labels(adata, doublets=False)
    split_cells(adata)
    return adata


def dealt(adata, size, kind, seed):
    """Controls alone, half of them dealt out as perturbations of `size` cells.

    Every second group bears the name of a gene, the other one that is not measured; the second
    value are their guides, two each.
    """
    rng = np.random.default_rng(seed)
    screen = Screen(adata)
    rows = np.flatnonzero(screen.is_control & (screen.split != "test") & ~screen.fail)
    controls = adata[rows].copy()
    n = min(len(rows) // 2 // size, DEALT)
    genes = rng.permutation(screen.genes)[: (n + 1) // 2].tolist()
    others = [f"NOTHING{i}" for i in range(n - len(genes))]
    labels = np.full(len(rows), CONTROL, object)
    members = rng.permutation(len(rows))[: n * size]
    labels[members] = np.repeat(genes + others, size)
    controls.obs[Key.perturbation] = labels.astype(str)
    controls.obs[Key.kind] = np.where(labels == CONTROL, "control", kind)
    guides = pd.Series(labels, controls.obs_names) + rng.choice(["_1", "_2"], len(labels))
    return Screen(controls), guides


def false_positives(adata, groups=GROUPS, sizes=SIZES):
    "One row for each size and kind of perturbation: groups of controls, and how many say yes."
    rows = []
    for size in sizes:
        for number, kind in enumerate(KINDS):
            calls = []
            while sum(map(len, calls)) < groups / len(KINDS):
                seed = 100 * number + len(calls)
                screen, guides = dealt(adata, size, kind, seed)
                p = tests(screen, guides, seed)
                calls.append(verdict(p.assign(held_out=False, train=size, kind=kind)).worked)
            worked = pd.concat(calls) == "yes"
            rows.append(dict(cells=size, kind=kind, groups=len(worked), yes=int(worked.sum())))
    return rows


def screens():
    "Name, screen."
    for genes in PANELS:
        for batches in BATCHES:
            n = 3 if genes < 60 else 10
            a = simulated(
                5000, genes, n, seed=genes, n_batches=batches, control_share=0.9, depth=8 * genes
            )
            key = "batch" if batches > 1 else None
            yield f"simulated, {genes} genes, {batches} batches", annotated(a, batch_key=key)
    for name in set(REAL) & set(datasets.REGISTRY):
        settings = datasets.prepare_arguments(name)
        keep = ("perturbation_key", "control", "batch_key", "size_factor_exclude")
        known = {k: v for k, v in settings.items() if k in keep}
        yield name, annotated(gpovae.datasets.load(name), **known)


def earlier(adata, table):
    "The verdict of 0.2.0: yes or no, for perturbations with enough cells."
    responses = Responses.read(adata)
    z = np.abs(np.where(responses.is_target, 0, responses.lfc / responses.se))
    m = (responses.measured & ~responses.is_target).sum(1)
    p = np.minimum(
        1, m * 2 * student.sf(np.nan_to_num(z).max(1), np.maximum(responses.cells, 2) - 1)
    )
    by_others = np.minimum(pd.Series(p, responses.perturbations), table["energy_p"]) < 0.01
    return np.where(table["z"].isna(), by_others.reindex(table.index), table["z"].abs() > 3)


def sensitivity(cells, kind, seed):
    "Share of the perturbations of a simulated screen that worked, by either rule."
    unmeasured = 40 if kind == "not measured" else 0
    a = simulated(cells * 40 * 5 // 4 + 500, 300, 40, seed=seed, unmeasured=unmeasured)
    kind = "knockdown" if unmeasured else kind
    annotated(a, perturbation_type=kind)
    graph_nodes(a)
    node_responses(a)
    table = perturbation_table(a)
    judged = table["worked"].isin(["yes", "no"])
    now = table["worked"] == "yes"
    return dict(
        perturbations=int(judged.sum()),
        yes=int(now[judged].sum()),
        yes_earlier=int(earlier(a, table)[judged].sum()),
        cells=float(table["train"][judged].median()),
    )


def bounded(rows, by):
    "Rows summed by some columns: groups, yes, the share and its Wilson interval."
    total = pd.DataFrame(rows).groupby(by, sort=False)[["groups", "yes"]].sum().reset_index()
    bounds = [
        binomtest(int(yes), int(n)).proportion_ci(method="wilson")
        for n, yes in zip(total["groups"], total["yes"], strict=True)
    ]
    share = total["yes"] / total["groups"]
    return total.assign(share=share, low=[b.low for b in bounds], high=[b.high for b in bounds])


def verdicts(options):
    "How often nothing is called something, and how often something is found."
    rows = []
    for name, adata in screens():
        for row in false_positives(adata):
            rows.append(dict(screen=name) | row)
            print(rows[-1], flush=True)
    found = [
        dict(kind=kind, cells_drawn=cells) | sensitivity(cells, kind, seed)
        for kind in ("knockdown", "not measured", "knockout")
        for cells in (20, 50, 150)
        for seed in range(options.seeds)
    ]
    sums = pd.DataFrame(found).groupby(["kind", "cells_drawn"], sort=False)
    summary = sums.agg(
        dict(perturbations="sum", yes="sum", yes_earlier="sum", cells="median")
    ).reset_index()
    by_size = bounded(rows, ["cells"]).to_dict("records")
    by_screen = bounded(rows, ["screen"]).to_dict("records")
    print(pd.DataFrame(by_size), pd.DataFrame(by_screen), summary, sep="\n")
    return dict(
        false_by_cells=by_size,
        false_by_screen=by_screen,
        false_by_kind=bounded(rows, ["kind"]).to_dict("records"),
        sensitivity=summary.to_dict("records"),
        runs=rows,
    )
