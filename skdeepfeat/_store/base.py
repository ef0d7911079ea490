"""The protocol of a table of feature rows, and what is read from it and written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._backbones.records import Layer
from .._exceptions import RowError

ROW_OVERHEAD = 300  # bytes that one row takes in addition to its features


class Found(NamedTuple):
    """Which of the requested rows a table has.

    Parameters
    ----------
    missing : list of int
        Positions of the rows that are not stored.
    out_of_range : list of int
        Positions of stored rows whose input was outside its stated range.
    """

    missing: list[int]
    out_of_range: list[int]


class Label(NamedTuple):
    """What a table knows of a column.

    Parameters
    ----------
    fingerprint : bytes
    label : str
    """

    fingerprint: bytes
    label: str


@dataclass(frozen=True)
class ColumnRows:
    """Rows of one column, to be stored.

    Parameters
    ----------
    column : Column
        Has a `fingerprint` and a `label`.
    keys : sequence of bytes
    rows : ndarray of shape (len(keys), width)
    in_range : sequence of bool
        Whether the input of each row was within its stated range, such as the values
        of pixels.
    requested : bool
        Whether the column was requested; prefetched rows are dropped first.
    """

    column: Any
    keys: Sequence[bytes]
    rows: np.ndarray
    in_range: Sequence[bool]
    requested: bool


@dataclass(frozen=True)
class Computed:
    """Features of one batch.

    Parameters
    ----------
    rows : list of int
        Positions in X.
    features : dict of (Layer, str) to ndarray of shape (len(rows), width), float32
        By layer and pooling.
    errors : list of RowError
        Of the rows of this batch that could not be read.
    in_range : list of bool
        Of each row, whether its input was within its stated range.
    sources : list of str
        The name of each row in messages.
    files : list of tuple (str, str, bytes)
        Name, state and digest of files that have been hashed elsewhere.
    """

    rows: list[int]
    features: dict[tuple[Layer, str], np.ndarray]
    errors: list[RowError]
    in_range: list[bool]
    sources: list[str]
    files: list[tuple[str, str, bytes]] = field(default_factory=list)


class Snapshot(Protocol):
    """What a table holds at one moment; calls may write to the table meanwhile.

    Attributes
    ----------
    layers : dict of str to int
        Label → number of rows.
    n_damaged : int
        How many damaged rows the last dump has left out.
    """

    layers: dict[str, int]
    n_damaged: int

    @property
    def n_bytes(self) -> int:
        """Bytes that the rows take."""

    def dump(self, label: str | None = None) -> Iterator[ColumnRows]:
        """All sound rows, some of one column at a time; those with a label if given."""

    def files(self) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of all files hashed before."""


class Table(Protocol):
    """Content key → feature row, by the fingerprint of a column.

    Attributes
    ----------
    max_bytes : int
        Bound of what is stored, which may change.
    """

    max_bytes: int

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy the rows of `keys` to ``out[places]``, unless `out` is None."""

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is stored."""

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        columns: Sequence[ColumnRows],
    ) -> bool:
        """Store computed rows, count them as misses, and release their claims.

        Returns
        -------
        is_full : bool
            Whether rows were dropped, or could not be stored, for the first time with
            this bound.
        """

    def add(self, columns: Sequence[ColumnRows]) -> bool:
        """Store rows of another table; raises OSError if they cannot be written.

        Returns
        -------
        is_full : bool
            Whether rows were dropped, or there was no space for them.
        """

    def claim(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
    ) -> list[int]:
        """Reserve rows for computing.

        Parameters
        ----------
        call : bytes
            The call that computes them, from :func:`.waiting.new_call`.
        scope : bytes
            What is computed in one pass through the network.
        keys : sequence of bytes
        fingerprints : sequence of bytes
            Of the columns that a row must have to count as stored.

        Returns
        -------
        granted : list of int
            Positions in `keys` of rows that lack a column and that no call computes.
        """

    def release(self, call: bytes) -> None:
        """Release all claims of a call."""

    def wait(
        self, scope: bytes, keys: Sequence[bytes], rows: Sequence[int] = ()
    ) -> None:
        """Return once no other call computes these rows.

        Parameters
        ----------
        scope : bytes
        keys : sequence of bytes
        rows : sequence of int
            Their positions in X, for messages.
        """

    def use_gpus(self, gpus: Callable[[], Sequence[str]]) -> AbstractContextManager:
        """A context in which no other process uses the GPUs of these names."""

    def count_hits(self, n: int, fingerprints: Sequence[bytes]) -> None:
        """Record that n rows of these columns were found."""

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of files hashed before, new to this process."""

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Store (name, state, digest) of files, unless they are stored already."""

    def snapshot(self) -> AbstractContextManager["Snapshot"]:
        """A context with what is stored now, which is read without any change to it.

        Raises ValueError, also while it is read, if it cannot be read.
        """

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""

    def info(self) -> dict[str, Any]:
        """What is stored; see :meth:`skdeepfeat.FeatureStore.info`."""

    def clear(self) -> None:
        """Remove all rows; raises OSError if they cannot be removed."""

    def forget(self) -> None:
        """Drop what this process holds in memory; a folder stays."""

    def pause(self) -> AbstractContextManager:
        """A context to fork in: no thread is in the middle of a change."""

    def after_fork(self) -> None:
        """In a child process: leave to the parent what belongs to it."""
