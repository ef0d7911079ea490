"""Rows of X whose files are not read here, because workers read them."""

from collections.abc import Callable, Collection, Iterator, Sequence

from .._digests import is_remembered
from .._exceptions import ImageError, RowError
from .cells import Cell, Hashed
from .references import File, Reference
from .windows import Images, Window

OTHER_FILE = (
    "the worker on host {!r} read a different file from the one at this path here: it "
    "has changed meanwhile, or the hosts have different disks"
)
IN_PROCESS = "memory://"  # files of fsspec, in the memory of the process


class UnreadWindow(Window):
    """Some rows of X; unknown files have a key of their name instead of content."""

    def _hash(self, cell: Cell) -> Hashed | ImageError:
        """The cell with its key, or with one of its name."""
        try:
            return cell.named()
        except ImageError as error:
            return error

    def _bytes_of(self, cell: Cell) -> int:
        """How much memory a cell takes when it is sent."""
        return cell.n_bytes

    def _is_quick(self, cell: Cell) -> bool:
        """Whether nothing is known of a file, or all of it."""
        held = cell.held
        unknown = isinstance(held, Reference) and not is_remembered(held.name)
        return unknown or cell.is_hashed

    def recognise(self, rows: Collection[int], recall) -> dict[int, bytes]:
        """Keys of rows whose files have been hashed meanwhile; see :class:`Window`."""
        hashed = {row: self._hashed[row] for row in rows if self.is_unread(row)}
        cells = {row: one.cell for row, one in hashed.items() if one.file is None}
        recall([cell.held.name for cell in cells.values()])
        found = {row: cell.named() for row, cell in cells.items()}
        return {row: one.key for row, one in found.items() if one.file}

    def is_unread(self, row: int) -> bool:
        """Whether a worker, and not this process, reads a row."""
        return isinstance(self._hashed[row].cell.held, Reference)

    def send(self, row: int) -> Cell:
        """A row as workers are sent it; raises ImageError."""
        return self._hashed[row].cell.sent()

    def located(self, error: RowError, host: str) -> RowError:
        """The error of a row, with the host on which its file could not be read."""
        if not self.is_unread(error.row):
            return error
        reason = f"{error.reason} (on host {host!r})"
        if error.source.startswith(IN_PROCESS):
            reason += f"; what {IN_PROCESS!r} names only exists in one process"
        return ImageError(error.row, error.source, reason)

    def accept(self, row: int, state: str, key: bytes, host: str) -> list:
        """The file of a row that a worker has read in some state, to be remembered.

        It is not if it cannot be seen from here. Raises ImageError if the file here is
        another one.
        """
        cell = self._hashed[row].cell
        here = _state_here(cell.held, state)
        if here is None:
            return []
        if _size_and_time(here) != _size_and_time(state):
            raise ImageError(row, cell.source, OTHER_FILE.format(host))
        return [(cell.held.name, here, key)]


def _state_here(held: Reference, there: str) -> str | None:
    """The state of a file as this machine sees it; None if it does not."""
    if not isinstance(held, File):
        return there  # a URL is the same everywhere
    try:
        return held.state()
    except (OSError, ValueError):
        return None


def _size_and_time(state: str) -> list[str]:
    """What is the same on all machines that see a file."""
    return state.split()[1:3]


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

    def windows(
        self, recall, n_threads: int, rescaled: bool, make_window=None
    ) -> Iterator[Window]:
        """All rows in order; see :meth:`Images.windows`."""

        def make(rescaled: bool) -> Window:
            return UnreadWindow(rescaled, self._rows_held())

        return self._images.windows(recall, n_threads, rescaled, make)

    windows_ahead = windows  # workers hash the files while this process waits for them


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
