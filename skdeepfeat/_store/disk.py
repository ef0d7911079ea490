"""Feature rows in a folder: they outlive the process, and all processes share them.

A transaction is stored completely or not at all, so a process may be killed at any
time. Every row has a checksum, and a row that does not match it is computed again. A
call claims the rows that it computes, so that no other call computes them meanwhile.
"""

import atexit
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .._digests import digest
from .._processes import wait_until
from .base import ColumnRows, Found
from .claims import Claims
from .database import ERRORS, FILE, GPU_LOCK, OWNERS, Database
from .eviction import evict
from .snapshots import DiskSnapshot
from .statements import (
    STAMP_SECONDS,
    add_to_counter,
    count_rows,
    delete_rows,
    put_rows,
    select,
    select_counters,
    select_keys,
    select_rows,
    stamp_columns,
    writing,
)
from .waiting import begin_of, computed_by, locked, say_once

EMPTY_BYTES = 100_000  # more than a database without rows takes


class DiskTable:
    """Rows in a folder; beyond a bound the least recently used columns make room.

    Trouble with the disk costs a warning and repeated work, never a result.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    max_bytes : int
        Bound of the size of the database.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._database = Database(folder)
        self._claims = Claims(folder / OWNERS)
        atexit.register(self.close)

    # Rows ---------------------------------------------------------------------------

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy rows to the output; see :class:`Table`."""

        def work(db):
            if out is None:
                return _found(keys, select_keys(db, fingerprint, keys))
            found, damaged = _copy_rows(db, fingerprint, keys, out, places)
            self._drop(db, fingerprint, damaged)
            return _found(keys, found)

        return self._database.attempt(work, lambda: _found(keys, {}))

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is stored."""

        def work(db):
            return any(select_keys(db, column, keys) for column in fingerprints)

        return self._database.attempt(work, lambda: False)

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        columns: Sequence[ColumnRows],
    ) -> bool:
        """Store computed rows; see :class:`Table`."""

        def work(db):
            with writing(db):
                for rows in columns:
                    put_rows(db, rows)
                add_to_counter(db, "misses", len(keys))
                self._claims.remove(db, call, _claim_ids(scope, keys))
                return evict(db, self.max_bytes)

        is_full = self._database.attempt(work, lambda: self.release(call))
        return bool(is_full) and self._database.is_new(f"full at {self.max_bytes}")

    def add(self, columns: Sequence[ColumnRows]) -> bool:
        """Store rows of another table; see :class:`Table`."""

        def work(db):
            with writing(db):
                for rows in columns:
                    put_rows(db, rows)
                return evict(db, self.max_bytes)

        return self._database.insist(work, "not all rows could be added")

    def _drop(self, db, fingerprint: bytes, damaged: Sequence[bytes]) -> None:
        """Remove damaged rows, so that they are computed again."""
        if damaged:
            n = len(damaged)
            self._database.warn(f"had {n} damaged rows, which are computed again")
            with contextlib.suppress(sqlite3.Error), writing(db):
                delete_rows(db, fingerprint, damaged)

    # Claims -------------------------------------------------------------------------

    def claim(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
    ) -> list[int]:
        """Reserve rows for computing; see :class:`Table`."""
        ids = _claim_ids(scope, keys)

        def work(db):
            with writing(db):
                stored = [select_keys(db, column, keys) for column in fingerprints]
                taken = self._claims.taken(db, ids)
                granted = [
                    i
                    for i, (key, id_) in enumerate(zip(keys, ids, strict=True))
                    if id_ not in taken and not all(key in column for column in stored)
                ]
                self._claims.add(db, call, [ids[i] for i in granted])
            return granted

        return self._database.attempt(work, lambda: list(range(len(keys))))

    def release(self, call: bytes) -> None:
        """Release all claims of a call."""
        with self._database.lock:
            self._claims.release(call)

    def wait(self, scope: bytes, keys, rows: Sequence[int] = ()) -> None:
        """Return once no other call computes these rows; see :class:`Table`."""
        ids, rows = _claim_ids(scope, keys), rows or range(len(keys))
        taken: dict = {}

        def is_done() -> bool:
            nonlocal taken
            taken = self._database.attempt(lambda db: self._claims.taken(db, ids), dict)
            return not taken

        def what() -> str:
            lock, call = min(taken.values(), key=lambda claim: begin_of(claim[1]))
            waited = [row for row, id_ in zip(rows, ids, strict=True) if id_ in taken]
            return computed_by(waited, lock.holder, begin_of(call))

        wait_until(is_done, say_once(what))

    # GPUs ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def use_gpus(self, gpus: Callable[[], Sequence[str]]):
        """A context in which no other process uses the GPUs of these names."""
        with ExitStack() as stack:
            for name in sorted(gpus()):  # all in one order, so that none block others
                self._lock_gpu(stack, name)
            yield

    def _lock_gpu(self, stack: ExitStack, name: str) -> None:
        """Hold the lock of a GPU until the stack is closed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / GPU_LOCK.format(name)
            stack.enter_context(locked(path, f"the GPU {name!r}", "using"))
        except OSError as error:
            self._database.warn(
                f"cannot lock the GPU {name!r} ({error}), so processes share a GPU"
            )

    # Counters and files -------------------------------------------------------------

    def count_hits(self, n: int, fingerprints) -> None:
        """Record that n rows of these columns were found."""

        def work(db):
            with writing(db):
                add_to_counter(db, "hits", n)
                stamp_columns(db, fingerprints, time.time(), STAMP_SECONDS)

        if n:
            self._database.attempt(work, lambda: None)

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of files hashed before; see :class:`Table`."""
        known = self._database.known_files
        unknown = [os.fsencode(name) for name in names if name not in known]

        def work(db):
            query = "SELECT path, state, digest FROM files WHERE path IN"
            found = select(db, query, (), unknown)
            return [(os.fsdecode(name), *others) for name, *others in found]

        found = self._database.attempt(work, list) if unknown else []
        known.update((name, state) for name, state, _ in found)
        return found

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Store (name, state, digest) of files; see :class:`Table`."""
        known = self._database.known_files
        new = [file for file in files if known.get(file[0]) != file[1]]
        rows = [(os.fsencode(name), *others) for name, *others in new]  # any name

        def work(db):
            with writing(db):
                db.executemany("REPLACE INTO files VALUES (?, ?, ?)", rows)
            known.update((name, state) for name, state, _ in new)

        if new:
            self._database.attempt(work, lambda: None)

    # The whole ----------------------------------------------------------------------

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[DiskSnapshot]:
        """A context with the rows of now; see :class:`Table`."""
        try:
            with self._database.reading() as db:
                yield DiskSnapshot(db)
        except ERRORS as error:
            raise ValueError(
                f"The feature store in {str(self.folder)!r} cannot be read ({error}), "
                "and was left as it is. If it is a copy, copy it again."
            ) from error

    @property
    def _exists(self) -> bool:
        """Whether there is a database; to look into a folder must not create it."""
        return os.path.exists(self.folder / FILE)

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""
        bound = n_bytes + EMPTY_BYTES
        return f"cache=FeatureStore({str(self.folder)!r}, max_bytes={bound})"

    def info(self) -> dict[str, Any]:
        """What is stored; see :meth:`skdeepfeat.FeatureStore.info`."""

        def work(db):
            layers = count_rows(db)
            counters = select_counters(db)
            return {"rows": sum(layers.values()), **counters, "layers": layers}

        found: dict[str, Any] = {"rows": 0, "hits": 0, "misses": 0, "layers": {}}
        if self._exists:
            found = self._database.attempt(work, lambda: found)
        return found | {"bytes": sum(self._database.sizes)}

    def clear(self) -> None:
        """Remove all rows, and free their space on the disk."""

        def work(db):
            with writing(db):
                for name in ("rows", "columns", "files"):
                    db.execute(f"DELETE FROM {name}")
                db.execute("UPDATE counters SET value = 0")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for file in self._database.files_aside:
                file.unlink(missing_ok=True)
            self._database.known_files.clear()

        if self._exists or self._database.files_aside:
            self._database.insist(work, "its rows could not be removed")

    def forget(self) -> None:
        """Close the database, which the next call opens again; the folder stays."""
        self._database.forget()

    def close(self) -> None:
        """Close the database, and release all claims of this process."""
        with self._database.lock:
            self._database.forget()
            self._claims.release_all()

    def pause(self):
        """A context to fork in; see :class:`Table`."""
        return self._database.pause()

    def after_fork(self) -> None:
        """In a child process: leave to the parent what belongs to it."""
        self._database.after_fork()
        self._claims.after_fork()


def _claim_ids(scope: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """The names of claims: of an image, and of what is computed of it."""
    return [digest(scope, key) for key in keys]


def _copy_rows(db, fingerprint, keys, out, places) -> tuple[dict, list]:
    """Copy the stored rows; returns whether each was in range, and the damaged keys."""
    place_of = dict(zip(keys, places, strict=True))
    found: dict[bytes, bool] = {}
    damaged: list[bytes] = []
    for key, in_range, data in select_rows(db, fingerprint, keys):
        if data is None or len(data) != 4 * out.shape[1]:
            damaged.append(key)
            continue
        out[place_of[key]] = np.frombuffer(data, "<f4")
        found[key] = in_range
    return found, damaged


def _found(keys: Sequence[bytes], in_range: dict[bytes, bool]) -> Found:
    """What was found of these keys, from whether each row was in range."""
    missing = [i for i, key in enumerate(keys) if key not in in_range]
    return Found(
        missing, [i for i, key in enumerate(keys) if not in_range.get(key, True)]
    )
