"""The explorable network in headless Chromium: how long it takes to open and to filter, at several
sizes. The browser of tests/test_explorer.py."""

import os
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync".split()
)


def chromium():
    "Where Chromium is, or None."
    return os.environ.get("GPOVAE_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@contextmanager
def browser(**options):
    "A context of a fresh browser, in a folder of its own."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        context = p.chromium.launch_persistent_context(
            folder,
            executable_path=chromium(),
            headless=True,
            args=FLAGS,
            accept_downloads=True,
            viewport=dict(width=1280, height=860),
            **options,
        )
        try:
            yield context
        finally:
            context.close()


def example(*sizes, **more):
    "The example network of the chapter."
    import numpy as np
    import pandas as pd

    cell = next(
        c.source
        for c in nbformat.read(ROOT / "nbs/plots/80_explorer.ipynb", 4).cells
        if c.source.startswith("def example(")
    )
    names = dict(np=np, pd=pd)
    exec(cell[: cell.index("\nedges, nodes")], names)
    return names["example"](*sizes, **more)


def until(page, condition, seconds=30):
    "Wait until an expression is true in a page (or frame) whose policy forbids `eval`; its value."
    end = time.monotonic() + seconds
    while not (value := page.evaluate(condition)):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not come true in {seconds} s")
        time.sleep(0.02)
    return value


READY = "window.gpovaeNetwork && gpovaeNetwork.timing.painted && gpovaeNetwork.timing.step"


def filtered(page, value):
    "Milliseconds from a move of the slider to the drawing that follows."
    page.evaluate("gpovaeNetwork.timing.step = null")
    page.locator("#min").evaluate(
        "(m, v) => { m.value = v; m.dispatchEvent(new Event('input')); }", value
    )
    # a drawing that was under way does not count
    return until(page, f"gpovaeNetwork.state.min === {float(value)} && gpovaeNetwork.timing.step")


def explorer(options):
    "Medians of three openings, and of six moves of the slider in each."
    from gpovae.plots.explorer import explorer_page

    rows = []
    with tempfile.TemporaryDirectory() as tmp, browser() as b:
        for genes, edges, regulators in ((60, 150, 12), (200, 800, 30), (600, 3000, 50)):
            file = Path(tmp) / f"{genes}.html"
            file.write_text(explorer_page(*example(genes, edges, regulators)), encoding="utf-8")
            opened = []
            steps = {400: [], edges: []}
            for _ in range(3):
                page = b.new_page()
                page.goto(file.as_uri())
                until(page, READY)
                opened.append(page.evaluate("gpovaeNetwork.timing.painted"))
                for most in steps:
                    page.fill("#max", str(most))
                    page.wait_for_timeout(500)
                    steps[most] += [
                        filtered(page, v) for v in ("0.9", "0.8", "0.7", "0.6", "0.5", "0.75")
                    ]
                page.close()
            rows += [
                {
                    "genes": genes,
                    "edges": edges,
                    "drawn at most": most,
                    "page (kB)": round(file.stat().st_size / 1e3),
                    "first drawing (s)": round(statistics.median(opened) / 1e3, 2),
                    "filter step (s)": round(statistics.median(s) / 1e3, 3),
                }
                for most, s in steps.items()
                if most == edges or most < edges
            ]
            print(rows[-1], flush=True)
        version = b.browser.version if b.browser else ""
    return dict(browser=f"headless Chromium {version}".strip(), rows=rows)
