"""Which rows another call computes right now, over all processes that share a folder.

A claim is a row of the database. It counts as long as the call that made it holds a
lock on a file of its own, which the operating system releases when the process ends,
however it ends. So no claim needs a time limit, and none has to be withdrawn.
"""

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from .._processes import FileLock
from .statements import select

NAME_BYTES = 8  # of the name of a lock, in hexadecimal digits
NAMES = re.compile(f"[0-9a-f]{{{2 * NAME_BYTES}}}")


class Claims:
    """The claims in one folder, and the locks that calls of this process hold.

    All but `release` and `after_fork` run inside a transaction or a single statement.

    Parameters
    ----------
    folder : Path
        Where the lock files are kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._locks: dict[bytes, FileLock] = {}  # by call
        self._is_swept = False

    def taken(self, db, ids: Sequence[bytes]) -> dict[bytes, tuple[FileLock, bytes]]:
        """Those of these ids that a call computes, with its lock and its name."""
        query = "SELECT id, owner, call FROM claims WHERE id IN"
        claims = list(select(db, query, (), ids))
        locks = {name: self._lock_of(name) for _, name, _ in claims}
        held = {name for name, lock in locks.items() if not lock.is_free()}
        return {id_: (locks[name], call) for id_, name, call in claims if name in held}

    def add(self, db, call: bytes, ids: Sequence[bytes]) -> None:
        """Claim these ids, which must be free; inside a transaction that writes."""
        if ids:
            name = Path(self._hold(db, call).path).name
            rows = [(id_, name, call) for id_ in ids]
            db.executemany("REPLACE INTO claims VALUES (?, ?, ?)", rows)

    def remove(self, db, call: bytes, ids: Sequence[bytes]) -> None:
        """Withdraw what a call has computed."""
        rows = [(id_, call) for id_ in ids]
        db.executemany("DELETE FROM claims WHERE id = ? AND call = ?", rows)

    def release(self, call: bytes) -> None:
        """Release the lock of a call, if it has one, so that its claims are void."""
        if lock := self._locks.pop(call, None):
            lock.release()
            lock.remove()

    def release_all(self) -> None:
        """Release the locks of all calls of this process."""
        for call in list(self._locks):
            self.release(call)

    def after_fork(self) -> None:
        """In a child process: the locks stay with the parent."""
        for lock in self._locks.values():
            lock.drop()
        self._locks.clear()

    def _hold(self, db, call: bytes) -> FileLock:
        """The lock of a call, taken at its first claim."""
        if call not in self._locks:
            self._sweep(db)
            lock = self._lock_of(secrets.token_hex(NAME_BYTES))
            lock.acquire()
            self._locks[call] = lock
        return self._locks[call]

    def _sweep(self, db) -> None:
        """Once in a folder, remove what calls of ended processes have left.

        No lock is taken meanwhile, because the transaction excludes other writers.
        """
        if self._is_swept and self._folder.is_dir():  # and not removed meanwhile
            return
        self._folder.mkdir(exist_ok=True)
        for path in self._lock_files():
            if (lock := FileLock(path)).is_free():
                lock.remove()
        held = [path.name for path in self._lock_files()]
        marks = ", ".join("?" * len(held))
        db.execute(f"DELETE FROM claims WHERE owner NOT IN ({marks})", held)
        self._is_swept = True

    def _lock_files(self) -> list[Path]:
        """The files of locks; files of the user's may be in the same folder."""
        found = self._folder.iterdir()
        return [path for path in found if NAMES.fullmatch(path.name)]

    def _lock_of(self, name: str) -> FileLock:
        return FileLock(self._folder / name)
