"""The columns of one call: the requested ones, and those stored with them."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._backbones.records import Layer
from .base import ROW_OVERHEAD


@dataclass(frozen=True)
class Column:
    """The pooled features of one layer, which the store keeps together.

    Parameters
    ----------
    layer : Layer
        The layer that an engine reads: the map if the requested layer is its average.
    pooling : str
        How the layer is pooled; "none" for a vector.
    width : int
        Number of features.
    label : str
        Name of the column in messages.
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
        """The layer and pooling that an engine computes."""
        return self.layer, self.pooling


@dataclass(frozen=True)
class Columns:
    """The columns of one call.

    Parameters
    ----------
    scope : bytes
        Digest of everything that the columns share, which is all but their layer.
    requested : tuple of Column
        The columns of the output, in its order.
    prefetched : tuple of Column
        Columns that are stored in the same pass, without the requested ones.
    others : tuple of Column
        Further columns that are also stored if that saves a pass.
    """

    scope: bytes
    requested: tuple[Column, ...]
    prefetched: tuple[Column, ...]
    others: tuple[Column, ...]

    @property
    def width(self) -> int:
        """Number of features in the output."""
        return sum(column.width for column in self.requested)

    @cached_property
    def slices(self) -> list[slice]:
        """Position of each requested column in the output."""
        ends = np.cumsum([column.width for column in self.requested]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @cached_property
    def stored(self) -> list[Column]:
        """The distinct columns that are computed; the requested ones come first."""
        both = (*self.requested, *self.prefetched)
        return list({column.fingerprint: column for column in both}.values())

    @property
    def row_bytes(self) -> int:
        """Approximate number of bytes that a store needs for one image."""
        return sum(4 * column.width + ROW_OVERHEAD for column in self.stored)

    @property
    def fingerprints(self) -> list[bytes]:
        """Fingerprints of the requested columns."""
        return [column.fingerprint for column in self.requested]

    @property
    def signs(self) -> list[bytes]:
        """Fingerprints of all columns; a row in any of them was computed before."""
        columns = (*self.requested, *self.prefetched, *self.others)
        return [column.fingerprint for column in columns]

    def widened(self) -> "Columns":
        """The same columns, with the others stored in the same pass."""
        kept = (*self.prefetched, *self.others)
        return replace(self, prefetched=kept, others=())
