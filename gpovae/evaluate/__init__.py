"""How good a prediction and a network are: `score` for any two tables, `evaluate` for a screen."""

from .generated import score
from .scores import Scores, evaluate

__all__ = ["Scores", "evaluate", "score"]
