"""What an engine computes, and the protocol of a network that it runs."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._backbones.records import Layer
from .._backbones.weights import WeightsSource
from .._digests import changed_fields, digest_fields


@dataclass(frozen=True)
class PooledLayers:
    """What an engine computes: layers of a network with weights, pooled.

    Parameters
    ----------
    source : WeightsSource
    weights_key : bytes
        Digest of the weights.
    layers : tuple of (Layer, str)
        What to read, and how it is pooled.
    """

    source: WeightsSource
    weights_key: bytes
    layers: tuple[tuple[Layer, str], ...]

    @classmethod
    def of(cls, source: WeightsSource, weights_key: bytes, layers) -> "PooledLayers":
        """Each layer once, by depth: the order of `layers` makes no difference."""
        return cls(source, weights_key, tuple(sorted(set(layers), key=_by_depth)))

    @property
    def digest(self) -> bytes:
        """The same for everything that is computed by the same steps."""
        about = {
            "network": self.source.identity.digest,
            "weights": self.weights_key,
            "input": changed_fields(self.source.input),
            "layers": [[layer.node, layer.layout, how] for layer, how in self.layers],
        }
        return digest_fields("computed", 1, about)


def _by_depth(pooled: tuple[Layer, str]) -> tuple:
    """Aliased layers by their index, then plain nodes by their name."""
    layer, pooling = pooled
    aliased = layer.index is not None
    return not aliased, layer.index if aliased else layer.node, pooling


class Batch(Protocol):
    """One computed shape's worth of rows.

    Attributes
    ----------
    rows : list of int
        Positions in X of the rows that could be read.
    errors : list of RowError
        Of the rows that could not be read.
    in_range : list of bool
        Of each of `rows`, whether its input was within its stated range.
    sources : list of str
        The name of each of `rows` in messages.
    shares : dict of str to float
        How the time spent on it divides.
    """

    rows: list[int]
    errors: list[Any]
    in_range: list[bool]
    sources: list[str]
    shares: dict[str, float]

    @property
    def input(self) -> Any:
        """What enters the network, with a length; padded to the fixed size."""


class Runner(Protocol):
    """A network of an engine on one device; it computes a batch in three steps.

    For each batch ``load`` and ``start`` are called, and ``finish`` in the same order
    once `ahead` more batches are started. A new engine is a class that follows this
    protocol and an entry in ``running.RUNNERS`` and in ``devices.ENGINES``.

    Parameters
    ----------
    pooled : PooledLayers
        What to compute.
    device : str
        Where, as ``devices.resolve_device`` returns it.
    precision : str
        One that the engine knows on this class of devices.
    batch_size : int
        The largest number of images in a batch. Batches are padded to it; after an
        error of `out_of_memory` they are smaller.

    Attributes
    ----------
    ahead : int
        How many batches are started before the first is finished. 0 if ``start``
        computes, at least 1 if the device continues by itself.
    out_of_memory : type or tuple of type
        Exceptions of ``load`` and ``start`` after which a smaller batch may fit.
    """

    ahead: int
    out_of_memory: type[BaseException] | tuple[type[BaseException], ...]

    def __init__(self, pooled: PooledLayers, device: str, precision, batch_size: int):
        """Prepare the network; it may be shared with other runners."""

    def load(self, pixels: np.ndarray) -> Any:
        """Bring (n, h, w, 3) pixels to the device: uint8, or floats from 0 to 255."""

    def start(self, loaded: Any) -> Any:
        """Begin to compute what ``load`` returned; need not wait for the end."""

    def finish(self, started: Any) -> list[np.ndarray]:
        """Wait for what ``start`` returned: (n, width) float32 rows of each layer."""
