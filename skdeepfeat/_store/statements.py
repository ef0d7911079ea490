"""What is read from and written to the database of a folder, one statement each."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np

from .base import ColumnRows, Label

AT_ONCE = 500  # values in one SQL statement
STAMP_SECONDS = 60  # how exactly the last use of a column is known


@contextlib.contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes, whole or not at all."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def select(db, query: str, parameters: tuple, values: Sequence) -> Iterator[tuple]:
    """Rows of a query that ends in "IN", for any number of values."""
    for start in range(0, len(values), AT_ONCE):
        some = values[start : start + AT_ONCE]
        marks = ", ".join("?" * len(some))
        yield from db.execute(f"{query} ({marks})", (*parameters, *some))


# Rows -------------------------------------------------------------------------------


def select_rows(db, fingerprint: bytes, keys) -> Iterator[tuple]:
    """(key, in_range, data) of the stored rows; None as data of a damaged row."""
    query = (
        "SELECT key, checksum, in_range, data "
        "FROM rows JOIN columns ON id = column WHERE fingerprint = ? AND key IN"
    )
    seed = crc32(fingerprint)
    for key, checksum, in_range, data in select(db, query, (fingerprint,), keys):
        yield key, bool(in_range), _sound(seed, checksum, key, in_range, data)


def select_keys(db, fingerprint: bytes, keys) -> dict[bytes, bool]:
    """The keys of the stored rows, and whether their pixels were in range."""
    query = (
        "SELECT key, in_range FROM rows JOIN columns ON id = column "
        "WHERE fingerprint = ? AND key IN"
    )
    return dict(select(db, query, (fingerprint,), keys))


def select_after(
    db, number: int, fingerprint: bytes, rowid: int, last: int
) -> list[tuple]:
    """(rowid, key, in_range, data) of the next rows of a column; see `select_rows`."""
    seed = crc32(fingerprint)
    found = db.execute(
        "SELECT rowid, key, checksum, in_range, data FROM rows INDEXED BY rows_by_age "
        "WHERE column = ? AND rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?",
        (number, rowid, last, AT_ONCE),
    )
    return [
        (place, key, bool(in_range), _sound(seed, checksum, key, in_range, data))
        for place, key, checksum, in_range, data in found
    ]


def last_rowid(db) -> int:
    """The highest rowid; all rows that are added later have a higher one."""
    return db.execute("SELECT coalesce(max(rowid), 0) FROM rows").fetchone()[0]


# Rows are stored again when stores are merged, or when two machines compute them.
PUT = """
INSERT INTO rows VALUES (?, ?, ?, ?, ?) ON CONFLICT (column, key) DO UPDATE SET
checksum = excluded.checksum, in_range = excluded.in_range, data = excluded.data
WHERE (checksum, in_range, data)
IS NOT (excluded.checksum, excluded.in_range, excluded.data)
"""


def put_rows(db, rows: ColumnRows) -> None:
    """Store the rows of one column; equal ones are left as they are."""
    number = _number_of(db, rows.column, rows.requested)
    seed = crc32(rows.column.fingerprint)
    blobs = [row.tobytes() for row in np.asarray(rows.rows, "<f4")]
    stored = [
        (number, key, checksum_of(seed, key, in_range, data), in_range, data)
        for key, in_range, data in zip(
            rows.keys, map(int, rows.in_range), blobs, strict=True
        )
    ]
    db.executemany(PUT, stored)


def delete_rows(db, fingerprint: bytes, keys) -> None:
    """Remove rows, so that they are computed again."""
    db.executemany(
        "DELETE FROM rows WHERE key = ? AND column = "
        "(SELECT id FROM columns WHERE fingerprint = ?)",
        [(key, fingerprint) for key in keys],
    )


def _sound(seed: int, checksum, key, in_range, data) -> bytes | None:
    """The data of a row; None if it is damaged, which may change any type."""
    if (type(key), type(in_range), type(data)) != (bytes, int, bytes):
        return None
    return data if checksum_of(seed, key, in_range, data) == checksum else None


def checksum_of(seed: int, key: bytes, in_range: int, data: bytes) -> int:
    """A number that reveals damage to a row, or a row in the place of another."""
    return crc32(data, crc32(key, seed + in_range))


def count_rows(db) -> dict[str, int]:
    """The number of rows of each column, by its label."""
    return dict(
        db.execute(
            "SELECT label, count(*) FROM rows JOIN columns ON id = column "
            f"WHERE {IS_COLUMN} GROUP BY label ORDER BY label"
        )
    )


def count_rows_of_no_column(db) -> int:
    """The number of rows that are lost because their column is damaged."""
    query = f"SELECT id FROM columns WHERE {IS_COLUMN}"
    rows = f"SELECT count(*) FROM rows WHERE column NOT IN ({query})"
    return db.execute(rows).fetchone()[0]


# Columns ----------------------------------------------------------------------------

IS_COLUMN = (  # and not damaged, which may change any type
    "(typeof(fingerprint), typeof(label), typeof(used)) = ('blob', 'text', 'real')"
)


def _number_of(db, column, requested: bool) -> int:
    """The number of a column in the database, assigned at its first row.

    A column that was only prefetched has never been used, so it is evicted first.
    """
    db.execute(
        "INSERT INTO columns (fingerprint, label, used) VALUES (?, ?, ?) "
        "ON CONFLICT (fingerprint) DO UPDATE SET used = excluded.used "
        "WHERE excluded.used > used + ?",  # or each merge would write to the log
        (column.fingerprint, column.label, time.time() * requested, STAMP_SECONDS),
    )
    query = "SELECT id FROM columns WHERE fingerprint = ?"
    return db.execute(query, (column.fingerprint,)).fetchone()[0]


def select_columns(db) -> list[tuple[int, Label, bool]]:
    """Number, name, and whether it was requested, of all columns."""
    found = db.execute(
        "SELECT id, fingerprint, label, used FROM columns "
        f"WHERE {IS_COLUMN} ORDER BY id"
    )
    return [(n, Label(sign, label), used > 0) for n, sign, label, used in found]


def stamp_columns(db, fingerprints, now: float, accuracy: float) -> None:
    """Note that these columns were used, to within an accuracy in seconds."""
    db.executemany(
        "UPDATE columns SET used = ? WHERE fingerprint = ? AND used < ?",
        [(now, fingerprint, now - accuracy) for fingerprint in fingerprints],
    )


# Files ------------------------------------------------------------------------------


def select_files(db) -> list[tuple[str, str, bytes]]:
    """(path, state, digest) of all files; damage may change any type."""
    found = db.execute(
        "SELECT path, state, digest FROM files WHERE (typeof(path), typeof(state), "
        "typeof(digest)) = ('blob', 'text', 'blob')"
    )
    return [(os.fsdecode(path), *others) for path, *others in found]


# Counters ---------------------------------------------------------------------------


def add_to_counter(db, name: str, n: int) -> None:
    """Increase a counter."""
    if n:
        db.execute("UPDATE counters SET value = value + ? WHERE name = ?", (n, name))


def select_counters(db) -> dict[str, int]:
    """All counters."""
    return dict(db.execute("SELECT name, value FROM counters"))
