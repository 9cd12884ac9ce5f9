"""Missing words of a column are words of their own, with pandas 2 and with pandas 3."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from gpovae.data.labels import as_text, gene_names
from gpovae.data.register import _batches

MISSING = [
    pd.Series([np.nan, "a"]),
    pd.Series([np.nan, "a"], dtype=object),
    pd.Series(pd.Categorical([np.nan, "a"])),
    pd.Index([np.nan, "a"]),
]


@pytest.mark.parametrize("values", MISSING, ids=lambda v: f"{type(v).__name__}-{v.dtype}")
def test_missing_is_a_word(values):
    assert list(as_text(values)) == ["nan", "a"]


def test_numbers_are_as_they_were():
    assert list(as_text(pd.Series([1.0, np.nan]))) == ["1.0", "nan"]


def test_genes_without_an_annotation():
    "A column of var that is empty for one gene stops nothing."
    var = pd.DataFrame(dict(role=["target", np.nan]), index=["KLF1", "EMPTY"])
    names, _ = gene_names(var)
    assert list(names) == ["KLF1", "EMPTY"]


def test_cells_without_a_batch_are_a_batch():
    "Not the code -1, which would index the last batch."
    obs = pd.DataFrame(dict(lane=["one", None, "one"]))
    batches = _batches(ad.AnnData(np.ones((3, 2)), obs), "lane")
    assert (batches.codes >= 0).all() and len(batches.categories) == 2
