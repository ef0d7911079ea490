"""The rows of one call, read and hashed in windows, so that memory is bounded."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, repeat

from .._digests import digest
from .._exceptions import ImageError, ImageWarning, Wording
from .._processes import Event, Lock
from .cells import Cell, Hashed
from .reasons import row_errors
from .references import Reference
from .sequences import BYTES_HELD, ROWS_HELD, Cells, Held, Unreadable

# Rows of the first windows if a GPU waits for them, in whole batches. One is hashed in
# less time than the network takes for the one before.
ROWS_AHEAD = (256, 1024, 4096)
FETCHES = 8  # files read at once, at least, since servers may be slow

IMAGES = Wording(
    "image",
    ImageError,
    ImageWarning,
    not_finite=(
        "its features are not finite: its pixel values are too large for the network, "
        "or some weights are NaN or infinite. Check value_range, or use "
        "precision='float32'"
    ),
    out_of_range=(
        "Some pixel values are outside the range from black to white of their dtype. "
        "If they are on another scale, pass for example value_range=(0, 255)."
    ),
)


# Rows -------------------------------------------------------------------------------


class Images:
    """The rows of one call: a sequence of images, each with a name.

    Parameters
    ----------
    cells : Cells
        The cells of the rows.
    protocols : collection of str, default=()
        Schemes of URLs that may be opened.
    """

    wording = IMAGES

    def __init__(self, cells: "Cells", protocols: Collection[str] = ()):
        self._cells, self._protocols = cells, protocols
        self._lock = Lock()  # few sequences may be indexed by several threads

    def __len__(self):
        return len(self._cells)

    @property
    def at_once(self) -> int:
        """How many rows are read at once."""
        return self._cells.at_once

    def head(self, n: int) -> "Images":
        """The first n rows alone."""
        return self.part(0, min(n, len(self)))

    def part(self, start: int, stop: int) -> "Images":
        """Some rows alone, which are counted from 0 again."""
        return Images(Held(self._cells.read(start, stop)), self._protocols)

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError."""
        (cell,) = self._take(row, row + 1)
        if isinstance(cell, ImageError):
            raise cell
        return cell.read()

    def read_ahead(self, row: int) -> None:
        """Nothing: rows that are read here are not announced."""

    def windows(
        self,
        recall,
        n_threads: int,
        rescaled: bool,
        make_window: Callable[[bool], "Window"] | None = None,
    ) -> Iterator["Window"]:
        """All rows in order, in windows; each row is read once and hashed.

        Parameters
        ----------
        recall : callable
            Called with the names of files before they are hashed.
        n_threads : int
            How many files are read at once.
        rescaled : bool
            Whether `value_range` applies to arrays, so that a PIL image with the same
            pixels is another image.
        make_window : callable, optional
            Makes an empty window from `rescaled`; by default a :class:`Window`.
        """
        make = partial(make_window or partial(Window, rows_held=ROWS_HELD), rescaled)
        return self._fill(make, recall, n_threads, Event())

    def windows_ahead(self, recall, n_threads: int, rescaled: bool):
        """The same; a thread makes the next window while one is used.

        The windows become large, because a GPU waits between them. Rows that a sequence
        makes are made when needed: it may be bound to the thread that calls.
        """
        if not self._cells.in_memory:
            return self.windows(recall, n_threads, rescaled)
        halted, sizes = Event(), chain(ROWS_AHEAD, repeat(ROWS_AHEAD[-1]))

        def make() -> Window:
            return Window(rescaled, next(sizes))

        return _ahead_of(self._fill(make, recall, n_threads, halted), halted)

    def _fill(self, make_window, recall, n_threads: int, halted) -> Iterator["Window"]:
        """Windows of all rows, or fewer once it is halted."""
        start = 0
        with ThreadPoolExecutor(max(n_threads, FETCHES), "skdeepfeat-read") as pool:
            while start < len(self) and not halted.is_set():
                window = make_window()
                while start < len(self) and window.has_room and not halted.is_set():
                    stop = min(len(self), start + self.at_once)
                    window.add(self._take(start, stop), recall, pool)
                    start = stop
                yield window

    def _take(self, start: int, stop: int) -> list[Cell | ImageError]:
        """The cells of some rows, or the errors of reading them."""
        with self._lock:
            values = self._cells.read(start, stop)
            return [self._take_one(row, v) for row, v in enumerate(values, start)]

    def _take_one(self, row: int, value) -> Cell | ImageError:
        try:
            if isinstance(value, Unreadable):
                with row_errors(row, self._cells.name):
                    raise value.error
            return Cell.of(row, value, self._protocols, self._cells.in_memory)
        except ImageError as error:
            return error


def _ahead_of(windows, halted) -> Iterator["Window"]:
    """The windows of a generator; a thread makes the next while one is used."""
    with closing(windows), ThreadPoolExecutor(1, "skdeepfeat-hash") as thread:
        try:
            following = thread.submit(next, windows, None)
            while window := following.result():
                following = thread.submit(next, windows, None)
                yield window
        finally:
            halted.set()


class Window:
    """Some rows of X, hashed; their content is held until they are computed.

    Parameters
    ----------
    rescaled : bool
        As in :meth:`Images.windows`.
    rows_held : int
        How many rows it takes, at most.
    """

    def __init__(self, rescaled: bool, rows_held: int):
        self.keys: dict[int, bytes | ImageError] = {}
        self.files: list[tuple[str, str, bytes]] = []
        self._hashed: dict[int, Hashed] = {}
        self._rows_of: dict[bytes, list[int]] = {}
        self._same_as: dict[int, list[int]] = {}  # rows of its content, itself too
        self._errors: dict[int, ImageError] = {}  # of rows that could not be read
        self._rescaled, self._rows_held, self._n_bytes = rescaled, rows_held, 0

    @property
    def has_room(self) -> bool:
        """Whether more rows may be added."""
        return len(self.keys) < self._rows_held and self._n_bytes < BYTES_HELD

    def add(self, cells: Sequence[Cell | ImageError], recall, pool) -> None:
        """Hash more rows."""
        good = [cell for cell in cells if isinstance(cell, Cell)]
        recall([cell.held.name for cell in good if isinstance(cell.held, Reference)])
        quick = [cell for cell in good if self._is_quick(cell)]
        rows = {cell.row for cell in quick}
        slow = [cell for cell in good if cell.row not in rows]
        hashed = [*map(self._hash, quick), *pool.map(self._hash, slow)]
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
        self._n_bytes += self._bytes_of(found.cell)
        if found.file is not None:
            self.files.append(found.file)

    def _bytes_of(self, cell: Cell) -> int:
        """How much memory a cell takes that X does not hold."""
        return cell.n_bytes if cell.is_kept else 0

    def _is_quick(self, cell: Cell) -> bool:
        """Whether `_hash` does not wait for a disk or a server."""
        return cell.is_hashed

    def _hash(self, cell: Cell) -> Hashed | ImageError:
        """The cell with its key, or the error of reading it."""
        try:
            return cell.hashed()
        except ImageError as error:
            return error

    def file_of(self, row: int) -> tuple[str, str, bytes] | None:
        """Name, state and digest of the file in a row that could be hashed."""
        return self._hashed[row].file

    def recognise(self, rows: Collection[int], recall) -> dict[int, bytes]:
        """Keys of rows whose files have been hashed meanwhile, by another process."""
        return {}

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError.

        If it cannot be read again, the content of an equal row is used.
        """
        source = self._hashed[row].cell.source
        for other in sorted(self._same_as[row], key=lambda r: r != row):
            try:
                return replace(self._hashed[other].read(), row=row, source=source)
            except ImageError as error:
                self._errors[other] = error
        raise self._errors[row]

    def portable(self, row: int) -> Hashed:
        """The image of a row as another process can read it; raises ImageError."""
        hashed = self._hashed[row]
        return replace(hashed, cell=hashed.cell.sent())

    def error_of(self, row: int, error: ImageError) -> ImageError:
        """The error of a row that is equal to another row with this error."""
        return self._errors.get(row) or error.at(row, self._hashed[row].cell.source)

    def forget(self) -> None:
        """Drop the content that is held."""
        self._hashed.clear()
        self._errors.clear()

    def read_ahead(self, row: int) -> None:
        """Let the system begin to read the file of a row that is needed soon."""
        held = self._hashed[row].cell.held
        if isinstance(held, Reference):
            held.read_ahead()


def _row_of(found: Cell | Hashed | ImageError) -> int:
    return found.cell.row if isinstance(found, Hashed) else found.row
