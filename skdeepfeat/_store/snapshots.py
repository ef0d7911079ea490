"""What a folder holds at one moment, read beside calls that write to it."""

import sqlite3
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from .base import ColumnRows, Label
from .eviction import bytes_used
from .statements import (
    count_rows,
    count_rows_of_no_column,
    last_rowid,
    select_after,
    select_columns,
    select_files,
)


class DiskSnapshot:
    """The rows of a database that its connection sees; see :class:`Snapshot`.

    Even without a transaction, rows that are added later are left out.

    Parameters
    ----------
    db : sqlite3.Connection
    """

    def __init__(self, db: sqlite3.Connection):
        self._db, self._last = db, last_rowid(db)
        self.layers = count_rows(db)
        self.n_damaged = 0

    @cached_property
    def n_bytes(self) -> int:
        """Bytes that the rows take."""
        return bytes_used(self._db)

    def dump(self, label: str | None = None) -> Iterator[ColumnRows]:
        """All sound rows; see :class:`Snapshot`."""
        self.n_damaged = 0 if label else count_rows_of_no_column(self._db)
        for number, column, requested in select_columns(self._db):
            if label in (None, column.label):
                yield from self._dump(number, column, requested)

    def _dump(
        self, number: int, column: Label, requested: bool
    ) -> Iterator[ColumnRows]:
        """The sound rows of one column."""
        start = 0
        while rows := select_after(
            self._db, number, column.fingerprint, start, self._last
        ):
            start = rows[-1][0]
            sound = [row[1:] for row in rows if row[-1] is not None]
            self.n_damaged += len(rows) - len(sound)
            if sound:
                keys, in_range, data = zip(*sound, strict=True)
                found = np.stack([np.frombuffer(row, "<f4") for row in data])
                yield ColumnRows(column, keys, found, in_range, requested)

    def files(self) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of all files hashed before."""
        return select_files(self._db)


class MemorySnapshot:
    """Rows that were in memory; see :class:`Snapshot`.

    Parameters
    ----------
    layers : dict of str to int
    n_bytes : int
    rows : list of ColumnRows
        One row each.
    """

    n_damaged = 0

    def __init__(self, layers: dict[str, int], n_bytes: int, rows: list[ColumnRows]):
        self.layers, self.n_bytes, self._rows = layers, n_bytes, rows

    def dump(self, label: str | None = None) -> Iterator[ColumnRows]:
        """All rows; see :class:`Snapshot`."""
        return (rows for rows in self._rows if label in (None, rows.column.label))

    def files(self) -> list[tuple[str, str, bytes]]:
        """Nothing: the process itself remembers which files it has hashed."""
        return []
