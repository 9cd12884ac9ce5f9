"""What a user meets is documented: numpydoc, every parameter, what is returned, what is raised."""

import dataclasses
import importlib
import inspect

import pytest
from numpydoc.validate import validate

from gpovae.api import GPOVAE

import book

# GL: layout; PR: parameters; RT: returns; SS: summary. Left out: what numpydoc asks of a library
# of its own kind (a section See Also or Examples everywhere, an extended summary).
WANTED = {"GL08", "PR01", "PR02", "PR07", "RT01", "RT03", "SS01", "SS02", "SS03"}


def exported_names():
    "Functions and classes in `__all__` of every chapter's module, as dotted names."
    for path in book.chapters():
        module = book.module(path)
        if module is None:
            continue
        imported = importlib.import_module(f"gpovae.{module}")
        for name in imported.__all__:
            found = getattr(imported, name)
            if inspect.isfunction(found) or inspect.isclass(found):
                yield f"gpovae.{module}.{name}"


def faults(name):
    "What is wrong with the docstring of a name, of the kinds that are wanted."
    wanted = WANTED - {"PR01"} if has_fields(name) else WANTED
    return [f"{code} {text}" for code, text in validate(name)["errors"] if code in wanted]


def has_fields(name):
    "Is it a dataclass or a named tuple, whose fields are explained by the comments beside them?"
    module, _, attribute = name.rpartition(".")
    if not attribute or module.endswith(("GPOVAE", "GpovaeError")):
        return False
    found = getattr(importlib.import_module(module), attribute, None)
    return dataclasses.is_dataclass(found) or hasattr(found, "_fields")


@pytest.mark.parametrize("name", sorted(exported_names()))
def test_exported_names_are_documented(name):
    assert not faults(name)


METHODS = [n for n, f in inspect.getmembers(GPOVAE) if callable(f) and not n.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_class_are_documented(name):
    assert not faults(f"gpovae.api.GPOVAE.{name}")


def test_faults_are_found(monkeypatch):
    "A parameter without a word, and one that does not exist."

    def f(x):
        """Do something.

        Parameters
        ----------
        y : int
            Nothing.
        """

    monkeypatch.setattr("gpovae.core.errors.GpovaeError.f", f, raising=False)
    codes = {fault.split()[0] for fault in faults("gpovae.core.errors.GpovaeError.f")}
    assert {"PR01", "PR02"} <= codes
