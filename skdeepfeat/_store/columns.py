"""The columns of one call: what is requested, and what is stored with it."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._backbones.records import Layer
from .base import ROW_OVERHEAD


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
        Digest of everything that determines its features.
    """

    layer: Layer
    pooling: str
    width: int
    label: str
    fingerprint: bytes

    @property
    def pooled(self) -> tuple[Layer, str]:
        """What an engine computes for it."""
        return self.layer, self.pooling


@dataclass(frozen=True)
class Columns:
    """The columns of one call.

    Parameters
    ----------
    requested : tuple of Column
        In the order of the output.
    prefetched : tuple of Column
        Stored in the same pass; none of `requested`.
    others : tuple of Column
        Also stored once that saves a pass; none of these.
    scope : bytes
        What is computed in one pass: the fingerprints of all columns, less the layer.
    """

    requested: tuple[Column, ...]
    prefetched: tuple[Column, ...]
    others: tuple[Column, ...]
    scope: bytes

    @property
    def width(self) -> int:
        """Number of features in the output."""
        return sum(column.width for column in self.requested)

    @cached_property
    def slices(self) -> list[slice]:
        """Where each requested column stands in the output."""
        ends = np.cumsum([column.width for column in self.requested]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @cached_property
    def stored(self) -> list[Column]:
        """The distinct columns that are computed: first what is requested."""
        both = (*self.requested, *self.prefetched)
        return list({column.fingerprint: column for column in both}.values())

    @property
    def row_bytes(self) -> int:
        """About what a store needs for all that it keeps of an image."""
        return sum(4 * column.width + ROW_OVERHEAD for column in self.stored)

    @property
    def signs(self) -> list[bytes]:
        """Fingerprints any of which shows that an image was computed before."""
        columns = (*self.requested, *self.prefetched, *self.others)
        return [column.fingerprint for column in columns]

    def widened(self) -> "Columns":
        """The same with the other columns stored in the same pass."""
        kept = (*self.prefetched, *self.others)
        return replace(self, prefetched=kept, others=())
