"""X → a list of cells, whatever container holds them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._validation import can, only_column


def unwrap_container(X):
    """The frame or Series that one of narwhals stands for; any other X itself."""
    return X.to_native() if can(X, "to_native") else X


def cells_of(X) -> list:
    """The cells of a container; refuses other objects than sequences of texts."""
    for is_none, advice in REFUSED:
        if is_none(X):
            raise ValueError(f"X must be a sequence of texts. {advice(X)}")
    return next(take(X) for is_one, take in CONTAINERS if is_one(X))


def _is_frame(X) -> bool:
    return hasattr(X, "columns") and hasattr(X, "__getitem__")


def _only_column(X) -> list:
    """Cells of a one-column frame."""
    return cells_of(only_column(X, "texts", "('texts', features, 'message')"))


def _of_array(X: np.ndarray) -> list:
    """Cells of an array (n,) or (n, 1)."""
    if X.ndim != 1 and X.shape[1:] != (1,):
        raise ValueError(
            f"An array of texts must have the shape (n,) or (n, 1). Got {X.shape} "
            "instead; select one column, for instance X[:, 0]."
        )
    return list(X.reshape(-1))


def _holds_numbers(X) -> bool:
    """Whether a column or an array has a dtype of numbers, as empty ones may have."""
    dtype = getattr(X, "dtype", getattr(X, "type", None))
    kind = getattr(dtype, "kind", None) or _kind_of_name(str(dtype).lower())
    is_empty = 0 in getattr(X, "shape", ())[:1]
    return not _is_frame(X) and not is_empty and kind in tuple("biufc")


def _kind_of_name(name: str) -> str:
    """The kind of number that a data type of polars or Arrow names, or ""."""
    names = {"int": "i", "uint": "u", "float": "f", "double": "f", "bool": "b"}
    return next((kind for start, kind in names.items() if name.startswith(start)), "")


# No sequence of texts: how it is recognised, and what to type instead.
REFUSED: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda X: isinstance(X, (str, bytes, bytearray, memoryview)),
        lambda X: f"Got one {type(X).__name__} instead; pass [X] for a single text.",
    ),
    (
        lambda X: can(X, "collect") and not can(X, "__len__"),
        lambda X: f"Got a {type(X).__name__}, which has not run; pass X.collect().",
    ),
    (
        lambda X: isinstance(X, Mapping),
        lambda X: (
            f"Got a {type(X).__name__} with the keys {list(X)[:6]} instead; pass "
            "X[key] if one of its values is a sequence of texts."
        ),
    ),
    (
        _holds_numbers,
        lambda X: (
            "Got numbers instead; pass the column that holds the texts, or "
            "X.astype(str) if the numbers are meant as words."
        ),
    ),
    (
        lambda X: not hasattr(X, "__getitem__"),
        lambda X: f"Got a {type(X).__name__} instead; pass list(X).",
    ),
)

# A sequence of texts: how it is recognised, and its cells.
CONTAINERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], list]], ...] = (
    (_is_frame, _only_column),
    (lambda X: isinstance(X, np.ndarray), _of_array),
    (lambda X: can(X, "to_pylist"), lambda X: X.to_pylist()),  # an Arrow column
    (lambda X: True, list),
)
