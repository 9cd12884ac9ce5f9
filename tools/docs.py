"""The book as a site: lay out the sources (chapters as stored, contents, API pages), and have Sphinx build them without any network.

python tools/docs.py                 build docs/_build/html (make docs)
python tools/docs.py OUT [NB ...]    build a site of some chapters
"""

import configparser
import re
import shutil
import sys
from pathlib import Path

import book
import nbformat

ROOT = book.ROOT
NBS = book.NBS
DOCS = book.ROOT / "docs"
PARTS = {
    "0": "Start",
    "1": "Data",
    "2": "Model",
    "3": "Network",
    "4": "Evaluation",
    "5": "Plots",
    "6": "API, reports, command line",
    "9": "Measured, not exported",
}
ABOUT = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
_settings = configparser.ConfigParser()
_settings.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _settings["DEFAULT"]


def contents(paths=None) -> dict[str, list[str]]:
    "Part -> chapters by the first digit of their number, in order."
    chapters = [p for p in paths or book.chapters() if p.stem[0] in PARTS]
    return {
        title: names
        for digit, title in PARTS.items()
        if (names := [p.stem for p in chapters if p.stem[0] == digit])
    }


def chapter(path):
    "Title, claim, and the module that the chapter exports, if any."
    cells = nbformat.read(path, 4).cells
    title, claim = re.match(r"# (.+?)\s*\n+> (.+?)(?:\n|$)", cells[0].source).groups()
    module = next(
        (
            m[1].removesuffix(".__init__")
            for c in cells
            if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M))
        ),
        None,
    )
    return title, claim, module and f"gpovae.{module}"


def staged(path):
    """The notebook as stored, with the cells that say nothing to a reader of the page marked as left
    out.
    """
    nb = nbformat.read(path, 4)
    for c in nb.cells:
        if c.cell_type == "code" and (
            book.has(c, "hide")
            or all(re.match(r"#\|\s*default_exp|\s*$", l) for l in c.source.splitlines())
        ):
            c.metadata["tags"] = ["remove-cell"]
    return nb


def toctree(title, names):
    return f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) + "\n```"


def command_line() -> str:
    "Every command with its help."
    import click

    from gpovae.app.cli import main

    def text(command, *names):
        return f"```text\n{command.get_help(click.Context(command, info_name=' '.join(names), terminal_width=100, max_content_width=100))}\n```"

    return (
        "# The gpovae command\n\n"
        + text(main, "gpovae")
        + "".join(
            f"\n\n## gpovae {name}\n\n{text(c, 'gpovae', name)}"
            for name, c in main.commands.items()
        )
        + "\n"
    )


def stage(folder: Path, paths=None):
    "Write everything that Sphinx reads into `folder`."
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    shutil.copytree(NBS / "images", folder / "images")
    paths = paths or book.chapters()
    for p in paths:
        nbformat.write(staged(p), folder / p.name)
    modules = {m: (t, c, p) for p in paths if p.stem[0] in PARTS for t, c, m in [chapter(p)] if m}
    for m, (title, claim, p) in modules.items():
        body = f"```{{eval-rst}}\n.. automodule:: {m}\n```\n"
        (folder / f"api/{m}.md").write_text(
            f"# {m}\n\n> {claim}\n\nSource and explanation: the chapter [{title}](../{p.name})."
            + (
                " Commands and options: [the gpovae command](cli.md).\n"
                if m == "gpovae.app.cli"
                else f"\n\n{body}"
            ),
            encoding="utf-8",
        )
    (folder / "api/cli.md").write_text(command_line(), encoding="utf-8")
    rows = "\n".join(
        f"| [{m}]({m}.md) | {c} | [{t}](../{p.name}) |" for m, (t, c, p) in modules.items()
    )
    (folder / "api/index.md").write_text(
        "# Reference\n\nWhat each module exports. `gpovae` itself gives `datasets`, `prepare`,"
        " `prepare_file`, `GPOVAE`, `evaluate`, `plots` and `GpovaeError`.\n\n| module | what it"
        f" is for | chapter |\n| --- | --- | --- |\n{rows}\n\n"
        + "```{toctree}\n:hidden:\n\ncli\n"
        + "\n".join(modules)
        + "\n```\n",
        encoding="utf-8",
    )
    about = {k: f for k, f in ABOUT.items() if (ROOT / f).exists()}
    for k, f in about.items():
        shutil.copy(ROOT / f, folder / f"{k}.md")
    index = staged(NBS / "index.ipynb")
    for k, f in about.items():
        index.cells[-1].source = index.cells[-1].source.replace(f"(../{f})", f"({k}.md)")
    trees = [toctree(t, n) for t, n in contents(paths).items()] + [
        toctree("Reference", ["api/index", *about])
    ]
    # rows of chapters that are not in this site
    index.cells[-1].source = re.sub(
        r"\[([^\]]+)\]\((?!\w+:)[^)]*\)",
        lambda m: m[0] if (folder / m[0].split("(")[1][:-1]).exists() else m[1],
        index.cells[-1].source,
    )
    index.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(trees), id="contents"))
    nbformat.write(index, folder / "index.ipynb")


def build(out: Path, paths=None) -> int:
    "Stage and build; Sphinx's exit status. A warning counts as an error."
    from sphinx.cmd.build import main

    source = out.parent / "source"
    stage(source, paths)
    # links lead to chapters that are not there
    some = (
        []
        if paths is None
        else ["-D", "suppress_warnings=myst.header,mystnb.unknown_mime_type,myst.xref_missing"]
    )
    return main(
        [
            *some,
            "-q",
            "-W",
            "--keep-going",
            "-b",
            "html",
            "-c",
            str(DOCS),
            "-d",
            str(out.parent / "doctrees"),
            str(source),
            str(out),
        ]
    )


if __name__ == "__main__":
    out, *names = sys.argv[1:] or [DOCS / "_build/html"]
    status = build(Path(out).resolve(), [Path(n).resolve() for n in names] or None)
    print(f"{out}/index.html")
    sys.exit(status)
