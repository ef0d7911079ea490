"""Validation of X, as an estimator of texts receives it."""

from .._validation import check_columns, check_rows_exist
from .containers import cells_of, unwrap_container
from .windows import Texts


def read_texts(estimator, X, *, reset) -> Texts:
    """The rows of X as texts; records the column of X, or compares it."""
    if isinstance(X, Texts):  # read before, in the same call
        return X
    X = unwrap_container(X)
    texts = Texts(cells_of(X))
    check_rows_exist(estimator, len(texts))
    check_columns(estimator, X, reset=reset)
    return texts
