"""Rows of X whose files are not read here, because workers read them."""

from collections.abc import Callable, Sequence

from .._exceptions import ImageError
from .cells import Cell, Hashed
from .windows import Images, Window


class UnreadWindow(Window):
    """Some rows of X; unknown files have a key of their name instead of their content.

    Parameters
    ----------
    rescaled : bool
        As in :meth:`Images.windows`.
    rows_held : int
        How many rows it takes.
    """

    def __init__(self, rescaled: bool, rows_held: int):
        super().__init__(rescaled)
        self.rows_held = rows_held

    def _hash(self, cell: Cell) -> Hashed | ImageError:
        """The cell with its key, or with one of its name."""
        try:
            return cell.named()
        except ImageError as error:
            return error


class UnreadImages(Images):
    """The rows of X, in windows whose files are not read.

    Parameters
    ----------
    images : Images
    rows_held : callable
        How many rows the next window takes.
    """

    def __init__(self, images: Images, rows_held: Callable[[], int]):
        self._images, self._rows_held = images, rows_held

    def __len__(self):
        return len(self._images)

    def windows(self, recall, n_threads: int, rescaled: bool, make_window=None):
        """All rows in order; see :meth:`Images.windows`."""

        def make(rescaled: bool) -> Window:
            return UnreadWindow(rescaled, self._rows_held())

        return self._images.windows(recall, n_threads, rescaled, make)


class SentImages(Images):
    """The rows that a worker was sent; they keep their positions in X.

    Parameters
    ----------
    cells : sequence of Cell
    """

    at_once = 32

    def __init__(self, cells: Sequence[Cell]):
        self._sent = cells

    def __len__(self):
        return len(self._sent)

    def _take(self, start: int, stop: int) -> list[Cell | ImageError]:
        return list(self._sent[start:stop])
