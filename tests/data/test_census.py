"""A thousand damaged files end in a result or one `GpovaeError`: no traceback, crash, hang, two
gigabytes of memory, nor anything left behind.
"""

from collections import Counter

import pytest
from census import RIGHT, census, further_layouts

# seeds that once ended in a crash of scipy
CRASHES = [4424, 7529]


@pytest.mark.parametrize("first, more", [(0, CRASHES), (500, [])], ids=["0", "500"])
def test_damaged_files_are_read_or_refused(tmp_path, first, more):
    results = census(tmp_path, [*range(first, first + 500), *more])
    assert not {seed: found for seed, found in results.items() if found[1] not in RIGHT}
    whole = {name: result for name, (_, result) in results.items() if isinstance(name, str)}
    assert set(whole.values()) == {"read"} and len(whole) == 7
    # damage of all of them was met, and many can still be read
    found = Counter(result for _, result in results.values())
    assert len({layout for layout, _ in results.values()}) == 7 and found["read"] > 100


def test_damaged_files_of_rarer_layouts_are_read_or_refused(tmp_path):
    results = census(tmp_path, range(200), further_layouts)
    assert not {seed: found for seed, found in results.items() if found[1] not in RIGHT}
    whole = {name: result for name, (_, result) in results.items() if isinstance(name, str)}
    named = {"genomes.h5", "loom.loom", "mudata.h5mu", "old.h5ad"}
    assert {name for name, result in whole.items() if result == "refused"} == named
    assert {name for name, result in whole.items() if result == "read"} == {
        "from_r.h5ad",
        "plain",
        "sharded.zarr",
    }
