"""Chapters in JupyterLab, as a reader has them: opened and run from the menu, without an error."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

import book
from bench_explorer import browser, chromium

pytestmark = pytest.mark.xdist_group("runs")
CHAPTERS = [book.find("start/quickstart"), book.find("data.steps")]
# seconds for the server and the page, and for a chapter, on a busy machine
TOKEN, START, RUN = ("reader", 60, 240)


def until(page, condition, seconds, pause=0.1):
    """Wait until an expression is true in the page.

    Asked rarely, so that the kernel has the machine.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"{condition} did not come true in {seconds} s"
        page.wait_for_timeout(1000 * pause)


# Of the open notebook: [source, execution count, errors] of every code cell.
CELLS = """(() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const model = panel?.content?.model;
  if (!model || !panel.context?.isReady) return null;
  const errors = cell => cell.outputs.toJSON()
    .filter(o => o.output_type === 'error')
    .map(o => `${o.ename}: ${o.evalue}`);
  return [...model.cells]
    .filter(c => c.type === 'code' && c.sharedModel.source.trim())
    .map(c => [c.sharedModel.source, c.executionCount, errors(c)]);
})()"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server on a port of its own, with a copy of some chapters.

    Its address, its folder, and a browser.
    """
    command = Path(sys.executable).with_name("jupyter-lab")
    if not chromium():
        pytest.skip("there is no Chromium here")
    if not command.exists():
        pytest.skip("there is no JupyterLab here")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "nbs").mkdir()
    for path in CHAPTERS:
        shutil.copy(path, folder / "nbs")
    broken = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(s) for s in ("1 + 1", "undefined_name", "2 + 2")],
        metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")),
    )
    nbformat.write(broken, folder / "nbs/broken.ipynb")
    news = folder / "settings/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {
        f"JUPYTER_{k}_DIR": str(folder / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")
    } | dict(
        JUPYTERLAB_SETTINGS_DIR=str(folder / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(folder / "workspaces"),
        IPYTHONDIR=str(folder / "ipython"),
    )
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                command,
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={TOKEN}",
                "--LabApp.expose_app_in_browser=True",
            ],
            cwd=folder / "nbs",
            env=os.environ | own,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (
                    folder / "log"
                ).read_text()[-2000:]
                time.sleep(0.2)
        with browser() as context:
            yield address, folder, context
    finally:
        server.terminate()  # which ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def run_all(lab, name):
    """Open a chapter, choose Run > Run All Cells, and wait until every cell has run or one has
    failed: its code cells, and a picture.
    """
    address, folder, context = lab
    page = context.new_page()
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(f"{address}/lab/workspaces/{name.replace('.', '-')}/tree/{name}.ipynb?token={TOKEN}")
    until(page, CELLS, START)
    until(
        page,
        "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.connectionStatus ==="
        " 'connected'",
        START,
    )
    page.locator("#jp-MainMenu").get_by_text("Run", exact=True).click()
    page.locator("li[data-command='runmenu:run-all']").click()
    until(
        page,
        f"(cells => cells.every(c => c[1] !== null) || cells.some(c => c[2].length))({CELLS})",
        RUN,
        0.5,
    )
    cells = page.evaluate(CELLS)
    page.screenshot(path=folder / f"{name}.png")
    page.close()
    outside = [
        u
        for u in asked
        if not u.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
    ]
    assert not outside
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
