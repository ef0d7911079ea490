"""Explains the error of a network that does not take images of the given size."""

import contextlib

from .._backbones.records import Backbone
from .._backbones.weights import WeightsSource
from .structure import Structure, structure_of


@contextlib.contextmanager
def explain_size(source: WeightsSource, nodes: tuple[str, ...]):
    """A context in which an error due to the image size names that parameter.

    The size is the cause if the shapes of these nodes can be found for the default size
    of the network but not for this one. Any other error passes through.
    """
    try:
        yield
    except Exception as error:
        size, backbone = source.input.image_size, source.backbone
        if not _refuses(backbone, size, nodes):
            raise
        raise ValueError(
            f"Backbone {backbone.name!r} does not take images of image_size={size}: "
            f"{error}. Choose another size, for instance a larger one."
        ) from error


def _refuses(backbone: Backbone, image_size: int, nodes: tuple[str, ...]) -> bool:
    """Whether the network can be computed at its default size but not at this one."""
    own = backbone.input.image_size
    if image_size == own or _can_compute(structure_of(backbone, image_size), nodes):
        return False
    return _can_compute(structure_of(backbone, own), nodes)


def _can_compute(structure: Structure, nodes: tuple[str, ...]) -> bool:
    """Whether the shapes of these nodes can be found."""
    try:
        return structure.shapes(nodes).keys() >= set(nodes)
    except Exception:  # whatever the network raises
        return False
