"""Rows in the memory of the process, shared by its estimators, clones and threads."""

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from .._processes import FORK_SECONDS, Condition
from .base import ROW_OVERHEAD, ColumnRows, Found
from .waiting import begin_of, local_time, say_once, some_rows


class MemoryTable:
    """Rows in memory, the least recently used dropped beyond a bound.

    What was only prefetched leaves before what was asked for.

    Parameters
    ----------
    max_bytes : int
        Bound of what the rows take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        # (fingerprint, key) → (row, whether in range), least recently used first
        self._asked: OrderedDict[tuple[bytes, bytes], tuple] = OrderedDict()
        self._spare: OrderedDict[tuple[bytes, bytes], tuple] = OrderedDict()
        self._labels: dict[bytes, str] = {}
        self._claims: dict[tuple[bytes, bytes], bytes] = {}  # → the call
        self._bytes = self._hits = self._misses = 0
        self._was_full = False
        self._changed = Condition()

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy rows to the output; see :class:`Table`."""
        missing, out_of_range = [], False
        for position, (key, place) in enumerate(zip(keys, places, strict=True)):
            row, in_range = self._get((fingerprint, key))
            if row is None:
                missing.append(position)
                continue
            out_of_range |= not in_range
            if out is not None:
                out[place] = row
        return Found(missing, out_of_range)

    def _get(self, name) -> tuple[np.ndarray | None, bool]:
        """A row, which counts as asked for from now on, and whether it was in range."""
        with self._changed:
            if name in self._spare:
                self._asked[name] = self._spare.pop(name)
            if name not in self._asked:
                return None, True
            self._asked.move_to_end(name)
            return self._asked[name]

    def _has(self, name) -> bool:
        return name in self._asked or name in self._spare

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is here."""
        with self._changed:
            return any(self._has(name) for name in product(fingerprints, keys))

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        parts: Sequence[ColumnRows],
    ) -> bool:
        """Keep computed rows; see :class:`Table`."""
        before = self._was_full
        for part in parts:
            for key, row, in_range in zip(
                part.keys, part.rows, part.in_range, strict=True
            ):
                self._put(part, key, row, in_range)
        with self._changed:
            self._misses += len(keys)
            for key in keys:
                self._claims.pop((scope, key), None)
            self._changed.notify_all()
        return self._was_full and not before

    def _put(self, part: ColumnRows, key: bytes, row, in_range: bool) -> None:
        """Keep one row; drops others beyond the bound."""
        size = row.nbytes + ROW_OVERHEAD
        if size > self.max_bytes:
            self._was_full = self.max_bytes > 0
            return
        name, kept = (part.column.fingerprint, key), (row.copy(), bool(in_range))
        with self._changed:
            self._labels[part.column.fingerprint] = part.column.label
            if not self._has(name):
                (self._asked if part.asked else self._spare)[name] = kept
                self._bytes += size
            while self._bytes > self.max_bytes:
                _, (dropped, _) = (self._spare or self._asked).popitem(last=False)
                self._bytes -= dropped.nbytes + ROW_OVERHEAD
                self._was_full = True

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""
        return (
            f"cache=FeatureStore(name='features', max_bytes={n_bytes}), or "
            "cache='features.store' for a folder"
        )

    def claim(self, call: bytes, scope: bytes, keys, fingerprints) -> list[int]:
        """Reserve rows for computing; see :class:`Table`."""
        granted = []
        with self._changed:
            for position, key in enumerate(keys):
                here = all(self._has((column, key)) for column in fingerprints)
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

    def wait(self, scope: bytes, keys, rows: Sequence[int] = ()) -> None:
        """Return as soon as nobody computes these rows any more."""
        started, say = time.monotonic(), say_once(lambda: self._waited_for(ids, rows))
        ids, rows = [(scope, key) for key in keys], rows or range(len(keys))
        while not self._wait_some_time(ids):
            say(time.monotonic() - started)

    def _wait_some_time(self, ids) -> bool:
        """Whether nobody computes these rows any more."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._claims.keys().isdisjoint(ids), timeout=1
            )

    def _waited_for(self, ids, rows: Sequence[int]) -> str:
        """Which of these rows somebody computes, and who, in words."""
        with self._changed:
            calls = {
                i: self._claims[id_] for i, id_ in enumerate(ids) if id_ in self._claims
            }
        began = min(map(begin_of, calls.values()), default=time.time())
        some = some_rows([rows[i] for i in calls])
        return (
            f"{some}, which another thread of this process has been computing since "
            f"{local_time(began)}"
        )

    def use_gpus(self, gpus: Callable[[], Sequence[str]]):
        """Threads of one process share a device."""
        return contextlib.nullcontext()

    def count_hits(self, n: int, fingerprints) -> None:
        """Note that so many rows were served."""
        with self._changed:
            self._hits += n

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """Nothing: the process remembers by itself which files it has hashed."""
        return []

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Nothing, likewise."""

    def info(self) -> dict[str, Any]:
        """What is here, see :meth:`FeatureStore.info`."""
        with self._changed:
            names = [*self._asked, *self._spare]
            layers = Counter(self._labels[column] for column, _ in names)
            return {
                "rows": len(names),
                "bytes": self._bytes,
                "hits": self._hits,
                "misses": self._misses,
                "layers": dict(sorted(layers.items())),
            }

    def clear(self) -> None:
        """Forget all rows."""
        with self._changed:
            self._asked.clear()
            self._spare.clear()
            self._labels.clear()
            self._bytes = self._hits = self._misses = 0
            self._was_full = False

    forget = clear  # nothing else is held

    @contextlib.contextmanager
    def pause(self):
        """A context to fork in: nobody is in the middle of a change."""
        held = self._changed.acquire(timeout=FORK_SECONDS)
        try:
            yield
        finally:
            if held:
                self._changed.release()

    def after_fork(self) -> None:
        """In a child process: nobody computes anything."""
        self._claims.clear()
