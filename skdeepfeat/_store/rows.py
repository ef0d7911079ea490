"""The rows of one call: found by content, read, claimed, computed and written."""

from collections.abc import Iterator, Sequence

import numpy as np

from .._clock import Clock
from .._digests import learn_digest
from .._exceptions import ImageError, StoreWarning, warn_user
from .._images.windows import Images, Window
from .base import ColumnRows, Computed, Table
from .columns import Columns
from .waiting import new_call

CLAIMED_AT_ONCE = 32  # few, so that several workers share the missing rows


class Rows:
    """The distinct rows of one call, on their way from the store to the output.

    X goes through in windows: the rows of one are read and hashed, then taken from the
    store or computed.

    Parameters
    ----------
    images : Images
    table : Table
        Where features are kept.
    columns : Columns
        What is requested and stored; other layers are added once that saves a pass.
    out : ndarray of shape (n_images, width) or None
        Where features go; None if they are only to be stored.
    report : Report
        Is told of rows that fail, and of values out of range.
    clock : Clock
        Measures hashing, and what the store takes.
    """

    def __init__(
        self,
        images: Images,
        table: Table,
        columns: Columns,
        out,
        report,
        clock: Clock,
    ):
        self._images, self._table, self.columns = images, table, columns
        self._out, self._report, self._clock = out, report, clock
        self._first_of: dict[bytes, int] = {}
        self._same_as: list[tuple[int, int]] = []
        self._call = new_call()
        self._key_of: dict[int, bytes] = {}
        self.missing: dict[int, None] = {}  # an ordered set of rows
        self.n_computed = self._n_begun = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Let others compute what was claimed here and not computed."""
        self._table.release(self._call)

    @property
    def n_done(self) -> int:
        """How many rows of X are done."""
        return self._n_begun - len(self.missing)

    def windows(self, n_threads: int, rescaled: bool) -> Iterator[Window]:
        """The windows of X, hashed; after each comes what it lacks."""
        windows = self._images.windows(self._recall, n_threads, rescaled)
        for window in self._clock.each(windows, "hashing"):
            self._find(window)
            self._n_begun += len(window.keys)
            yield window
            self._repeat(window)
            window.forget()

    def _recall(self, names: list[str]) -> None:
        """Learn from the store which files were hashed before."""
        for file in self._table.read_files(names):
            learn_digest(*file)

    def _find(self, window: Window) -> None:
        """Tell the distinct rows by their content."""
        self._key_of, self._same_as = {}, []
        for row, key in window.keys.items():
            if isinstance(key, ImageError):
                self._report.fail(key)
                continue
            first = self._first_of.get(key, row)
            if first == row or first in self._report.failed:
                self._first_of[key] = row
                self._key_of[row] = key
            else:
                self._same_as.append((row, first))
        self._table.write_files(window.files)
        self.missing = dict.fromkeys(self._key_of)
        self._refused: dict[int, bytes] = {}  # rows that others computed when asked
        self._n_seen = self._n_idle = 0

    def read(self) -> bool:
        """Take what the store has, and what others were computing.

        Returns
        -------
        missing : bool
            Whether any row is missing still.
        """
        with self._clock.measure("store"):
            return self._read()

    def _read(self) -> bool:
        self._table.release(self._call)  # who waits must not be waited for
        refused = self._refused
        self._table.wait(self.columns.scope, list(refused.values()), list(refused))
        rows, keys = list(self.missing), [self._key_of[row] for row in self.missing]
        lacking: set[int] = set()
        for column, place in zip(
            self.columns.requested, self.columns.slices, strict=True
        ):
            out = None if self._out is None else self._out[:, place]
            found = self._table.read(column.fingerprint, keys, out, rows)
            lacking.update(found.missing)
            self._report.out_of_range |= found.out_of_range
        idle = len(lacking) == self._n_seen  # nothing was computed, nothing came
        self._n_idle = self._n_idle + 1 if idle else 0
        self._n_seen, self._refused = len(lacking), {}
        self.missing = dict.fromkeys(rows[position] for position in sorted(lacking))
        self._widen()
        return bool(self.missing)

    def _widen(self) -> None:
        """Compute all depths once images that are here at one are asked for at another.

        So no image goes through the network more than twice, in whatever order its
        layers are asked for. A single row is not worth it.
        """
        if self._saves_a_pass([self._key_of[row] for row in self.missing]):
            self.columns = self.columns.widened()

    def _saves_a_pass(self, keys) -> bool:
        """Whether these rows are here at a depth, and not all depths are computed."""
        if len(self.missing) < 2 or not self.columns.others:
            return False
        return self._table.has_any(self.columns.signs, keys)

    def claim(self) -> Iterator[int]:
        """Rows to compute here: missing ones that nobody else computes meanwhile."""
        asked = [column.fingerprint for column in self.columns.requested]
        missing, scope = list(self.missing), self.columns.scope
        if self._n_idle > 1:  # a store that has no rows and grants none is of no use
            yield from missing
            return
        for start in range(0, len(missing), CLAIMED_AT_ONCE):
            some = missing[start : start + CLAIMED_AT_ONCE]
            keys = [self._key_of[row] for row in some]
            granted = set(self._table.claim(self._call, scope, keys, asked))
            self._refused |= {
                row: self._key_of[row] for i, row in enumerate(some) if i not in granted
            }
            if self._saves_a_pass([keys[i] for i in granted]):
                return  # somebody has computed them meanwhile: decide again
            yield from (row for i, row in enumerate(some) if i in granted)

    def write(self, computed: Computed) -> None:
        """Put the features of a batch into the store and the output, report errors."""
        asked = [computed.features[c.pooled] for c in self.columns.requested]
        errors = [*computed.errors, *not_finite(computed, asked)]
        failed = {error.row for error in errors}
        sound = np.array([row not in failed for row in computed.rows], bool)
        keys = [self._key_of[row] for row in computed.rows]
        with self._clock.measure("store"):
            parts = list(self._parts(computed, keys, sound))
            if self._table.write(self._call, self.columns.scope, keys, parts):
                self._warn_of_bound()
        self.n_computed += len(keys)
        for row in {*computed.rows, *failed}:
            del self.missing[row]
        self._report.out_of_range |= not all(computed.in_range)
        if self._out is not None:
            rows = np.array(computed.rows, int)[sound]
            for place, features in zip(self.columns.slices, asked, strict=True):
                self._out[rows, place] = features[sound]
        for error in errors:
            self._report.fail(error)

    def _parts(self, computed: Computed, keys, sound) -> Iterator[ColumnRows]:
        """What is kept of a batch: rows that are numbers."""
        asked = {column.fingerprint for column in self.columns.requested}
        # What is asked for comes last: it is the last to make room for others.
        for column in reversed(self.columns.stored):
            rows = computed.features[column.pooled]
            kept = np.flatnonzero(sound & np.isfinite(rows).all(axis=1))
            in_range = [computed.in_range[i] for i in kept]
            some = [keys[i] for i in kept]
            yield ColumnRows(
                column, some, rows[kept], in_range, column.fingerprint in asked
            )

    def _warn_of_bound(self) -> None:
        """Say what the store would need to keep all rows of this call."""
        needed = len(self._images) * self.columns.row_bytes
        larger = self._table.larger(max(needed, 2 * self._table.max_bytes))
        warn_user(
            f"The store has reached its bound of {self._table.max_bytes:,} bytes, so "
            "rows leave it and are computed again when they are asked for. The "
            f"{len(self._images)} images of this call take {needed:,} bytes with the "
            f"layers that are kept. Type {larger}.",
            StoreWarning,
        )

    def _repeat(self, window: Window) -> None:
        """Give rows of equal content the features, or the error, of the first."""
        for row, first in self._same_as:
            if error := self._report.failed.get(first):
                self._report.fail(window.error_of(row, error))
            elif self._out is not None:
                self._out[row] = self._out[first]

    def finish(self) -> None:
        """Count the rows that were there already."""
        failed = self._report.failed
        n_failed = len(failed.keys() & set(self._first_of.values()))
        n_hits = len(self._first_of) - self.n_computed - n_failed
        asked = [column.fingerprint for column in self.columns.requested]
        self._table.count_hits(max(0, n_hits), asked)


NOT_FINITE = (
    "its features are not finite: its pixel values are too large for the network, or "
    "the weights are no numbers. Check value_range, or use precision='float32'"
)


def not_finite(computed: Computed, features: Sequence[np.ndarray]) -> list[ImageError]:
    """Errors of the rows of a batch with features that are nan or infinite."""
    sound = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in features])
    return [
        ImageError(computed.rows[place], computed.sources[place], NOT_FINITE)
        for place in np.flatnonzero(~sound)
    ]
