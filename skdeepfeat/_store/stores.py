"""FeatureStore, and the tables of features that `cache` parameters name."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._exceptions import StoreWarning, warn_user
from .._files import check_path, local_path
from .._listing import facts_as_html
from .._processes import Lock, after_fork, during_fork
from .._validation import is_whole
from .base import Table
from .database import FILE, of_other_versions
from .disk import DiskTable
from .memory import MemoryTable
from .transfer import export, merge

NOT_LASTING = (
    "The features of this network are kept in memory, not in the folder, because a "
    "later process could not recognise the network: {obstacle}. To keep them in the "
    "folder, name the network with from_module(net, ..., version='1'), and "
    "change the version whenever you change its code."
)
NO_STORE = "There is no feature store in {!r}: it has no file {!r}. Check the path."
OTHER_VERSION = (
    "The store {!r} was written by another version of skdeepfeat, whose rows this one "
    "does not read. Use that version, or compute the features again."
)
MEMORY_BYTES = 2**30
DISK_BYTES = 20 * 2**30

_tables: dict[str | Path, Table] = {}
_tables_lock = Lock()


@during_fork
@contextlib.contextmanager
def _pause() -> Iterator[None]:
    """A context in which no table is being changed."""
    with contextlib.ExitStack() as stack:
        for table in list(_tables.values()):
            stack.enter_context(table.pause())
        yield


@after_fork
def _leave_to_parent() -> None:
    """Leave claims and open files to the parent."""
    for table in _tables.values():
        table.after_fork()


@dataclass(frozen=True)
class FeatureStore:
    """A store for features, shared by all estimators that use it as `cache`.

    A store is an immutable value: copies, clones and pickles refer to the same stored
    features.

    Parameters
    ----------
    path : str, path or None, default=None
        Folder, which is created on first use. It persists, and all processes on this
        machine can share it; on a network disk with locks, also other machines. None
        stores the features in memory until the process ends.
    name : str, default="memory"
        Name of the store in memory; only used if `path` is None. ``cache="memory"``
        refers to the store with the default name.
    max_bytes : int or None, default=None
        Maximum size in bytes, at least 0. A full store removes the least recently used
        rows if it is in memory, and rows of the least recently used layers if it is in
        a folder. None means 1 GiB in memory and 20 GiB in a folder, unless this
        process has used the store with another size: the last one given holds. A folder
        takes about 90,000 bytes without any row, and its file does not shrink when rows
        are removed: their space is reused. `clear` shrinks the file.

    Raises
    ------
    ValueError
        If `path` is empty, a URL, or in the home folder of an unknown user; or if
        `name` or `max_bytes` are not as above.

    See Also
    --------
    clear_caches : Remove all networks and features from memory.

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
            path = local_path(self.path, "path of a FeatureStore")
            object.__setattr__(self, "path", os.path.abspath(path))
        bound = self.max_bytes
        is_bound = bound is None or (is_whole(bound) and bound >= 0)
        if not isinstance(self.name, str) or not is_bound:
            raise ValueError(
                "The 'name' of a FeatureStore must be a str, and its 'max_bytes' must "
                f"be None or an int of at least 0. Got name={self.name!r} and "
                f"max_bytes={self.max_bytes!r} instead."
            )

    def __deepcopy__(self, memo):
        return self

    def open(self) -> Table:
        """Open the table of this store, which is created if it does not exist.

        Returns
        -------
        table : MemoryTable or DiskTable
            The table; the same object in the whole process.
        """
        place = self.name if self.path is None else Path(self.path)
        folder = self.path
        if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueError(
                f"The 'cache' parameter must name a folder. Got the file "
                f"{str(self.path)!r} instead; choose another name."
            )
        with _tables_lock:
            if place not in _tables:
                _tables[place] = _make_table(place)
            table = _tables[place]
            if self.max_bytes is not None:
                table.max_bytes = int(self.max_bytes)
            return table

    def info(self) -> dict[str, Any]:
        """Report what is stored.

        Returns
        -------
        info : dict
            "rows", the number of stored rows, one for each image and layer; "bytes",
            their size; "hits" and "misses", the number of distinct images in all calls
            that were found and that were computed, in a folder by any process; and
            "layers", the number of rows for each network, layer and pooling.
        """
        return self.open().info()

    def merge(self, other) -> int:
        """Copy what another store contains; nothing is computed.

        Rows are identified by the content of the images, so images that are in both
        stores are stored once. Damaged rows are left out, with a warning, and so are
        rows that are written to `other` meanwhile.

        Parameters
        ----------
        other : FeatureStore, str or path
            The store to copy from, or its folder; it is not changed.

        Returns
        -------
        n_rows : int
            Number of rows read from `other`, one for each image and layer. They include
            rows that this store has already, and those for which it has no space: a
            warning then gives the number of rows that it keeps.

        Raises
        ------
        ValueError
            If there is no store in the folder, if it is damaged, or if both are the
            same store.
        OSError
            If this store cannot be written. What was copied before stays.

        Examples
        --------
        >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures
        >>> photos = load_textures().data[:4]
        >>> first, second = FeatureStore(name="first"), FeatureStore(name="second")
        >>> for store, some in (first, photos[:2]), (second, photos[2:]):
        ...     _ = PretrainedCNNFeatures(layer="stem", cache=store).warm(some)
        >>> first.merge(second)
        2
        >>> first.info()["layers"]
        {'mini stem avg': 4}
        """
        other = other if isinstance(other, FeatureStore) else _store_in(other)
        other._check_exists()
        mine, its = self.open(), other.open()
        if mine is its or _is_same_folder(self, other):
            raise ValueError(f"{other!r} is this store itself; merge another one.")
        return merge(mine, its)

    def export(self, path, layer=None) -> int:
        """Write the stored features of one layer to a file, with the paths of images.

        Parameters
        ----------
        path : str or path
            The file to write, which is replaced if it exists. ``"features.parquet"``
            gets the columns "path", "key" and "features" (needs pyarrow).
            ``"features.npy"`` gets the features, and ``"features.csv"`` beside it the
            columns "path" and "key" of the same rows; this file, too, is replaced if an
            export wrote it. Bytes of a path that are not UTF-8 become ``\\x`` and two
            digits, with a warning.
        layer : str or None, default=None
            Name of the layer in the "layers" of `info`, such as "mini penultimate avg".
            None means the only one that is stored.

        Returns
        -------
        n_rows : int
            Number of rows written: one for each known path of each image. Images that
            were not files have no path.

        Raises
        ------
        ValueError
            If no such layer is stored, several kinds of features have this name, the
            store is damaged, or no export wrote the .csv file beside.
        RuntimeError
            If rows are removed meanwhile, on a network disk. Elsewhere, the file has
            the rows that were stored when the export began.

        Examples
        --------
        >>> import tempfile
        >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures
        >>> store = FeatureStore(f"{tempfile.mkdtemp()}/store")
        >>> features = PretrainedCNNFeatures(cache=store).warm(load_textures().data[:4])
        >>> store.export(f"{store.path}.npy", "mini penultimate avg")
        4
        """
        self._check_exists()
        return export(self.open(), local_path(path, "path of an export"), layer)

    def _check_exists(self) -> None:
        """Refuse a folder in which there is no store."""
        if self.path is None or (Path(self.path) / FILE).is_file():
            return
        others = of_other_versions(Path(self.path))
        missing = NO_STORE.format(str(self.path), FILE)
        raise ValueError(OTHER_VERSION.format(others[0]) if others else missing)

    def _repr_html_(self) -> str:
        return facts_as_html(repr(self), self.info())

    def clear(self) -> None:
        """Remove all stored features.

        Raises
        ------
        OSError
            If the folder cannot be written, so that features are left in it.
        """
        self.open().clear()


def _make_table(place: str | Path) -> Table:
    """A table in memory or in a folder, with the limit that it has by default."""
    if isinstance(place, str):
        return MemoryTable(MEMORY_BYTES, place)
    return DiskTable(place, DISK_BYTES)


def _store_in(folder) -> FeatureStore:
    """The store of a folder that exists."""
    check_path(folder, "other", "a FeatureStore, ")
    return FeatureStore(folder)


def _is_same_folder(one: FeatureStore, other: FeatureStore) -> bool:
    """Whether two stores are in the same folder, under whatever name."""
    if one.path is None or other.path is None or not os.path.exists(one.path):
        return False
    return os.path.samefile(one.path, other.path)


def open_table(cache, obstacle: str = "") -> Table:
    """The table for a `cache` parameter; for None, a table that keeps nothing.

    If `obstacle` says why features must not be stored in a folder, memory is used.
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
    """Remove all features that this process keeps in memory; folders are kept."""
    with _tables_lock:
        for table in _tables.values():
            table.forget()
