"""The explorable network in a real browser, opened from a file, with mouse and keyboard.

Skipped where there is no Chromium."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from gpovae.app import reports
from gpovae.plots.explorer import content, explorer, explorer_page

from bench_explorer import READY, browser, chromium, example, filtered, until

pytestmark = pytest.mark.xdist_group("runs")
# seconds that anything may take on a busy machine; the benchmark says what it takes on an idle one
SLOW = 20
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "a\"b'c",
    "@data@ \\u003c",
    "<!--",
    "__proto__",
]


class Page:
    "A page with an explorable network in it, alone or in the frame of a report."

    def __init__(self, context, file):
        self.said = []
        self.asked = []
        self.page = context.new_page()
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(file.as_uri())
        self.file = file
        self.framed = self.page.locator("iframe").count() > 0
        if self.framed:
            self.page.locator("iframe").scroll_into_view_if_needed()
        self.at = self.page.frames[1] if self.framed else self.page.main_frame
        until(self.at, READY, SLOW)

    def js(self, code):
        return self.at.evaluate(code)

    def text(self, where="#panel"):
        return self.at.locator(where).inner_text()

    def shown(self):
        return tuple(
            int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of", self.text("#status"))
        )

    def settle(self):
        until(
            self.at,
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>"
            " done(true))))",
            SLOW,
        )

    def click(self, x, y):
        "The mouse at a place of the drawing."
        frame = self.page.locator("iframe").bounding_box() if self.framed else dict(x=0, y=0)
        stage = self.js(
            "(b => [b.x, b.y])(document.getElementById('stage').getBoundingClientRect())"
        )
        self.page.mouse.click(frame["x"] + stage[0] + x, frame["y"] + stage[1] + y)
        self.settle()

    def gene(self, name):
        return self.js(
            f"(p => [p.x, p.y])(gpovaeNetwork.node({json.dumps(name)}).renderedPosition())"
        )

    def quiet(self):
        own = [u for u in self.asked if not u.startswith(("about:srcdoc", "blob:", "data:"))]
        assert own == [self.file.as_uri()] and not self.said, (own, self.said)
        assert self.js("performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def chrome():
    if not chromium():
        pytest.skip("there is no Chromium here")
    with browser() as context:
        yield context


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return reports.run("network", tmp_path_factory.mktemp("network"), progress=False)


def test_a_reader_in_a_report(chrome, report, tmp_path):
    edges = pd.DataFrame(json.loads(report["json"].read_text())["edges"])
    p = Page(chrome, report["html"])
    n = len(edges)
    genes = len({*edges.source, *edges.target})
    assert p.framed and p.shown() == (genes, n)
    hub = edges.source.value_counts().index[0]
    its = edges[edges.source == hub]

    p.at.fill("#gene", hub.lower())
    p.at.press("#gene", "Enter")
    p.settle()  # search
    assert (
        p.text("#panel h2") == hub
        and f"Targets ({len(its)})" in p.text()
        and f"Regulators ({(edges.target == hub).sum()})" in p.text()
    )
    first = its.loc[its.weight.abs().idxmax()]
    assert (
        p.at.locator("#panel h3:has-text('Targets') + ul li").first.inner_text().split()[1]
        == first.target
    )

    other = edges.source.value_counts().index[1]  # click a gene
    p.at.click("#fit")
    p.settle()
    assert p.text("#panel h2") == hub  # the button is no part of the drawing
    p.click(*p.gene(other))
    assert (
        p.text("#panel h2") == other
        and p.js("gpovaeNetwork.genes[gpovaeNetwork.state.chosen.gene].name") == other
    )
    assert p.js("gpovaeNetwork.cy.nodes('.dim').not('.off').length") == genes - len(
        {other, *edges[edges.source == other].target, *edges[edges.target == other].source}
    )

    p.at.press("#stage", "Escape")
    p.settle()  # click an edge
    for e in edges.itertuples():
        middle = p.js(
            "(l => (m => [m.x,"
            f" m.y])(l.renderedMidpoint()))(gpovaeNetwork.line({json.dumps(e.source)},"
            f" {json.dumps(e.target)}))"
        )
        p.click(*middle)
        if p.text("#panel h2").split()[::2] == [e.source, e.target]:
            break
    assert (
        p.text("#panel h2").split() == [e.source, "→" if e.sign > 0 else "⊣", e.target]
        and ("activates" if e.sign > 0 else "represses") in p.text()
    )
    told = dict(
        zip(
            p.at.locator("#panel dt").all_inner_texts(), p.at.locator("#panel dd").all_inner_texts()
        )
    )
    assert (
        float(told["weight W: probability x effect (log per log)"])
        == pytest.approx(e.weight, rel=0.01)
        and float(told["measured log fold change of the target (natural log)"])
        == pytest.approx(e.shift, rel=0.01)
        and int(told["cells behind the log fold change"]) == e.cells
    )

    p.at.press("#stage", "Escape")  # filter
    for value in (0.9, 0.7):
        filtered(p.at, str(value))
        assert p.shown()[1] == (edges.probability >= value).sum()
    p.at.select_option("#sign", "-1")
    p.settle()
    assert p.shown()[1] == ((edges.probability >= 0.7) & (edges.sign < 0)).sum()
    p.at.click("#reset")
    p.settle()
    assert p.shown()[1] == n and p.js("gpovaeNetwork.state.min") <= edges.probability.min()

    with p.page.expect_download() as saved:
        p.at.click("#tsv")  # take away
    table = pd.read_csv(saved.value.path(), sep="\t")
    assert (
        saved.value.suggested_filename == "network.tsv"
        and len(table) == n
        and set(zip(table.source, table.target)) == set(zip(edges.source, edges.target))
    )
    with p.page.expect_download() as saved:
        p.at.click("#cyjs")
    elements = json.loads(open(saved.value.path()).read())["elements"]
    assert (
        len(elements["edges"]) == n
        and len(elements["nodes"]) == genes
        and {d["data"]["interaction"] for d in elements["edges"]} <= {"activates", "represses"}
    )
    with p.page.expect_download() as saved:
        p.at.click("#png")
    from PIL import Image

    drawn = np.asarray(Image.open(io.BytesIO(open(saved.value.path(), "rb").read())).convert("RGB"))
    assert min(drawn.shape[:2]) > 300 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    p.page.screenshot(path=tmp_path / "report.png")
    p.quiet()


def walks(edges, a, b, longest):
    "All simple paths with the product of their weights."
    out = {k: g for k, g in edges.groupby("source")}
    found = []

    def go(path, product):
        if path[-1] == b:
            found.append((path, product))
            return
        if len(path) > longest or path[-1] not in out:
            return
        for t, w in zip(out[path[-1]].target, out[path[-1]].weight):
            if t not in path:
                go([*path, t], product * w)

    go([a], 1.0)
    return sorted(found, key=lambda f: -abs(f[1]))


def test_paths_and_growing(chrome, tmp_path):
    edges, nodes = example(40, 110, 12, seed=3)
    edges.weight = edges.weight * 4  # weights above 1, where a greedy search errs
    (tmp_path / "p.html").write_text(
        explorer_page(edges, nodes, max_path_length=4), encoding="utf-8"
    )
    p = Page(chrome, tmp_path / "p.html")
    a, b = next(
        (a, b)
        for a in nodes.index[:12]
        for b in nodes.index[::-1]
        if a != b and len(walks(edges, a, b, 4)) > 5
    )
    expected = walks(edges, a, b, 4)
    p.at.fill("#from", a)
    p.at.fill("#to", b)
    p.at.press("#to", "Enter")
    p.settle()
    listed = p.at.locator("#panel li")
    assert listed.count() == min(12, len(expected)) and p.text("#panel h2") == f"{a} to {b}"
    for line, (path, product) in zip(listed.all_inner_texts(), expected):
        assert re.split(r" [→⊣] ", line.split("\n")[0]) == path and float(
            line.split("\n")[-1]
        ) == pytest.approx(product, rel=0.01)
    on = {(s, t) for path, _ in expected[:12] for s, t in zip(path, path[1:])}
    assert p.shown()[1] == len(on)
    listed.first.locator("button").click()
    p.settle()
    assert p.js("gpovaeNetwork.cy.edges('.chosen').length") == len(expected[0][0]) - 1
    p.at.fill("#length", "1")
    p.at.click("text=Show paths")
    p.settle()
    assert listed.count() == ((edges.source == a) & (edges.target == b)).sum()
    p.at.fill("#to", "nobody")
    p.at.click("text=Show paths")
    assert "Name two genes" in p.text("#status")

    p.at.click("#reset")
    p.at.fill("#gene", a)
    p.at.press("#gene", "Enter")
    p.at.click("text=Only its surroundings")
    p.settle()  # grow

    def beside(genes):
        return (
            genes
            | set(edges[edges.source.isin(genes)].target)
            | set(edges[edges.target.isin(genes)].source)
        )

    near = beside({a})
    assert (
        p.shown()[0] == len(near)
        and p.shown()[1] == (edges.source.isin(near) & edges.target.isin(near)).sum()
    )
    more = next(g for g in sorted(near - {a}) if beside({g}) - near)
    p.page.mouse.dblclick(
        *(
            c + o
            for c, o in zip(
                p.gene(more),
                p.js("(b => [b.x, b.y])(document.getElementById('stage').getBoundingClientRect())"),
            )
        )
    )
    p.settle()
    assert p.shown()[0] == len(near | beside({more})) and p.text("#panel h2") == more
    p.at.fill("#gene", "nobody")
    p.at.press("#gene", "Enter")
    assert "No gene is called nobody" in p.text("#status")
    p.quiet()


def test_a_genome_wide_network(chrome, tmp_path):
    edges, nodes = example(600, 3000, 50)
    (tmp_path / "g.html").write_text(explorer_page(edges, nodes), encoding="utf-8")
    p = Page(chrome, tmp_path / "g.html")
    assert p.shown()[1] == 400 and p.js("gpovaeNetwork.timing.painted") < SLOW * 1000
    p.at.fill("#max", "3000")
    p.settle()
    until(p.at, "gpovaeNetwork.state.edges.length === 3000", SLOW)
    for value in (0.8, 0.6):
        assert (
            filtered(p.at, str(value)) < SLOW * 1000
            and p.shown()[1] == (edges.probability >= value).sum()
        )
    hub = edges.source.value_counts().index[0]
    p.at.fill("#gene", hub)
    p.at.press("#gene", "Enter")
    p.settle()
    assert (
        p.text("#panel h2") == hub
        and f"Targets ({((edges.source == hub) & (edges.probability >= 0.6)).sum()})" in p.text()
    )
    p.page.screenshot(path=tmp_path / "genome.png")
    p.quiet()


def test_hostile_names_stay_text(chrome, tmp_path):
    edges = pd.DataFrame(
        dict(
            source=HOSTILE,
            target=HOSTILE[1:] + HOSTILE[:1],
            weight=[0.5, -0.2, 0.1, 0.3, -0.4, 0.2],
            probability=0.9,
            flag=HOSTILE[::-1],
        )
    )
    nodes = pd.DataFrame({"perturbed": True, "<b>note</b>": HOSTILE}, index=HOSTILE)
    page = (
        "<!DOCTYPE html><meta charset=utf-8><title>x</title>"
        + explorer(edges, nodes, title=HOSTILE[1]).data
    )
    for name, text in (
        ("alone.html", explorer_page(edges, nodes, title=HOSTILE[1])),
        ("framed.html", page),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        p = Page(chrome, tmp_path / name)
        for g, e in zip(HOSTILE, edges.itertuples()):
            p.at.fill("#gene", g)
            p.at.press("#gene", "Enter")
            p.settle()
            assert (
                p.text("#panel h2") == g
                and "<b>note</b>" in p.text()
                and g in p.at.locator("#panel dd").all_inner_texts()
            )
            p.at.locator("#panel h3:has-text('Targets') + ul button").click()
            p.settle()
            assert e.target in p.text("#panel h2") and e.flag in p.text()
        assert p.at.locator("img, b").count() == 0 and p.at.locator("script").count() == 3
        with p.page.expect_download() as saved:
            p.at.click("#tsv")
        assert {
            line.split("\t")[0]
            for line in open(saved.value.path(), encoding="utf-8").read().splitlines()
        } == {"source", *HOSTILE}
        p.quiet()


def test_dark_paper_and_no_scripts(tmp_path):
    if not chromium():
        pytest.skip("there is no Chromium here")
    edges, nodes = example(30, 60, 8)
    (tmp_path / "d.html").write_text(
        "<!DOCTYPE html><title>x</title><p>before</p>" + explorer(edges, nodes).data,
        encoding="utf-8",
    )
    (tmp_path / "alone.html").write_text(explorer_page(edges, nodes), encoding="utf-8")
    top = edges.loc[edges.probability.idxmax()]
    with browser(color_scheme="dark") as context:
        p = Page(context, tmp_path / "alone.html")
        assert p.js("getComputedStyle(document.body).backgroundColor") == "rgb(23, 25, 28)"

        def line():
            return p.js(
                "gpovaeNetwork.line(gpovaeNetwork.genes[gpovaeNetwork.edges.find(e => e.sign >"
                " 0).s].name, gpovaeNetwork.genes[gpovaeNetwork.edges.find(e => e.sign >"
                " 0).t].name).style('line-color')"
            )

        dark = line()
        p.page.emulate_media(color_scheme="light")
        p.settle()
        assert line() != dark  # follows while it is open
        q = Page(context, tmp_path / "d.html")
        q.page.emulate_media(media="print")
        assert (
            not q.page.locator("iframe").is_visible()
            and q.page.locator("div.static").is_visible()
            and top.source in q.page.locator("div.static").inner_text()
        )
        p.page.emulate_media(media="print")
        assert not p.page.locator("#app").is_visible() and top.target in p.text("#static")
    with browser(java_script_enabled=False) as context:
        for name, place in (("d.html", "div.static"), ("alone.html", "#static")):
            page = context.new_page()
            page.goto((tmp_path / name).as_uri())
            assert (
                page.locator(place).is_visible() and top.source in page.locator(place).inner_text()
            )


def test_what_the_page_is_made_of():
    """Without a browser.

    The same bytes for the same table, in any order of its rows; every column told; nothing in it
    ends a script.
    """
    edges, nodes = example(50, 120, 8)
    assert explorer_page(edges, nodes) == explorer_page(edges, nodes)
    some = content(edges.assign(odd="x", flag=["", None] * 60), nodes)
    assert [c["key"] for c in some["columns"]] == [
        "weight",
        "probability",
        "sign",
        "shift",
        "se",
        "cells",
        "flag",
        "odd",
    ] and set(some["edges"]["flag"]) == {""}
    empty = content(edges.head(0), nodes)
    assert len(empty["genes"]) == 50 and not empty["edges"]["source"]
    page = explorer_page(
        pd.DataFrame(dict(source=HOSTILE, target=HOSTILE[::-1], weight=1.0, probability=0.5))
    )
    assert (
        page.count("<script") == 3
        and page.count("</script") == 3
        and "default-src 'none'" in page
        and not re.search(
            r"(src|href)=[\"']?(https?:|//)|@import|url\(|fetch\(",
            page.split('id="network">')[1].replace("http://www.w3.org", ""),
        )
    )
