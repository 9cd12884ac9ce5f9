"""The book as a site: every chapter is in its contents; where Sphinx is installed, a site of some chapters is built and looked at."""

import json
import re
from html.parser import HTMLParser

import book
import pytest
from bench_explorer import browser, chromium

import docs

pytestmark = pytest.mark.xdist_group("docs")
SOME = ["index", "06_troubleshooting", "10_data.screen", "20_model.likelihood"]


def test_every_chapter_is_in_the_contents():
    listed = [n for names in docs.contents().values() for n in names]
    assert listed == [p.stem for p in book.chapters() if p.stem != "index"], (
        "a chapter has no part: see PARTS in tools/docs.py"
    )


def test_what_sphinx_reads(tmp_path):
    """Chapters go in with the outputs that are stored.

    The contents, the reference and every command are written.
    """
    docs.stage(tmp_path / "source", [book.NBS / f"{n}.ipynb" for n in [*SOME, "62_cli"]])
    index = (tmp_path / "source/index.ipynb").read_text()
    assert (
        index.count(":caption:") == 5
        and "10_data.screen" in index
        and "(01_quickstart.ipynb)" not in index
    )
    for name in SOME[1:]:
        stored, staged = (
            json.loads((folder / f"{name}.ipynb").read_text())["cells"]
            for folder in (book.NBS, tmp_path / "source")
        )
        assert [(c["source"], c.get("outputs")) for c in stored] == [
            (c["source"], c.get("outputs")) for c in staged
        ]
    assert (
        "automodule:: gpovae.data.screen"
        in (tmp_path / "source/api/gpovae.data.screen.md").read_text()
    )
    help = (tmp_path / "source/api/cli.md").read_text()
    assert "--perturbation-key" in help and help.count("\n## gpovae ") == 10


class Asked(HTMLParser):
    "Addresses that a page loads when it is opened; links that a reader may follow are none."

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == "link" and a.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.found.append(a["href"])
        if tag in ("script", "img", "iframe", "source", "video") and a.get("src"):
            self.found.append(a["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="Sphinx is not installed: make docs installs it")
    pytest.importorskip("myst_nb", reason="myst-nb is not installed: make docs installs it")
    out = tmp_path_factory.mktemp("site") / "html"
    assert docs.build(out, [book.NBS / f"{n}.ipynb" for n in SOME]) == 0, "Sphinx warned"
    return out


def test_a_site_of_some_chapters(site):
    page = (site / "20_model.likelihood.html").read_text()
    assert (
        "mathjax/tex-chtml.js" in page
        and r"\[" in page
        and (site / "_static/mathjax/tex-chtml.js").stat().st_size > 1e5
        and "data:image/png" not in page
    )
    assert list(site.glob("_images/*.png")), "stored figures are shown"
    assert (site / "06_troubleshooting.html").read_text().count("<th") > 15, (
        "tables that a cell displays are tables"
    )
    index = (site / "searchindex.js").read_text()
    assert (
        all(name in index for name in (*SOME, "api/gpovae.data.screen")) and "overdispers" in index
    )
    api = (site / "api/gpovae.data.screen.html").read_text()
    assert (
        "Name of the column that holds the perturbation" in api
        and "the user’s choice; None looks for a known name" in api
        and "cells x annotations" in api
    )
    pages = list(site.rglob("*.html"))
    outside = {
        (p.name, a)
        for p in pages
        for a in Asked(p.read_text()).found
        if re.match(r"(https?:)?//", a)
    }
    assert len(pages) > 5 and not outside
    assert Asked('<script src="https://x/y.js"></script>').found == ["https://x/y.js"]


def test_a_reader_in_a_browser(site):
    "Mathematics is set, a search finds, and nothing is asked of any network."
    if not chromium():
        pytest.skip("there is no Chromium here")
    with browser() as context:
        page = context.new_page()
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto((site / "20_model.likelihood.html").as_uri())
        page.wait_for_selector("mjx-container svg, mjx-container mjx-math", timeout=20_000)
        page.fill("input[name=q]", "find_column")
        page.press("input[name=q]", "Enter")
        page.wait_for_selector("ul.search li a", timeout=20_000)
        assert any(
            "gpovae.data.screen" in a
            for a in page.locator("ul.search li a").evaluate_all("links => links.map(a => a.href)")
        )
        assert all(u.startswith(("file:", "data:", "blob:")) for u in asked), asked
