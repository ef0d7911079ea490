"""X → a sequence of image rows, whatever container holds them.

Nothing is decoded here. What a cell is gets decided cell by cell and call by call, so
that a list, a Series or an object array of the same images mean the same.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse

from ._cells import (
    ALLOWED,
    CellKind,
    is_bfloat16,
    is_missing,
    is_tensor,
    kind_of,
    reason_of,
    unwrap,
)
from ._decoding import CHANNELS
from ._digests import digest, digest_bytes
from ._exceptions import ImageError

# Rows -------------------------------------------------------------------------------


class Images:
    """The rows of one call: a sequence of cells that can be hashed, named and read.

    Parameters
    ----------
    cells : sequence
        One image each.
    """

    def __init__(self, cells):
        self._cells = cells
        self._file_digests: dict[int, bytes] = {}

    def __len__(self):
        return len(self._cells)

    def __getitem__(self, row):
        return unwrap(self._cells[row])

    def kind(self, row, cell) -> CellKind:
        """What a cell is; raises ImageError for a missing or foreign one."""
        if is_missing(cell):
            raise ImageError(row, "missing", "there is no image in this row")
        kind = kind_of(cell)
        if kind is None:
            what = type(cell).__name__
            raise ImageError(row, what, f"no image; a row must be {ALLOWED}")
        return kind

    def key(self, row, cell, rescaled=False) -> bytes | ImageError:
        """Digest of the content of a row, or what went wrong.

        `rescaled` says that arrays have a range of values of their own, so that equal
        pixels of a PIL image are another image.
        """
        try:
            kind = self.kind(row, cell)
            key = kind.digest(cell)
        except ImageError as error:
            return error
        except Exception as error:
            failure = self.error(row, error)
            failure.__cause__ = error
            return failure
        if kind.name == "path":
            self._file_digests[row] = key
        return digest("pil", key) if rescaled and kind.name == "pil" else key

    def read(self, row) -> tuple[CellKind, Any]:
        """Kind and cell of a row, a file as its bytes, which must be those hashed."""
        cell = self[row]
        kind = self.kind(row, cell)
        if kind.name != "path":
            return kind, cell
        with open(cell, "rb") as file:
            content = file.read()
        hashed = self._file_digests.get(row)
        if hashed is not None and hashed != digest_bytes(content):
            raise ValueError("the file was changed while it was in use; try again")
        return kind, content

    def expect(self, row) -> None:
        """Let the system begin to read the file of a row that is asked for soon."""
        if type(self._cells) is not list or not hasattr(os, "posix_fadvise"):
            return  # another sequence may make an image whenever it is looked at
        cell = self[row]
        if self.kind(row, cell).name == "path":
            with open(cell, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def error(self, row, error: Exception) -> ImageError:
        """What went wrong with a row, in a sentence that names it."""
        cell = self[row]
        return ImageError(row, self.kind(row, cell).describe(cell), reason_of(error))


# Containers -------------------------------------------------------------------------

# What is another thing in a wrapping, and how it is taken out.
WRAPPED: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    # A frame or Series of narwhals.
    (lambda X: _can(X, "to_native") and not _is_lazy(X), lambda X: X.to_native()),
    # Flat rows that numpy has no dtype for; images are cast one by one.
    (lambda X: is_tensor(X) and X.ndim == 2 and is_bfloat16(X), lambda X: X.float()),
)


def unwrap_container(X):
    """What X stands for, where it is only a view or another spelling of it."""
    return next((take(X) for is_one, take in WRAPPED if is_one(X)), X)


def is_table(X) -> bool:
    """Whether X is flat 2-D rows of numbers, to be shaped by `image_shape`.

    Everything that is not recognised as images is a table too, so that scikit-learn's
    own validation says what is wrong with it.
    """
    if sparse.issparse(X):
        return True
    if _is_lazy(X):
        return False
    if _is_frame(X):
        return X.shape[1] > 0 and _all_numeric(X)
    if _is_numeric_array(X):
        return len(X.shape) <= 2
    if is_tensor(X):
        return X.ndim == 2
    if isinstance(X, (str, bytes, bytearray, Path, Image.Image)):
        return False
    if not hasattr(X, "__len__") or not hasattr(X, "__getitem__"):
        return hasattr(X, "__array__") or not hasattr(X, "__iter__")
    if isinstance(X, Mapping):
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


def _is_lazy(X) -> bool:
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


def _is_number(cell) -> bool:
    return isinstance(cell, (int, float, complex, np.number, np.bool_))


def _is_row_of_numbers(cell) -> bool:
    if isinstance(cell, np.ndarray):
        return cell.ndim <= 1 and cell.dtype.kind in "biufc"
    return isinstance(cell, (list, tuple)) and len(cell) > 0 and _is_number(cell[0])


SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


def _is_file(X) -> bool:
    """Whether this is an opened file."""
    return hasattr(X, "read") and not hasattr(X, "__getitem__")


# What of an object that is no sequence is one, the first that it has: of a Bunch, of a
# DataLoader of torch, of sets and generators.
INSIDE = (("data", "X.data"), ("dataset", "X.dataset"), ("__iter__", "list(X)"))

# What is no sequence of images: how it is recognised, and what to type instead.
REFUSED: tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...] = (
    (
        lambda X: isinstance(X, SINGLE) or _is_file(X),
        lambda X: (
            f"X must be a sequence of images. Got one {type(X).__name__} instead; pass "
            "[X] for a single image, or load_image_folder(X).data for a folder."
        ),
    ),
    (
        _is_lazy,
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


def read_images(X) -> Images:
    """Rows of any container of images; says what to type instead of anything else."""
    for is_no_sequence, advice in REFUSED:
        if is_no_sequence(X):
            raise ValueError(advice(X))
    cells_of = next(cells_of for is_one, cells_of in CONTAINERS if is_one(X))
    return _checked(Images(cells_of(X)))


def _checked(images: Images) -> Images:
    """Refuse rows that are (image, label) pairs, as torch's data sets give them."""
    first = images[0] if len(images) else None
    if isinstance(first, (tuple, list)) and len(first) == 2 and kind_of(first[0]):
        raise ValueError(
            "X must be images alone. Its rows are (image, label) pairs; pass "
            "[image for image, label in X] as X and the labels as y."
        )
    return images


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
    if X.ndim == 3 and X.shape[-1] in CHANNELS[1:]:
        raise ValueError(
            f"X of shape {X.shape} is a single image; pass X[None] for it. (A stack "
            "of grey images has the shape (n, h, w).)"
        )
    if X.ndim == 3 or (X.ndim == 4 and X.shape[-1] in CHANNELS):
        return X
    hint = (
        " pass X.transpose(0, 2, 3, 1)."
        if X.ndim == 4 and X.shape[1] in CHANNELS
        else " reshape it."
    )
    raise ValueError(
        "An array of images must have the shape (n, h, w) or (n, h, w, channels) with "
        f"1, 3 or 4 channels. Got {X.shape};{hint}"
    )


# The first that matches counts.
CONTAINERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (_is_frame, _only_column),
    (is_tensor, _stacked_tensor),
    (lambda X: isinstance(X, np.ndarray), _cells_of_array),
    (lambda X: hasattr(X, "to_pylist"), lambda X: X.to_pylist()),  # an Arrow column
    (lambda X: isinstance(X, Sequence), lambda X: X),
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
    return Images(np.moveaxis(stack, 1, -1) if planar else stack)
