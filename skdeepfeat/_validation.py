"""Checks of parameters, of numeric tables, of labels, and of column names.

The only file that imports private names of scikit-learn, or names that its versions do
not share.
"""

import copy
import difflib
import inspect
import math
import os
import re
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils._missing import is_pandas_na
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    validate_data,
)

try:  # scikit-learn 1.9 and later; experimental there
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """A stand-in: callbacks need a newer scikit-learn."""

    def with_callbacks(method):  # type: ignore[misc]
        """Leave the method as it is."""
        return method


__all__ = [
    "CallbackSupportMixin",
    "HasBackbone",
    "HasMethods",
    "HasPath",
    "Interval",
    "PackageEstimator",
    "StrOptions",
    "WholeNumber",
    "can",
    "check_cache",
    "check_columns",
    "check_image_shape",
    "check_labels",
    "check_npy",
    "check_rows_exist",
    "check_table",
    "check_target",
    "check_value_range",
    "check_weights",
    "complete_state",
    "dtypes_of",
    "is_missing",
    "is_number",
    "is_whole",
    "only_column",
    "take_rows",
    "validate_parameter_constraints",
    "whole_dtype",
    "with_callbacks",
    "with_parameters",
]


def is_whole(value) -> TypeGuard[int]:
    """Whether a value is an integer; booleans are not, though Python counts them."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is a real number; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


class WholeNumber(Interval):
    """Constraint: an integer from `low` to `high`, both included, and no boolean."""

    def __init__(self, low=None, high=None):
        closed = "neither" if low is None else "left" if high is None else "both"
        super().__init__(Integral, low, high, closed=closed)

    def is_satisfied_by(self, val):
        return is_whole(val) and super().is_satisfied_by(val)

    def __str__(self):
        return "an int" if self.left is None else super().__str__()


class HasBackbone(HasMethods):
    """Constraint: an object with `to_backbone`; its text explains bare networks."""

    def __init__(self):
        super().__init__("to_backbone")

    def __str__(self):
        how = "Backbone.from_module(net, image_size=...) makes one of a network"
        return f"{super().__str__()} ({how})"


class HasPath(HasMethods):
    """Constraint: a path; its text explains torchvision's names of weights."""

    def __init__(self):
        super().__init__("__fspath__")

    def __str__(self):
        how = "for torchvision's ResNet18_Weights.DEFAULT, pass its .name"
        return f"{super().__str__()} ({how})"


class PackageEstimator(CallbackSupportMixin, BaseEstimator):
    """Base of our estimators: links to their pages, and pickles of earlier versions."""

    _doc_link_module = "skdeepfeat"
    _doc_link_template = (
        "https://skdeepfeat.readthedocs.io/en/stable/generated/"
        "skdeepfeat.{estimator_name}.html"
    )

    def __setstate__(self, state):
        super().__setstate__(complete_state(type(self), state))


def with_parameters(estimator, **values):
    """A copy with other values of parameters, some of which a subclass may not take."""
    copied = copy.copy(estimator)
    vars(copied).update(values)
    return copied


def complete_state(estimator_class, state: dict) -> dict:
    """The state of a pickle; parameters that are newer than it get their defaults."""
    parameters = inspect.signature(estimator_class).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | state


# Whole numbers, as pandas, polars and Arrow call them.
WHOLE = re.compile(r"(u?int(?:8|16|32|64)|bool)(?:ean)?(?:\[pyarrow\])?")


def check_table(estimator, X, *, reset, image_shape, allow_nan) -> np.ndarray:
    """Flat rows (n, d) of real numbers, with scikit-learn's own sentences."""
    if _is_column(X):
        raise ValueError(
            "Expected 2D array, got one column of numbers instead. X must be images, "
            "one in each row, or flat rows of numbers with image_shape. Pass the "
            "column that holds the images. Reshape your data with X.reshape(1, -1) if "
            "it is one image."
        )
    options = {
        "dtype": "numeric",
        "ensure_all_finite": "allow-nan" if allow_nan else True,
    }
    if reset or hasattr(estimator, "n_features_in_"):
        X = validate_data(estimator, X, reset=reset, **options)
    else:  # no columns are known yet that these could be compared with
        X = check_array(X, estimator=estimator, **options)
    if image_shape is None:
        raise ValueError(
            f"The 'image_shape' parameter of {type(estimator).__name__} must give the "
            f"shape of images in flat rows of {X.shape[1]} numbers. Got "
            "image_shape=None instead; pass for example image_shape=(28, 28) or "
            "(32, 32, 3), or paths or an array of shape (n, h, w[, channels])."
        )
    return X


def _is_column(X) -> bool:
    """Whether this is one column of single numbers."""
    if hasattr(X, "shape"):
        return len(X.shape) == 1
    return isinstance(X, (list, tuple)) and not any(map(np.iterable, X))


def whole_dtype(frame) -> np.dtype | None:
    """The dtype that holds all columns of a frame of whole numbers; else None.

    How pixels are scaled depends on it, and frames become arrays of floats if their
    columns may have missing values.
    """
    found = [WHOLE.fullmatch(str(dtype).lower()) for dtype in dtypes_of(frame)]
    if not found or not all(found):
        return None
    return np.result_type(*{match[1] for match in found if match})


def dtypes_of(frame) -> list:
    """The dtypes of the columns of a pandas, polars or Arrow frame; none of others."""
    if hasattr(frame, "dtypes"):
        return list(frame.dtypes)
    return list(frame.schema.types) if can(frame, "schema") else []


def check_image_shape(image_shape) -> None:
    """Refuse what is not (h, w), (h, w, channels) or (channels, h, w)."""
    if image_shape is None:
        return
    sides = all(is_whole(s) and (int(s) > 0 or s == -1) for s in image_shape)
    if len(image_shape) not in (2, 3) or not sides or list(image_shape).count(-1) > 1:
        raise ValueError(
            "The 'image_shape' parameter must be (h, w), (h, w, channels) or "
            f"(channels, h, w), with at most one -1. Got {image_shape!r} instead."
        )


def check_value_range(value_range) -> tuple[float, float] | None:
    """(low, high) as floats; refuses what is not a range of numbers."""
    if value_range is None:
        return None
    numbers = all(is_number(v) and math.isfinite(v) for v in value_range)
    if len(value_range) != 2 or not numbers or not value_range[0] < value_range[1]:
        raise ValueError(
            "The 'value_range' parameter must be (low, high), the values of black and "
            f"white. Got {value_range!r} instead."
        )
    return float(value_range[0]), float(value_range[1])


# Strings that do not name a folder → what to pass instead, also for similar ones.
NO_FOLDERS = {"memory": "'memory'", "none": "None"}


def check_cache(cache) -> None:
    """Refuse a misspelt word as `cache`, which would become a folder of this name."""
    if not isinstance(cache, str) or cache == "memory" or os.path.dirname(cache):
        return
    meant = difflib.get_close_matches(cache.strip().lower(), NO_FOLDERS, 1, 0.82)
    if meant and not os.path.exists(cache):
        raise ValueError(
            f"The 'cache' parameter is {cache!r}. Did you mean {NO_FOLDERS[meant[0]]}? "
            f"For a folder of this name, pass {os.path.join('.', cache)!r}."
        )


def check_npy(path) -> None:
    """Refuse the name of a file that says that it has another format."""
    if os.path.splitext(path)[1] != ".npy":
        raise ValueError(
            f"The 'path' of transform_to must end in .npy. Got {str(path)!r} instead."
        )


def check_columns(estimator, X, *, reset) -> None:
    """Remember the name of a frame's only column or of a Series; compare frames.

    A Series was chosen by its name: fit and transform may well get two columns.
    """
    if reset:
        for attribute in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(attribute, None)  # of an earlier fit
        X = X.to_frame() if _is_named_series(X) else X
    is_frame = hasattr(X, "columns") and len(getattr(X, "shape", ())) == 2
    if is_frame and (reset or hasattr(estimator, "feature_names_in_")):
        validate_data(estimator, X, reset=reset, skip_check_array=True)


def can(X, name: str) -> bool:
    """Whether objects of this class have a method or property; columns are none."""
    return hasattr(type(X), name)


def is_missing(cell) -> bool:
    """Whether a cell is None, masked, nan or a data frame's own missing value."""
    if cell is None or cell is np.ma.masked:
        return True
    if isinstance(cell, (float, np.floating)):
        return bool(cell != cell)
    return type(cell).__name__ in ("NAType", "NaTType")


def only_column(frame, noun: str, example: str):
    """The column of a frame that has one, of such things as its rows are."""
    in_arrow = can(frame, "column_names")
    names = list(frame.column_names if in_arrow else frame.columns)
    if len(names) != 1:
        raise ValueError(
            f"X must be one column of {noun}. Got {len(names)} columns {names[:6]} "
            f"instead; select one, for instance with ColumnTransformer([{example}])."
        )
    return frame[names[0]]


def _is_named_series(X) -> bool:
    """Whether X is a column of a pandas or polars frame, by itself."""
    name = getattr(X, "name", None)
    return hasattr(X, "to_frame") and isinstance(name, str) and name != ""


def check_rows_exist(estimator, n_rows) -> None:
    """Refuse zero rows as scikit-learn does."""
    if n_rows == 0:
        raise ValueError(
            f"Found array with 0 sample(s) while a minimum of 1 is required by "
            f"{type(estimator).__name__}."
        )


def check_labels(estimator, y) -> np.ndarray:
    """Labels (n,) of classes, with scikit-learn's own sentences."""
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            "the target y is None."
        )
    _refuse_missing(_as_array(y))
    with config_context(array_api_dispatch=False):  # a tensor becomes an array
        y = _check_y(y, estimator=estimator)
        _refuse_unsortable(y)
        check_classification_targets(y)
    return y


def _refuse_unsortable(y: np.ndarray) -> None:
    """Refuse labels of several types, which have no order."""
    try:
        np.unique(y)
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in y.flat})
        raise TypeError(
            f"y must be labels of one type. Got {' and '.join(kinds)} instead; make "
            "them the same, for instance with [str(label) for label in y]."
        ) from error


def check_target(estimator, y) -> np.ndarray:
    """Classes or numbers (n,) or (n, outputs), by which `fit` chooses a layer."""
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            "the target y is None. With layer='auto', fit chooses the layer that "
            "suits y: call fit(X, y), or name a layer such as layer='penultimate'."
        )
    y = y.toarray() if hasattr(y, "toarray") else y  # sparse labels of several outputs
    # As an array first: scikit-learn makes floats of a frame's nullable integers.
    y = _as_array(y)
    _refuse_missing(y)
    y = _check_y(y, multi_output=True, estimator=estimator)
    y = np.array(y.tolist()) if y.dtype == object else y
    if y.dtype == object:
        kinds = sorted({type(value).__name__ for value in y.flat})
        raise ValueError(
            f"y must be numbers, strings or booleans. Got {', '.join(kinds)} instead; "
            "name the classes, for instance with y.astype(str)."
        )
    return y


def _as_array(y) -> np.ndarray:
    """A target as an array; says what to pass where it cannot be one."""
    try:
        return np.asarray(y)
    except (RuntimeError, TypeError) as error:  # of torch
        raise ValueError(
            f"y cannot be read as an array ({error}). Pass an array, a list or a "
            "column; for a tensor, pass y.detach().cpu().float().numpy()."
        ) from error


def _refuse_missing(y: np.ndarray) -> None:
    """Refuse missing values other than NaN, which scikit-learn refuses itself."""
    if y.dtype.kind in "mM":
        missing = np.isnat(y)
    elif y.dtype == object:
        missing = np.array([v is None or is_pandas_na(v) for v in y.flat])
        missing = missing.reshape(y.shape)
    else:
        return
    if missing.any():
        rows = missing.reshape(len(y), -1).any(axis=1)
        raise ValueError(
            f"y has no value in {rows.sum()} of {len(y)} rows, the first of which is "
            f"row {rows.argmax()}. Leave these rows out of X and y, or give them a "
            "class of their own, for instance with y.fillna('unknown')."
        )


def check_weights(sample_weight, n_rows: int) -> np.ndarray:
    """Weights (n,) of at least 0, not all of them 0; 1 for None."""
    return _check_sample_weight(
        sample_weight, np.empty(n_rows), dtype=np.float64, ensure_non_negative=True
    )


def take_rows(X, rows: np.ndarray):
    """These rows of whatever scikit-learn accepts, which may repeat."""
    return _safe_indexing(X, rows)
