"""Whether X is flat rows of numbers, and the images that such rows are."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from .._validation import is_missing
from .decoding import CHANNELS
from .kinds import is_encoded_array, is_tensor
from .recognition import (
    SINGLE,
    all_numeric,
    is_frame,
    is_numeric_array,
    is_query,
    is_scalar,
)
from .sequences import LAZY, Held, Lazy
from .windows import Images


def _is_number(cell) -> bool:
    return isinstance(cell, (int, float, complex, np.number, np.bool_))


def _is_row_of_numbers(cell) -> bool:
    if isinstance(cell, np.ndarray):
        is_flat = cell.ndim <= 1 and not is_encoded_array(cell)
        return is_flat and cell.dtype.kind in "biufc"
    return isinstance(cell, (list, tuple)) and len(cell) > 0 and _is_number(cell[0])


def _are_numbers(cells) -> bool:
    """Whether no cell, of the first thousand, can be an image."""
    head = (cell for cell, _ in zip(cells, range(1000), strict=False))
    present = [cell for cell in head if not is_missing(cell)]
    numbers = [_is_number(cell) or _is_row_of_numbers(cell) for cell in present]
    return len(numbers) > 0 and all(numbers)


def is_table(X) -> bool:
    """Whether X is flat 2-D rows of numbers, to be shaped by `image_shape`.

    What is not recognised as images is a table too, so that scikit-learn's own
    validation reports what is wrong with it.
    """
    return next(is_flat(X) for matches, is_flat in FLAT if matches(X))


def _is_no_sequence(X) -> bool:
    return not hasattr(X, "__len__") or not hasattr(X, "__getitem__")


def _is_flat_array(X) -> bool:
    """Whether a 2-D array of objects holds numbers."""
    return _are_numbers(X.flat) if X.shape[1] == 1 else any(map(_is_number, X.flat))


# What X is, and whether that is flat rows of numbers; the first that matches counts.
FLAT: tuple[tuple[Callable[[Any], bool], Callable[[Any], bool]], ...] = (
    (
        lambda X: isinstance(X, Lazy),
        lambda X: not X.is_ragged and _are_numbers([X.first()]),
    ),
    (lambda X: isinstance(X, LAZY), lambda X: False),
    (sparse.issparse, lambda X: True),
    (is_query, lambda X: False),
    (is_frame, lambda X: X.shape[1] > 0 and all_numeric(X)),
    (is_numeric_array, lambda X: len(X.shape) <= 2),
    (is_tensor, lambda X: X.ndim == 2),
    (lambda X: isinstance(X, SINGLE), lambda X: False),
    (_is_no_sequence, lambda X: hasattr(X, "__array__") or not hasattr(X, "__iter__")),
    (lambda X: isinstance(X, Mapping), lambda X: False),
    (is_scalar, lambda X: False),
    (lambda X: isinstance(X, np.ndarray) and X.ndim == 2, _is_flat_array),
    (lambda X: True, lambda X: _are_numbers(X)),
)


def shape_rows(rows: np.ndarray, image_shape, dtype: np.dtype | None) -> Images:
    """Flat rows (n, d) as images; one entry of `image_shape` may be -1.

    If they were whole numbers before, `dtype` is theirs.
    """
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
    images = np.moveaxis(stack, 1, -1) if planar else stack
    return Images(Held(images if dtype is None else _whole(images, dtype)))


def _whole(images: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
    """Images of a dtype of whole numbers, but for those with missing values."""
    return [
        image.astype(dtype, copy=False) if np.isfinite(image).all() else image
        for image in images
    ]
