"""JupyterLab in a browser, as a reader has it: a server of its own, a notebook opened and run."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bench_explorer import browser, chromium

# seconds for the server and the page, and for a chapter, on a busy machine
TOKEN, START, RUN = ("reader", 60, 240)


class Lab(NamedTuple):
    "A server in a folder, whose notebooks lie in `nbs`, and a browser."

    address: str
    folder: Path
    context: object


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


@contextmanager
def jupyterlab(folder, **look):
    """A server on a port of its own, and a browser; `look` as in playwright's new_context.

    Skips where one of the two is missing.
    """
    command = Path(sys.executable).with_name("jupyter-lab")
    if not chromium():
        pytest.skip("there is no Chromium here")
    if not command.exists():
        pytest.skip("there is no JupyterLab here")
    (folder / "nbs").mkdir(exist_ok=True)
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
        with browser(**look) as context:
            yield Lab(address, folder, context)
    finally:
        server.terminate()  # which ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def opened(lab, name):
    "A page with a notebook whose kernel answers, and a list of what the page asks for."
    page = lab.context.new_page()
    requests = []
    page.on("request", lambda r: requests.append(r.url))
    workspace = name.replace(".", "-")
    page.goto(f"{lab.address}/lab/workspaces/{workspace}/tree/{name}.ipynb?token={TOKEN}")
    until(page, CELLS, START)
    until(
        page,
        "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.connectionStatus ==="
        " 'connected'",
        START,
    )
    return page, requests


def run(page):
    "Choose Run > Run All Cells, and wait until every cell has run or one has failed: its cells."
    page.locator("#jp-MainMenu").get_by_text("Run", exact=True).click()
    page.locator("li[data-command='runmenu:run-all']").click()
    until(
        page,
        f"(cells => cells.every(c => c[1] !== null) || cells.some(c => c[2].length))({CELLS})",
        RUN,
        0.5,
    )
    return page.evaluate(CELLS)


def outside(lab, requests):
    "Requests that left the server."
    ours = (lab.address, lab.address.replace("http", "ws"), "data:", "blob:", "about:srcdoc")
    return [url for url in requests if not url.startswith(ours)]
