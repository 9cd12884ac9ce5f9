"""Commands that are killed (SIGKILL) at random moments leave nothing half-written, and the next
call gives what a call gives that was never killed. So do two calls at once.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


def killed(folder, times, seed, last):
    "What the script says of each command."
    command = [sys.executable, str(SCRIPT), str(folder), str(times), str(seed), last]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def is_sound(found):
    return not found["wrong"] and found["is_right"] and found["are_right"] and found["killed"] > 0


def test_a_killed_command_leaves_nothing_half_written(tmp_path):
    for name, found in killed(tmp_path, 10, seed=0, last="network").items():
        assert is_sound(found), (name, found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_at_many_moments(tmp_path, seed):
    for name, found in killed(tmp_path, 20, seed, last="evaluate").items():
        assert is_sound(found), (name, found)
