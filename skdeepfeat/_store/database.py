"""A folder → its SQLite database: how it is opened, what it contains, what may fail.

SQLite in write-ahead mode was chosen by measuring 10,000 rows of 2,048 float32 with
random keys on 2 cores, where ``numpy.load`` of the same matrix from the page cache
takes 0.008 s:

==========================  ==========  ======  ==========
measured, seconds           SQLite WAL  LMDB    diskcache
==========================  ==========  ======  ==========
write, 64 rows at a time    0.37        0.54    0.61
read, checksums verified    0.074       0.047   0.088 (no checksums)
4 processes read at once    0.39        0.26    --
size on disk, MB            101         124     88
==========================  ==========  ======  ==========

All are far faster than any network. SQLite comes with Python and grows with what is
written, without a size fixed in advance; diskcache, which is built on SQLite too,
reads some values by unpickling them.

A write-ahead log does not work across a network. On a disk that machines share, the
rollback journal takes its place, which is slower to write (see ``_set_up``). Where
machines do not see each other's locks, a database is only read.
"""

import contextlib
import errno
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .._exceptions import StoreWarning, warn_user
from .._files import TOKEN, TOKEN_BYTES
from .._processes import FORK_SECONDS, RLock, leave_to_parent
from .file_systems import Mount, locks_hold, mount_of
from .statements import writing
from .waiting import locked

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
TABLES = {"columns", "rows", "claims", "counters", "files"}
BUSY_SECONDS = 60  # how long a writer waits for another one
IMPATIENT_SECONDS = 1  # and after it has waited so long in vain

# What goes wrong, by SQLite's primary error code, in words that follow the folder.
TROUBLES = {
    sqlite3.SQLITE_FULL: "has no space left on its disk",
    sqlite3.SQLITE_READONLY: "is not writable",
    sqlite3.SQLITE_BUSY: f"was locked by another program for {BUSY_SECONDS} seconds",
}
CODES = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EACCES: sqlite3.SQLITE_READONLY,
    errno.EPERM: sqlite3.SQLITE_READONLY,
}
ERRORS = (sqlite3.Error, UnicodeDecodeError)  # its messages quote damaged names
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

UNSAFE = (
    "A feature store cannot be in {folder!r}, on {where}: machines may not see each "
    "other's locks there, and would damage it. Use a folder on a local disk. Only the "
    "calling process needs it; workers of a cluster do not. "
    "FeatureStore.merge joins the stores of several machines, and a finished store may "
    "be copied to {folder!r} to be read."
)

FOREIGN = (
    "There is a database {file!r}, which another program wrote, so that no features "
    "can be stored in this folder, and it was left as it is. Choose another folder."
)

NO_FILE = (
    "{file!r} is a folder, a pipe or a device, so no features can be stored in this "
    "folder. Choose another folder, or remove it."
)

ASIDE = "damaged-{}.sqlite"  # with a token, so that no other file is replaced
SETUP_LOCK = "setup.lock"  # held while the files of the database change
OWNERS = "owners"  # the folder of a file for each process that computes
GPU_LOCK = "gpu-{}.lock"  # held while a process uses this GPU


def entries_of_store(names: Iterable[str]) -> set[str]:
    """Which names of the entries of a folder belong to a store in it, of any layout."""
    names = set(names)
    databases = {n for n in names if re.match(r"features\.v\d+\.sqlite", n)}
    others = (
        rf"damaged(-{TOKEN})?\.sqlite|{GPU_LOCK.format('.+')}|{SETUP_LOCK}|{OWNERS}"
    )
    beside = {n for n in names if re.fullmatch(others, n)}
    return databases | beside if databases else set()


def of_other_versions(folder: Path) -> list[str]:
    """The names of databases of other versions of the package in a folder."""
    return sorted({file.name for file in folder.glob("features.v*.sqlite")} - {FILE})


class Database:
    """The database of one folder, with one connection for the process.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.

    Attributes
    ----------
    lock : RLock
        Held by the thread that uses the connection.
    known_files : dict of str to str
        Path → state, of hashed files that are known to be in the database.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / FILE
        self.lock = RLock()
        self.known_files: dict[str, str] = {}
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._is_patient = True
        self._reported: set[str] = set()

    def attempt(self, work: Callable, otherwise: Callable):
        """The result of `work` on the connection, or `otherwise` with a warning."""
        try:
            with self.lock:
                result = work(self.connect())
                self._be_patient(True)
                return result
        except (*ERRORS, OSError) as error:
            self._report(error)
            if _code_of(error) == sqlite3.SQLITE_BUSY:
                self._be_patient(False)
            return otherwise()

    def _be_patient(self, is_patient: bool) -> None:
        """Wait long for other writers, or no longer once one has kept us waiting.

        Each of the steps of a call would wait for it.
        """
        with self.lock:
            is_new, self._is_patient = is_patient != self._is_patient, is_patient
            if is_new and self._connection is not None:
                wait = f"PRAGMA busy_timeout = {1000 * self._patience}"
                self._connection.execute(wait)

    @property
    def _patience(self) -> int:
        """How long to wait for other writers, in seconds."""
        return BUSY_SECONDS if self._is_patient else IMPATIENT_SECONDS

    def insist(self, work: Callable, failed: str):
        """The result of `work` on the connection; OSError if there is none."""
        try:
            with self.lock:
                return work(self.connect())
        except (*ERRORS, OSError) as error:
            trouble = self._trouble(error)
            end = "try again" if _code_of(error) in DAMAGED else failed
            raise OSError(
                f"The feature store in {str(self.folder)!r} {trouble}; {end}."
            ) from error

    def connect(self) -> sqlite3.Connection:
        """The connection of this process, opened at its first use."""
        if self._connection is not None and _inode(self.file) != self._inode:
            self.forget()  # another process removed or replaced the file
        if self._connection is None:
            self._connection = self._open()
            self._inode = _inode(self.file)
        return self._connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Another connection, which changes nothing and does not see what changes.

        With a rollback journal, it does, because others could not write meanwhile.
        """
        with contextlib.closing(self._open_beside()) as db:
            db.execute("PRAGMA query_only = 1")
            if db.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                db.execute("BEGIN")
            yield db

    def _open_beside(self) -> sqlite3.Connection:
        """A connection to the file as it is, which is neither created nor replaced."""
        mount = mount_of(self.folder)
        if not self._is_writable(mount):
            return _open_to_read(self.file)
        db = _open_as(self.file, "mode=rw")
        if mount.is_shared:  # the file may be a copy of one on a local disk
            with self._alone():
                db.execute("PRAGMA journal_mode = DELETE")
        return db

    @property
    def sizes(self) -> list[int]:
        """Bytes of each of the files of the database that exist."""
        files = [self.folder / f"{FILE}{end}" for end in ("", "-wal", "-shm")]
        return [file.stat().st_size for file in files if file.exists()]

    # Opening ------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Open for reading and writing, or, where that is forbidden, for reading."""
        if self.file.exists() and not self.file.is_file():  # a pipe would block
            raise ValueError(NO_FILE.format(file=str(self.file)))
        mount = mount_of(self.folder)
        if self.file.exists() and not self._is_writable(mount):
            return _open_to_read(self.file)
        if where := mount.without_locks:
            raise ValueError(UNSAFE.format(folder=str(self.folder), where=where))
        self.folder.mkdir(parents=True, exist_ok=True)
        if mount.is_shared and not locks_hold(self.folder):
            raise ValueError(UNSAFE.format(folder=str(self.folder), where=mount.kind))
        self._mention_others()
        db = _connection_to(str(self.file), timeout=self._patience)
        try:
            # One at a time: two processes that enter this mode at once both fail.
            with self._alone():
                _set_up(db, mount.is_shared)
        except BaseException:
            self._inode = _inode(self.file)
            db.close()
            raise
        return db

    def _is_writable(self, mount: Mount) -> bool:
        return os.access(self.folder, os.W_OK) and not mount.without_locks

    def _alone(self):
        """A context in which no other process sets up this folder."""
        name = f"the folder {str(self.folder)!r}"
        return locked(self.folder / SETUP_LOCK, name, "setting up")

    def _mention_others(self) -> None:
        """Warn that features of another version of the package are not used."""
        if others := of_other_versions(self.folder):
            self.warn(
                f"also holds {others[0]!r}, written by another version of skdeepfeat, "
                "which is left alone; delete that file if you do not need it"
            )

    # Trouble ------------------------------------------------------------------------

    def _report(self, error: Exception) -> None:
        """Warn of an error."""
        trouble, code = self._trouble(error), _code_of(error)
        end = "" if code in DAMAGED else "; features are returned but not stored there"
        self.warn(f"{trouble}{end}")

    def _trouble(self, error: Exception) -> str:
        """An error in words; a damaged database is replaced."""
        if (code := _code_of(error)) not in DAMAGED:
            return TROUBLES.get(code, f"cannot be used ({error})")
        self.set_aside()
        aside = " ".join(repr(file.name) for file in self.files_aside)
        return (
            f"was damaged ({error}); it was set aside as {aside} and replaced by an "
            "empty one"
        )

    def set_aside(self) -> None:
        """Rename a damaged database, unless another process has replaced it already."""
        with self.lock, contextlib.suppress(OSError):
            self.forget()
            with self._alone():
                if _inode(self.file) == self._inode:
                    earlier, token = self.files_aside, secrets.token_hex(TOKEN_BYTES)
                    self.file.replace(self.folder / ASIDE.format(token))
                    for file in earlier:
                        file.unlink(missing_ok=True)
                    for end in ("-wal", "-shm"):
                        self.file.with_name(f"{FILE}{end}").unlink(missing_ok=True)

    @property
    def files_aside(self) -> list[Path]:
        """What was set aside; files of the user's never have such a name."""
        return list(self.folder.glob(ASIDE.format(TOKEN)))

    def warn(self, trouble: str) -> None:
        """Warn once of each trouble."""
        if self.is_new(trouble):
            message = f"The feature store in {str(self.folder)!r} {trouble}."
            warn_user(message, StoreWarning)

    def is_new(self, trouble: str) -> bool:
        """Whether this is the first time that this trouble occurs."""
        is_new = trouble not in self._reported
        self._reported.add(trouble)
        return is_new

    # Closing ------------------------------------------------------------------------

    def forget(self) -> None:
        """Close the connection and forget what was known of the file."""
        with self.lock:
            self._disconnect()
            self.known_files.clear()
            self._reported.clear()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context to fork in: the connection is closed, so no child inherits it.

        SQLite would take the locks of the parent for those of the child.
        """
        held = self.lock.acquire(timeout=FORK_SECONDS)
        try:
            if held:
                self._disconnect()
            yield
        finally:
            if held:
                self.lock.release()

    def after_fork(self) -> None:
        """In a child process: leave an open connection to the parent."""
        if self._connection is not None:  # a thread used it for too long
            leave_to_parent(self._connection)
        self._connection = None

    def _disconnect(self) -> None:
        """Close the connection, which the next call opens again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _connection_to(name: str, **options) -> sqlite3.Connection:
    """A connection without transactions of its own, for all threads."""
    db = sqlite3.connect(name, isolation_level=None, check_same_thread=False, **options)
    db.text_factory = _text
    return db


def _text(data: bytes) -> str:
    """A text of the database, which may be damaged."""
    return data.decode(errors="replace")


# Settings for a disk of one machine, and for one that several may share, where a
# transaction waits until it is on the disk of the server.
SETTINGS = {
    False: ("journal_mode = WAL", "synchronous = NORMAL"),
    True: ("journal_mode = DELETE", "synchronous = FULL"),
}


def _set_up(db: sqlite3.Connection, is_shared: bool) -> None:
    """Settings of a connection, and the tables of a new database."""
    tables = _tables(db)
    if tables and not TABLES <= tables:
        raise ValueError(FOREIGN.format(file=_file_of(db)))
    db.execute("PRAGMA page_size = 8192")  # rows take some kilobytes
    for setting in SETTINGS[is_shared]:
        db.execute(f"PRAGMA {setting}")
    db.execute("PRAGMA journal_size_limit = 16777216")
    if not tables:
        with writing(db):
            for statement in filter(str.strip, SCHEMA.split(";")):
                db.execute(statement)


def _tables(db: sqlite3.Connection) -> set[str]:
    """The names of the tables of a database; none of a new one."""
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master")}


def _file_of(db: sqlite3.Connection) -> str:
    """The path of an open database."""
    return db.execute("PRAGMA database_list").fetchone()[2]


def _open_to_read(file: Path) -> sqlite3.Connection:
    """A connection next to a process that writes, or else to the file as it is."""
    try:
        return _open_as(file, "mode=ro")
    except ERRORS:
        return _open_as(file, "immutable=1")


def _open_as(file: Path, mode: str) -> sqlite3.Connection:
    """A connection in a mode of SQLite, which must be able to read rows."""
    name = f"{file.absolute().as_uri()}?{mode}"
    db = _connection_to(name, uri=True, timeout=BUSY_SECONDS)
    try:
        db.execute("SELECT 1 FROM rows").fetchone()
    except ERRORS:
        db.close()
        raise
    return db


def _code_of(error: Exception) -> int:
    """SQLite's primary code of an error, 0 if it has none."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    if isinstance(error, OSError) and error.errno in CODES:
        return CODES[error.errno]
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> int:
    """The number of the file at a path; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
