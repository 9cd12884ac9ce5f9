"Files appear complete or not at all; equal content has equal hashes."

import socket
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from gpovae.core.errors import GpovaeError
from gpovae.core.provenance import complete, digest, fingerprint, room, storable, versions


def content(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_files_appear_when_the_work_is_done(tmp_path):
    (tmp_path / "a" / "parts").mkdir(parents=True)
    (tmp_path / "a" / "parts" / "old").touch()
    with complete(tmp_path / "a") as folder:
        (folder / "x").touch()
        (folder / "parts").mkdir()
        (folder / "parts" / "new").touch()
        assert content(tmp_path / "a")[-2:] == ["parts", "parts/old"]
    assert content(tmp_path) == ["a", "a/parts", "a/parts/new", "a/x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GpovaeError])
def test_an_error_leaves_no_trace(error, tmp_path):
    with pytest.raises(error, match="reason"):
        with complete(tmp_path / "a" / "b") as folder:
            (folder / "x").touch()
            raise error("reason")
    assert content(tmp_path) == []


def test_an_error_leaves_what_stood_there(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ValueError):
        with complete(tmp_path) as folder:
            (folder / "x").write_text("new")
            raise ValueError
    assert content(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_destination_that_is_a_file(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(GpovaeError, match="Cannot write the notes to .* Choose another place"):
        with complete(tmp_path / "x", "the notes"):
            raise AssertionError
    assert content(tmp_path) == ["x"]


def test_a_full_disk_is_one_sentence(tmp_path):
    "Also where a library hides it behind an error of its own."
    with pytest.raises(GpovaeError, match="No space left on device. Make room there"):
        with complete(tmp_path / "a"):
            try:
                room(tmp_path / "x", 2**62)
            except OSError as error:
                raise RuntimeError("could not write") from error
    assert content(tmp_path) == []


def test_folders_of_killed_processes_are_removed(tmp_path):
    beginning = f".gpovae-{socket.gethostname()}"
    for name in (f"{beginning}-{2**22 + 1}-x", f"{beginning}-1-x", ".gpovae-elsewhere-4194305-x"):
        (tmp_path / name).mkdir()
    with complete(tmp_path):
        pass
    assert content(tmp_path) == [".gpovae-elsewhere-4194305-x", f"{beginning}-1-x"]


VALUES = [
    np.array(["A", "Bé", "None"]),
    np.arange(6.0).reshape(2, 3),
    np.array([True, False]),
    pd.Series([1, 2, 3]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value.dtype))
def test_equal_before_and_after_a_file(value, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["x"] = np.asarray(value).astype("O") if value.dtype.kind == "U" else value
        back = f["x"].asstr()[:] if value.dtype.kind == "U" else f["x"][:]
    assert digest(back) == digest(value) and len(digest(value)) == 16


def test_any_difference_counts():
    table = pd.DataFrame(dict(a=[1, 2], b=["x", "y"]), index=["p", "q"])
    others = [
        table[::-1],
        table.rename(columns=dict(a="c")),
        table.set_axis(["p", "r"]),
        table.assign(a=[1, 3]),
        table.assign(b=["x", "z"]),
    ]
    assert len({digest(t) for t in (table, *others)}) == 6
    assert digest(table) == digest(table[["b", "a"]]) == digest(dict(table) | {"": table.index})


def test_values_of_0_1_0():
    "Hashes stored in files of 0.1.0 are recognised."
    assert digest(np.arange(3)) == "ab25350e3e65efeb"
    assert digest(["A", "B"]) == fingerprint(["A", "B"]) == "23519a43c66b4c34"


def test_what_a_file_can_hold():
    settings = dict(a=None, b=["x", "y"], c=np.float32(0.5), d=Path("p"), e=True, f=(1, 2))
    assert storable(settings) == dict(a="", b="x, y", c=0.5, d="p", e=True, f="1, 2")
    assert type(storable(settings)["c"]) is float


def test_versions_are_a_copy():
    versions().clear()
    assert {"gpovae", "numpy"} <= versions().keys()
