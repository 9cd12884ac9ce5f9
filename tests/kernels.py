"""Kernels for reports without the seconds in which each imports the libraries: they are forked from
the server that runs the chapters (tools/forked.py). What a kernel does is as it ever was: its
command line, environment, folder, messages and process group.
"""

import multiprocessing
import os
import signal
import sys

import forked


def _serve(words: list[str], environment: dict, folder: str | None, ready) -> None:
    "The process of a kernel; the words are those after `ipykernel_launcher`."
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    # a backend finds its kernel when it is imported
    sys.modules.pop("matplotlib_inline.backend_inline", None)
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND", "agg")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ready.send(True)
    ready.close()
    application = IPKernelApp.instance()
    application.initialize([*words, f"--IPKernelApp.parent_handle={os.getppid()}"])
    application.start()


class Forked:
    "What jupyter_client asks of a `subprocess.Popen`."

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number):
        if self.process.is_alive():
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def launch_kernel(command: list[str], env=None, cwd=None, **_):
    "In place of `jupyter_client.launcher.launch_kernel`: a fork of the server."
    words = [c for c in command if c != "-Xfrozen_modules=off"]
    assert words[:3] == [sys.executable, "-m", "ipykernel_launcher"], command
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(forked.HEAVY)
    here, there = context.Pipe(duplex=False)
    # not daemonic: a report may start processes of its own
    process = context.Process(target=_serve, args=(words[3:], dict(env or os.environ), cwd, there))
    process.start()
    there.close()
    here.recv()
    return Forked(process)
