"""X → a sequence of image rows, whatever container holds them.

Nothing is decoded here. The kind of each cell is decided cell by cell and call by
call, so that a list, a Series or an object array of the same images mean the same.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from .._processes import fork_safe
from .._validation import can, only_column
from .decoding import CHANNELS
from .kinds import is_short_float, is_tensor, kind_of
from .recognition import (
    SINGLE,
    is_closed,
    is_file,
    is_frame,
    is_query,
    is_scalar,
    makes_rows,
)
from .sequences import LAZY, Cells, Held, Lazy, LazyArray
from .windows import Images

# The cells of each container --------------------------------------------------------


def _only_column(frame):
    """Cells of a one-column frame."""
    column = only_column(frame, "images", "('photos', features, 'path')")
    return column.to_pylist() if can(column, "to_pylist") else list(column)


def _stacked_tensor(X):
    """Cells of an (n, channels, h, w) tensor."""
    if X.ndim == 4 and X.shape[1] in CHANNELS:
        return X
    hint = " pass X[None] for a single image." if X.ndim == 3 else ""
    if X.ndim == 4 and X.shape[-1] in CHANNELS:
        hint = " pass X.permute(0, 3, 1, 2)."
    raise ValueError(
        "A tensor of images must have the shape (n, channels, h, w) with 1, 3 or 4 "
        f"channels. Got {tuple(X.shape)};{hint or ' reshape it.'}"
    )


def _cells_of_array(X):
    """Cells of an array of objects, or of an (n, h, w[, channels]) stack."""
    if X.dtype.kind == "S":
        raise ValueError(
            "Encoded images must not be in an array of dtype bytes, which cuts "
            "trailing zeros; pass a list, or an array of dtype object."
        )
    if X.dtype.kind in "OUT":
        if X.ndim > 2 or (X.ndim == 2 and X.shape[1] != 1):
            raise ValueError(
                "An array of objects must be one column of images. Got the shape "
                f"{X.shape} instead; select one column, for instance X[:, 0], or give "
                "pixels a dtype of numbers."
            )
        return list(X.reshape(-1))
    check_stack(X.shape)
    return X


def check_stack(shape: tuple[int, ...]) -> None:
    """Refuse a shape other than (n, h, w[, channels])."""
    if len(shape) == 3 and shape[-1] in CHANNELS[1:]:
        raise ValueError(
            f"X of shape {shape} is a single image; pass X[None] for it. (A stack "
            "of grey images has the shape (n, h, w).)"
        )
    if len(shape) == 3 or (len(shape) == 4 and shape[-1] in CHANNELS):
        return
    planar = len(shape) == 4 and shape[1] in CHANNELS
    hint = " pass X.transpose(0, 2, 3, 1)." if planar else " reshape it."
    raise ValueError(
        "An array of images must have the shape (n, h, w) or (n, h, w, channels) with "
        f"1, 3 or 4 channels. Got {shape};{hint}"
    )


# What X may be: three tables, of which the first entry that matches counts ----------

# Another spelling of a container: how it is recognised, and what it stands for.
WRAPPED: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    # A frame or Series of narwhals.
    (lambda X: can(X, "to_native") and not is_query(X), lambda X: X.to_native()),
    # A frame or Series of dask, whose rows have no numbers.
    (
        lambda X: can(X, "compute") and (is_frame(X) or can(X, "to_frame")),
        lambda X: X.compute(),
    ),
    # Images of several sizes in one tensor.
    (lambda X: is_tensor(X) and X.is_nested, lambda X: list(X.unbind())),
    # Flat rows that numpy has no dtype for; images are cast one by one.
    (
        lambda X: is_tensor(X) and X.ndim == 2 and is_short_float(X),
        lambda X: fork_safe(X.float)(),
    ),
    (lambda X: isinstance(X, memoryview) and X.ndim > 1, np.asarray),
)


# The sequence inside an object that is none, and how to type it: in a Bunch, in a
# DataLoader of torch, in sets and generators.
INSIDE = (("data", "X.data"), ("dataset", "X.dataset"), ("__iter__", "list(X)"))

# No sequence of images: how it is recognised, and what to type instead.
REFUSED: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda X: isinstance(X, SINGLE) or is_file(X) or is_scalar(X),
        lambda X: (
            f"X must be a sequence of images. Got one {type(X).__name__} instead; pass "
            "[X] for a single image, or load_image_folder(X).data for a folder."
        ),
    ),
    (
        is_query,
        lambda X: (
            f"X must hold its images. Got a {type(X).__name__} instead, which has not "
            "run; pass X.collect()."
        ),
    ),
    (
        lambda X: isinstance(X, Mapping) and not ("data" in X and hasattr(X, "data")),
        lambda X: (
            f"X must be a sequence of images. Got a {type(X).__name__} with the keys "
            f"{list(X)[:6]} instead; pass X[key] if one of its values is a sequence of "
            "images, or list(X.values()) if each value is an image."
        ),
    ),
    (
        lambda X: isinstance(X, Mapping) or not hasattr(X, "__getitem__"),
        lambda X: (
            f"X must be a sequence of images. Got a {type(X).__name__} instead; pass "
            f"{next((to_type for name, to_type in INSIDE if hasattr(X, name)))}."
        ),
    ),
    (
        lambda X: isinstance(X, np.ma.MaskedArray),
        lambda X: (
            "X must not be a masked array, whose mask no network can see. Fill it, for "
            "instance with X.filled(0)."
        ),
    ),
    (
        lambda X: can(X, "column_names") and not is_frame(X),
        lambda X: (
            "X must be one column of images. Got a data set with the columns "
            f'{list(X.column_names)} instead; pass X["<name of the image column>"].'
        ),
    ),
)


# A sequence of images in memory: how it is recognised, and its cells.
CONTAINERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (is_frame, _only_column),
    (is_tensor, _stacked_tensor),
    (lambda X: isinstance(X, np.ndarray), _cells_of_array),
    (lambda X: hasattr(X, "to_pylist"), lambda X: X.to_pylist()),  # an Arrow column
    (lambda X: isinstance(X, (list, tuple)), lambda X: X),
    (lambda X: True, list),
)


# Reading them ------------------------------------------------------------------------


def unwrap_container(X):
    """The container that X is another spelling of; any other X itself."""
    if is_closed(X):
        raise ValueError(
            f"X must be open. The file of this {type(X).__name__} is closed; call this "
            "before it is, for instance inside its 'with' block."
        )
    return next((take(X) for is_one, take in WRAPPED if is_one(X)), X)


def lazily(X):
    """X itself, or a wrapper of a sequence whose rows are not in memory."""
    if not makes_rows(X):
        return X
    if len(getattr(X, "shape", ())) < 3:
        return Lazy(X)
    check_stack(tuple(X.shape))
    return LazyArray(X)


def read_images(X, protocols: Collection[str] = ()) -> Images:
    """The rows of any container of images; an error says what else to type."""
    cells: Cells = X if isinstance(X, LAZY) else Held(_cells_of(X))
    _refuse_pairs(cells.first())
    return Images(cells, protocols)


def _cells_of(X):
    """The cells of a container in memory; refuses other objects than sequences."""
    for is_no_sequence, advice in REFUSED:
        if is_no_sequence(X):
            raise ValueError(advice(X))
    return next(cells_of(X) for is_one, cells_of in CONTAINERS if is_one(X))


def _refuse_pairs(first) -> None:
    """Refuse rows that are (image, label) pairs, as torch's data sets give them."""
    if isinstance(first, (tuple, list)) and len(first) == 2 and kind_of(first[0]):
        raise ValueError(
            "X must be images alone. Its rows are (image, label) pairs; pass "
            "[image for image, label in X] as X and the labels as y."
        )
