"""The book as a site: lay out the sources, and have Sphinx build them without any network.

    python tools/docs.py                 build docs/_build/html (make docs)
    python tools/docs.py OUT [NB ...]    build a site of some chapters

The sources are the chapters as they are stored, the contents, pages of reference, and the index of
names and equations (tools/names.py).
"""

import configparser
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat

import book
import names

ROOT = book.ROOT
NBS = book.NBS
DOCS = book.ROOT / "docs"
PARTS = {  # folder of nbs/ -> caption in the contents
    "start": "Start",
    "core": "What everything stands on",
    "data": "Data",
    "network": "Network",
    "model": "Model",
    "train": "Training",
    "evaluate": "Evaluation",
    "plots": "Plots",
    "api": "The class GPOVAE",
    "experiments": "Experiments",
    "app": "Reports, command line",
    "studies": "Studies",
}
ABOUT = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
_settings = configparser.ConfigParser()
_settings.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _settings["DEFAULT"]


def where(path: Path) -> str:
    "Of a chapter, within the book: data/15_screen."
    return path.relative_to(NBS).with_suffix("").as_posix()


def contents(paths=None) -> dict[str, list[str]]:
    "Caption -> chapters of that part, in order."
    parts = {}
    for folder, caption in PARTS.items():
        chosen = [where(p) for p in paths or book.chapters() if book.package(p) == folder]
        if chosen:
            parts[caption] = chosen
    return parts


def title_and_claim(path: Path) -> tuple[str, str]:
    "What the first cell of a chapter says."
    first = nbformat.read(path, 4).cells[0].source
    title, _, rest = first.partition("\n")
    claim = [line.lstrip("> ") for line in rest.splitlines() if line.startswith(">")]
    return title.removeprefix("# "), " ".join(claim)


def staged(path: Path):
    "The notebook as stored; cells that say nothing to a reader of the page are marked."
    nb = nbformat.read(path, 4)
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "code" and names.exports(cell):
            cells.append(nbformat.v4.new_markdown_cell(names.anchor(cell), id=f"a{cell.id}"[:64]))
        if cell.cell_type == "code" and (book.has(cell, "hide") or is_directive_only(cell)):
            cell.metadata["tags"] = ["remove-cell"]
        cells.append(cell)
    nb.cells = cells
    return nb


def is_directive_only(cell) -> bool:
    "Does a cell say only which module it exports?"
    return all(re.match(r"#\|\s*default_exp|\s*$", line) for line in cell.source.splitlines())


def toctree(title, pages) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```"


def help_text(*names) -> str:
    "What a command prints with --help."
    from click.testing import CliRunner

    from gpovae.app.cli import main

    shell = CliRunner(env=dict(COLUMNS="100", NO_COLOR="1"))
    printed = shell.invoke(main, [*names, "--help"], prog_name="gpovae").output
    lines = [line.rstrip() for line in printed.splitlines()]
    return "```text\n" + "\n".join(lines).strip() + "\n```"


def command_line() -> str:
    "Every command with its help."
    from gpovae.app.cli import main

    page = "# The gpovae command\n\n" + help_text()
    for name in main.commands:
        page += f"\n\n## gpovae {name}\n\n{help_text(name)}"
    return page + "\n"


def reference(folder: Path, paths) -> list[str]:
    "Write a page for every module of these chapters; the names of the pages."
    rows = []
    for path in paths:
        module = book.module(path)
        if not module:
            continue
        module = f"gpovae.{module}"
        title, claim = title_and_claim(path)
        chapter = f"../{where(path)}.ipynb"
        page = (
            f"# {module}\n\n> {claim}\n\nSource and explanation: the chapter [{title}]({chapter})."
        )
        if module == "gpovae.app.cli":
            page += " Commands and options: [the gpovae command](cli.md).\n"
        else:
            page += f"\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
        (folder / f"api/{module}.md").write_text(page, encoding="utf-8")
        rows.append((module, f"| [{module}]({module}.md) | {claim} | [{title}]({chapter}) |"))
    pages = [module for module, _ in rows]
    table = "\n".join(row for _, row in rows)
    (folder / "api/index.md").write_text(
        "# Reference\n\nWhat each module exports. `gpovae` itself gives `datasets`, `prepare`,"
        " `prepare_file`, `GPOVAE`, `evaluate`, `plots` and `GpovaeError`. Where each name is"
        " defined and used: [the index](../names.md).\n\n| module | what it is for | chapter |\n"
        f"| --- | --- | --- |\n{table}\n\n{toctree_of(['cli', *pages])}",
        encoding="utf-8",
    )
    return pages


def toctree_of(pages) -> str:
    return "```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def stage(folder: Path, paths=None) -> None:
    "Write everything that Sphinx reads into `folder`."
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    shutil.copytree(NBS / "images", folder / "images")
    chapters = paths or book.chapters()
    for path in chapters:
        target = folder / f"{where(path)}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nb = staged(path)
        unlink_missing(nb, path, chapters)
        nbformat.write(nb, target)
    reference(folder, chapters)
    (folder / "api/cli.md").write_text(command_line(), encoding="utf-8")
    (folder / "names.md").write_text(names.page(chapters), encoding="utf-8")
    about = [name for name, file in ABOUT.items() if (ROOT / file).exists()]
    for name in about:
        text = (ROOT / ABOUT[name]).read_text(encoding="utf-8")
        text = _only_links_to(folder, text.replace("](nbs/", "]("))
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    write_index(folder, chapters, about)


def unlink_missing(nb, path: Path, chapters) -> None:
    "Links to what is not in this site become text."
    pages = {p.resolve() for p in chapters} | {p for p in (NBS / "images").iterdir()}

    def keep(match):
        target = Path(os.path.normpath(path.parent / match[2].partition("#")[0]))
        return match[0] if target in pages else match[1]

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)]+)\)", keep, cell.source)


def _only_links_to(folder: Path, text: str) -> str:
    "Links to what is not in a folder become text."

    def keep(match):
        return match[0] if (folder / match[2].partition("#")[0]).exists() else match[1]

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)]+)\)", keep, text)


def write_index(folder: Path, chapters, about) -> None:
    "The first page: that of the book, with the contents of the site."
    index = staged(NBS / "index.ipynb")
    for cell in index.cells:
        for name in about:
            cell.source = cell.source.replace(f"(../{ABOUT[name]})", f"({name}.md)")

    for cell in index.cells:
        if cell.cell_type == "markdown":
            cell.source = _only_links_to(folder, cell.source)
    trees = [toctree(caption, pages) for caption, pages in contents(chapters).items()]
    trees.append(toctree("Reference", ["names", "api/index", *about]))
    index.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(trees), id="contents"))
    nbformat.write(index, folder / "index.ipynb")


def llms(paths=None) -> str:
    """The site for assistants, in the layout of https://llmstxt.org: name, summary, links.

    nbdev.config.pkg_llms gives an empty text for this project, and knows no chapters.
    """
    lines = [f"# {SETTINGS['lib_name']}", "", f"> {SETTINGS['description']}.", "", _LLMS_NOTES]
    for caption, pages in contents(paths).items():
        lines += ["", f"## {caption}", ""]
        for page in pages:
            title, claim = title_and_claim(NBS / f"{page}.ipynb")
            lines.append(f"- [{title}]({page}.html): {claim}")
    lines += ["", "## Reference", ""]
    lines += [f"- [{title}]({page}): {what}" for title, page, what in _LLMS_REFERENCE]
    return "\n".join(lines) + "\n"


_LLMS_NOTES = (
    "Version {version}. `pip install gpovae`; `gpovae mcp` (extra `mcp`) answers questions about"
    " files, runs and settings on the machine itself."
).format(version=SETTINGS["version"])
_LLMS_REFERENCE = (
    ("Modules", "api/index.html", "what each module exports"),
    ("The gpovae command", "api/cli.html", "every command with its options and examples"),
    ("Index of names", "names.html", "where each name and equation is defined and used"),
)


def build(out: Path, paths=None) -> int:
    "Stage and build; Sphinx's exit status. A warning counts as an error."
    from sphinx.cmd.build import main

    source = out.parent / "source"
    stage(source, paths)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(DOCS)]
    status = main([*options, "-d", str(out.parent / "doctrees"), str(source), str(out)])
    (out / "llms.txt").write_text(llms(paths), encoding="utf-8")
    return status


if __name__ == "__main__":
    out, *chosen = sys.argv[1:] or [DOCS / "_build/html"]
    status = build(Path(out).resolve(), [Path(n).resolve() for n in chosen] or None)
    print(f"{out}/index.html")
    sys.exit(status)
