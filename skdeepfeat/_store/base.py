"""The protocol of a table of rows, and what goes into it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._backbones.records import Layer
from .._exceptions import ImageError


@dataclass(frozen=True)
class Column:
    """One layer, pooled: the unit that the store keeps.

    Parameters
    ----------
    layer : Layer
        What an engine reads: for a vector that is the average of a map, the map.
    pooling : str
        How that is pooled; "none" for a vector.
    width : int
        Number of features.
    label : str
        What a person calls it.
    fingerprint : bytes
        Digest of everything that makes its features what they are.
    """

    layer: Layer
    pooling: str
    width: int
    label: str
    fingerprint: bytes


ROW_OVERHEAD = 300  # bytes, besides its features, that holding one row takes


class Found(NamedTuple):
    """What a table has of the rows that it is asked for.

    Parameters
    ----------
    missing : list of int
        Positions of the rows that are not there.
    out_of_range : bool
        Whether a row was made from pixel values outside their stated range.
    """

    missing: list[int]
    out_of_range: bool


@dataclass(frozen=True)
class ColumnRows:
    """Rows of one column, to be kept.

    Parameters
    ----------
    column : Column
        Has a `fingerprint` and a `label`.
    keys : sequence of bytes
    rows : ndarray of shape (len(keys), width)
    in_range : sequence of bool
        Whether the pixel values of each image were within their stated range.
    asked : bool
        Whether anybody asked for it; what is only prefetched leaves first.
    """

    column: Any
    keys: Sequence[bytes]
    rows: np.ndarray
    in_range: Sequence[bool]
    asked: bool


class Table(Protocol):
    """Content key → feature row, by the fingerprint of a column.

    Attributes
    ----------
    max_bytes : int
        Bound of what is kept.
    """

    max_bytes: int

    def read(self, fingerprint: bytes, keys: Sequence[bytes], out, places) -> Found:
        """Copy the rows of `keys` to ``out[places]``, unless `out` is None."""

    def has_any(self, fingerprints: Sequence[bytes], keys: Sequence[bytes]) -> bool:
        """Whether a row of any of these columns and keys is here."""

    def write(
        self,
        call: bytes,
        scope: bytes,
        keys: Sequence[bytes],
        parts: Sequence[ColumnRows],
    ) -> bool:
        """Keep computed rows, count them as misses, and give back their claims.

        Returns
        -------
        is_full : bool
            Whether rows had to leave, or could not be kept, for the first time.
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
            Who asks.
        scope : bytes
            What is computed in one pass through the network.
        keys : sequence of bytes
        fingerprints : sequence of bytes
            Of the columns without which a row counts as lacking.

        Returns
        -------
        granted : list of int
            Positions in `keys` of rows that lack a column and that nobody computes.
        """

    def release(self, call: bytes) -> None:
        """Give back all claims of a call."""

    def wait(
        self, scope: bytes, keys: Sequence[bytes], rows: Sequence[int] = ()
    ) -> None:
        """Return as soon as nobody computes these rows any more.

        Parameters
        ----------
        scope : bytes
        keys : sequence of bytes
        rows : sequence of int
            What a person calls them: their places in X.
        """

    def use_gpus(self, gpus: Callable[[], Sequence[str]]) -> AbstractContextManager:
        """A context in which no other process uses the GPUs of these names."""

    def count_hits(self, n: int, fingerprints: Sequence[bytes]) -> None:
        """Note that so many rows of these columns were served."""

    def read_files(self, names: Sequence[str]) -> list[tuple[str, str, bytes]]:
        """(name, state, digest) of files hashed before, new to this process."""

    def write_files(self, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Keep (name, state, digest) of files, where they are not here."""

    def larger(self, n_bytes: int) -> str:
        """What to type for a table with this bound."""

    def info(self) -> dict[str, Any]:
        """What is here, see :meth:`skdeepfeat.FeatureStore.info`."""

    def clear(self) -> None:
        """Forget all rows."""

    def forget(self) -> None:
        """Let go of what this process holds; a folder stays."""

    def pause(self) -> AbstractContextManager:
        """A context to fork in: nobody is in the middle of a change."""

    def after_fork(self) -> None:
        """In a child process: leave to the parent what is the parent's."""


@dataclass(frozen=True)
class Computed:
    """Features of one batch.

    Parameters
    ----------
    rows : list of int
        Positions in X.
    features : list of ndarray of shape (len(rows), width), float32
        One for each layer of the plan.
    errors : list of ImageError
        Of the rows of this batch that could not be read.
    in_range : list of bool
        Of each row, whether all pixel values were within their stated range.
    sources : list of str
        What a person calls each row.
    """

    rows: list[int]
    features: list[np.ndarray]
    errors: list[ImageError]
    in_range: list[bool]
    sources: list[str]
