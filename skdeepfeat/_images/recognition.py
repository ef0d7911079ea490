"""Small questions about X: is it a frame, a query, a file, a sequence in memory, ..."""

import os
from collections.abc import Mapping

import numpy as np
from PIL import Image
from scipy import sparse

from .._validation import can, dtypes_of
from .kinds import is_tensor

NUMERIC = ("int", "uint", "float", "bool", "double", "half")  # begin a dtype's name
SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
IN_MEMORY = (list, tuple, Mapping, np.ndarray, *SINGLE)


def is_query(X) -> bool:
    """Whether this is a query of polars or narwhals that has not run."""
    return can(X, "collect")


def is_frame(X) -> bool:
    """Whether X is a data frame of pandas, polars or Arrow."""
    return hasattr(X, "columns") and hasattr(X, "shape") and len(X.shape) == 2


def all_numeric(frame) -> bool:
    """Whether all columns of a pandas, polars or Arrow frame hold numbers."""
    return all(str(dtype).lower().startswith(NUMERIC) for dtype in dtypes_of(frame))


def is_numeric_array(X) -> bool:
    """Whether this is an array of numbers: numpy's, or h5py's or zarr's with axes."""
    kind = getattr(getattr(X, "dtype", None), "kind", "O")
    has_axes = isinstance(X, np.ndarray) or len(getattr(X, "shape", ())) > 1
    return kind in "biufc" and has_axes


def is_file(X) -> bool:
    """Whether this is an opened file."""
    return hasattr(X, "read") and not hasattr(X, "__getitem__")


def is_scalar(X) -> bool:
    """Whether this is an array without an axis, which holds one thing."""
    return isinstance(X, np.ndarray) and X.ndim == 0


def is_closed(X) -> bool:
    """Whether the file of an h5py data set is closed."""
    return can(X, "id") and not getattr(X.id, "valid", True)


def makes_rows(X) -> bool:
    """Whether this is a sequence that need not be in memory."""
    if is_query(X):
        return False
    has_length = hasattr(X, "__len__") or len(getattr(X, "shape", ())) > 0
    is_sequence = has_length and hasattr(X, "__getitem__")
    in_memory = isinstance(X, IN_MEMORY) or is_tensor(X) or is_frame(X)
    in_memory |= sparse.issparse(X)
    in_memory |= any(can(X, name) for name in ("to_pylist", "to_numpy"))
    is_flat = len(getattr(X, "shape", ())) == 2 or can(X, "column_names")
    return is_sequence and not in_memory and not is_flat
