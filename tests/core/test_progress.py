"""Long work is visible: bars in a terminal, a few plain lines in a log, nothing with --quiet."""

import io
import re

import pytest

from gpovae.app.cli import main
from gpovae.core.progress import Bar


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
