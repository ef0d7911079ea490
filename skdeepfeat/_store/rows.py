"""The rows of one call: identified by content, then read from the store or computed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .._clock import Clock
from .._digests import learn_digest
from .._exceptions import RowError, StoreWarning, Wording, warn_user
from .base import ColumnRows, Computed, Table
from .columns import Columns
from .waiting import new_call

CLAIMED_AT_ONCE = 32  # rows; few, so that workers share the missing ones


class Window(Protocol):
    """Some rows of X; their content is held until they are computed.

    Attributes
    ----------
    keys : dict of int to bytes or RowError
        Digest of the content of each row.
    files : list of (str, str, bytes)
        Name, state and digest of each file that was hashed.
    """

    keys: dict[int, Any]
    files: list[tuple[str, str, bytes]]

    def recognise(self, rows: Any, recall: Callable) -> dict[int, bytes]:
        """Keys of rows whose files have been hashed meanwhile, by another process."""

    def error_of(self, row: int, error: Any) -> RowError:
        """The error of a row that is equal to another row with this error."""

    def forget(self) -> None:
        """Drop the content that is held."""


class Inputs(Protocol):
    """The rows of X, of any kind of input."""

    @property
    def wording(self) -> Wording:
        """What messages say about the rows."""

    def __len__(self) -> int: ...


class Reading(Protocol):
    """How the rows of X are read, and become the input of a network.

    Attributes
    ----------
    spreads : bool
        Whether a cluster may compute the rows.
    """

    spreads: bool

    def in_worker(self, n_threads: int) -> "Reading":
        """The same in a process that may use this many threads."""

    @property
    def about(self) -> dict[str, Any]:
        """Named values that determine the input, apart from row and network."""

    @property
    def settings(self) -> dict[str, str]:
        """Settings of this process that decide what is read; the same everywhere."""

    def windows(self, rows: Any, recall: Callable) -> Iterator[Any]:
        """All rows in order, in windows, hashed; `recall` takes names of files."""

    def batches(
        self, window: Any, rows: Any, spec: Any, batch_size: int, meanwhile: bool
    ) -> Iterator[Any]:
        """Batches of these rows of a window, which may be made `meanwhile`."""


class Rows:
    """The distinct rows of one call, on their way from the store to the output.

    X is processed in windows: the rows of a window are read and hashed, then taken from
    the store or computed.

    Parameters
    ----------
    inputs : Inputs
        The rows of X.
    table : Table
        Table that stores the features.
    columns : Columns
        The requested and stored columns. Other layers are added if that saves a pass.
    out : ndarray of shape (n_rows, width) or None
        Output array; None if features are only stored.
    report : Report
        Collects failed rows, and whether values are out of range.
    clock : Clock
        Measures the time for hashing and for the store.
    """

    def __init__(
        self,
        inputs: Inputs,
        table: Table,
        columns: Columns,
        out,
        report,
        clock: Clock,
    ):
        self._inputs, self._table, self.columns = inputs, table, columns
        self._out, self._report, self._clock = out, report, clock
        self._first_of: dict[bytes, int] = {}
        self._same_as: list[tuple[int, int]] = []
        self._call = new_call()
        self._window: Any = None  # that is read now
        self._key_of: dict[int, bytes] = {}
        self._refused: dict[int, bytes] = {}  # rows that other calls are computing
        self.missing: dict[int, None] = {}  # an ordered set of rows
        self.n_computed = self._n_begun = self._n_seen = self._n_idle = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Release rows that were claimed but not computed, so that others can."""
        self._table.release(self._call)

    @property
    def n_done(self) -> int:
        """Number of rows of X that are done."""
        return self._n_begun - len(self.missing)

    def windows(self, reading: Reading) -> Iterator[Window]:
        """The windows of X, hashed; duplicates are filled in after each window."""
        windows = reading.windows(self._inputs, self._recall)
        for window in self._clock.each(windows, "hashing"):
            self._window = window
            self._find(window)
            self._n_begun += len(window.keys)
            yield window
            self._repeat(window)
            window.forget()

    def _recall(self, names: list[str]) -> None:
        """Read the digests of files that were hashed before from the store."""
        for file in self._table.read_files(names):
            learn_digest(*file)

    def _find(self, window: Window) -> None:
        """Find the distinct rows of a window by their content."""
        self._key_of, self._same_as = {}, []
        for row, key in window.keys.items():
            if isinstance(key, RowError):
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
        self._refused = {}
        self._n_seen = self._n_idle = 0

    def read(self) -> bool:
        """Read the stored rows, after waiting for those that others are computing.

        Returns
        -------
        missing : bool
            Whether rows are still missing.
        """
        with self._clock.measure("store"):
            return self._read()

    def _read(self) -> bool:
        """Read as in `read`, without measuring the time."""
        self._table.release(self._call)  # a waiting call must not block others
        refused = self._refused
        self._table.wait(self.columns.scope, list(refused.values()), list(refused))
        self._key_of |= self._window.recognise(refused, self._recall)
        rows, keys = list(self.missing), [self._key_of[row] for row in self.missing]
        lacking: set[int] = set()
        for column, place in zip(
            self.columns.requested, self.columns.slices, strict=True
        ):
            out = None if self._out is None else self._out[:, place]
            found = self._table.read(column.fingerprint, keys, out, rows)
            lacking.update(found.missing)
            self._report.out_of_range |= {rows[i] for i in found.out_of_range}
        idle = len(lacking) == self._n_seen  # nothing was computed or stored meanwhile
        self._n_idle = self._n_idle + 1 if idle else 0
        self._n_seen, self._refused = len(lacking), {}
        self.missing = dict.fromkeys(rows[position] for position in sorted(lacking))
        self._widen()
        return bool(self.missing)

    def _widen(self) -> None:
        """Compute all depths if images stored at one are requested at another.

        This way no image passes through the network more than twice, whatever the order
        in which layers are requested. It is not worthwhile for a single row.
        """
        if self._saves_a_pass([self._key_of[row] for row in self.missing]):
            self.columns = self.columns.widened()

    def _saves_a_pass(self, keys) -> bool:
        """Whether some of these rows are stored, but not at all depths."""
        if len(self.missing) < 2 or not self.columns.others:
            return False
        return self._table.has_any(self.columns.signs, keys)

    def claim(self) -> Iterator[int]:
        """The missing rows that no other call is computing, to compute in this one."""
        requested = self.columns.fingerprints
        missing, scope = list(self.missing), self.columns.scope
        if self._n_idle > 1:  # the store has no rows and grants none
            yield from missing
            return
        for start in range(0, len(missing), CLAIMED_AT_ONCE):
            some = missing[start : start + CLAIMED_AT_ONCE]
            keys = [self._key_of[row] for row in some]
            granted = set(self._table.claim(self._call, scope, keys, requested))
            self._refused |= {
                row: self._key_of[row] for i, row in enumerate(some) if i not in granted
            }
            if self._saves_a_pass([keys[i] for i in granted]):
                return  # another call has computed them meanwhile: start again
            mine = [row for i, row in enumerate(some) if i in granted]
            known = self._window.recognise(mine, self._recall)
            self._key_of |= known
            yield from (row for row in mine if row not in known)

    def identify(self, keys: dict[int, bytes], computed) -> None:
        """Note the content of rows that workers have read.

        Parameters
        ----------
        keys : dict of int to bytes
            Row → key of its content.
        computed : collection of int
            Rows that were computed or failed; others are equal to one of these.
        """
        for row in sorted(keys, key=lambda row: row not in computed):
            key, unread = keys[row], self._key_of[row]
            first = self._first_of.get(key, row)
            first = row if first in self._report.failed else first
            self._first_of[key] = first
            if row not in computed:
                self._same_as.append((row, first))
                self._first_of[unread] = first
                del self.missing[row]
            self._key_of[row] = key

    def write(self, computed: Computed) -> None:
        """Write the features of a batch to the store and the output; report errors."""
        requested = [computed.features[c.pooled] for c in self.columns.requested]
        errors = [
            *computed.errors,
            *not_finite(computed, requested, self._inputs.wording),
        ]
        failed = {error.row for error in errors}
        sound = np.array([row not in failed for row in computed.rows], bool)
        keys = [self._key_of[row] for row in computed.rows]
        with self._clock.measure("store"):
            stored = list(self._stored(computed, keys, sound))
            if self._table.write(self._call, self.columns.scope, keys, stored):
                self._warn_of_bound()
            self._note_files(computed.files)
        self.n_computed += len(keys)
        for row in {*computed.rows, *failed}:
            del self.missing[row]
        judged = zip(computed.rows, computed.in_range, strict=True)
        self._report.out_of_range |= {row for row, within in judged if not within}
        if self._out is not None:
            rows = np.array(computed.rows, int)[sound]
            for place, features in zip(self.columns.slices, requested, strict=True):
                self._out[rows, place] = features[sound]
        for error in errors:
            self._report.fail(error)

    def _note_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Remember files once their rows are stored, for which other calls wait."""
        for file in files:
            learn_digest(*file)
        self._table.write_files(files)

    def _stored(self, computed: Computed, keys, sound) -> Iterator[ColumnRows]:
        """The rows of a batch to store: those without NaN or infinite features."""
        requested = self.columns.fingerprints
        # Requested columns come last, so that they are the last to be evicted.
        for column in reversed(self.columns.stored):
            rows = computed.features[column.pooled]
            kept = np.flatnonzero(sound & np.isfinite(rows).all(axis=1))
            in_range = [computed.in_range[i] for i in kept]
            some = [keys[i] for i in kept]
            yield ColumnRows(
                column, some, rows[kept], in_range, column.fingerprint in requested
            )

    def _warn_of_bound(self) -> None:
        """Warn that the store is full, and how large it would have to be."""
        needed = len(self._inputs) * self.columns.row_bytes
        larger = self._table.larger(max(needed, 2 * self._table.max_bytes))
        warn_user(
            f"The store has reached its limit of {self._table.max_bytes:,} bytes, so "
            "rows are removed and computed again when they are requested. The "
            f"{len(self._inputs)} {self._inputs.wording.noun}s of this call need "
            f"{needed:,} bytes with all layers that are stored. Use {larger}.",
            StoreWarning,
        )

    def _repeat(self, window: Window) -> None:
        """Copy the features or the error of the first row to rows of equal content."""
        for row, first in self._same_as:
            if error := self._report.failed.get(first):
                self._report.fail(window.error_of(row, error))
            elif self._out is not None:
                self._out[row] = self._out[first]

    def finish(self) -> None:
        """Count the rows that were found in the store."""
        distinct = set(self._first_of.values())
        n_failed = len(self._report.failed.keys() & distinct)
        n_hits = len(distinct) - self.n_computed - n_failed
        self._table.count_hits(max(0, n_hits), self.columns.fingerprints)


def not_finite(
    computed: Computed, features: Sequence[np.ndarray], wording: Wording
) -> list[RowError]:
    """The errors of rows in a batch whose features are NaN or infinite."""
    sound = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in features])
    return [
        wording.error(computed.rows[i], computed.sources[i], wording.not_finite)
        for i in np.flatnonzero(~sound)
    ]
