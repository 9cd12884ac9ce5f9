"""What was done to the targets: from the setting, from a column, or from the column that nobody
named."""

import warnings

import pandas as pd
import pytest

import gpovae
from gpovae.core.errors import GpovaeError
from gpovae.data.kinds import KINDS, kinds_in_words, read_kinds
from gpovae.data.screen import Screen
from gpovae.data.simulate import simulated

LABELS = ["A", "A", "B", "control"]


def obs(*kinds):
    return pd.DataFrame(dict(perturbation_type=kinds), index=list("wxyz"))


@pytest.mark.parametrize(
    "spelling, kind",
    [
        ("CRISPRi", "knockdown"),
        ("RNAi", "knockdown"),
        ("knock-down", "knockdown"),
        ("CRISPR-cas13", "knockdown"),
        ("CRISPR-cas9", "knockout"),
        ("KO", "knockout"),
        ("Knock out", "knockout"),
        ("CRISPRa", "activation"),
        ("OE", "activation"),
        ("over-expression", "activation"),
    ],
)
def test_spellings_of_the_field(spelling, kind):
    "By a column of any name, by the column that is looked for, and as the setting."
    said = obs(*[spelling] * 4)
    expected = [kind] * 3 + ["control"]
    assert list(read_kinds(said.rename(columns=dict(perturbation_type="how")), "how", LABELS)) == (
        expected
    )
    assert list(read_kinds(said, None, LABELS)) == expected
    assert list(read_kinds(said.iloc[:, :0], spelling, LABELS)) == expected


@pytest.mark.parametrize("word", ["CRISPR", "drug", "double", "nan", ""])
def test_other_words_are_refused_by_name(word):
    "CRISPR alone says nothing: scPerturb writes it for silencing and for knockouts."
    said = obs("CRISPRi", "CRISPRi", word, "whatever")
    with pytest.raises(GpovaeError, match=f"is {word!r} for cell 'y'. It must be one of knockdown"):
        read_kinds(said, "perturbation_type", LABELS)
    with pytest.warns(UserWarning, match=f"{word!r} for cell 'y'.*taken for knockdowns.*say so"):
        kinds = read_kinds(said, None, LABELS)
    assert list(kinds) == ["knockdown"] * 3 + ["control"]


def test_without_a_column_it_is_a_knockdown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinds = read_kinds(pd.DataFrame(index=list("wxyz")), None, LABELS)
    assert list(kinds) == ["knockdown"] * 3 + ["control"]


@pytest.fixture(scope="module")
def small():
    return simulated(600, 60, 6, seed=1)


@pytest.mark.parametrize(
    "column, setting, kind",
    [
        (None, None, "knockdown"),
        ("CRISPRa", None, "activation"),
        ("CRISPRa", "knockout", "knockout"),
        ("CRISPR-cas9", "perturbation_type", "knockout"),
    ],
)
def test_prepare(small, column, setting, kind):
    "The setting decides; without one, the column."
    adata = small.copy()
    adata.obs.drop(columns="perturbation_type", errors="ignore", inplace=True)
    if column:
        adata.obs["perturbation_type"] = column
    settings = {} if setting is None else dict(perturbation_type=setting)
    gpovae.prepare(adata, doublets=False, progress=False, **settings)
    assert set(Screen(adata).kinds) == {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_a_report(kind):
    "Two sentences: what was done, and what it means for the sign of an edge."
    words = kinds_in_words(pd.Series([kind] * 14))
    assert words.startswith(f"The screen has 14 {kind}s (") and words.count(". ") == 1
    assert ("rises with its regulator" in words) == (KINDS[kind].dose > 0)
    assert ("own transcript is the dose" in words) == KINDS[kind].own_transcript_is_dose
    mixed = kinds_in_words(pd.Series(["knockout", kind, "knockout"]))
    assert ("and" in mixed.split("). ")[0]) == (kind != "knockout")
