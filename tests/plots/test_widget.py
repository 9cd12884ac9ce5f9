"""The network as a widget in a real JupyterLab: what is clicked is known to Python, and what Python
says is drawn.

Skipped where there is no Chromium or no JupyterLab."""

import json

import nbformat
import pytest

from bench_explorer import READY, example
from bench_explorer import until as until_in_frame
from lab import START, jupyterlab, opened, outside, run, until

pytestmark = pytest.mark.xdist_group("runs")
HOSTILE = "</script><img src=x onerror=alert(2)>"
MAKE = """import pandas as pd
from gpovae.plots.widget import network_widget

edges = pd.read_csv("edges.csv")
widget = network_widget(edges, height=560)
heard = []
widget.observe(lambda change: heard.append(change["new"]), "selected")
widget"""
# outputs of a cell as text
SAID = """(i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i)
  .outputs.toJSON().map(o => o.text || '').join(''))"""

RUN_CELL = """async i => {
  window.jupyterapp.shell.currentWidget.content.activeCellIndex = i;
  await window.jupyterapp.commands.execute('notebook:run-cell');
}"""

THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"


def notebook(*cells):
    kernel = dict(display_name="python3", language="python", name="python3")
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    return nbformat.v4.new_notebook(cells=made, metadata=dict(kernelspec=kernel))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widget")
    with jupyterlab(folder) as started:
        edges, _ = example(24, 50, 6, seed=2)
        edges.loc[edges.source == "GENE0", "source"] = HOSTILE
        edges.loc[edges.target == "GENE0", "target"] = HOSTILE
        edges.to_csv(folder / "nbs/edges.csv", index=False)
        cells = (MAKE, "print(widget.selected)", "widget.selected = [edges.target[3]]")
        nbformat.write(notebook(*cells), folder / "nbs/widget.ipynb")
        yield started, edges


class Notebook:
    "The open notebook, the frame of its widget, and what Python says."

    def __init__(self, lab):
        self.lab = lab
        self.page, self.requests = opened(lab, "widget")
        self.dialogs = []
        self.page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))

    def frame(self):
        until(self.page, "!!document.querySelector('.jp-OutputArea iframe')", START)
        handle = self.page.locator(".jp-OutputArea iframe").first.element_handle()
        frame = handle.content_frame()
        until_in_frame(frame, READY, START)
        return frame

    def click(self, frame, name, **options):
        "The mouse on a gene of the drawing."
        place = f"(p => [p.x, p.y])(gpovaeNetwork.node({json.dumps(name)}).renderedPosition())"
        x, y = frame.evaluate(place)
        frame.locator("#stage").click(position=dict(x=x, y=y), **options)

    def run_cell(self, number):
        "Run one cell, as its command does; what it printed."
        self.page.evaluate(RUN_CELL, number)
        return self.page.evaluate(f"{SAID}({number})")

    def python(self, selected):
        "Ask Python until it says so: the message is under way for a moment."
        expected = f"{selected}\n"
        for _ in range(40):
            if (answer := self.run_cell(1)) == expected:
                return
        raise AssertionError(f"Python says {answer}, not {expected}")


def test_what_is_clicked_is_known_to_python(lab):
    started, edges = lab
    book = Notebook(started)
    cells = run(book.page)
    assert not [c for c in cells if c[2]], cells
    frame = book.frame()
    # Python's selection is drawn
    wanted = json.dumps([edges.target[3]])
    chosen = "gpovaeNetwork.state.selected.map(g => gpovaeNetwork.genes[g].name)"
    until_in_frame(frame, f"JSON.stringify({chosen}) === JSON.stringify({wanted})", START)
    assert frame.locator("#panel h2").inner_text() == edges.target[3]

    # a click, one more with Shift, the first again with Shift, and the empty drawing
    book.click(frame, HOSTILE)
    book.python([HOSTILE])
    book.click(frame, "GENE1", modifiers=["Shift"])
    book.python([HOSTILE, "GENE1"])
    assert "Selected (2)" in frame.locator("#panel").inner_text()
    book.page.screenshot(path=started.folder / "selected.png")
    book.click(frame, HOSTILE, modifiers=["Shift"])
    book.python(["GENE1"])

    # from the keyboard
    frame.fill("#gene", "gene2")
    frame.press("#gene", "Shift+Enter")
    book.python(["GENE1", "GENE2"])
    frame.press("#stage", "Escape")
    book.python([])

    # the frame is as dark as JupyterLab
    paper = "getComputedStyle(document.body).backgroundColor"
    assert frame.evaluate(paper) == "rgb(255, 255, 255)"
    book.page.evaluate(THEME, "JupyterLab Dark")
    until_in_frame(frame, f"{paper} === 'rgb(23, 25, 28)'", START)
    book.page.screenshot(path=started.folder / "dark.png")
    book.page.evaluate(THEME, "JupyterLab Light")
    until_in_frame(frame, f"{paper} === 'rgb(255, 255, 255)'", START)
    assert not outside(started, book.requests) and not book.dialogs
    book.page.close()
