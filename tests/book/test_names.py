"""The index: a stranger finds any name and any formula."""

import nbformat
import pytest

import book
import names


def test_every_public_name_is_in_the_index():
    found = names.definitions()
    for path in book.chapters():
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and names.exports(cell):
                for name in names.defined(cell.source):
                    assert names.Place(path, cell.id) in found[name]
    assert {"GPOVAE", "prepare", "fit_network", "Responses", "objective"} <= set(found)


def test_a_name_leads_to_where_it_is_used():
    users = names.uses(names.definitions())
    assert book.find("api") in {place.path for place in users["fit"]}
    assert book.find("train.build") in {place.path for place in users["fit_network"]}


def test_every_numbered_equation_has_a_cell():
    places = names.equations()
    assert len(places) > 20
    assert not [number for number, cells in places.items() if not cells]


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    "A chapter with an equation, in a book of its own."
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/10_toy.ipynb"
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("$$y = x \\tag{data.toy.1}$$ and $$z = x \\tag{data.toy.2}$$"),
        v4.new_code_cell("#| export\ndef double(x):\n    # equation data.toy.1\n    return 2 * x"),
        v4.new_code_cell("double(2)"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(book, "NBS", tmp_path)
    return path


def test_an_equation_without_a_cell_is_noticed(chapter):
    places = names.equations([chapter])
    assert len(places["data.toy.1"]) == 1 and places["data.toy.2"] == []


def test_page(chapter):
    page = names.page([chapter])
    cell = nbformat.read(chapter, 4).cells[1]
    assert f'| `double` | <a href="data/10_toy.html#cell-{cell.id}">data.toy</a> |' in page
    assert names.anchor(cell) == f'<a id="cell-{cell.id}"></a>'
