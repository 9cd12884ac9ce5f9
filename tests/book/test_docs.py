"""The book as a site: its contents; and a site of some chapters, built and looked at."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from gpovae.app.cli import main

import book
import docs
from bench_explorer import browser, chromium
from places import ROOT

pytestmark = pytest.mark.xdist_group("docs")
SOME = [book.find(n) for n in ("index", "start/troubleshooting", "data.screen", "model.likelihood")]
PAGES = [docs.where(path) for path in SOME]


def test_every_chapter_is_in_the_contents():
    listed = {name for pages in docs.contents().values() for name in pages}
    everything = {docs.where(p) for p in book.chapters() if p.stem != "index"}
    assert listed == everything, "a folder has no caption: see PARTS in tools/docs.py"


def test_what_sphinx_reads(tmp_path):
    "Chapters with their stored outputs, contents, reference, every command, the index of names."
    source = tmp_path / "source"
    docs.stage(source, [*SOME, book.find("app.cli")])
    index = (source / "index.ipynb").read_text()
    assert index.count(":caption:") == 5 and docs.where(book.find("data.screen")) in index
    assert "(start/10_quickstart.ipynb)" not in index, "a chapter that is not in this site"
    for path, page in zip(SOME[1:], PAGES[1:]):
        stored = json.loads(path.read_text())["cells"]
        staged = json.loads((source / f"{page}.ipynb").read_text())["cells"]
        code = [(c["source"], c["outputs"]) for c in staged if c["cell_type"] == "code"]
        assert code == [(c["source"], c["outputs"]) for c in stored if c["cell_type"] == "code"]
    reference = (source / "api/gpovae.data.screen.md").read_text()
    assert "automodule:: gpovae.data.screen" in reference
    commands = (source / "api/cli.md").read_text()
    assert "--perturbation-key" in commands and commands.count("\n## gpovae ") == len(main.commands)
    assert "| `Screen` |" in (source / "names.md").read_text()


def test_llms_txt_lists_every_chapter_with_its_claim():
    "In the order that https://llmstxt.org asks for: a name, a summary, then lists of links."
    text = docs.llms()
    lines = text.splitlines()
    assert lines[0] == "# gpovae" and lines[2].startswith("> ") and text.count("\n# ") == 0
    pages = re.findall(r"^- \[[^\]]+\]\(([^)]+)\.html\): \S", text, re.M)
    chapters = {docs.where(p) for p in book.chapters() if p.stem != "index"}
    assert chapters < set(pages) and len(pages) == len(set(pages))
    linked = [line for line in lines if line.startswith("- ")]
    assert len(linked) == len(pages), "a link without a claim"


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
    assert docs.build(out, SOME) == 0, "Sphinx warned"
    return out


def test_a_site_of_some_chapters(site):
    page = (site / f"{PAGES[3]}.html").read_text()
    assert (
        "mathjax/tex-chtml.js" in page
        and r"\[" in page
        and (site / "_static/mathjax/tex-chtml.js").stat().st_size > 1e5
        and "data:image/png" not in page
    )
    assert list(site.glob("_images/*.png")), "stored figures are shown"
    assert (site / f"{PAGES[1]}.html").read_text().count("<th") > 15, (
        "tables that a cell displays are tables"
    )
    index = (site / "searchindex.js").read_text()
    assert (
        all(name in index for name in (*PAGES, "api/gpovae.data.screen", "names"))
        and "overdispers" in index
    )
    api = (site / "api/gpovae.data.screen.html").read_text()
    assert "Read access to a registered AnnData" in api
    cell = re.search(r'href="(data/\S+?)#(cell-\w+)"', (site / "names.html").read_text())
    assert f'id="{cell[2]}"' in (site / cell[1]).read_text(), "a name leads to its cell"
    pages = list(site.rglob("*.html"))
    outside = {
        (p.name, a)
        for p in pages
        for a in Asked(p.read_text()).found
        if re.match(r"(https?:)?//", a)
    }
    assert len(pages) > 5 and not outside
    assert Asked('<script src="https://x/y.js"></script>').found == ["https://x/y.js"]


def test_llms_txt_of_the_site_leads_to_its_pages(site):
    text = (site / "llms.txt").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > len(SOME) - 1
    assert [link for link in links if not (site / link).is_file()] == []


def test_a_reader_in_a_browser(site):
    "Mathematics is set, a search finds, and nothing is asked of any network."
    if not chromium():
        pytest.skip("there is no Chromium here")
    with browser() as context:
        page = context.new_page()
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto((site / f"{PAGES[3]}.html").as_uri())
        page.wait_for_selector("mjx-container svg, mjx-container mjx-math", timeout=20_000)
        page.fill("input[name=q]", "Screen")
        page.press("input[name=q]", "Enter")
        page.wait_for_selector("ul.search li a", timeout=20_000)
        assert any(
            "gpovae.data.screen" in a
            for a in page.locator("ul.search li a").evaluate_all("links => links.map(a => a.href)")
        )
        assert all(u.startswith(("file:", "data:", "blob:")) for u in asked), asked


def test_benchmarks_start_as_documented():
    "From the root, without the folders that pytest adds."
    command = [sys.executable, "benchmarks/bench.py", "--help"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0 and "verdict" in said.stdout, said.stderr
