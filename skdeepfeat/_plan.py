"""What one call computes: the parameters of an estimator made concrete.

Everything that changes a feature is in the fingerprint of its column, so that the
store never serves a row that was made differently.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ._engines.base import PooledLayers
from ._store.base import ROW_OVERHEAD, Column


@dataclass(frozen=True)
class Plan:
    """The parameters of an estimator made concrete for one call.

    Parameters
    ----------
    pooled : PooledLayers
        What the engine computes: the layers of both.
    value_range : tuple of float or None
    devices : tuple of str
    device_class : str
        "cpu" or "cuda".
    engine : str
        What runs the network.
    columns : tuple of Column
        What is asked for, in the order of the output.
    prefetched : tuple of Column
        What is stored besides; none of `columns`.
    others : tuple of Column
        What is stored too once that saves a pass; none of these.
    scope : bytes
        What is computed in one pass: the fingerprints of all columns, less the layer.
    """

    pooled: PooledLayers
    value_range: tuple[float, float] | None
    devices: tuple[str, ...]
    device_class: str
    engine: str
    columns: tuple[Column, ...]
    prefetched: tuple[Column, ...]
    others: tuple[Column, ...]
    scope: bytes

    @property
    def obstacle(self) -> str:
        """Why its features may not be kept in a folder, or ""."""
        return self.pooled.source.identity.obstacle

    @property
    def row_bytes(self) -> int:
        """About what a store needs for all that is kept of an image."""
        return sum(4 * column.width + ROW_OVERHEAD for column in self.stored)

    @property
    def aliased(self) -> tuple[Column, ...]:
        """All columns, any of which shows that an image was computed before."""
        return (*self.columns, *self.prefetched, *self.others)

    def widened(self) -> "Plan":
        """The same with the other columns stored in the same pass."""
        layers = [(column.layer, column.pooling) for column in self.others]
        layers += self.pooled.layers
        pooled = PooledLayers.of(self.pooled.source, self.pooled.weights_key, layers)
        kept = (*self.prefetched, *self.others)
        return replace(self, pooled=pooled, prefetched=kept, others=())

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(column.width for column in self.columns)

    @cached_property
    def stored(self) -> list[Column]:
        """The distinct columns: what is asked for first, then what is prefetched."""
        both = (*self.columns, *self.prefetched)
        return list({column.fingerprint: column for column in both}.values())

    def place(self, column: Column) -> int:
        """Where the features of a column stand in what the engine computes."""
        return self.pooled.layers.index((column.layer, column.pooling))

    @cached_property
    def slices(self) -> list[slice]:
        """Where each column stands in the output."""
        ends = np.cumsum([column.width for column in self.columns]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
