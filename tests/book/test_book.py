"""Every chapter runs in a fresh kernel and prints the numbers stored in it (tools/book.py)."""

from pathlib import Path

import nbformat.v4 as v4
import pytest

import book
import forked


@pytest.mark.parametrize("path", book.chapters(), ids=book.name)
def test_chapter(path):
    different = book.differences(*book.run(path))
    remedy = f"If the new numbers are right: python tools/book.py execute {path}"
    assert not different, "\n\n".join([*different, remedy])


def test_chapters_start_with_everything_imported():
    "Else each would import again what runs it, in 2 s: what the server imported is frozen."
    cell = v4.new_code_cell("import forked, gc\nany(o is forked for o in gc.get_objects())")
    done = forked.execute(v4.new_notebook(cells=[cell]), Path.cwd())
    assert done.cells[0].outputs[0]["data"]["text/plain"] == "False"


def test_comparison_can_fail(monkeypatch):
    "Numbers count, wherever they stand; durations, addresses and versions do not."

    monkeypatch.setattr(book, "real_data", lambda: True)

    def notebook(text, source="f()"):
        return v4.new_notebook(
            cells=[
                v4.new_code_cell(
                    source, outputs=[v4.new_output("stream", name="stdout", text=text)]
                )
            ]
        )

    stored = notebook("r = 0.52 in 3.1 s <f at 0x7f01>, 1,200 cells, torch 2.13.0+cpu")
    assert book.numbers(stored.cells[0]) == [0.52, 1, 200]
    assert not book.differences(
        stored, notebook("r = 0.525 in 9 s <f at 0x99>, 1,200 cells, 2.14.1")
    )
    slower = notebook("predicting: 3 of 5 cells, 00:02 gone, 00:01 left\nr = 0.52, 1,200 cells")
    assert not book.differences(stored, slower)
    assert book.differences(
        stored, notebook("r = 0.60 in 3.1 s, 1,200 cells")
    ) and book.differences(stored, notebook("r = 0.52"))
    assert not book.differences(notebook("1 2", "#| timing\nf()"), notebook("3 4"))
    assert not book.differences(
        notebook("1 2", "#| real data\nf()"), notebook("")
    ) and book.differences(notebook("1 2", "#| real data\nf()"), notebook("1 3"))
