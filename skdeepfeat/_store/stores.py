"""FeatureStore, and the `cache` parameter → the table of rows that it names."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from .._exceptions import StoreWarning, warn_user
from .._listing import facts_as_html
from .._processes import Lock, after_fork, during_fork
from .base import Table
from .disk import DiskTable
from .memory import MemoryTable

NOT_LASTING = (
    "The features of this network are kept in memory, not in the folder, because a "
    "later process could not recognise the network: {obstacle}. To keep them in the "
    "folder, name the network with Backbone.from_module(net, ..., version='1'), and "
    "type another version whenever you change its code."
)
MEMORY_BYTES = 2**30
DISK_BYTES = 20 * 2**30


_tables: dict[str | Path, Table] = {}
_tables_lock = Lock()


@during_fork
@contextlib.contextmanager
def _pause() -> Iterator[None]:
    """A context in which no table is in the middle of a change."""
    with contextlib.ExitStack() as stack:
        for table in list(_tables.values()):
            stack.enter_context(table.pause())
        yield


@after_fork
def _leave_to_parent() -> None:
    """Claims and open files belong to the parent."""
    for table in _tables.values():
        table.after_fork()


@dataclass(frozen=True)
class FeatureStore:
    """A place where features are kept, shared by all estimators that name it.

    It is an immutable value: copies, clones and pickles of it name the same place.

    Parameters
    ----------
    path : str or path, default=None
        A folder on a local disk, created at its first use. It lasts, and all processes
        may share it. None keeps the features in the memory of the process until it
        ends.
    name : str, default="memory"
        Which table in memory; ``cache="memory"`` is the one with the default name.
    max_bytes : int, default=None
        Bound of the space that the features take. None is 1 GiB in memory, where the
        least recently used rows make room for new ones, and 20 GiB in a folder, where
        rows of the least recently used layers do. The first use of a place in a
        process sets its bound.

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
        """Open the table of this place, created if it does not exist.

        Returns
        -------
        table : MemoryTable or DiskTable
            The same object in the whole process.
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
        """Report what is stored.

        Returns
        -------
        info : dict
            "rows": stored feature rows, one for each image and layer. "bytes": the
            space they take. "hits" and "misses": how many distinct images of all calls
            were found, and how many were computed; in a folder over all processes.
            "layers": rows of each network, layer and pooling.
        """
        return self.open().info()

    def _repr_html_(self) -> str:
        return facts_as_html(repr(self), self.info())

    def clear(self) -> None:
        """Remove everything that is stored."""
        self.open().clear()


def open_table(cache, obstacle: str = "") -> Table:
    """The table behind the `cache` parameter; None is one that keeps nothing.

    `obstacle` says why features may not be kept in a folder; memory is used instead.
    """
    if cache is None:
        return MemoryTable(0)
    in_memory = isinstance(cache, str) and cache == "memory"
    store = cache if isinstance(cache, FeatureStore) else None
    store = store or FeatureStore(None if in_memory else cache)
    if store.path is None or not obstacle:
        return store.open()
    warn_user(NOT_LASTING.format(obstacle=obstacle), StoreWarning)
    return FeatureStore().open()


def clear_tables() -> None:
    """Drop all features that this process holds in memory; folders stay."""
    with _tables_lock:
        for table in _tables.values():
            table.forget()
