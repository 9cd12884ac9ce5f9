"""Simulated screens with guides, taken through the steps that a verdict needs."""

import warnings

import numpy as np

from gpovae.data.nodes import graph_nodes
from gpovae.data.quality import quality_labels
from gpovae.data.register import register
from gpovae.data.responses import node_responses
from gpovae.data.simulate import simulated
from gpovae.data.split import split_cells

# steps of a preparation after `register`, as the pipeline calls them
STEPS = (
    "quality_labels",
    "stable_size_factor",
    "split_cells",
    "_drop_unusable",
    "graph_nodes",
    "match_controls",
    "node_responses",
    "judge_perturbations",
)


def raw(seed=0, **kw):
    a = simulated(**(dict(n_cells=1200, n_genes=120, n_perturbations=14, seed=seed) | kw))
    a.obs["guide"] = a.obs.gene.astype(str) + np.random.default_rng(seed).choice(
        ["_1", "_2"], a.n_obs
    )
    return a


def annotated(a, **kw):
    "All steps that the table needs."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register(a, "gene", "non-targeting", **kw)
    quality_labels(a, doublets=False)
    split_cells(a)
    graph_nodes(a)
    node_responses(a)
    return a
