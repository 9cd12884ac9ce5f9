"""Chapters in JupyterLab, as a reader has them: opened and run from the menu, without an error."""

import shutil

import nbformat
import pytest

import book
from lab import jupyterlab, opened, outside, run

pytestmark = pytest.mark.xdist_group("runs")
CHAPTERS = [book.find("start/quickstart"), book.find("data.steps")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A server with a copy of some chapters, and a notebook that fails."
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as started:
        for path in CHAPTERS:
            shutil.copy(path, folder / "nbs")
        broken = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(s) for s in ("1 + 1", "undefined_name", "2 + 2")],
            metadata=dict(
                kernelspec=dict(display_name="python3", language="python", name="python3")
            ),
        )
        nbformat.write(broken, folder / "nbs/broken.ipynb")
        yield started


def run_all(lab, name):
    "The code cells of a notebook after Run > Run All Cells; a picture stays in the folder."
    page, requests = opened(lab, name)
    cells = run(page)
    page.screenshot(path=lab.folder / f"{name}.png")
    page.close()
    assert not outside(lab, requests)
    return cells


@pytest.mark.parametrize("path", CHAPTERS, ids=book.name)
def test_chapter_in_jupyterlab(lab, path):
    cells = run_all(lab, path.stem)
    assert [c[0] for c in cells] == [
        c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code" and c.source.strip()
    ]
    assert not [c for c in cells if c[2]]
    assert [c[1] for c in cells] == list(range(1, len(cells) + 1)), "every cell ran once, in order"


def test_an_error_would_be_seen(lab):
    cells = run_all(lab, "broken")
    # the last cell may have been on its way to the kernel, and run
    assert [c[2] for c in cells] == [[], ["NameError: name 'undefined_name' is not defined"], []]
