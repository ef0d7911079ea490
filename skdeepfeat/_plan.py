"""The plan of one call: which features to compute, on which devices, with which engine.

The fingerprint of a column covers everything that affects its features, so the store
never returns a row that was computed differently.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ._backbones.records import Layer
from ._backbones.weights import WeightsSource
from ._digests import changed_fields, digest_fields
from ._engines.base import PooledLayers
from ._engines.devices import resolve_batch_size, resolve_class, resolve_engine
from ._store.columns import Column, Columns
from ._store.rows import Reading
from ._validation import is_whole

SCHEMA = 6  # increment when features change, so that stored ones are not used

Pooled = tuple[Layer, str]  # a layer, and how it is pooled


class Network(Protocol):
    """What a plan needs to know about a network of any kind of input.

    Attributes
    ----------
    source : WeightsSource
        The network's record, its weights, and its input.
    """

    @property
    def source(self) -> WeightsSource:
        """The record of the network, its weights, and its input."""

    def aliased(self) -> tuple[Layer, ...]:
        """The layers that have an alias, in order of depth."""

    def find(self, name) -> Layer:
        """The layer with this alias, index or node."""

    def width(self, layer: Layer, pooling: str) -> int:
        """Number of features of a layer after pooling."""


@dataclass(frozen=True)
class Plan:
    """What one call computes: the parameters of an estimator, fully resolved.

    Parameters
    ----------
    pooled : PooledLayers
        The layers and poolings that the engine computes, before any are added.
    reading : Reading
        How rows of X become the input of the network.
    device_class : str
        "cpu" or "cuda".
    engine : str
        The library that runs the network, "torch" or "openvino".
    columns : Columns
        The requested columns, and those stored with them.
    device, precision, batch_size
        As the estimator has them. A GPU that `device` names need not exist here.
    """

    pooled: PooledLayers
    reading: Reading
    device_class: str
    engine: str
    columns: Columns
    device: Any
    precision: str
    batch_size: int | str

    @property
    def obstacle(self) -> str:
        """Why the features must not be stored in a folder, or "" if they may be."""
        return self.pooled.source.identity.obstacle

    @property
    def batch_rows(self) -> int:
        """How many rows are computed at once."""
        spec = self.pooled.source.input
        return resolve_batch_size(self.batch_size, self.engine, self.device_class, spec)

    def pooled_for(self, columns: Columns) -> PooledLayers:
        """The layers and poolings that the engine computes for these columns."""
        layers = [column.pooled for column in columns.stored]
        return PooledLayers.of(self.pooled.source, self.pooled.weights_key, layers)


def make_plan(estimator, network: Network, reading: Reading, layer) -> Plan:
    """Plan a call of an estimator that reads these layers of a network."""
    source = network.source
    layers = requested_layers(estimator, network, layer)
    pooled_of = _pooler(estimator, network)
    requested = list(map(pooled_of, layers))
    prefetched, others = _prefetched(estimator, network, layers, pooled_of)
    kind = resolve_class(estimator.device)
    pooled = PooledLayers.of(source, source.key(), (*requested, *prefetched))
    engine = resolve_engine(estimator.engine, kind, estimator.precision, pooled)
    computation = _computation(estimator, pooled, reading, kind, engine)
    about = {"scope": computation, "pooling": estimator.pooling}
    columns = Columns(
        digest_fields("pass", 1, about),
        *_columns(network, computation, requested, prefetched, others),
    )
    settings = estimator.device, estimator.precision, estimator.batch_size
    return Plan(pooled, reading, kind, engine, columns, *settings)


def computation_here(plan: Plan) -> bytes:
    """Digest of what this process computes by a plan that another one may have made."""
    weights_key = plan.pooled.source.key()
    pooled = replace(plan.pooled, weights_key=weights_key)
    return _computation(plan, pooled, plan.reading, plan.device_class, plan.engine)


def _computation(settings, pooled: PooledLayers, reading, kind, engine) -> bytes:
    """Digest of everything that determines features, apart from row and layer."""
    made_with = {
        "network": pooled.source.identity.digest,
        "weights": pooled.weights_key,
        "input": changed_fields(pooled.source.input),
        **reading.about,
        "precision": settings.precision,
        "device": kind,
        "engine": engine,
    }
    return digest_fields("computation", SCHEMA, made_with)


def chooses_layer(estimator) -> bool:
    """Whether `fit` chooses the layer."""
    return isinstance(estimator.layer, str) and estimator.layer == "auto"


def layers_to_choose_from(estimator, network: Network) -> tuple[str, ...]:
    """Aliases of the distinct layers before the head, in order of depth.

    Of aliases of the same features, the last one is used.
    """
    pooled_of = _pooler(estimator, network)
    distinct: dict[Pooled, Layer] = {}
    for layer in reversed(network.aliased()):
        distinct.setdefault(pooled_of(layer), layer)
    names = [str(layer.alias) for layer in reversed(distinct.values())]
    return tuple(name for name in names if name != "logits")


def requested_layers(estimator, network: Network, layer) -> list[Layer]:
    """The layers named by a value of the `layer` parameter, in its order."""
    names = layer if isinstance(layer, (tuple, list)) else (layer,)
    if not names or not _name_layers(names):
        raise ValueError(
            f"The 'layer' parameter of {type(estimator).__name__} must name at least "
            f"one layer, by strings or integers. Got {layer!r} instead."
        )
    return [network.find(name) for name in names]


def _name_layers(names) -> bool:
    """Whether these are all aliases, names of nodes, or indices."""
    return all(isinstance(name, str) or is_whole(name) for name in names)


def _named_to_store(estimator, network: Network) -> list[Layer]:
    """The layers that the `prefetch_layers` parameter names."""
    chosen = estimator.prefetch_layers
    if isinstance(chosen, str):
        return []
    if not _name_layers(chosen):
        raise ValueError(
            f"The 'prefetch_layers' parameter of {type(estimator).__name__} must be "
            "'auto', 'all', or a list of layers, by strings or integers. Got "
            f"{chosen!r} instead."
        )
    return [network.find(name) for name in chosen]


def _pooler(estimator, network: Network) -> Callable[[Layer], Pooled]:
    """Layer → what to compute for it; equal for all names of the same features."""
    first = {known.node: known for known in network.aliased()[::-1]}

    def pooled_of(layer: Layer) -> Pooled:
        if layer.average_of in first:
            return first[layer.average_of], "avg"
        pooling = "none" if layer.layout == "vector" else estimator.pooling
        return first.get(layer.node, layer), pooling

    return pooled_of


def _prefetched(
    estimator,
    network: Network,
    layers: list[Layer],
    pooled_of: Callable[[Layer], Pooled],
) -> tuple[list[Pooled], list[Pooled]]:
    """What to store with these layers, and what to add if that saves another pass."""
    chosen, requested = estimator.prefetch_layers, list(map(pooled_of, layers))
    named = _named_to_store(estimator, network)
    if estimator.pooling == "flatten" or estimator.cache is None:
        return [], []

    def beyond(known: list[Pooled], layers: Iterable[Layer]) -> list[Pooled]:
        """What is computed for these layers, without what is known."""
        return [x for x in dict.fromkeys(map(pooled_of, layers)) if x not in known]

    if not isinstance(chosen, str):
        return beyond(requested, named), []
    skipped = "logits" if network.source.may_lack_head else None
    aliased = [x for x in network.aliased() if x.alias != skipped]
    if chosen == "all":
        return beyond(requested, aliased), []
    if chooses_layer(estimator):  # which a later fit may also do for these images
        others = layers_to_choose_from(estimator, network)
        return beyond(requested, [network.find(name) for name in others]), []
    deepest = max((layer.index for layer in layers if layer.index), default=0)
    shallow = [x for x in aliased if x.index is not None and x.index < deepest]
    below = beyond(requested, shallow)
    return below, beyond([*requested, *below], aliased)


def _columns(
    network: Network, computation: bytes, *groups: list[Pooled]
) -> list[tuple[Column, ...]]:
    """The columns of each group of pooled layers."""
    return [
        tuple(_column(network, computation, *pair) for pair in group)
        for group in groups
    ]


def _column(network: Network, computation: bytes, layer: Layer, pooling: str) -> Column:
    """The column of one layer, identified by all that determines its features."""
    width = network.width(layer, pooling)
    label = f"{network.source.backbone.name} {layer.alias or layer.node} {pooling}"
    fingerprint = _fingerprint(computation, layer.node, layer.layout, pooling)
    return Column(layer, pooling, width, label, fingerprint)


@functools.lru_cache(maxsize=1024)  # each call needs all layers of a network
def _fingerprint(computation: bytes, node: str, layout: str, pooling: str) -> bytes:
    """Digest of everything that determines the features of a layer."""
    where = {"node": node, "layout": layout, "pooling": pooling}
    return digest_fields("column", 1, {"scope": computation, **where})
