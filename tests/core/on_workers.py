"""What the tests of a cluster hand to its workers."""

import os
import signal

import numpy as np

from gpovae.core.errors import GpovaeError


def counted(X, rows, flag):
    "Counts by gene, and cells; the first worker that comes here dies."
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return np.asarray(X[rows].sum(0, dtype=float)).ravel(), np.array(len(rows))
    os.kill(os.getpid(), signal.SIGKILL)


def deep(X, rows, weight):
    "Two arrays with an entry for each cell."
    return np.asarray(X[rows].sum(1)).ravel() * weight, rows * 0


def fails(k):
    raise GpovaeError(f"Gene {k} is bad.")
