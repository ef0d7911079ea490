"""Parameter constraints, tables of numbers, names of columns.

The only file that touches private names of scikit-learn, or names that its versions
do not share.
"""

from numbers import Integral, Real

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import validate_data

try:  # scikit-learn 1.9 and later; experimental there
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Callbacks need a newer scikit-learn."""

    def with_callbacks(method):  # type: ignore[misc]
        """Leave the method as it is."""
        return method


__all__ = [
    "CallbackSupportMixin",
    "HasMethods",
    "Integral",
    "Interval",
    "Real",
    "StrOptions",
    "check_columns",
    "check_rows_exist",
    "check_table",
    "with_callbacks",
]


def check_table(estimator, X, *, reset, image_shape, allow_nan) -> np.ndarray:
    """Flat rows (n, d) of real numbers, with scikit-learn's own sentences."""
    X = validate_data(
        estimator,
        X,
        reset=reset,
        dtype="numeric",
        ensure_all_finite="allow-nan" if allow_nan else True,
    )
    if image_shape is None:
        raise ValueError(
            f"The 'image_shape' parameter of {type(estimator).__name__} must say what "
            f"images flat rows of {X.shape[1]} numbers are. Got image_shape=None "
            "instead; type for instance image_shape=(28, 28) or (32, 32, 3), or pass "
            "paths or an array of shape (n, h, w[, channels])."
        )
    return X


def check_columns(estimator, X, *, reset) -> None:
    """Remember or compare the name of the column of a one-column data frame."""
    if hasattr(X, "columns") and hasattr(X, "shape") and len(X.shape) == 2:
        validate_data(estimator, X, reset=reset, skip_check_array=True)


def check_rows_exist(estimator, n_rows) -> None:
    """Refuse zero rows as scikit-learn does."""
    if n_rows == 0:
        raise ValueError(
            f"Found array with 0 sample(s) while a minimum of 1 is required by "
            f"{type(estimator).__name__}."
        )
