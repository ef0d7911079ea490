"""Rows whose memory a sequence fills again for the next row → copies of their own.

Readers of videos, of cameras and of files of several pages do so. A row is only used
once others have been read, so it would show the last of them.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .kinds import is_tensor

ROWS_TRIED = 4  # the first rows, which are copied: most readers have up to 3 buffers
OF_ITS_FILE = ("format", "filename", "tag_v2", "map")  # what says how it is read


def _is_drawn_on(cell) -> bool:
    """Whether this is a PIL image in memory, or one page of several in a file.

    Any other is not decoded yet, and is not decoded here, as it may be large.
    """
    if not isinstance(cell, Image.Image):
        return False
    return not getattr(cell, "tile", None) or getattr(cell, "is_animated", False)


def _copy_of_image(image: Image.Image) -> Image.Image:
    """A copy of a PIL image that still knows its file; itself if it is damaged."""
    try:
        copied = image.copy()
    except MemoryError:
        raise
    except Exception:  # which becomes an error of its row once it is decoded
        return image
    for name in filter(lambda name: hasattr(image, name), OF_ITS_FILE):
        setattr(copied, name, getattr(image, name))
    return copied


# What can be filled again: how it is recognised, what tells its memory from that of
# others while both are held, and a copy.
BUFFERS: tuple[
    tuple[Callable[[Any], bool], Callable[[Any], int], Callable[[Any], Any]], ...
] = (
    (lambda c: isinstance(c, np.ndarray), lambda c: _address(c), lambda c: c.copy()),
    (
        lambda c: is_tensor(c) and str(c.layout) == "torch.strided",
        lambda c: c.data_ptr(),
        lambda c: c.detach().clone(),
    ),
    (_is_drawn_on, id, _copy_of_image),
    (lambda c: isinstance(c, bytearray), id, bytes),
    (
        lambda c: isinstance(c, memoryview),
        lambda c: _address(np.asarray(c)),
        lambda c: c.tobytes() if c.ndim == 1 else np.array(c),
    ),
    (lambda c: isinstance(c, io.BytesIO), id, lambda c: c.getvalue()),
)


def _address(array: np.ndarray) -> int:
    """Where in memory the first element of an array is."""
    return array.__array_interface__["data"][0]


class Keeper:
    """Keeps the rows that a sequence returns, one after the other."""

    def __init__(self):
        self._tried: list[tuple[int, Any]] | None = []  # place and row; None: enough
        self._are_refilled = False

    def keep(self, row):
        """The row, or a copy if the memory of an earlier one may have become its."""
        if self._tried is None and not self._are_refilled:
            return row
        for is_one, place_of, copy in BUFFERS:
            if is_one(row):
                self._try(place_of(row), row)
                return copy(row)
        return row

    def _try(self, place: int, row) -> None:
        """Compare the memory of a row with those before; decide after some rows."""
        if self._tried is None:
            return
        self._are_refilled |= any(place == other for other, _ in self._tried)
        self._tried.append((place, row))
        if self._are_refilled or len(self._tried) == ROWS_TRIED:
            self._tried = None
