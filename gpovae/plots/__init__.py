"""What tables and networks look like: every figure takes `ax` and returns it."""

from .edges import matrix, network, precision_recall, reliability
from .predictions import effects, predicted_observed, training
from .networks import direct_total, hierarchy, path_diagram
from .comparisons import differences, ranking, score_intervals, scores, strata
from .screen import cells_per_perturbation, effective_matches, knockdown, perturbations, quality
from .screen import QUALITY_METRICS  # noqa: F401

from .style import LINES, MANY  # noqa: F401

__all__ = [
    "cells_per_perturbation",
    "differences",
    "direct_total",
    "effective_matches",
    "effects",
    "hierarchy",
    "knockdown",
    "matrix",
    "network",
    "path_diagram",
    "perturbations",
    "precision_recall",
    "predicted_observed",
    "quality",
    "ranking",
    "reliability",
    "score_intervals",
    "scores",
    "strata",
    "training",
]
