"""What an engine computes, and the protocol that every engine follows."""

from dataclasses import dataclass

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
        """Each layer once, by depth: the order of asking makes no other network."""
        return cls(source, weights_key, tuple(sorted(set(layers), key=_by_depth)))

    @property
    def digest(self) -> bytes:
        """The same for all that is computed by the same steps."""
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
