"""Long work is visible: bars in a terminal, a few plain lines in a log, nothing with --quiet."""

import io
import re

import numpy as np
import pytest

from gpovae.app.cli import main
from gpovae.core.progress import Bar, compiling


class Stream(io.StringIO):
    def __init__(self, live):
        super().__init__()
        self.live = live

    def isatty(self):
        return self.live


def shown(monkeypatch, live, seconds=3000, steps=3000, **settings):
    "What work of so many seconds writes, by a clock of its own."
    now = [0.0]
    file = Stream(live)
    monkeypatch.setattr("gpovae.core.progress.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with Bar(total=steps, desc="work", unit="steps", file=file, **settings) as bar:
        for k in range(steps):
            now[0] += seconds / steps
            bar.set_postfix_str(f"loss {k}")
            bar.update()
    return file.getvalue()


def test_a_log_gets_a_few_plain_lines(monkeypatch):
    text = shown(monkeypatch, False)
    lines = text.splitlines()
    assert (
        "\r" not in text
        and "\x1b" not in text
        and 20 < len(lines) < 60
        and all(
            re.match(r"work: \d+ of 3000 steps, [\d:]+ gone, [\d:?]+ left, loss \d+$", line)
            for line in lines
        )
    ), lines
    assert lines[-1].startswith("work: 3000 of 3000 steps")
    assert len(shown(monkeypatch, False, 86400).splitlines()) < 120  # a day


def test_a_terminal_gets_a_bar(monkeypatch):
    text = shown(monkeypatch, True)
    assert text.count("\r") > 100 and text.count("\n") == 1 and "3000/3000" in text


@pytest.mark.parametrize("live", [True, False])
def test_short_or_silenced_work_says_nothing(live, monkeypatch):
    assert shown(monkeypatch, live, 1.9, 50) == "" == shown(monkeypatch, live, progress=False)


def test_every_command_can_be_quiet():
    for name, command in main.commands.items():
        assert "--quiet" in [o for p in command.params for o in p.opts], name


def test_what_numba_compiles_is_no_forecast():
    "One call of a second or more, most of it compiling, is not forecast for the other 999."
    import numba

    @numba.njit
    def total(x):
        added = 0.0
        for value in x:
            added += value * value
        return added

    file = io.StringIO()
    with Bar(total=1000, file=file, delay=0) as bar:
        total(np.ones(3))
        elapsed = bar.format_dict["elapsed"]
        bar.update()
        shown = bar.format_dict
    assert elapsed > 0.05 and 1 / shown["rate"] < 0.5 * elapsed
    assert "compiling" not in str(bar)


def test_a_bar_says_that_it_compiles():
    file = io.StringIO()
    with Bar(total=10, file=file, delay=0) as bar, compiling():
        with compiling():
            assert "compiling, once" in str(bar)
        assert "compiling, once" in str(bar) and "left" not in str(bar)
    assert "compiling" not in str(bar)
