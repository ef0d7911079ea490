"""Content key → feature row: the table that the walk goes through.

A row is found by what its image contains and by the fingerprint of everything that
makes its features what they are, so features of all layers and settings live side by
side and nobody gets a row that was made differently. The memory store is one table
for the whole process, shared by all estimators, clones and threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_MAX_BYTES = 2**30
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
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> list[int]:
        """Copy the rows of `keys` to ``out[places]``.

        Returns
        -------
        missing : list of int
            Positions in `keys` of the rows that are not here.
        """
        missing = []
        for position, (key, place) in enumerate(zip(keys, places, strict=True)):
            with self._lock:
                row = self._rows.get((fingerprint, key))
                if row is not None:
                    self._rows.move_to_end((fingerprint, key))
            if row is None:
                missing.append(position)
            else:
                out[place] = row
        return missing

    def write(self, fingerprint: bytes, keys: Sequence[bytes], rows) -> None:
        """Keep these rows; drops the least recently used beyond the bound."""
        for key, row in zip(keys, rows, strict=True):
            size = row.nbytes + ROW_OVERHEAD
            if size > self.max_bytes:
                continue
            kept = row.copy()
            with self._lock:
                if (fingerprint, key) not in self._rows:
                    self._rows[fingerprint, key] = kept
                    self._bytes += size
                while self._bytes > self.max_bytes:
                    _, dropped = self._rows.popitem(last=False)
                    self._bytes -= dropped.nbytes + ROW_OVERHEAD

    def clear(self) -> None:
        """Forget all rows."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    @property
    def n_bytes(self) -> int:
        """What the rows take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)


_tables: dict[str, MemoryTable] = {}
_tables_lock = threading.Lock()


@dataclass(frozen=True)
class FeatureStore:
    """A named place where features are kept, shared by everybody who names it.

    It is an immutable value: copies, clones and pickles of it mean the same table.
    The table itself lives as long as the process.

    Parameters
    ----------
    name : str, default="memory"
        The table; ``cache="memory"`` is the one of the default name.
    max_bytes : int, default=1073741824
        Bound of what its rows take in memory, 1 GiB by default; the least recently
        used rows make room for new ones. Whoever opens a table first sets its bound.

    Examples
    --------
    >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures
    >>> store = FeatureStore("photos", max_bytes=100_000_000)
    >>> features = PretrainedCNNFeatures(cache=store)
    """

    name: str = "memory"
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self):
        if not isinstance(self.name, str) or self.max_bytes < 0:
            raise ValueError(
                "FeatureStore takes a name and a bound in bytes of at least 0. Got "
                f"name={self.name!r} and max_bytes={self.max_bytes!r} instead."
            )

    def __deepcopy__(self, memo):
        return self

    def open(self) -> MemoryTable:
        """The table of this name."""
        with _tables_lock:
            return _tables.setdefault(self.name, MemoryTable(self.max_bytes))

    def clear(self) -> None:
        """Forget all rows of this table."""
        self.open().clear()


def open_table(cache) -> MemoryTable:
    """The table behind the `cache` parameter; None is one that keeps nothing."""
    if cache is None:
        return MemoryTable(0)
    return (FeatureStore() if cache == "memory" else cache).open()


def clear_tables() -> None:
    """Forget all rows of all tables of this process."""
    with _tables_lock:
        for table in _tables.values():
            table.clear()
