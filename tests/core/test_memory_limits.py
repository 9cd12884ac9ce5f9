"What a process may still take, from fake files of control groups."

import resource
import subprocess
import sys

import pytest

from gpovae.core import memory

GIB = 2**30


def files(folder, **numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def machine(tmp_path, line):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line)
    return tmp_path / "proc", tmp_path / "cgroup"


def test_version_2_and_the_groups_around(tmp_path):
    proc, mounted = machine(tmp_path, "0::/job/step\n")
    files(mounted / "job/step", memory__max="max", memory__current=GIB)
    assert memory.group_free(proc, mounted) is None
    files(mounted / "job", memory__max=4 * GIB, memory__current=3 * GIB)
    assert memory.group_free(proc, mounted) == GIB
    files(mounted / "job", memory__high=3 * GIB, memory__stat=f"anon 1\ninactive_file {GIB}")
    assert memory.group_free(proc, mounted) == GIB
    files(mounted / "job/step", memory__max=GIB // 2)
    assert memory.group_free(proc, mounted) == 0


def test_version_1(tmp_path):
    proc, mounted = machine(tmp_path, "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n")
    names = dict(memory__usage_in_bytes=GIB)
    files(mounted / "memory/a/b", memory__limit_in_bytes=2**63 - 4096, **names)
    files(mounted / "memory/a", memory__limit_in_bytes=3 * GIB, **names)
    assert memory.group_free(proc, mounted) == 2 * GIB
    files(mounted / "memory/a", memory__stat=f"total_inactive_file {GIB // 2}")
    assert memory.group_free(proc, mounted) == 2 * GIB + GIB // 2


def test_a_container_sees_its_group_at_the_root(tmp_path):
    proc, mounted = machine(tmp_path, "0::/kubepods/pod1/deadbeef\n")
    files(mounted, memory__max=2 * GIB, memory__current=GIB)
    assert memory.group_free(proc, mounted) == GIB


def test_no_control_groups(tmp_path):
    assert memory.group_free(tmp_path / "none", tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("kind, word", [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_limits_of_the_shell(kind, word):
    def limited():
        resource.setrlimit(getattr(resource, kind), (2 * GIB, 2 * GIB))

    code = "from gpovae.core.memory import free_memory; print(*free_memory())"
    command = [sys.executable, "-c", code]
    said = subprocess.run(
        command, preexec_fn=limited, capture_output=True, text=True, check=True
    ).stdout
    assert word in said and int(said.split()[0]) < 2 * GIB
