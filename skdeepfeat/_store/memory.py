"""Feature rows in memory, shared by the estimators, clones and threads of a process."""

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from .._processes import FORK_SECONDS, Condition
from .base import ROW_OVERHEAD, ColumnRows, Found, Label
from .snapshots import MemorySnapshot
from .waiting import begin_of, computed_by, say_once


class MemoryTable:
    """Rows in memory; beyond a bound the least recently used are dropped.

    Rows that were only prefetched are dropped before those that were requested.

    Parameters
    ----------
    max_bytes : int
        Bound of the memory that the rows take; 0 keeps nothing.
    name : str
        The name of the store.
    """

    def __init__(self, max_bytes: int, name: str = ""):
        self.max_bytes, self.name = max_bytes, name
        # (fingerprint, key) → (row, whether in range), least recently used first
        self._requested: OrderedDict[tuple[bytes, bytes], tuple] = OrderedDict()
        self._spare: OrderedDict[tuple[bytes, bytes], tuple] = OrderedDict()
        self._labels: dict[bytes, str] = {}
        self._claims: dict[tuple[bytes, bytes], bytes] = {}  # → the call
        self._bytes = self._hits = self._misses = 0
        self._n_dropped = 0
        self._reported_bound = -1  # that was too small, as a caller was told
        self._changed = Condition()

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy rows to the output; see :class:`Table`."""
        with self._changed:
            found = [self._get((fingerprint, key)) for key in keys]
        missing, out_of_range = [], []
        for position, (kept, place) in enumerate(zip(found, places, strict=True)):
            if kept is None:
                missing.append(position)
                continue
            row, in_range = kept
            if not in_range:
                out_of_range.append(position)
            if out is not None:
                out[place] = row
        return Found(missing, out_of_range)

    def _get(self, name) -> tuple[np.ndarray, bool] | None:
        """A row, now the last one used, and whether it was in range."""
        kept = self._requested.get(name)
        if kept is not None:
            self._requested.move_to_end(name)
        elif name in self._spare:
            kept = self._requested[name] = self._spare.pop(name)
        return kept

    def _has(self, name) -> bool:
        return name in self._requested or name in self._spare

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is stored."""
        with self._changed:
            return any(self._has(name) for name in product(fingerprints, keys))

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        columns: Sequence[ColumnRows],
    ) -> bool:
        """Store computed rows; see :class:`Table`."""
        is_full = self.add(columns)
        with self._changed:
            self._misses += len(keys)
            for key in keys:
                self._claims.pop((scope, key), None)
            self._changed.notify_all()
            is_new = is_full and self._reported_bound != self.max_bytes
            if is_new:
                self._reported_bound = self.max_bytes
        return is_new

    def add(self, columns: Sequence[ColumnRows]) -> bool:
        """Store rows of another table; see :class:`Table`."""
        before = self._n_dropped
        for rows in columns:
            for key, row, in_range in zip(
                rows.keys, rows.rows, rows.in_range, strict=True
            ):
                self._put(rows, key, row, in_range)
        return self._n_dropped > before

    def _put(self, rows: ColumnRows, key: bytes, row, in_range: bool) -> None:
        """Store one row, and drop others beyond the bound."""
        if row.nbytes + ROW_OVERHEAD > self.max_bytes:
            self._n_dropped += self.max_bytes > 0
            return
        name, kept = (rows.column.fingerprint, key), (row.copy(), bool(in_range))
        with self._changed:
            self._labels[rows.column.fingerprint] = rows.column.label
            if not self._has(name):
                (self._requested if rows.requested else self._spare)[name] = kept
                self._bytes += row.nbytes + ROW_OVERHEAD
            self._make_room()

    def _make_room(self) -> None:
        """Drop rows until the others fit."""
        while self._bytes > self.max_bytes:
            _, (dropped, _) = (self._spare or self._requested).popitem(last=False)
            self._bytes -= dropped.nbytes + ROW_OVERHEAD
            self._n_dropped += 1

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""
        return (
            f"cache=FeatureStore(name={self.name!r}, max_bytes={n_bytes}), or "
            "cache='features.store' for a folder"
        )

    def claim(self, call: bytes, scope: bytes, keys, fingerprints) -> list[int]:
        """Reserve rows for computing; see :class:`Table`."""
        granted = []
        with self._changed:
            for position, key in enumerate(keys):
                stored = all(self._has((column, key)) for column in fingerprints)
                if not stored and (scope, key) not in self._claims:
                    self._claims[scope, key] = call
                    granted.append(position)
        return granted

    def release(self, call: bytes) -> None:
        """Release all claims of a call."""
        with self._changed:
            for claim in [c for c, owner in self._claims.items() if owner == call]:
                del self._claims[claim]
            self._changed.notify_all()

    def wait(self, scope: bytes, keys, rows: Sequence[int] = ()) -> None:
        """Return once no other call computes these rows; see :class:`Table`."""
        ids, rows = [(scope, key) for key in keys], rows or range(len(keys))
        say, started = say_once(lambda: self._waited_for(ids, rows)), time.monotonic()
        while not self._wait_a_second(ids):
            say(time.monotonic() - started)

    def _wait_a_second(self, ids) -> bool:
        """Whether no call computes these rows, now or within a second."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._claims.keys().isdisjoint(ids), timeout=1
            )

    def _waited_for(self, ids, rows: Sequence[int]) -> str:
        """Which of these rows are being computed, where, and since when, in words."""
        with self._changed:
            calls = {
                i: self._claims[id_] for i, id_ in enumerate(ids) if id_ in self._claims
            }
        since = min(map(begin_of, calls.values()), default=time.time())
        holder = "another thread of this process"
        return computed_by([rows[i] for i in calls], holder, since)

    def use_gpus(self, gpus: Callable[[], Sequence[str]]):
        """Nothing: threads of one process share a GPU."""
        return contextlib.nullcontext()

    def count_hits(self, n: int, fingerprints) -> None:
        """Record that n rows were found."""
        with self._changed:
            self._hits += n

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """Nothing: the process itself remembers which files it has hashed."""
        return []

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Nothing; see `read_files`."""

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        """A context with the rows of now; see :class:`Table`."""
        with self._changed:
            labels = {sign: Label(sign, name) for sign, name in self._labels.items()}
            stored = [
                ColumnRows(
                    labels[sign], [key], row[None], [fits], rows is self._requested
                )
                for rows in (self._spare, self._requested)
                for (sign, key), (row, fits) in rows.items()
            ]
            size = self._bytes
        layers = Counter(rows.column.label for rows in stored)
        yield MemorySnapshot(layers, size, stored)

    def info(self) -> dict[str, Any]:
        """What is stored; see :meth:`skdeepfeat.FeatureStore.info`."""
        with self._changed:
            names = [*self._requested, *self._spare]
            layers = Counter(self._labels[column] for column, _ in names)
            return {
                "rows": len(names),
                "bytes": self._bytes,
                "hits": self._hits,
                "misses": self._misses,
                "layers": dict(sorted(layers.items())),
            }

    def clear(self) -> None:
        """Remove all rows."""
        with self._changed:
            self._requested.clear()
            self._spare.clear()
            self._labels.clear()
            self._bytes = self._hits = self._misses = 0
            self._reported_bound = -1

    forget = clear  # nothing else is held

    @contextlib.contextmanager
    def pause(self):
        """A context to fork in: no thread is in the middle of a change."""
        held = self._changed.acquire(timeout=FORK_SECONDS)
        try:
            yield
        finally:
            if held:
                self._changed.release()

    def after_fork(self) -> None:
        """In a child process: the threads that claimed rows do not exist."""
        self._claims.clear()
