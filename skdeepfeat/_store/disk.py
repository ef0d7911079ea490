"""Rows in a folder: the table that survives the process and is shared by many.

The rows live in one SQLite database in write-ahead mode. It was chosen by measuring
10,000 rows of 2,048 float32 with random keys on 2 cores, where ``numpy.load`` of the
same matrix from the page cache takes 0.008 s:

==========================  ==========  ======  ==========
measured, seconds           SQLite WAL  LMDB    diskcache
==========================  ==========  ======  ==========
write, 64 rows at a time    0.37        0.54    0.61
read, checksums verified    0.074       0.047   0.088 (no checksums)
4 processes read at once    0.39        0.26    --
size on disk, MB            101         124     88
==========================  ==========  ======  ==========

All are far faster than any network. SQLite comes with Python, grows by what is written
and needs no size of its map beforehand; diskcache, which stands on SQLite too, reads
some values by unpickling them. The folder must be on a disk of this machine:
write-ahead logs do not work across a network.

A transaction is there as a whole or not at all, so a process may be killed at any
instant. Every row carries a checksum and is computed again when that does not fit.
Whoever computes rows claims them first. A claim counts as long as its owner holds a
lock on a file of its own, which the operating system takes back when a process dies.
"""

import atexit
import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from .._digests import digest
from .._exceptions import StoreWarning, warn_user
from .._processes import FORK_SECONDS, FileLock, RLock, leave_to_parent, wait_until
from .base import ColumnRows, Found
from .waiting import begin_of, local_time, say_once, some_rows

FILE = "features.v2.sqlite"  # another layout of the tables gets another name
SCHEMA = """
CREATE TABLE IF NOT EXISTS columns (
    id INTEGER PRIMARY KEY, fingerprint BLOB UNIQUE, label TEXT, used REAL);
CREATE TABLE IF NOT EXISTS rows (
    column INTEGER, key BLOB, checksum INTEGER, in_range INTEGER, data BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS rows_by_key ON rows (column, key);
CREATE INDEX IF NOT EXISTS rows_by_age ON rows (column);
CREATE TABLE IF NOT EXISTS claims (
    id BLOB PRIMARY KEY, owner TEXT, call BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER);
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, digest BLOB);
INSERT OR IGNORE INTO counters VALUES ('hits', 0), ('misses', 0);
"""
BUSY_SECONDS = 60  # how long a writer waits for another one
AT_ONCE = 500  # values in one SQL statement
EVICTED_AT_ONCE = 256
MOST_EVICTED = 16 * EVICTED_AT_ONCE  # in one transaction, which others wait for
STAMP_SECONDS = 60  # how exactly the last use of a column is known

# What goes wrong, by SQLite's primary error code, in words that follow the folder.
TROUBLES = {
    sqlite3.SQLITE_FULL: "has no space left on its disk",
    sqlite3.SQLITE_READONLY: "may not be written",
    sqlite3.SQLITE_BUSY: f"was locked by another program for {BUSY_SECONDS} seconds",
}
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

ASIDE = "damaged.sqlite"
SETUP_LOCK = "setup.lock"  # for what one process at a time may do


class DiskTable:
    """Rows in a folder; the least recently used columns make room beyond a bound.

    Trouble with the disk costs a warning and repeated work, never a result.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    max_bytes : int
        Bound of the size of the database.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner: FileLock | None = None
        self._inode = 0
        self._files: dict[str, str] = {}  # path → state, of files known to be here
        self._told: set[str] = set()
        atexit.register(self.close)

    # What the walk asks -------------------------------------------------------------

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy rows to the output; see :class:`Table`."""
        place_of = dict(zip(keys, places, strict=True))

        def work(db):
            found: dict[bytes, bool] = {}
            damaged, seed = [], crc32(fingerprint)
            if out is None:
                found = self._present(db, fingerprint, keys)
                return self._found(keys, found)
            for key, checksum, in_range, data in self._rows(db, fingerprint, keys):
                fits = checksum == checksum_of(seed, key, in_range, data)
                if fits and len(data) == 4 * out.shape[1]:
                    out[place_of[key]] = np.frombuffer(data, "<f4")
                    found[key] = bool(in_range)
                else:
                    damaged.append(key)
            self._drop(db, fingerprint, damaged)
            return self._found(keys, found)

        return self._attempt(work, lambda: self._found(keys, {}))

    def _found(self, keys, found: dict[bytes, bool]) -> Found:
        missing = [i for i, key in enumerate(keys) if key not in found]
        return Found(missing, not all(found.values()))

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is here."""

        def work(db):
            return any(self._present(db, column, keys) for column in fingerprints)

        return self._attempt(work, lambda: False)

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        parts: Sequence[ColumnRows],
    ) -> bool:
        """Keep computed rows; see :class:`Table`."""

        def work(db):
            with writing(db):
                for part in parts:
                    self._put(db, part)
                _add_to_counter(db, "misses", len(keys))
                done = [(digest(scope, key), call) for key in keys]
                db.executemany("DELETE FROM claims WHERE id = ? AND call = ?", done)
                return self._evict(db)

        is_full = self._attempt(work, self._give_up_claims)
        first_time = bool(is_full) and "full" not in self._told
        self._told |= {"full"} if is_full else set()
        return first_time

    def _put(self, db, part: ColumnRows) -> None:
        """Keep the rows of one column."""
        number = _number_of(db, part.column, part.asked)
        seed = crc32(part.column.fingerprint)
        blobs = [row.tobytes() for row in np.asarray(part.rows, "<f4")]
        stored = [
            (number, key, checksum_of(seed, key, in_range, data), in_range, data)
            for key, in_range, data in zip(
                part.keys, map(int, part.in_range), blobs, strict=True
            )
        ]
        db.executemany("REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", stored)

    def claim(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
    ) -> list[int]:
        """Reserve rows for computing; see :class:`Table`."""
        ids = [digest(scope, key) for key in keys]

        def work(db):
            with writing(db):
                here = [self._present(db, column, keys) for column in fingerprints]
                taken = self._claimed(db, ids)
                granted = [
                    i
                    for i, (key, id_) in enumerate(zip(keys, ids, strict=True))
                    if id_ not in taken and not all(key in found for found in here)
                ]
                name = self._owner_name()
                rows = [(ids[i], name, call) for i in granted]
                db.executemany("INSERT INTO claims VALUES (?, ?, ?)", rows)
            return granted

        return self._attempt(work, lambda: list(range(len(keys))))

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""
        return f"cache=FeatureStore({str(self.folder)!r}, max_bytes={n_bytes})"

    def release(self, call: bytes) -> None:
        """Give back all claims of a call."""

        def work(db):
            mine = db.execute("SELECT id FROM claims WHERE call = ?", (call,))
            if mine.fetchone():
                with writing(db):
                    db.execute("DELETE FROM claims WHERE call = ?", (call,))

        self._attempt(work, self._give_up_claims)

    def wait(self, scope: bytes, keys, rows: Sequence[int] = ()) -> None:
        """Return as soon as nobody computes these rows any more."""
        ids, rows = [digest(scope, key) for key in keys], rows or range(len(keys))
        claimed: set[bytes] = set()

        def is_done() -> bool:
            nonlocal claimed
            claimed = self._attempt(lambda db: self._claimed(db, ids), set)
            return not claimed

        wait_until(is_done, say_once(lambda: self._waited_for(ids, claimed, rows)))

    def _waited_for(self, ids, claimed: set[bytes], rows: Sequence[int]) -> str:
        """Which of these rows somebody computes, and who, in words."""
        query = "SELECT owner, call FROM claims WHERE id IN"
        some = list(claimed)
        found = self._attempt(lambda db: list(select(db, query, (), some)), list)
        name, call = min(found, key=lambda claim: begin_of(claim[1]), default=("", b""))
        who = FileLock(self._owners / name).holder if name else "another process"
        waited = [row for row, id_ in zip(rows, ids, strict=True) if id_ in claimed]
        return (
            f"{some_rows(waited)}, which {who} has been computing since "
            f"{local_time(begin_of(call))}"
        )

    @contextlib.contextmanager
    def use_gpus(self, gpus: Callable[[], Sequence[str]]):
        """A context in which no other process uses the GPUs of these names."""
        with contextlib.ExitStack() as held:
            for name in sorted(gpus()):  # in one order, so that nobody holds up all
                self._take(held, name)
            yield

    def _take(self, held: contextlib.ExitStack, gpu: str) -> None:
        """Hold the lock of a GPU until the stack is left."""
        lock = FileLock(self.folder / f"{gpu}.lock")

        def what() -> str:
            since = local_time(lock.held_since)
            return f"the GPU {gpu!r}, which {lock.holder} has been using since {since}"

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(say_once(what))
            held.callback(lock.release)
        except OSError as error:
            self._warn(f"cannot tell processes apart ({error}), which share a GPU now")

    def count_hits(self, n: int, fingerprints) -> None:
        """Note that so many rows of these columns were served."""
        now = time.time()

        def work(db):
            with writing(db):
                _add_to_counter(db, "hits", n)
                db.executemany(
                    "UPDATE columns SET used = ? WHERE fingerprint = ? AND used < ?",
                    [(now, f, now - STAMP_SECONDS) for f in fingerprints],
                )

        if n:
            self._attempt(work, lambda: None)

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of files hashed before, new to this process."""

        def work(db):
            query = "SELECT path, state, digest FROM files WHERE path IN"
            found = select(db, query, (), list(map(os.fsencode, unknown)))
            return [(os.fsdecode(name), *others) for name, *others in found]

        unknown = [name for name in names if name not in self._files]
        found = self._attempt(work, list) if unknown else []
        self._files.update((name, state) for name, state, _ in found)
        return found

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Keep (name, state, digest) of files, where they are not here."""
        new = [file for file in files if self._files.get(file[0]) != file[1]]
        rows = [(os.fsencode(name), *others) for name, *others in new]  # any name

        def work(db):
            with writing(db):
                db.executemany("REPLACE INTO files VALUES (?, ?, ?)", rows)
            self._files.update((name, state) for name, state, _ in new)

        if new:
            self._attempt(work, lambda: None)

    # What its users ask -------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is here, see :meth:`skdeepfeat.FeatureStore.info`."""

        def work(db):
            counters = dict(db.execute("SELECT name, value FROM counters"))
            layers = db.execute(
                "SELECT label, count(*) FROM rows JOIN columns ON id = column "
                "GROUP BY label ORDER BY label"
            )
            layers = dict(layers)
            return {"rows": sum(layers.values()), **counters, "layers": layers}

        nothing = {"rows": 0, "hits": 0, "misses": 0, "layers": {}}
        is_there = os.path.exists(self.folder / FILE)  # to look makes no folder
        found = self._attempt(work, lambda: nothing) if is_there else nothing
        files = [self.folder / f"{FILE}{end}" for end in ("", "-wal", "-shm")]
        size = sum(file.stat().st_size for file in files if file.exists())
        return found | {"bytes": size}

    def clear(self) -> None:
        """Forget all rows, and give their place on the disk back."""

        def work(db):
            with writing(db):
                for name in ("rows", "columns", "files"):
                    db.execute(f"DELETE FROM {name}")
                db.execute("UPDATE counters SET value = 0")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (self.folder / ASIDE).unlink(missing_ok=True)
            self._files.clear()

        if any(os.path.exists(self.folder / name) for name in (FILE, ASIDE)):
            self._attempt(work, lambda: None)

    def forget(self) -> None:
        """Close the database, which the next call opens again; the folder stays."""
        with self._lock:
            self._disconnect()
            self._files.clear()
            self._told.clear()

    @contextlib.contextmanager
    def pause(self):
        """A context to fork in: the database is closed, so no child inherits it.

        SQLite would take the locks of the parent for those of the child.
        """
        held = self._lock.acquire(timeout=FORK_SECONDS)
        try:
            if held:
                self._disconnect()
            yield
        finally:
            if held:
                self._lock.release()

    def after_fork(self) -> None:
        """In a child process: leave to the parent what is the parent's."""
        if self._connection is not None:  # somebody was busy with it for too long
            leave_to_parent(self._connection)
        if self._owner is not None:
            self._owner.drop()
        self._connection = self._owner = None

    def _disconnect(self) -> None:
        """Close the database, which the next call opens again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def close(self) -> None:
        """Close the database and let go of the lock that proves this owner alive."""
        with self._lock:
            self.forget()
            self._give_up_claims()

    def _give_up_claims(self) -> None:
        """Be a dead owner, whose claims nobody respects, and another one next time."""
        with self._lock:
            if self._owner is not None:
                with contextlib.suppress(OSError):  # the next owner sweeps it away
                    Path(self._owner.path).unlink()
                self._owner.release()
            self._owner = None

    # Rows ---------------------------------------------------------------------------

    def _rows(self, db, fingerprint, keys):
        """(key, checksum, in_range, data) of the rows that are here."""
        query = (
            "SELECT key, checksum, in_range, data "
            "FROM rows JOIN columns ON id = column WHERE fingerprint = ? AND key IN"
        )
        return select(db, query, (fingerprint,), keys)

    def _present(self, db, fingerprint, keys) -> dict[bytes, bool]:
        """The keys of the rows that are here, and whether they were in range."""
        query = (
            "SELECT key, in_range FROM rows JOIN columns ON id = column "
            "WHERE fingerprint = ? AND key IN"
        )
        return dict(select(db, query, (fingerprint,), keys))

    def _drop(self, db, fingerprint, keys) -> None:
        """Remove damaged rows, so that they are computed again."""
        if not keys:
            return
        self._warn(f"had {len(keys)} damaged rows, which are computed again")
        with contextlib.suppress(sqlite3.Error), writing(db):
            db.executemany(
                "DELETE FROM rows WHERE key = ? AND column = "
                "(SELECT id FROM columns WHERE fingerprint = ?)",
                [(key, fingerprint) for key in keys],
            )

    def _evict(self, db) -> bool:
        """Beyond the bound, drop rows of the column whose last use is longest ago.

        Says whether there were any to drop.
        """
        n_dropped = 0
        while _bytes_used(db) > self.max_bytes and n_dropped < MOST_EVICTED:
            oldest = db.execute(
                "SELECT id FROM columns WHERE EXISTS "
                "(SELECT 1 FROM rows WHERE column = id) ORDER BY used LIMIT 1"
            ).fetchone()
            if oldest is None:
                break
            n_dropped += db.execute(
                "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows "
                "INDEXED BY rows_by_age WHERE column = ? ORDER BY rowid LIMIT ?)",
                (*oldest, EVICTED_AT_ONCE),
            ).rowcount
        return n_dropped > 0

    # Claims -------------------------------------------------------------------------

    def _claimed(self, db, ids) -> set[bytes]:
        """Those of these claims whose owner lives; the others are dropped."""
        query = "SELECT id, owner FROM claims WHERE id IN"
        claims = list(select(db, query, (), ids))
        dead = {name for name in {name for _, name in claims} if self._is_dead(name)}
        for name in dead:
            db.execute("DELETE FROM claims WHERE owner = ?", (name,))
        return {id_ for id_, name in claims if name not in dead}

    def _is_dead(self, name: str) -> bool:
        """Whether no process holds the lock of this owner any more."""
        if self._owner is not None and name == Path(self._owner.path).name:
            return False
        return FileLock(self._owners / name).is_free()

    @property
    def _owners(self) -> Path:
        return self.folder / "owners"

    def _owner_name(self) -> str:
        """The name of the lock that proves this process alive, made when needed."""
        if self._owner is None:
            self._owner = self._become_owner()
        return Path(self._owner.path).name

    def _become_owner(self) -> FileLock:
        """Hold a lock of our own, and sweep away those of processes that are gone."""
        self._owners.mkdir(exist_ok=True)
        with self._alone():
            for path in self._owners.iterdir():
                if FileLock(path).is_free():
                    path.unlink(missing_ok=True)
            lock = FileLock(self._owners / secrets.token_hex(8))
            lock.acquire()
        return lock

    @contextlib.contextmanager
    def _alone(self):
        """A context for what one process at a time may do to the folder."""
        lock = FileLock(self.folder / SETUP_LOCK)
        lock.acquire(
            say_once(
                lambda: (
                    f"the folder {str(self.folder)!r}, which {lock.holder} has been "
                    f"setting up since {local_time(lock.held_since)}"
                )
            )
        )
        try:
            yield
        finally:
            lock.release()

    # The database -------------------------------------------------------------------

    def _attempt(self, work: Callable, otherwise: Callable):
        """The result of `work` on the database, or `otherwise` with a warning."""
        try:
            with self._lock:
                return work(self._database())
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if isinstance(error, PermissionError):
                code = sqlite3.SQLITE_READONLY
            if code in DAMAGED:
                self._set_aside()
                self._warn(
                    f"was damaged ({error}); it is set aside as {ASIDE!r}, and a new "
                    "one is begun"
                )
            else:
                self._warn(
                    f"{TROUBLES.get(code, f'cannot be used ({error})')}; what it lacks "
                    "is computed and not kept"
                )
            return otherwise()

    def _database(self) -> sqlite3.Connection:
        """The connection of this process, opened at its first use."""
        if self._connection is not None and _inode(self.folder / FILE) != self._inode:
            self.forget()  # somebody removed or replaced the file
        if self._connection is None:
            self._connection = self._connect()
            self._inode = _inode(self.folder / FILE)
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        """Open for reading and writing, or, where that is forbidden, for reading."""
        file = self.folder / FILE
        if file.exists() and not os.access(self.folder, os.W_OK):
            return _open_to_read(file)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mention_others()
        db = sqlite3.connect(
            file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # One at a time: a change to this mode fails where another begins with it.
            with self._alone():
                _set_up(db)
        except BaseException:
            self._inode = _inode(file)
            db.close()
            raise
        return db

    def _mention_others(self) -> None:
        """Say that features of another version of the package are left alone."""
        others = sorted(
            {f.name for f in self.folder.glob("features.v*.sqlite")} - {FILE}
        )
        if others:
            self._warn(
                f"also holds {others[0]!r}, features kept by another version of "
                "skdeepfeat, which are left alone; delete the file if you do not need "
                "them"
            )

    def _set_aside(self) -> None:
        """Rename a damaged database, for whoever wants to look at it.

        Unless another process has done so: then there is a new one already.
        """
        with self._lock, contextlib.suppress(OSError):
            self.forget()
            file = self.folder / FILE
            with self._alone():
                if _inode(file) == self._inode:
                    file.replace(self.folder / ASIDE)
                    for end in ("-wal", "-shm"):
                        file.with_name(f"{FILE}{end}").unlink(missing_ok=True)

    def _warn(self, trouble: str) -> None:
        """Tell each trouble once."""
        if trouble not in self._told:
            self._told.add(trouble)
            message = f"The feature store in {str(self.folder)!r} {trouble}."
            warn_user(message, StoreWarning)


# SQL --------------------------------------------------------------------------------


def _set_up(db: sqlite3.Connection) -> None:
    """Settings of a connection, and the tables of a new database."""
    db.execute("PRAGMA page_size = 8192")  # rows of some kilobytes
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 16777216")
    if not db.execute("PRAGMA table_info(files)").fetchall():
        with writing(db):
            for statement in filter(str.strip, SCHEMA.split(";")):
                db.execute(statement)


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


def _number_of(db, column, asked: bool) -> int:
    """The number of a column in the database, given at its first row.

    What was only prefetched was never used, so it is the first to make room.
    """
    db.execute(
        "INSERT INTO columns (fingerprint, label, used) VALUES (?, ?, ?) "
        "ON CONFLICT (fingerprint) DO UPDATE SET used = max(used, excluded.used)",
        (column.fingerprint, column.label, time.time() if asked else 0),
    )
    query = "SELECT id FROM columns WHERE fingerprint = ?"
    return db.execute(query, (column.fingerprint,)).fetchone()[0]


def checksum_of(seed: int, key: bytes, in_range: int, data: bytes) -> int:
    """What tells a damaged row."""
    return crc32(data, crc32(key, seed + in_range))


def _add_to_counter(db, name: str, n: int) -> None:
    db.execute("UPDATE counters SET value = value + ? WHERE name = ?", (n, name))


def _bytes_used(db) -> int:
    """Bytes of the database that hold something."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _inode(path: Path) -> int:
    """Which file this is now; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _open_to_read(file: Path) -> sqlite3.Connection:
    """Beside a process that writes, or else the file as it stands."""
    for mode in ("mode=ro", "immutable=1"):
        uri = f"{file.absolute().as_uri()}?{mode}"
        db = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("SELECT 1 FROM rows").fetchone()
            break
        except sqlite3.Error:
            if mode == "immutable=1":
                db.close()
                raise
            db.close()
    return db
