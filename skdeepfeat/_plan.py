"""What one call computes: the parameters of an estimator made concrete.

Everything that changes a feature is in the fingerprint of its column, so that the
store never serves a row that was made differently.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np

from ._backbones import Layer, WeightsSource
from ._digests import changed_fields, digest_fields, digest_file
from ._exceptions import WeightsError
from ._table import ROW_OVERHEAD


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
    def lasting(self) -> bool:
        """Whether its features may be kept in a folder."""
        return self.pooled.source.identity.lasting

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


# What identifies weights --------------------------------------------------------------


def weights_key(source: WeightsSource) -> bytes:
    """Digest of the weights, without loading them where that can be."""
    return digest_fields("weights", 1, _about_weights(source))


def _about_weights(source: WeightsSource) -> dict:
    """What weights are known by, for ever: what they are, or where they come from."""
    if source.path is not None:
        if not source.path.is_file():
            raise WeightsError.missing(source.path)
        return {"file": digest_file(source.path)}
    if source.published is not None:
        checksum = source.published.sha256_prefix or source.published.sha256
        return {"published": source.published.filename, "checksum": checksum}
    if source.seed is None:
        return {"tensors": source.backbone.tensors_digest}
    if source.backbone.is_own:
        return {"values": _seeded_values(source)}
    return {"seed": int(source.seed), "torch": version("torch")}


def _seeded_values(source: WeightsSource) -> bytes:
    """Digest of what a seed gives; builds the network the first time."""
    from ._networks import seeded_values

    return seeded_values(source)


SAVED = 1  # the version of what saved models note


def saved_digest(source: WeightsSource, by_values=False) -> str:
    """What a saved model rests on, hexadecimal: its weights, then their recipe.

    It holds for ever: no code, and nothing that changes with torch, is part of it. If
    `by_values`, that is true of weights from a seed too, which are made for it.
    """
    about = _about_weights(source)
    if source.seed is not None and by_values:
        about = {"values": _seeded_values(source)}
    about["network"] = source.backbone.published_name
    weights = digest_fields("saved weights", SAVED, about)
    recipe = digest_fields("saved recipe", SAVED, changed_fields(source.input))
    return f"{SAVED:02x}{weights.hex()}{recipe.hex()}"


def can_compare(noted: str) -> bool:
    """Whether this version knows how a saved digest was made."""
    return len(noted) == 66 and noted.startswith(f"{SAVED:02x}")


def what_changed(noted: str, found: str, source: WeightsSource) -> str:
    """Which parameters to look at where two saved digests differ."""
    if noted[2:34] == found[2:34]:
        return "image_size, or the preprocessing of the weights,"
    if source.path is not None:
        return f"The weights file {str(source.path)!r}, or backbone,"
    seed = ", random_state or the version of torch" if source.seed is not None else ""
    return f"backbone or weights{seed}"
