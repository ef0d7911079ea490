"""Content key → feature row: the table that the walk goes through.

A row is found by what its image contains and by the fingerprint of everything that
makes its features what they are, so features of all layers and settings live side by
side and nobody gets a row that was made differently. While one worker computes rows,
the others that need them wait and then read.

The table is in the memory of the process, shared by all its estimators, clones and
threads, or in a folder, shared by all processes (`_disk`). Both answer to the same
methods.
"""

import contextlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ._disk import DiskTable

MEMORY_BYTES = 2**30
DISK_BYTES = 20 * 2**30
ROW_OVERHEAD = 300  # bytes that Python needs to hold one row


class MemoryTable:
    """Rows in memory, the least recently used dropped beyond a bound.

    Parameters
    ----------
    max_bytes : int
        Bound of what the rows take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._rows: OrderedDict[tuple[bytes, bytes], np.ndarray] = OrderedDict()
        self._labels: dict[bytes, str] = {}
        self._claims: dict[tuple[bytes, bytes], bytes] = {}  # → the call
        self._bytes = self._hits = self._misses = 0
        self._changed = threading.Condition()

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> list[int]:
        """Copy the rows of `keys` to ``out[places]``, unless `out` is None.

        Returns
        -------
        missing : list of int
            Positions in `keys` of the rows that are not here.
        """
        missing = []
        for position, (key, place) in enumerate(zip(keys, places, strict=True)):
            with self._changed:
                row = self._rows.get((fingerprint, key))
                if row is not None:
                    self._rows.move_to_end((fingerprint, key))
            if row is None:
                missing.append(position)
            elif out is not None:
                out[place] = row
        return missing

    def write(self, call: bytes, scope: bytes, keys: Sequence[bytes], parts) -> None:
        """Keep computed rows, count them as misses, and give back their claims."""
        for column, rows in parts:
            for key, row in zip(keys, rows, strict=True):
                self._put(column, key, row)
        with self._changed:
            self._misses += len(keys)
            for key in keys:
                self._claims.pop((scope, key), None)
            self._changed.notify_all()

    def _put(self, column, key: bytes, row) -> None:
        """Keep one row; drops the least recently used ones beyond the bound."""
        size = row.nbytes + ROW_OVERHEAD
        if size > self.max_bytes:
            return
        kept = row.copy()
        with self._changed:
            self._labels[column.fingerprint] = column.label
            if (column.fingerprint, key) not in self._rows:
                self._rows[column.fingerprint, key] = kept
                self._bytes += size
            while self._bytes > self.max_bytes:
                _, dropped = self._rows.popitem(last=False)
                self._bytes -= dropped.nbytes + ROW_OVERHEAD

    def claim(self, call: bytes, scope: bytes, keys, fingerprints) -> list[int]:
        """Reserve rows for computing; see :meth:`DiskTable.claim`."""
        granted = []
        with self._changed:
            for position, key in enumerate(keys):
                here = all((column, key) in self._rows for column in fingerprints)
                if not here and (scope, key) not in self._claims:
                    self._claims[scope, key] = call
                    granted.append(position)
        return granted

    def release(self, call: bytes) -> None:
        """Give back all claims of a call."""
        with self._changed:
            for claim in [c for c, owner in self._claims.items() if owner == call]:
                del self._claims[claim]
            self._changed.notify_all()

    def wait(self, scope: bytes, keys: Sequence[bytes]) -> None:
        """Return as soon as nobody computes these rows any more."""
        ids = {(scope, key) for key in keys}
        with self._changed:
            self._changed.wait_for(lambda: ids.isdisjoint(self._claims))

    def turn(self, device_class: str):
        """Threads of one process share a device."""
        return contextlib.nullcontext()

    def count_hits(self, n: int, fingerprints) -> None:
        """Note that so many rows were served."""
        with self._changed:
            self._hits += n

    def read_files(self, paths: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """Nothing: the process remembers by itself which files it has hashed."""
        return []

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Nothing, likewise."""

    def info(self) -> dict[str, Any]:
        """What is here, see :meth:`FeatureStore.info`."""
        with self._changed:
            layers = Counter(self._labels[column] for column, _ in self._rows)
            return {
                "rows": len(self._rows),
                "bytes": self._bytes,
                "hits": self._hits,
                "misses": self._misses,
                "layers": dict(sorted(layers.items())),
            }

    def clear(self) -> None:
        """Forget all rows."""
        with self._changed:
            self._rows.clear()
            self._labels.clear()
            self._bytes = self._hits = self._misses = 0

    forget = clear  # nothing else is held

    def after_fork(self) -> None:
        """In a child process: nobody holds the lock, nobody computes anything."""
        self._changed = threading.Condition()
        self._claims.clear()


Table = MemoryTable | DiskTable

_tables: dict[str | Path, Table] = {}
_tables_lock = threading.Lock()


def _after_fork() -> None:
    """The threads that held locks or claims are not in a child process."""
    global _tables_lock
    _tables_lock = threading.Lock()
    for table in _tables.values():
        table.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class FeatureStore:
    """A place where features are kept, shared by everybody who names it.

    It is an immutable value: copies, clones and pickles of it mean the same place.

    Parameters
    ----------
    path : str or path, default=None
        A folder on a disk of this machine, made at its first use, which all processes
        may share and which lasts; None keeps the features in the memory of the
        process, as long as it lives.
    name : str, default="memory"
        Which table in memory; ``cache="memory"`` is the one of the default name.
    max_bytes : int, default=None
        Bound of what the features take. None is 1 GiB in memory, where the least
        recently used rows make room for new ones, and 20 GiB in a folder, where rows
        of the least recently used layers do. Whoever opens a place first in a process
        sets its bound there.

    Examples
    --------
    >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures
    >>> store = FeatureStore(name="photos", max_bytes=100_000_000)
    >>> features = PretrainedCNNFeatures(cache=store)
    >>> store.info()
    {'rows': 0, 'bytes': 0, 'hits': 0, 'misses': 0, 'layers': {}}
    """

    path: str | os.PathLike | None = None
    name: str = "memory"
    max_bytes: int | None = None

    def __post_init__(self):
        if self.path == "":
            raise ValueError("The path of a FeatureStore must not be empty.")
        if self.path is not None:
            path = os.path.abspath(os.path.expanduser(self.path))
            object.__setattr__(self, "path", path)
        bound = self.max_bytes or 0
        is_whole = isinstance(bound, Integral)
        if not isinstance(self.name, str) or not is_whole or bound < 0:
            raise ValueError(
                "FeatureStore takes a path or a name, and a bound in whole bytes of at "
                f"least 0. Got name={self.name!r} and max_bytes={self.max_bytes!r} "
                "instead."
            )

    def __deepcopy__(self, memo):
        return self

    def open(self) -> Table:
        """Open the table of this place, made if it is not there.

        Returns
        -------
        table : MemoryTable or DiskTable
            One for the whole process.
        """
        place = self.name if self.path is None else Path(self.path)
        if self.path is not None and os.path.isfile(self.path):
            raise ValueError(
                f"The 'cache' parameter must name a folder. Got the file "
                f"{str(self.path)!r} instead; choose another name."
            )
        with _tables_lock:
            if place not in _tables:
                _tables[place] = self._make_table(place)
            return _tables[place]

    def _make_table(self, place) -> Table:
        in_memory = self.path is None
        bound = self.max_bytes
        if bound is None:
            bound = MEMORY_BYTES if in_memory else DISK_BYTES
        return MemoryTable(bound) if in_memory else DiskTable(place, bound)

    def info(self) -> dict[str, Any]:
        """What is kept here.

        Returns
        -------
        info : dict
            "rows": features kept, one for each image and layer. "bytes": what they
            take. "hits" and "misses": distinct images of all calls that were found,
            and that had to be computed; in a folder over all processes. "layers":
            rows of each network, layer and pooling.
        """
        return self.open().info()

    def clear(self) -> None:
        """Forget everything that is kept here."""
        self.open().clear()


def open_table(cache) -> Table:
    """The table behind the `cache` parameter; None is one that keeps nothing."""
    if cache is None:
        return MemoryTable(0)
    if isinstance(cache, FeatureStore):
        return cache.open()
    return FeatureStore(None if cache == "memory" else cache).open()


def clear_tables() -> None:
    """Forget all features that this process holds in memory; folders stay."""
    with _tables_lock:
        for table in _tables.values():
            table.forget()
