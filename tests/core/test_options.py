"Settings are refused where they are given, and one dataclass feeds Python, help and commands."

import inspect
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from gpovae.core.errors import GpovaeError
from gpovae.core.options import check_settings, option, read_settings, setting_text, takes


@dataclass
class Options:
    particles: int = option(5, "Draws of the latent variables.")
    rate: float = option(0.1, "Step size.")
    prior: float | None = option(None, "Weight of the prior.")
    basal: tuple[int, int] = option((200, 1), "Width and layers.")
    kind: Literal["fair", "Quality share"] = option("fair", "What is compared.")
    fast: bool = option(True, "Skip the slow part?")


@takes(Options)
def run(cells: int, **options):
    """Run.

    Parameters
    ----------
    cells : int
        How many.

    Returns
    -------
    tuple
        What was given.
    """
    return cells, Options(**options)


def test_fields_become_keyword_parameters_with_defaults_and_documentation():
    parameters = inspect.signature(run).parameters
    assert list(parameters) == ["cells", *Options.__annotations__]
    assert parameters["rate"].default == 0.1 and parameters["rate"].kind.name == "KEYWORD_ONLY"

    text = inspect.getdoc(run)
    assert "rate : float, default 0.1\n    Step size.\n" in text
    assert text.index("fast : bool") < text.index("Returns\n-------")
    assert run(3, rate=1.0) == (3, Options(rate=1.0))


def test_a_docstring_without_parameters_gets_the_section():
    @takes(Options)
    def bare(**options):
        "Run."

    assert bare.__doc__.startswith("Run.\n\nParameters\n----------\nparticles : int, default 5\n")


GOOD = [
    (np.int64(3), int),
    (np.float32(0.5), float),
    (1, float),
    (np.bool_(True), bool),
    (None, float | None),
    ([4, 1], tuple[int, int]),
    (pd.Index(["a"]), list[str]),
    ("fair", Literal["fair", "b"]),
]


@pytest.mark.parametrize("value, kind", GOOD)
def test_values_of_the_declared_type(value, kind):
    check_settings({"x": value}, {"x": kind})


BAD = [
    ("3", int, "a whole number"),
    (True, int, "a whole number"),
    (True, float, "a finite number"),
    (np.nan, float, "a finite number"),
    (np.inf, float | None, "a finite number, or None"),
    (1, bool, "True or False"),
    ((4, 1, 2), tuple[int, int], "2 of: a whole number"),
    ("abc", list[str], "a list, each a text"),
    ([1], list[str], "a list, each a text"),
    ("c", Literal["a", "b"], "one of: a, b"),
    ("x", pd.DataFrame, "a DataFrame"),
]


@pytest.mark.parametrize("value, kind, need", BAD)
def test_values_of_another_type(value, kind, need):
    with pytest.raises(GpovaeError, match=f"^x=.* is not possible: it needs {need}.$"):
        check_settings({"x": value}, {"x": kind})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds(seed):
    check_settings({"seed": 0, "undeclared": object()}, {})
    with pytest.raises(GpovaeError, match="from 0 to 4294967295"):
        check_settings({"seed": seed}, {"seed": int})


def test_there_and_back():
    values = Options(particles=7, basal=(30, 2), kind="Quality share", fast=False)
    texts = [setting_text(*item) for item in vars(values).items()]
    assert texts[2:5] == ["prior=none", "basal=30x2", "kind=Quality share"]
    assert Options(**{k: v for k, (v,) in read_settings(Options, texts).items()}) == values


def test_several_values():
    texts = ["prior=none, 0.02", "fast=False"]
    assert read_settings(Options, texts) == dict(prior=[None, 0.02], fast=[False])
    with pytest.raises(GpovaeError, match="names 2 values, and a run has one"):
        read_settings(Options, texts, several=False)


@pytest.mark.parametrize(
    "texts, message",
    [
        (["particles=0"], "a whole number from 1 up"),
        (["rate=nan"], "a number from 0 up"),
        (["prior=-1"], "a number from 0 up, or none"),
        (["fast=no"], "true or false"),
        (["basal=200"], "WIDTHxLAYERS"),
        (["kind=quality share"], "one of: fair, Quality share"),
        (["particle=5"], "There is no setting 'particle'. There is: particles, rate"),
        (["particles"], "is no setting"),
        (["=5"], "is no setting"),
        (["rate=1,1"], "The value of rate, 1.0 is named twice"),
        (["rate=1", "rate=2"], "The setting rate is named twice"),
    ],
)
def test_texts_that_are_no_settings(texts, message):
    with pytest.raises(GpovaeError, match=message):
        read_settings(Options, texts)
