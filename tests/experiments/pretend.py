"""Stands for `gpovae` in the tests of sweeps: writes the run, or the report, that it is asked for.

The environment variable PRETEND says what goes wrong for which preset and seed.
"""

import hashlib
import json
import os
import sys
import time


def argument(name):
    return sys.argv[sys.argv.index(name) + 1]


out = argument("--out")
os.makedirs(out, exist_ok=True)


def write(name, text):
    with open(f"{out}/{name}", "w") as f:
        f.write(text)


if sys.argv[1] == "compare":
    folders = sys.argv[2 : sys.argv.index("--out")]
    row = dict(method="corrected", screen="s")
    runs = [row | dict(run=os.path.abspath(r), seed=i) for i, r in enumerate(folders)]
    scored = [row | dict(seed=float(i), ate_rho=i / 10) for i in range(len(runs))]
    write("compare.json", json.dumps(dict(runs=runs, left_out={}, scored=scored)))
    write("compare.html", "")
    sys.exit()

slurm = [k for k in os.environ if k.startswith("SLURM_")]
print("threads", os.environ["OMP_NUM_THREADS"], "of Slurm:", slurm, flush=True)
fate = json.loads(os.environ.get("PRETEND", "{}")).get(
    argument("--preset") + argument("--seed"), ""
)
with open(f"{out}.starts", "a") as f:
    f.write("x")

if fate == "kill":
    write("model.safetensors", "ha")
    write("history.csv", "")
    os.mkdir(f"{out}/.gpovae-left")
    os.kill(os.getpid(), 9)
if fate == "error":
    sys.exit("Traceback of something\nRuntimeError: the screen is broken")
if fate == "nothing":
    sys.exit()
time.sleep(60 if fate == "sleep" else float(fate or 0))

weights = hashlib.sha256(b"weights").hexdigest()
record = dict(files={"model.safetensors": weights}, format=3, settings={})
checksum = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
place = argument("--out") + "/../" + sys.argv[2]
write("model.safetensors", "weights")
write("history.csv", "epoch\n0\n1\n")
write("settings.json", json.dumps(record | dict(data=place, checksum=checksum)))
