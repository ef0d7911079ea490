"""X → a sequence of image rows, whatever container holds them.

Nothing is decoded here. The kind of each cell is decided cell by cell and call by
call, so that a list, a Series or an object array of the same images mean the same.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse

from .._processes import fork_safe
from .cells import is_encoded_array, is_missing, is_short_float, is_tensor, kind_of
from .decoding import CHANNELS
from .sequences import LAZY, Cells, Held, Lazy, LazyArray
from .windows import Images

# Containers -------------------------------------------------------------------------

# What is another thing in a wrapping, and how it is taken out.
WRAPPED: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    # A frame or Series of narwhals.
    (lambda X: _can(X, "to_native") and not _is_query(X), lambda X: X.to_native()),
    # Images of several sizes in one tensor.
    (lambda X: is_tensor(X) and X.is_nested, lambda X: list(X.unbind())),
    # Flat rows that numpy has no dtype for; images are cast one by one.
    (
        lambda X: is_tensor(X) and X.ndim == 2 and is_short_float(X),
        lambda X: fork_safe(X.float)(),
    ),
    (lambda X: isinstance(X, memoryview) and X.ndim > 1, np.asarray),
)


def unwrap_container(X):
    """What X stands for, where it is only a view or another spelling of it."""
    if _is_closed(X):
        raise ValueError(
            f"X must be open. The file of this {type(X).__name__} is closed; call this "
            "before it is, for instance inside its 'with' block."
        )
    return next((take(X) for is_one, take in WRAPPED if is_one(X)), X)


def is_table(X) -> bool:
    """Whether X is flat 2-D rows of numbers, to be shaped by `image_shape`.

    Everything that is not recognised as images is a table too, so that scikit-learn's
    own validation says what is wrong with it.
    """
    if isinstance(X, LAZY):
        return isinstance(X, Lazy) and not X.is_ragged and _are_numbers([X.first()])
    if sparse.issparse(X):
        return True
    if _is_query(X):
        return False
    if _is_frame(X):
        return X.shape[1] > 0 and _all_numeric(X)
    if _is_numeric_array(X):
        return len(X.shape) <= 2
    if is_tensor(X):
        return X.ndim == 2
    if isinstance(X, SINGLE):
        return False
    if not hasattr(X, "__len__") or not hasattr(X, "__getitem__"):
        return hasattr(X, "__array__") or not hasattr(X, "__iter__")
    if isinstance(X, Mapping):
        return False
    if isinstance(X, np.ndarray) and X.ndim == 0:
        return False
    if isinstance(X, np.ndarray) and X.ndim == 2:
        one_column = X.shape[1] == 1
        return _are_numbers(X.flat) if one_column else any(map(_is_number, X.flat))
    return _are_numbers(X)


NUMERIC = ("int", "uint", "float", "bool", "double", "half")  # begin a dtype's name


def _are_numbers(cells) -> bool:
    """Whether no cell, of the first thousand, can be an image."""
    head = (cell for cell, _ in zip(cells, range(1000), strict=False))
    present = [cell for cell in head if not is_missing(cell)]
    numbers = [_is_number(cell) or _is_row_of_numbers(cell) for cell in present]
    return len(numbers) > 0 and all(numbers)


def lazily(X):
    """X itself, or a wrapper of a sequence that makes its rows when asked for them."""
    if not _makes_rows(X):
        return X
    if len(getattr(X, "shape", ())) < 3:
        return Lazy(X)
    check_stack(tuple(X.shape))
    return LazyArray(X)


def _makes_rows(X) -> bool:
    """Whether this is a sequence that need not be in memory."""
    if _is_query(X):
        return False
    has_length = hasattr(X, "__len__") or len(getattr(X, "shape", ())) > 0
    is_sequence = has_length and hasattr(X, "__getitem__")
    in_memory = isinstance(X, IN_MEMORY) or is_tensor(X) or _is_frame(X)
    in_memory |= sparse.issparse(X)
    in_memory |= any(_can(X, name) for name in ("to_pylist", "to_numpy"))
    is_flat = len(getattr(X, "shape", ())) == 2 or _can(X, "column_names")
    return is_sequence and not in_memory and not is_flat


def _is_query(X) -> bool:
    """Whether this is a query of polars or narwhals that has not run."""
    return _can(X, "collect")


def _can(X, name: str) -> bool:
    """Whether objects of this class have a method or property; columns are none."""
    return hasattr(type(X), name)


def _is_frame(X) -> bool:
    return hasattr(X, "columns") and hasattr(X, "shape") and len(X.shape) == 2


def _all_numeric(frame) -> bool:
    """Whether all columns of a pandas, polars or Arrow frame hold numbers."""
    types = frame.dtypes if hasattr(frame, "dtypes") else frame.schema.types
    return all(str(dtype).lower().startswith(NUMERIC) for dtype in types)


def _is_numeric_array(X) -> bool:
    """Whether this is an array of numbers: numpy's, or h5py's or zarr's with axes."""
    kind = getattr(getattr(X, "dtype", None), "kind", "O")
    has_axes = isinstance(X, np.ndarray) or len(getattr(X, "shape", ())) > 1
    return kind in "biufc" and has_axes


SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
IN_MEMORY = (list, tuple, Mapping, np.ndarray, *SINGLE)


def _is_number(cell) -> bool:
    return isinstance(cell, (int, float, complex, np.number, np.bool_))


def _is_row_of_numbers(cell) -> bool:
    if isinstance(cell, np.ndarray):
        is_flat = cell.ndim <= 1 and not is_encoded_array(cell)
        return is_flat and cell.dtype.kind in "biufc"
    return isinstance(cell, (list, tuple)) and len(cell) > 0 and _is_number(cell[0])


def _is_file(X) -> bool:
    """Whether this is an opened file."""
    return hasattr(X, "read") and not hasattr(X, "__getitem__")


def _is_scalar(X) -> bool:
    """Whether this is an array without an axis, which holds one thing."""
    return isinstance(X, np.ndarray) and X.ndim == 0


def _is_closed(X) -> bool:
    """Whether the file of an h5py data set is closed."""
    return _can(X, "id") and not getattr(X.id, "valid", True)


# What of an object that is no sequence is one, the first that it has: of a Bunch, of a
# DataLoader of torch, of sets and generators.
INSIDE = (("data", "X.data"), ("dataset", "X.dataset"), ("__iter__", "list(X)"))

# What is no sequence of images: how it is recognised, and what to type instead.
REFUSED: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda X: isinstance(X, SINGLE) or _is_file(X) or _is_scalar(X),
        lambda X: (
            f"X must be a sequence of images. Got one {type(X).__name__} instead; pass "
            "[X] for a single image, or load_image_folder(X).data for a folder."
        ),
    ),
    (
        _is_query,
        lambda X: (
            f"X must hold its images. Got a {type(X).__name__} instead, which has not "
            "run; pass X.collect()."
        ),
    ),
    (
        lambda X: isinstance(X, Mapping) and not ("data" in X and hasattr(X, "data")),
        lambda X: (
            f"X must be a sequence of images. Got a {type(X).__name__} with the keys "
            f"{list(X)[:6]} instead; pass X[key] if one of its values is that, or "
            "list(X.values()) if each is an image."
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
        lambda X: _can(X, "column_names") and not _is_frame(X),
        lambda X: (
            "X must be one column of images. Got a data set with the columns "
            f'{list(X.column_names)} instead; pass X["<name of the image column>"].'
        ),
    ),
)


def read_images(X, protocols: Collection[str] = ()) -> Images:
    """Rows of any container of images; says what to type instead of anything else."""
    cells: Cells = X if isinstance(X, LAZY) else Held(_cells_of(X))
    _refuse_pairs(cells.first())
    return Images(cells, protocols)


def _cells_of(X):
    """A sequence of what stands in the rows of a container in memory."""
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


def _only_column(frame):
    """Cells of a one-column frame."""
    in_arrow = _can(frame, "column_names")
    names = list(frame.column_names if in_arrow else frame.columns)
    if len(names) != 1:
        raise ValueError(
            f"X must be one column of images. Got {len(names)} columns {names[:6]} "
            "instead; select one, for instance with "
            "ColumnTransformer([('photos', features, 'path')])."
        )
    column = frame[names[0]]
    return column.to_pylist() if in_arrow else list(column)


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
    """Refuse what is no stack of images of shape (n, h, w[, channels])."""
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


# The first that matches counts.
CONTAINERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (_is_frame, _only_column),
    (is_tensor, _stacked_tensor),
    (lambda X: isinstance(X, np.ndarray), _cells_of_array),
    (lambda X: hasattr(X, "to_pylist"), lambda X: X.to_pylist()),  # an Arrow column
    (lambda X: isinstance(X, (list, tuple)), lambda X: X),
    (lambda X: True, list),
)


def shape_rows(rows: np.ndarray, image_shape) -> Images:
    """Flat rows (n, d) as images; one entry of `image_shape` may be -1."""
    d = rows.shape[1]
    known = int(np.prod([side for side in image_shape if side != -1]))
    fits = d % known == 0 if -1 in image_shape else d == known
    if not fits:
        raise ValueError(
            f"image_shape={tuple(image_shape)} does not fit rows of {d} values. Give "
            "the height, width and channels whose product is that number."
        )
    stack = rows.reshape(len(rows), *image_shape)
    planar = stack.ndim == 4 and (
        stack.shape[-1] not in CHANNELS and stack.shape[1] in CHANNELS
    )
    return Images(Held(np.moveaxis(stack, 1, -1) if planar else stack))
