"""Finds the maps behind a layer, before they are averaged over the image."""

from .._backbones.records import Backbone, Layer
from .averages import averaged_step
from .discovery import find_shape
from .layers import resolve_layer
from .structure import structure_of


def map_behind(backbone: Backbone, layer: Layer, image_size: int) -> Layer | None:
    """The layer of maps whose plain average a vector is, if there is one.

    It need not have an alias.
    """
    structure = structure_of(backbone, image_size)
    if not structure.traceable:
        return None
    step = averaged_step(structure.step(layer.node), structure.skeleton)
    if step is None:
        return None
    found = resolve_layer(backbone, structure.name_of(step), image_size)
    return found if found.features == layer.features else None


def shape_at(backbone: Backbone, layer: Layer, image_size: int) -> tuple[int, ...]:
    """The shape of a layer for an input of this size."""
    if image_size == backbone.input.image_size:
        return layer.shape
    return find_shape(backbone, layer.node, image_size)
