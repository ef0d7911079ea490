"""What X may be, and what rows that are no texts say."""

import enum
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from skdeepfeat import PretrainedTextFeatures, TextError, TextWarning

TEXTS = ["win cash now", "see you at home", "über, naïve"]


Message = enum.Enum(
    "Message", {f"M{i}": text for i, text in enumerate(TEXTS)}, type=str
)


class Shown(str):
    """A text that shows itself as another one."""

    __slots__ = ()

    def __str__(self):
        return "something else"


@pytest.fixture(scope="module")
def expected():
    return PretrainedTextFeatures(cache=None).transform(TEXTS)


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        np.array,
        lambda X: np.array(X, object),
        lambda X: np.array(X, object)[:, None],
        lambda X: np.array(X, np.dtypes.StringDType()),
        lambda X: list(Message),
        lambda X: list(map(Shown, X)),
        lambda X: ["\ufeff" + text for text in X],
        lambda X: [text.encode("utf-8-sig") for text in X],
        lambda X: [text.encode() for text in X],
        lambda X: np.array([text.encode() for text in X]),
        pd.Series,
        lambda X: pd.Series(X, dtype=object),
        lambda X: pd.Series(X, dtype="category"),
        lambda X: pd.Series(X, dtype=pd.ArrowDtype(pa.string())),
        lambda X: pd.DataFrame({"message": X}),
        pl.Series,
        lambda X: pl.DataFrame({"message": X}),
        pa.array,
        lambda X: pa.chunked_array([X[:1], X[1:]]),
        lambda X: pa.table({"message": X}),
    ],
)
def test_the_same_texts_in_any_container_have_the_same_features(make, expected):
    rows = PretrainedTextFeatures(cache=None).fit_transform(make(TEXTS))
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("X", "advice"),
    [
        ("one text", "pass \\[X\\]"),
        (b"one text", "pass \\[X\\]"),
        (bytearray(b"one text"), "pass \\[X\\]"),
        (memoryview(b"one text"), "pass \\[X\\]"),
        ({"message": TEXTS}, "pass X\\[key\\]"),
        (set(TEXTS), "pass list\\(X\\)"),
        (iter(TEXTS), "pass list\\(X\\)"),
        (np.arange(3), "X.astype\\(str\\)"),
        (np.ones((3, 2)), "X.astype\\(str\\)"),
        (pd.Series([1.5, 2]), "X.astype\\(str\\)"),
        (pd.Series([1, None], dtype="Int64"), "X.astype\\(str\\)"),
        (pd.DataFrame({"n": [1, 2]}), "X.astype\\(str\\)"),
        (pl.Series([1, 2]), "X.astype\\(str\\)"),
        (pa.array([1, 2]), "X.astype\\(str\\)"),
        (pl.DataFrame({"message": TEXTS}).lazy(), "pass X.collect\\(\\)"),
        (pd.DataFrame({"a": TEXTS, "b": TEXTS}), "2 columns \\['a', 'b'\\]"),
        (np.array([TEXTS, TEXTS]), "X\\[:, 0\\]"),
        ([], "0 sample"),
        (np.empty(0), "0 sample"),
        (pd.DataFrame({"message": []}, dtype=float), "0 sample"),
    ],
)
def test_what_is_no_sequence_of_texts_is_refused_with_what_to_type(X, advice):
    with pytest.raises(ValueError, match=advice):
        PretrainedTextFeatures().fit(X).transform(X)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "there is no text"),
        (float("nan"), "there is no text"),
        (pd.NA, "there is no text"),
        (3, "str\\(value\\)"),
        (["a"], "' '.join\\(value\\)"),
        (np.array(["a", "b"]), "' '.join\\(value\\)"),
        (pd.Series(["a", "b"]), "' '.join\\(value\\)"),
        (pd.DataFrame({"a": [1]}), "str\\(value\\)"),
        (pl.Series(["a"]), "' '.join\\(value\\)"),
        (Decimal("sNaN"), "there is no text"),
        (np.float32("nan"), "there is no text"),
        (np.datetime64("NaT", "ns"), "there is no text"),
        (b"\xff", "not UTF-8"),
        ("\ud800", "half a character"),
    ],
)
def test_a_row_that_is_no_text_is_an_error_of_this_row(cell, reason):
    X = [TEXTS[0], cell, TEXTS[1], cell]
    with pytest.raises(TextError, match=f"row 1 .*{reason}"):
        PretrainedTextFeatures().transform(X)
    features = PretrainedTextFeatures(on_error="nan")
    with pytest.warns(TextWarning, match="2 of 4 texts could not be read"):
        rows = features.transform(X)
    assert np.isnan(rows).all(1).tolist() == [False, True, False, True]
    assert [row for row, _, _ in features.errors_] == [1, 3]


def test_messages_never_quote_a_text():
    with pytest.raises(TextError) as raised:
        PretrainedTextFeatures().transform(["my password is 1234\ud800"])
    assert "password" not in str(raised.value)


@pytest.mark.parametrize("name", ["collect", "to_native", "column_names", "to_pylist"])
def test_columns_may_have_any_name(name, expected):
    found = PretrainedTextFeatures(cache=None).transform(pd.DataFrame({name: TEXTS}))
    np.testing.assert_array_equal(found, expected)


def test_columns_are_remembered_and_compared():
    features = PretrainedTextFeatures().fit(pd.DataFrame({"message": TEXTS}))
    names = features.get_feature_names_out()
    assert names[0] == "message_pretrainedtextfeatures0"
    with pytest.raises(ValueError, match="feature names"):
        features.transform(pd.DataFrame({"other": TEXTS}))
