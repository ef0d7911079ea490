"""X → a sequence of image rows, whatever container holds them.

Nothing is decoded here. What a cell is gets decided cell by cell and call by call, so
that a list, a Series or an object array of the same images mean the same.
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image
from scipy import sparse

from ._cells import (
    Cell,
    Hashed,
    is_encoded_array,
    is_missing,
    is_short_float,
    is_tensor,
    kind_of,
    row_errors,
)
from ._decoding import CHANNELS
from ._digests import digest
from ._exceptions import ImageError
from ._processes import Lock, fork_safe
from ._references import Reference

ROWS_HELD = 1000  # by a window, at most
BYTES_HELD = 128 * 2**20  # a window that holds as much takes no more rows
FETCHES = 8  # at once, at least, from servers that answer slowly


# Rows -------------------------------------------------------------------------------


class Images:
    """The rows of one call: a sequence of images, each with a name.

    Parameters
    ----------
    cells : Cells
        What stands in the rows.
    protocols : collection of str, default=()
        Schemes of URLs that may be opened.
    """

    def __init__(self, cells: "Cells", protocols: Collection[str] = ()):
        self._cells, self._protocols = cells, protocols
        self._lock = Lock()  # few sequences may be asked by several threads

    def __len__(self):
        return len(self._cells)

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError."""
        (cell,) = self._take(row, row + 1)
        if isinstance(cell, ImageError):
            raise cell
        return cell.read()

    def expect(self, row: int) -> None:
        """Nothing: whoever asks here asks once."""

    def windows(self, recall, n_threads: int, rescaled: bool) -> Iterator["Window"]:
        """All rows in order, some at a time; each is read once and hashed.

        Parameters
        ----------
        recall : callable
            Is given the names of files before they are hashed.
        n_threads : int
            How many files are read at once.
        rescaled : bool
            Whether arrays have a range of values of their own, so that equal pixels of
            a PIL image are another image.
        """
        start = 0
        with ThreadPoolExecutor(max(n_threads, FETCHES), "skdeepfeat-read") as pool:
            while start < len(self):
                window = Window(rescaled)
                while start < len(self) and window.has_room:
                    stop = min(len(self), start + self._cells.at_once)
                    window.add(self._take(start, stop), recall, pool)
                    start = stop
                yield window

    def _take(self, start: int, stop: int) -> list[Cell | ImageError]:
        """What stands in some rows, or what went wrong there."""
        with self._lock:
            values = self._cells.read(start, stop)
            return [self._take_one(row, v) for row, v in enumerate(values, start)]

    def _take_one(self, row: int, value) -> Cell | ImageError:
        try:
            if isinstance(value, Unreadable):
                with row_errors(row, self._cells.name):
                    raise value.error
            return Cell.of(row, value, self._protocols)
        except ImageError as error:
            return error


class Window:
    """Some rows of X, hashed; what was read of them is held until they are computed.

    Parameters
    ----------
    rescaled : bool
        As in :meth:`Images.windows`.
    """

    def __init__(self, rescaled: bool):
        self.keys: dict[int, bytes | ImageError] = {}
        self.files: list[tuple[str, str, bytes]] = []
        self._hashed: dict[int, Hashed] = {}
        self._rows_of: dict[bytes, list[int]] = {}
        self._same_as: dict[int, list[int]] = {}  # rows of its content, itself too
        self._errors: dict[int, ImageError] = {}  # of rows that could not be read
        self._rescaled, self._n_bytes = rescaled, 0

    @property
    def has_room(self) -> bool:
        """Whether more rows may be added."""
        return len(self.keys) < ROWS_HELD and self._n_bytes < BYTES_HELD

    def add(self, cells: Sequence[Cell | ImageError], recall, pool) -> None:
        """Hash more rows."""
        good = [cell for cell in cells if isinstance(cell, Cell)]
        recall([cell.held.name for cell in good if isinstance(cell.held, Reference)])
        quick = [cell for cell in good if cell.is_hashed]
        rows = {cell.row for cell in quick}
        slow = [cell for cell in good if cell.row not in rows]
        hashed = [*map(_hashed, quick), *pool.map(_hashed, slow)]
        found = {_row_of(one): one for one in (*cells, *hashed)}
        for row in sorted(found):
            self._put(row, found[row])

    def _put(self, row: int, found: Hashed | ImageError) -> None:
        if isinstance(found, ImageError):
            self.keys[row] = found
            return
        tagged = self._rescaled and found.cell.kind.name == "pil"
        key = digest("pil", found.key) if tagged else found.key
        self.keys[row] = key
        self._same_as[row] = self._rows_of.setdefault(key, [])
        self._same_as[row].append(row)
        self._hashed[row] = found
        self._n_bytes += found.cell.n_bytes
        if found.file is not None:
            self.files.append(found.file)

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError.

        The content comes from another row of the same content if it must.
        """
        source = self._hashed[row].cell.source
        for other in sorted(self._same_as[row], key=lambda r: r != row):
            try:
                return replace(self._hashed[other].read(), row=row, source=source)
            except ImageError as error:
                self._errors[other] = error
        raise self._errors[row]

    def error_of(self, row: int, error: ImageError) -> ImageError:
        """The error of a row whose content has this error in another row."""
        return self._errors.get(row) or error.at(row, self._hashed[row].cell.source)

    def forget(self) -> None:
        """Let go of what is held."""
        self._hashed.clear()
        self._errors.clear()

    def expect(self, row: int) -> None:
        """Let the system begin to read the file of a row that is asked for soon."""
        held = self._hashed[row].cell.held
        if isinstance(held, Reference):
            held.expect()


def _hashed(cell: Cell) -> Hashed | ImageError:
    try:
        return cell.hashed()
    except ImageError as error:
        return error


def _row_of(found: Cell | Hashed | ImageError) -> int:
    return found.cell.row if isinstance(found, Hashed) else found.row


# What stands in the rows ------------------------------------------------------------


@dataclass(frozen=True)
class Unreadable:
    """What a sequence raised instead of giving a row."""

    error: Exception


class Cells(Protocol):
    """What stands in the rows of X.

    Attributes
    ----------
    name : str
        What a person calls a row that cannot even be read.
    at_once : int
        How many rows are asked for at once.
    """

    name: str
    at_once: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> list:
        """What stands in some rows; `Unreadable` for what cannot be had."""

    def first(self):
        """What stands in the first row; None if there is none or it is an array."""


class Held:
    """Rows that are in memory.

    Parameters
    ----------
    cells : sequence
    """

    name, at_once = "row of X", 32

    def __init__(self, cells):
        self._cells = cells

    def __len__(self):
        return len(self._cells)

    def read(self, start: int, stop: int) -> list:
        """What stands in some rows."""
        return [self._cells[row] for row in range(start, stop)]

    def first(self):
        """What stands in the first row."""
        return self._cells[0] if len(self) else None


class Lazy:
    """Rows that a sequence makes when it is asked for them; each is asked for once.

    Parameters
    ----------
    sequence : object
        With a length and rows by number.
    """

    at_once = 8

    def __init__(self, sequence):
        self._sequence = sequence
        self._first: list = []
        self.name = f"row of a {type(sequence).__name__}"
        # Rows of different lengths, as h5py keeps encoded images.
        self.is_ragged = getattr(getattr(sequence, "dtype", None), "kind", "") == "O"

    def __len__(self):
        is_sized = hasattr(self._sequence, "__len__")  # which arrays of zarr are not
        return len(self._sequence) if is_sized else self._sequence.shape[0]

    def read(self, start: int, stop: int) -> list:
        """What stands in some rows."""
        return [self._read_one(row) for row in range(start, stop)]

    def first(self):
        """What stands in the first row, which is kept until it is read; else None."""
        if len(self) and not self._first:
            self._first = [self._read_one(0)]
        return self._first[0] if self._first else None

    def _read_one(self, row: int):
        if row == 0 and self._first:
            return self._first.pop()
        try:
            return self._sequence[row]
        except MemoryError:
            raise
        except Exception as error:
            return Unreadable(error)


class LazyArray:
    """An array in a file, of which some rows are read at a time.

    Parameters
    ----------
    array : object
        With `shape`, `dtype` and slices, as h5py, zarr and dask have them.
    """

    def __init__(self, array):
        self._array = array
        self.name = f"row of a {type(array).__name__}"
        row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        self.at_once = min(ROWS_HELD, max(8, BYTES_HELD // 8 // max(1, row_bytes)))

    def __len__(self):
        return self._array.shape[0]

    def read(self, start: int, stop: int) -> list:
        """Some rows; one by one if not all of them can be read."""
        try:
            return list(np.asarray(self._array[start:stop]))
        except MemoryError:
            raise
        except Exception as error:
            if stop - start == 1:
                return [Unreadable(error)]
            return [
                cell for row in range(start, stop) for cell in self.read(row, row + 1)
            ]

    def first(self):
        """Nothing: rows of an array are arrays."""
        return None


LAZY = (Lazy, LazyArray)

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
