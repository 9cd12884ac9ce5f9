"""The index of the book: every public name and every numbered equation, linked to its cell.

    python tools/names.py NAME [NAME ...]    where is it defined, where is it used?

A name is public where a chapter exports it without a leading underscore. An equation is numbered
by `\\tag{module.k}` in prose; the cell that computes it says `# equation module.k`.
"""

import ast
import html
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import nbformat

import book


class Place(NamedTuple):
    "A cell of a chapter."

    path: Path
    cell: str

    def link(self) -> str:
        "To the cell, on the page of names of the site."
        page = self.path.relative_to(book.NBS).with_suffix(".html").as_posix()
        title = html.escape(book.name(self.path))
        return f'<a href="{page}#cell-{self.cell}">{title}</a>'


def exports(cell) -> bool:
    return book.has(cell, "export", "exporti")


def anchor(cell) -> str:
    "What a link to a cell leads to."
    return f'<a id="cell-{cell.id}"></a>'


def defined(source: str) -> list[str]:
    "Public names that the top level of a cell defines."
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            targets = [n for t in node.targets for n in ast.walk(t)]
            names += [n.id for n in targets if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [n for n in names if not n.startswith("_")]


def used(source: str) -> set[str]:
    "Names and attributes that a cell reads."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def code_cells(paths):
    "Chapter and cell, of all cells that are plain Python."
    for path in paths:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "code" or cell.source.lstrip().startswith(("%", "!")):
                continue
            try:
                ast.parse(cell.source)
            except SyntaxError:
                continue
            yield path, cell


def definitions(paths=None) -> dict[str, list[Place]]:
    "Public name -> the cells that define it."
    places = defaultdict(list)
    for path, cell in code_cells(paths or book.chapters()):
        if exports(cell):
            for name in defined(cell.source):
                places[name].append(Place(path, cell.id))
    return dict(sorted(places.items(), key=lambda item: item[0].lower()))


def uses(names, paths=None) -> dict[str, list[Place]]:
    "Public name -> the first cell of every other chapter that uses it."
    places = defaultdict(dict)
    for path, cell in code_cells(paths or book.chapters()):
        if cell.source.startswith("#|") and re.match(r"#\|\s*default_exp", cell.source):
            continue
        for name in used(cell.source) & set(names):
            places[name].setdefault(path, Place(path, cell.id))
    return {name: list(found.values()) for name, found in places.items()}


def equations(paths=None) -> dict[str, list[Place]]:
    "Number of an equation -> the cells that compute it; empty where none says so."
    paths = paths or book.chapters()
    places = {}
    for path in paths:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                for tag in re.findall(r"\\tag\{([\w.]+)\}", cell.source):
                    places[tag] = []
    for path, cell in code_cells(paths):
        for tag in re.findall(r"\bequations? ([\w., ]+)", cell.source):
            for number in re.findall(r"[a-z_]+(?:\.[a-z_]+)*\.\d+", tag):
                if number in places:
                    places[number].append(Place(path, cell.id))
    return places


def page(paths=None) -> str:
    "The page of the site, in Markdown."
    found = definitions(paths)
    users = uses(found, paths)
    lines = ["# Index", "", "Every public name: where it is defined, where it is used.", ""]
    lines += ["| name | defined in | used in |", "| --- | --- | --- |"]
    for name, places in found.items():
        own = {place.path for place in places}
        others = [p.link() for p in users.get(name, []) if p.path not in own]
        lines.append(f"| `{name}` | {', '.join(p.link() for p in places)} | {', '.join(others)} |")
    lines += ["", "## Equations", "", "| equation | computed in |", "| --- | --- |"]
    for number, places in sorted(equations(paths).items()):
        lines.append(f"| {number} | {', '.join(p.link() for p in places)} |")
    return "\n".join(lines) + "\n"


def main(*names):
    found = definitions()
    users = uses(found)
    for name in names:
        for place in found.get(name, []):
            print(f"{name}: defined in {place.path.relative_to(book.ROOT)}, cell {place.cell}")
        for place in users.get(name, []):
            print(f"{name}: used in {place.path.relative_to(book.ROOT)}, cell {place.cell}")
        if name not in found:
            print(f"{name}: no chapter exports it")


if __name__ == "__main__":
    main(*sys.argv[1:])
