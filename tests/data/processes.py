"""Preparations that are interrupted, and their memory: a script with processes of its own.

Arguments: a folder with raw.h5ad, then as JSON the sizes and the number of genes, the cases
SIGNAL-PLACE-TARGET, and the names of the steps. Prints a dict as JSON.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gpovae.data import blocks, files, matching, pipeline, prepare, rank_sum, reorder

FOLDER = Path(sys.argv[1])
SIZES, GENES = json.loads(sys.argv[2])
CASES, STEPS = map(json.loads, sys.argv[3:])
prepare._WORTH = 0  # results are written after every step

# where a case stops: the module, its function, and which call of it
PLACES = dict(
    copying=(reorder, "tidy", 3),
    matching=(pipeline, "match_controls", 1),
    writing=(prepare, "write_annotations", 8),
)


def child(function):
    "Exit status (negative: the signal) and peak memory in bytes of a process that runs it."
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            function()
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            status = 1
        os._exit(status)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def set_block(size):
    blocks.BLOCK = rank_sum.BLOCK = size


def leave_out_steps():
    for step in STEPS:
        setattr(pipeline, step, lambda *_, **__: {})


def run(raw, target, **settings):
    prepare.prepare_file(raw, target, doublets=False, progress=False, **settings)


def interrupted(place, number, raw, target):
    "Run until that call of the function, and there get the signal."
    leave_out_steps()
    module, name, last = PLACES[place]
    function = getattr(module, name)
    calls = []

    def stop(*args, **settings):
        calls.append(1)
        result = function(*args, **settings)
        if len(calls) == last:
            os.kill(os.getpid(), number)
        return result

    setattr(module, name, stop)
    set_block(3000)
    run(raw, target)


def outcome(case):
    "What an interrupted run leaves behind."
    name, place, old = case.split("-")
    number = getattr(signal, name)
    folder = FOLDER / case
    folder.mkdir()
    raw, target = FOLDER / "raw.h5ad", folder / "prepared.h5ad"
    if old == "old":
        target.write_text("what was there")

    status, _ = child(lambda: interrupted(place, number, raw, target))
    left = sorted(path.name for path in folder.iterdir())
    intact = None
    if target.exists():
        intact = target.read_text(errors="replace") == "what was there"
    result = dict(status=status, left=left, intact=intact)
    if place == "writing":
        result["again"] = child(lambda: leave_out_steps() or run(raw, target))[0]
    return result


def write_big(n):
    "A screen of so many cells, of which one in five is a control."
    rng = np.random.default_rng(0)
    share = rng.random(GENES) * 0.9
    labels = ["non-targeting"] * (n // 5) + [f"G{i % (n // 300)}" for i in range(n - n // 5)]
    labels = np.array(labels, object)[rng.permutation(n)]

    def counts():
        for _ in range(n // 500):
            is_seen = rng.random((500, GENES), np.float32) < share
            yield sp.csr_matrix(is_seen * (1 + rng.poisson(0.3, (500, GENES))), dtype=np.float32)

    obs = pd.DataFrame(dict(gene=pd.Categorical(labels)), index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(GENES)])
    files.write_screen(FOLDER / f"{n}.h5ad", files.Source(obs, var, counts, {}, {}))


def prepare_big(n, with_steps, block):
    if block:
        set_block(block)
    if not with_steps:
        leave_out_steps()
    settings = dict(max_extended=0, n_matches=3, force=True)
    run(FOLDER / f"{n}.h5ad", FOLDER / f"prepared{n}.h5ad", **settings)


def peaks(with_steps, block):
    "Status and peak memory for every size."
    return [child(lambda n=n: prepare_big(n, with_steps, block)) for n in SIZES]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    matching.choose_rho = lambda *_: 0.05

    results = {case: outcome(case) for case in CASES}
    for size in SIZES:
        child(lambda n=size: write_big(n))
    small = 500 * GENES
    results["peaks"] = {
        "copying": peaks(False, small),
        "all": peaks(True, small),
        "one block": peaks(False, None),
    }
    print(json.dumps(results))
