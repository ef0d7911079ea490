"""The weights of a network as arrays, cut to what some of its layers need."""

from dataclasses import replace

import numpy as np
from torch import nn

from .._backbones.records import Backbone, Layer
from .._backbones.tensors import named_tensors
from .._backbones.weights import WeightsSource
from .._processes import fork_safe
from .layers import aliased_layers
from .places import shape_at
from .sharing import get_network
from .structure import Structure, bind, structure_of

CUT = (
    "embed_weights cut this copy after {!r}, which its layers needed. Set the layer on "
    "the original, fit it, and call embed_weights again."
)


@fork_safe
def with_arrays(source: WeightsSource, nodes, dtype) -> Backbone:
    """The backbone of a source, with its weights as arrays of this type.

    Kept are those that the nodes need, or without nodes, all but the head.
    """
    backbone, size = source.backbone, source.input.image_size
    module = get_network(source, source.key(), "cpu", "float32").module
    structure = structure_of(backbone, size)
    tensors = named_tensors(module)
    names = _kept(structure, module, nodes) & tensors.keys()
    layers = tuple(_readable(source, structure, module, names, nodes))
    is_cut = layers and names < tensors.keys()
    return replace(
        backbone,
        input=source.input,
        weights=(),
        embedded=backbone.arrays is None or backbone.embedded,
        remedy=CUT.format(layers[-1].alias) if is_cut else backbone.remedy,
        layers=layers,
        arrays={name: _rounded(tensors[name].numpy(), dtype) for name in sorted(names)},
    )


def _kept(structure: Structure, module: nn.Module, nodes) -> set[str]:
    """Names of the tensors to keep."""
    everything = set(named_tensors(module))
    if nodes is None:
        head = f"{structure.backbone.head}."
        return {name for name in everything if not name.startswith(head)}
    return _needed(structure, module, nodes) if structure.traceable else everything


def _needed(structure: Structure, module: nn.Module, nodes) -> set[str]:
    """Names of the tensors that these nodes are computed with."""
    bound = bind(structure, module, nodes)
    return set(named_tensors(bound))


def _readable(source: WeightsSource, structure, module, names, nodes) -> list[Layer]:
    """The aliased layers that are kept, with their shapes at this size."""
    backbone, size = source.backbone, source.input.image_size
    layers = list(aliased_layers(backbone))
    if nodes is None:
        layers = [layer for layer in layers if layer.alias != "logits"]
    elif structure.traceable:
        layers = [x for x in layers if _needed(structure, module, (x.node,)) <= names]
    return [replace(x, shape=shape_at(backbone, x, size)) for x in layers]


def _rounded(values: np.ndarray, dtype) -> np.ndarray:
    """A copy of an array in a type, unless it holds integers or what does not fit."""
    if values.dtype.kind != "f":
        return values.copy()
    rounded = values.astype(dtype)
    return rounded if np.isfinite(rounded).all() else values.copy()
