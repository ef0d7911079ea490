"""The rows of one call: found by content, read, claimed, computed and written."""

import os
import secrets
from collections.abc import Iterator

import numpy as np

from ._cells import as_array, is_tensor
from ._decoding import is_in_range
from ._digests import known_digest, learn_digest
from ._exceptions import ImageError
from ._images import Images
from ._plan import Plan
from ._progress import Clock

CLAIMED_AT_ONCE = 32  # few, so that several workers share the missing rows
HASHED_AT_ONCE = 1000  # after so many, what is known of files is written down


class Rows:
    """The distinct rows of one call, on their way from the store to the output.

    Parameters
    ----------
    images : Images
    table : MemoryTable or DiskTable
        Where features are kept.
    plan : Plan
    out : ndarray of shape (n_images, width) or None
        Where features go; None if they are only to be stored.
    report : Report
        Is told of rows whose content cannot be read, and of values out of range.
    clock : Clock
        Measures hashing, and what the store takes.
    """

    def __init__(self, images: Images, table, plan: Plan, out, report, clock: Clock):
        self._table, self._plan, self._out, self._report = table, plan, out, report
        self._clock = clock
        self._key_of: dict[int, bytes] = {}
        self._same_as: list[tuple[int, int]] = []
        self._call = secrets.token_bytes(8)  # marks the claims of this call
        self._refused: list[bytes] = []  # keys that others computed when asked
        self.n_computed = self._n_seen = self._n_idle = 0
        with clock.measure("hashing"):
            self._find(images)
        self.missing = dict.fromkeys(self._key_of)  # an ordered set of rows

    def __len__(self):
        return len(self._key_of)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Let others compute what was claimed here and not computed."""
        self._table.release(self._call)

    def turn(self):
        """A context in which no other process uses the same GPU."""
        return self._table.turn(self._plan.device_class)

    def _find(self, images: Images) -> None:
        """Tell the distinct rows by their content."""
        first_of: dict[bytes, int] = {}
        for start in range(0, len(images), HASHED_AT_ONCE):
            rows = range(start, min(start + HASHED_AT_ONCE, len(images)))
            keys = self._keys(images, rows)
            for row in rows:
                key = keys[row]
                if isinstance(key, ImageError):
                    self._report.fail(key)
                    continue
                first = first_of.setdefault(key, row)
                if first == row:
                    self._key_of[row] = key
                else:
                    self._same_as.append((row, first))

    def _keys(self, images: Images, rows) -> dict[int, bytes | ImageError]:
        """Hash some rows, files only where neither we nor the store know them."""
        rescaled = self._plan.value_range not in (None, (0, 255))
        keys: dict[int, bytes | ImageError] = {}
        files = {}
        for row in rows:
            cell = images[row]
            if isinstance(cell, (str, os.PathLike)):
                files[row] = cell
            else:
                keys[row] = images.key(row, cell, rescaled)
                if not isinstance(keys[row], ImageError):  # stored rows too
                    in_range = _is_in_range(cell, self._plan.value_range)
                    self._report.in_range &= in_range
        paths = [os.path.abspath(path) for path in files.values()]
        for file in self._table.read_files(paths):
            learn_digest(*file)
        keys |= {row: images.key(row, path) for row, path in files.items()}
        self._table.write_files([f for f in map(known_digest, paths) if f])
        return keys

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
        self._table.wait(self._plan.scope, self._refused)
        rows, keys = list(self.missing), [self._key_of[row] for row in self.missing]
        lacking: set[int] = set()
        for column, place in zip(self._plan.columns, self._plan.slices, strict=True):
            out = None if self._out is None else self._out[:, place]
            lacking.update(self._table.read(column.fingerprint, keys, out, rows))
        idle = len(lacking) == self._n_seen  # nothing was computed, nothing came
        self._n_idle = self._n_idle + 1 if idle else 0
        self._n_seen, self._refused = len(lacking), []
        self.missing = dict.fromkeys(rows[position] for position in sorted(lacking))
        return bool(self.missing)

    def claim(self) -> Iterator[int]:
        """Rows to compute here: missing ones that nobody else computes meanwhile."""
        asked = [column.fingerprint for column in self._plan.columns]
        missing, scope = list(self.missing), self._plan.scope
        if self._n_idle > 1:  # a store that has no rows and grants none is of no use
            yield from missing
            return
        for start in range(0, len(missing), CLAIMED_AT_ONCE):
            some = missing[start : start + CLAIMED_AT_ONCE]
            keys = [self._key_of[row] for row in some]
            granted = set(self._table.claim(self._call, scope, keys, asked))
            self._refused += [key for i, key in enumerate(keys) if i not in granted]
            yield from (row for i, row in enumerate(some) if i in granted)

    def write(self, computed) -> None:
        """Put the features of one batch into the output and into the store."""
        keys = [self._key_of[row] for row in computed.rows]
        place = self._plan.place
        parts = [(c, computed.features[place(c)]) for c in self._plan.stored]
        with self._clock.measure("store"):
            # What is asked for comes last: it is the last to make room for others.
            self._table.write(self._call, self._plan.scope, keys, parts[::-1])
        self.n_computed += len(keys)
        for row in (*computed.rows, *(error.row for error in computed.errors)):
            del self.missing[row]
        if self._out is not None:
            for column, slot in zip(self._plan.columns, self._plan.slices, strict=True):
                self._out[computed.rows, slot] = computed.features[place(column)]

    def finish(self) -> None:
        """Give rows of equal content the features, or the error, of the first."""
        failed = self._report.failed
        n_hits = len(self) - self.n_computed - len(failed.keys() & self._key_of.keys())
        asked = [column.fingerprint for column in self._plan.columns]
        self._table.count_hits(n_hits, asked)
        for row, first in self._same_as:
            if first in failed:
                self._report.fail(failed[first].at(row))
            elif self._out is not None:
                self._out[row] = self._out[first]


def _is_in_range(cell, value_range) -> bool:
    """Whether an array or tensor has no value beyond black or white."""
    array = as_array(cell) if is_tensor(cell) else cell
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        return True
    return is_in_range(array, value_range)
