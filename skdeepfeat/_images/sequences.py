"""The cells of X: in memory, made on demand, or rows of an array in a file."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .buffers import Keeper

ROWS_HELD = 1000  # by a window, at most
BYTES_HELD = 128 * 2**20  # a window that holds as much takes no more rows


# The cells of X ---------------------------------------------------------------------


@dataclass(frozen=True)
class Unreadable:
    """The exception that a sequence raised instead of returning a row."""

    error: Exception


class Cells(Protocol):
    """The cells of X, one in each row.

    Attributes
    ----------
    name : str
        The name of a row that cannot be read, in messages.
    at_once : int
        How many rows are read at once.
    in_memory : bool
        Whether X holds the cells, so that they take no memory here.
    """

    name: str
    at_once: int
    in_memory: bool

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> list:
        """The cells of some rows; `Unreadable` for those that raise."""

    def first(self):
        """The cell of the first row; None if there is none or it is an array."""


class Held:
    """Rows that are in memory.

    Parameters
    ----------
    cells : sequence
    """

    name, at_once, in_memory = "row of X", 32, True

    def __init__(self, cells):
        self._cells = cells

    def __len__(self):
        return len(self._cells)

    def read(self, start: int, stop: int) -> list:
        """The cells of some rows."""
        return [self._cells[row] for row in range(start, stop)]

    def first(self):
        """The cell of the first row."""
        return self._cells[0] if len(self) else None


class Lazy:
    """Rows that a sequence makes when it is indexed; each is requested once.

    Parameters
    ----------
    sequence : object
        With a length and rows by number.
    """

    at_once, in_memory = 8, False

    def __init__(self, sequence):
        self._sequence = sequence
        self._first: list = []
        self._keeper = Keeper()
        self.name = f"row of a {type(sequence).__name__}"
        # Rows of different lengths, as h5py keeps encoded images.
        self.is_ragged = getattr(getattr(sequence, "dtype", None), "kind", "") == "O"

    def __len__(self):
        is_sized = hasattr(self._sequence, "__len__")  # which arrays of zarr are not
        return len(self._sequence) if is_sized else self._sequence.shape[0]

    def read(self, start: int, stop: int) -> list:
        """The cells of some rows."""
        return [self._read_one(row) for row in range(start, stop)]

    def first(self):
        """The cell of the first row, which is kept until it is read; None if empty."""
        if len(self) and not self._first:
            self._first = [self._read_one(0)]
        return self._first[0] if self._first else None

    def _read_one(self, row: int):
        if row == 0 and self._first:
            return self._first.pop()
        try:
            return self._keeper.keep(self._sequence[row])
        except MemoryError:
            raise
        except Exception as error:
            return Unreadable(error)


class LazyArray:
    """An array in a file; some of its rows are read at a time.

    Parameters
    ----------
    array : object
        With `shape`, `dtype` and slices, as h5py, zarr and dask have them.
    """

    in_memory = False

    def __init__(self, array):
        self._array = array
        self.name = f"row of a {type(array).__name__}"
        row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        self.at_once = min(ROWS_HELD, max(8, BYTES_HELD // 8 // max(1, row_bytes)))

    def __len__(self):
        return self._array.shape[0]

    def read(self, start: int, stop: int) -> list:
        """Some rows; read one by one if they cannot be read together."""
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
