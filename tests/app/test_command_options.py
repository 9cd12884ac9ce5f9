"""One source of options: the dataclass, the functions and the commands agree, and a difference in
any of them is found.
"""

import inspect
from dataclasses import dataclass, fields

import click
import pytest
from click.testing import CliRunner

from gpovae import prepare, prepare_file
from gpovae.app.cli import main
from gpovae.app.shell import options_of
from gpovae.core.errors import GpovaeError
from gpovae.core.options import option, takes
from gpovae.data.options import PrepareOptions
from gpovae.train.options import TrainOptions


def differences_of_function(options, function):
    "Fields of a dataclass that a function does not have, with another default, or undocumented."
    taken = inspect.signature(function).parameters
    for f in fields(options):
        sentence = f.metadata["help"].split("; None: ")[0]
        if f.name not in taken:
            yield f.name, "no parameter"
        elif taken[f.name].default != f.default:
            yield f.name, "another default"
        elif f"\n{f.name} : " not in function.__doc__ or sentence not in function.__doc__:
            yield f.name, "not documented"


def differences_of_command(options, command):
    "Likewise, options of a command; what an option gives when it is left out."
    with command.context_class(command) as context:
        of = {p.name: p for p in command.params if isinstance(p, click.Option)}
        for f in fields(options):
            sentence = f.metadata["help"].split("; None: ")[0].rstrip(".")
            words = " ".join(sentence.split())
            if f.name not in of:
                yield f.name, "no option"
                continue
            value, _ = of[f.name].consume_value(context, {})
            value = of[f.name].process_value(context, value)
            if value != f.default:
                yield f.name, f"{value} is another default"
            elif words[1:] not in " ".join(of[f.name].help.split()):
                yield f.name, "not in the help"


@pytest.mark.parametrize("function", [prepare, prepare_file])
def test_functions_have_the_settings_of_a_preparation(function):
    assert not list(differences_of_function(PrepareOptions, function))


@pytest.mark.parametrize("name, options", [("prepare", PrepareOptions), ("train", TrainOptions)])
def test_commands_have_the_same_options(name, options):
    assert not list(differences_of_command(options, main.commands[name]))


@dataclass
class Brew:
    minutes: int = option(3, "How long the tea stays in the water.")
    lid: bool = option(True, "Cover it.")


@dataclass
class Other:
    minutes: int = option(4, "How long the tea stays in the water.")
    lid: bool = option(True, "Take a lid.")
    sugar: bool = option(False, "Sweeten it.")


def test_a_difference_is_found():
    @takes(Brew)
    def make_tea(**options):
        "Make tea."

    command = click.command()(options_of(Brew)(lambda **options: None))
    assert not list(differences_of_function(Brew, make_tea))
    assert not list(differences_of_command(Brew, command))
    for found in (
        list(differences_of_function(Other, make_tea)),
        list(differences_of_command(Other, command)),
    ):
        assert [name for name, _ in found] == ["minutes", "lid", "sugar"]


def test_a_default_that_is_written_twice_must_be_the_same():
    with pytest.raises(TypeError, match="make_tea and Brew differ in a default"):

        @takes(Brew)
        def make_tea(minutes=5, **options):
            "Make tea."


@pytest.mark.parametrize("function", [prepare, lambda a, **k: prepare_file("raw", "out", **k)])
def test_unknown_settings_are_named(function, screen):
    with pytest.raises(GpovaeError, match="no setting 'n_match'. It has: perturbation_key, "):
        function(screen.copy(), n_match=3)


def test_options_of_0_1_0_are_there():
    "All of them: scripts go on to work."
    listed = {
        "prepare": "perturbation-key control layer batch-key guide-key gene-key cells"
        " size-factor-exclude min-cells drop-unmeasured drop-unlabelled n-mads no-doublets strong"
        " sheet held-out max-extended n-matches force seed quiet",
        "train": "out preset max-epochs max-time accelerator precision compile no-compile devices"
        " strategy prior prior-strength force on-disk in-memory set seed quiet",
        "evaluate": "other known vae-baselines quick seed quiet",
        "report": "list name parameter out quiet",
        "compare": "out quiet",
        "sweep": "out seeds presets set max-epochs workers part dry-run quiet",
        "score": "perturbation-key control out seed quiet",
        "network": "out format min-probability evidence quiet",
        "demo": "dataset out max-epochs seed quiet",
        "datasets": "quiet",
    }
    assert set(listed) <= set(main.commands)
    for name, words in listed.items():
        params = [p for p in main.commands[name].params if isinstance(p, click.Option)]
        options = {o for p in params for o in (*p.opts, *p.secondary_opts)}
        assert {f"--{word}" for word in words.split()} <= options, name


@pytest.mark.parametrize(
    "typed, given",
    [
        ("", dict(minutes=3, lid=True)),
        ("--minutes 5", dict(minutes=5, lid=True)),
        ("--no-lid", dict(minutes=3, lid=False)),
    ],
)
def test_what_is_typed_arrives(typed, given):
    got = {}
    command = click.command()(options_of(Brew)(lambda **options: got.update(options)))
    assert CliRunner().invoke(command, typed.split()).exit_code == 0
    assert got == given
