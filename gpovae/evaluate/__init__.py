"""How good a prediction and a network are: `score` for any two tables, `evaluate` for a screen."""

from .scores import Scores, evaluate, score

__all__ = ["Scores", "evaluate", "score"]
