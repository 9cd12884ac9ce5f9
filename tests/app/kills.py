"""Commands that are killed at random moments: a script with processes of its own.

Arguments: an empty folder, how many times each command is killed, the seed of the moments, and the
last command (of prepare, train, network, evaluate; each needs those before it). Prints JSON: for
each command what was wrong after a kill; whether a call that is left alone gives what a call gives
that was never killed; and whether two calls at once do.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import gpovae
from gpovae import GPOVAE
from gpovae.app.cli import main
from gpovae.data.files import open_screen, read_screen
from gpovae.train.run import RunFolder

FOLDER = Path(sys.argv[1])
TIMES = int(sys.argv[2])
MOMENTS = random.Random(int(sys.argv[3]))
LAST = sys.argv[4]
SMALL = ["latent=4", "basal=16x1", "embedding=16x2", "decoder=16x2", "batch_size=64"]


def commands(folder: Path) -> dict[str, list]:
    "Arguments of each command, whose files lie in a folder."
    prepared, run = folder / "prepared.h5ad", folder / "run"
    labels = ["--perturbation-key", "gene", "--control", "non-targeting"]
    size = [x for setting in SMALL for x in ("--set", setting)]
    return dict(
        prepare=[FOLDER / "raw.h5ad", prepared, *labels],
        train=[prepared, "--out", run, "--max-epochs", "4", *size],
        network=[run, "--out", run / "network.csv"],
        evaluate=[run, "--quick"],
    )


def started(arguments: list[str]) -> int:
    "A process that runs a command."
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        main(arguments, standalone_mode=False)
        status = 0
    finally:
        os._exit(status)


def ended(name: str, arguments: list, after: float | None = None) -> int:
    "Exit status of a command, which is killed after some seconds."
    child = started([name, *map(str, arguments), "--quiet"])
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(name: str, folder: Path):
    "What a command left: arrays that are the same for the same call. None where it left nothing."
    run = folder / "run"
    if name == "prepare":
        target = folder / "prepared.h5ad"
        if not target.exists():
            return None
        open_screen(target).X.group.file.close()
        adata = read_screen(target)
        return [adata.X.data, adata.obs["gpovae_split"].astype(str).to_numpy()]
    if name == "train":
        if not (run / "model.safetensors").exists():
            return None
        assert RunFolder(run).status == "finished"
        return [GPOVAE.load(run, read_screen(folder / "prepared.h5ad")).predict().X]
    text = run / dict(evaluate="evaluate.json", network="network.csv")[name]
    # scores name their run
    lines = text.read_text().replace(str(folder), "").splitlines() if text.exists() else None
    return lines and [np.array(lines)]


def survived(name: str) -> dict:
    "Kill a command again and again; what was wrong then, and whether the last call is right."
    there, here = FOLDER / "undisturbed", FOLDER / "killed"
    start = time.perf_counter()
    assert ended(name, commands(there)[name]) == 0
    seconds = time.perf_counter() - start
    wanted = results(name, there)

    wrong, n_killed = [], 0
    for _ in range(TIMES):
        moment = MOMENTS.uniform(0, seconds)
        status = ended(name, commands(here)[name], after=moment)
        n_killed += status == -signal.SIGKILL
        try:
            found = results(name, here)
        except Exception as error:
            wrong.append(f"after {moment:.2f} s of {seconds:.2f}: {error!r}")
            continue
        if status == -signal.SIGKILL and found is None:
            continue
        if not all(map(np.array_equal, found, wanted)):
            wrong.append(f"after {moment:.2f} s of {seconds:.2f}: another result")
        if found is not None:  # begin anew
            forget(name, here)
    status = ended(name, commands(here)[name])
    is_right = status == 0 and all(map(np.array_equal, results(name, here), wanted))

    # two at once, into one target
    forget(name, here)
    children = [started([name, *map(str, commands(here)[name]), "--quiet"]) for _ in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = results(name, here)
    are_right = 0 in statuses and all(map(np.array_equal, found, wanted))
    return dict(
        seconds=seconds,
        are_right=are_right,
        statuses=statuses,
        killed=n_killed,
        wrong=wrong,
        is_right=is_right,
    )


def forget(name: str, folder: Path) -> None:
    "Delete what a command left."
    run = folder / "run"
    targets = dict(evaluate=run / "evaluate.json", network=run / "network.csv")
    if name == "prepare":
        (folder / "prepared.h5ad").unlink()
    elif name == "train":
        shutil.rmtree(run)
    else:
        targets[name].unlink()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gpovae.datasets.simulated(n_cells=300, n_genes=40, n_perturbations=4, seed=2).write_h5ad(
        FOLDER / "raw.h5ad"
    )
    for name in ("undisturbed", "killed"):
        (FOLDER / name).mkdir()
    names = list(commands(FOLDER))
    print(json.dumps({name: survived(name) for name in names[: names.index(LAST) + 1]}))
