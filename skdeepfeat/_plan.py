"""The plan of one call: which features to compute, on which devices, with which engine.

The fingerprint of a column covers everything that affects its features, so the store
never returns a row that was computed differently.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from ._backbones.records import Layer
from ._backbones.weights import WeightsSource
from ._digests import changed_fields, digest_fields
from ._engines.base import PooledLayers
from ._engines.devices import resolve_batch_size, resolve_class, resolve_engine
from ._images.formats import switches
from ._networks.layers import aliased_layers, resolve_layer, width_of
from ._store.columns import Column, Columns
from ._validation import check_value_range

SCHEMA = 6  # increment when features change, so that stored ones are not used

Pooled = tuple[Layer, str]  # a layer, and how it is pooled


@dataclass(frozen=True)
class Plan:
    """What one call computes: the parameters of an estimator, fully resolved.

    Parameters
    ----------
    pooled : PooledLayers
        The layers and poolings that the engine computes, before any are added.
    value_range : tuple of float or None
        Values of black and white; None depends on the dtype.
    device_class : str
        "cpu" or "cuda".
    engine : str
        The library that runs the network, "torch" or "openvino".
    columns : Columns
        The requested columns, and those stored with them.
    device, precision, decode, batch_size, n_jobs
        As the estimator has them. A GPU that `device` names need not exist here.
    """

    pooled: PooledLayers
    value_range: tuple[float, float] | None
    device_class: str
    engine: str
    columns: Columns
    device: Any
    precision: str
    decode: str
    batch_size: int | str
    n_jobs: int | None

    @property
    def obstacle(self) -> str:
        """Why the features must not be stored in a folder, or "" if they may be."""
        return self.pooled.source.identity.obstacle

    @property
    def rescaled(self) -> bool:
        """Whether arrays have a range of values other than that of 8-bit images."""
        return self.value_range not in (None, (0, 255))

    @property
    def batch_rows(self) -> int:
        """How many rows are computed at once."""
        size = self.pooled.source.input.image_size
        return resolve_batch_size(self.batch_size, self.engine, self.device_class, size)

    def pooled_for(self, columns: Columns) -> PooledLayers:
        """The layers and poolings that the engine computes for these columns."""
        layers = [column.pooled for column in columns.stored]
        return PooledLayers.of(self.pooled.source, self.pooled.weights_key, layers)


def make_plan(estimator, source: WeightsSource, layer) -> Plan:
    """Plan a call of an estimator that reads these layers of a network."""
    value_range = check_value_range(estimator.value_range)
    layers = requested_layers(estimator, source, layer)
    pooled_of = _pooler(estimator, source)
    requested = list(map(pooled_of, layers))
    prefetched, others = _prefetched(estimator, source, layers, pooled_of)
    kind = resolve_class(estimator.device)
    pooled = PooledLayers.of(source, source.key(), (*requested, *prefetched))
    engine = resolve_engine(estimator.engine, kind, estimator.precision, pooled)
    computation = _computation(estimator, pooled, value_range, kind, engine)
    about = {"scope": computation, "pooling": estimator.pooling}
    columns = Columns(
        digest_fields("pass", 1, about),
        *_columns(source, computation, requested, prefetched, others),
    )
    names = ("device", "precision", "decode", "batch_size", "n_jobs")
    settings = {name: getattr(estimator, name) for name in names}
    return Plan(pooled, value_range, kind, engine, columns, **settings)


def computation_here(plan: Plan) -> bytes:
    """Digest of what this process computes by a plan that another one may have made."""
    weights_key = plan.pooled.source.key()
    pooled = replace(plan.pooled, weights_key=weights_key)
    return _computation(plan, pooled, plan.value_range, plan.device_class, plan.engine)


def _computation(settings, pooled: PooledLayers, value_range, kind, engine) -> bytes:
    """Digest of everything that determines features, apart from image and layer."""
    made_with = {
        "network": pooled.source.identity.digest,
        "weights": pooled.weights_key,
        "input": changed_fields(pooled.source.input),
        "value_range": value_range,
        "decode": settings.decode,
        "decoders": switches(),
        "precision": settings.precision,
        "device": kind,
        "engine": engine,
    }
    return digest_fields("computation", SCHEMA, made_with)


def chooses_layer(estimator) -> bool:
    """Whether `fit` chooses the layer."""
    return isinstance(estimator.layer, str) and estimator.layer == "auto"


def layers_to_choose_from(estimator, source: WeightsSource) -> tuple[str, ...]:
    """Aliases of the distinct layers before the head, in order of depth.

    Of aliases of the same features, the last one is used.
    """
    pooled_of = _pooler(estimator, source)
    distinct: dict[Pooled, Layer] = {}
    for layer in reversed(aliased_layers(source.backbone)):
        distinct.setdefault(pooled_of(layer), layer)
    names = [str(layer.alias) for layer in reversed(distinct.values())]
    return tuple(name for name in names if name != "logits")


def requested_layers(estimator, source: WeightsSource, layer) -> list[Layer]:
    """The layers named by a value of the `layer` parameter, in its order."""
    names = layer if isinstance(layer, (tuple, list)) else (layer,)
    if not names or not all(isinstance(n, (str, Integral)) for n in names):
        raise ValueError(
            f"The 'layer' parameter of {type(estimator).__name__} must name at least "
            f"one layer, by strings or integers. Got {layer!r} instead."
        )
    return [_find_layer(source, name) for name in names]


def _find_layer(source: WeightsSource, name) -> Layer:
    """The layer with this alias, index or node."""
    return resolve_layer(source.backbone, name, source.input.image_size)


def _pooler(estimator, source: WeightsSource) -> Callable[[Layer], Pooled]:
    """Layer → what to compute for it; equal for all names of the same features."""
    first = {known.node: known for known in aliased_layers(source.backbone)[::-1]}

    def pooled_of(layer: Layer) -> Pooled:
        if layer.average_of in first:
            return first[layer.average_of], "avg"
        pooling = "none" if layer.layout == "vector" else estimator.pooling
        return first.get(layer.node, layer), pooling

    return pooled_of


def _prefetched(
    estimator,
    source: WeightsSource,
    layers: list[Layer],
    pooled_of: Callable[[Layer], Pooled],
) -> tuple[list[Pooled], list[Pooled]]:
    """What to store with these layers, and what to add if that saves another pass."""
    chosen, requested = estimator.prefetch_layers, list(map(pooled_of, layers))
    if estimator.pooling == "flatten" or estimator.cache is None:
        return [], []

    def beyond(known: list[Pooled], layers: Iterable[Layer]) -> list[Pooled]:
        """What is computed for these layers, without what is known."""
        return [x for x in dict.fromkeys(map(pooled_of, layers)) if x not in known]

    if not isinstance(chosen, str):
        return beyond(requested, [_find_layer(source, name) for name in chosen]), []
    skipped = "logits" if source.may_lack_head else None
    aliased = [x for x in aliased_layers(source.backbone) if x.alias != skipped]
    if chosen == "all":
        return beyond(requested, aliased), []
    if chooses_layer(estimator):  # which a later fit may do for the same images
        others = layers_to_choose_from(estimator, source)
        return beyond(requested, [_find_layer(source, name) for name in others]), []
    deepest = max((layer.index for layer in layers if layer.index), default=0)
    shallow = [x for x in aliased if x.index is not None and x.index < deepest]
    below = beyond(requested, shallow)
    return below, beyond([*requested, *below], aliased)


def _columns(
    source: WeightsSource, computation: bytes, *groups: list[Pooled]
) -> list[tuple[Column, ...]]:
    """The columns of each group of pooled layers."""
    return [
        tuple(_column(source, computation, *pair) for pair in group) for group in groups
    ]


def _column(
    source: WeightsSource, computation: bytes, layer: Layer, pooling: str
) -> Column:
    """The column of one layer, identified by all that determines its features."""
    width = width_of(source.backbone, source.input, layer, pooling)
    label = f"{source.backbone.name} {layer.alias or layer.node} {pooling}"
    fingerprint = _fingerprint(computation, layer.node, layer.layout, pooling)
    return Column(layer, pooling, width, label, fingerprint)


@functools.lru_cache(maxsize=1024)  # each call needs all layers of a network
def _fingerprint(computation: bytes, node: str, layout: str, pooling: str) -> bytes:
    """Digest of everything that determines the features of a layer."""
    where = {"node": node, "layout": layout, "pooling": pooling}
    return digest_fields("column", 1, {"scope": computation, **where})
