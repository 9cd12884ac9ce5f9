"""Runs chapters one after the other without starting a kernel for each.

A server imports the heavy libraries once; every chapter gets a process of its own that is forked
from it, and an IPython shell that keeps outputs as a kernel would. What a chapter does to its
process ends with it.
"""

import copy
import io
import multiprocessing
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output

HEAVY = [
    "anndata",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "pandas",
    "pytorch_lightning",
    "scanpy",
    "seaborn",
    "skimage.filters",
    "sklearn.ensemble",
    "sklearn.metrics",
    "torch",
    "gpovae.api",
    "gpovae.data.prepare",
    "gpovae.network.modules",
    "gpovae.plots",
    "ipykernel.kernelapp",  # for a kernel (tests/kernels.py)
    "tools.warm",  # and this module; found where pytest is started in the root, else every child
    # imports it and warms itself
]


class Stream(io.TextIOBase):
    "Standard output or error as a list of outputs has it: pieces in a row are one."

    def __init__(self, name: str, outputs: list):
        self.name, self.outputs = name, outputs

    def write(self, text: str) -> int:
        last = self.outputs[-1] if self.outputs else None
        if last is not None and last.get("name") == self.name:
            last.text += text
        else:
            self.outputs.append(new_output("stream", name=self.name, text=text))
        return len(text)


class Publisher(DisplayPublisher):
    "What `display` shows."

    def publish(self, data, metadata=None, **kwargs):
        self.shell.outputs.append(new_output("display_data", data=_plain(data)))


class Hook(DisplayHook):
    "The value of the last line of a cell."

    def __call__(self, result=None):
        if result is not None and not self.quiet():
            data, _ = self.compute_format_data(result)
            self.update_user_ns(result)
            if data:
                self.shell.outputs.append(new_output("execute_result", data=_plain(data)))


def _plain(data: dict) -> dict:
    "Numbers are compared in plain text; the rest is not kept."
    return {"text/plain": data.get("text/plain", "")}


class ZmqLikeShell(InteractiveShell):
    "A shell without a terminal; pandas knows it by its name."

    displayhook_class = Hook
    display_pub_class = Publisher

    def __init__(self, **kwargs):
        self.outputs = []
        super().__init__(**kwargs)

    def enable_gui(self, gui=None):
        "There is no window."

    @contextmanager
    def kept(self):
        "Outputs go to a fresh list."
        self.outputs = []
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Stream(n, self.outputs) for n in ("stdout", "stderr"))
        try:
            yield self.outputs
        finally:
            sys.stdout, sys.stderr = before


def _execute(cells: list, folder: Path, answers) -> None:
    "Run the cells in this process; send what they put out, or the error."
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    shell = ZmqLikeShell.instance()
    shell.history_manager.enabled = False
    shell.run_line_magic("matplotlib", "inline")
    # pandas takes a process without a kernel for a terminal
    pandas.set_option("display.max_columns", 20)
    outputs = {}
    try:
        for cell in cells:
            with shell.kept() as kept:
                result = shell.run_cell(cell.source, store_history=True)  # or `;` is not seen
            if not result.success:
                error = result.error_before_exec or result.error_in_exec
                lines = "".join(traceback.format_exception(error)[-8:])
                answers.send(f"In the cell\n{cell.source[:600]}\n\n{lines}")
                return
            outputs[cell.id] = kept
        answers.send(outputs)
    except BaseException as error:
        answers.send("".join(traceback.format_exception(error)))


def execute(nb, folder: Path, timeout: float = 3600):
    """A copy of a notebook with the outputs of its code cells. Raises RuntimeError with the cell.

    The timeout ends what hangs; on a busy machine a minute of work has taken more than 600 s.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(code, folder, there))
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(timeout) else f"It took more than {timeout} s."
    except EOFError:
        answer = "The process ended without a word."
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    done = copy.deepcopy(nb)
    for cell in done.cells:
        if cell.id in answer:
            cell.outputs = [nbformat.from_dict(o) for o in answer[cell.id]]
    return done
