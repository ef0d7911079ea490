"""Finds the layers of a network without a record, and describes any node."""

from dataclasses import replace
from typing import Any

from .._backbones.layouts import ENLARGED, layout_of_tokens, stride_of
from .._backbones.records import Backbone, Layer
from .._exceptions import closest
from .averages import with_averages
from .head import end_of
from .stages import fits, other_tokens, stages_of
from .structure import Structure, representative_node, structure_of


def layout_of(shape: tuple, larger: tuple | None, others: int, channels=None) -> str:
    """How the output of a node is laid out, without the batch axis.

    `larger` is its shape for a larger image: it has more places, but as many channels.
    `others` is the number of tokens that belong to no place of the image. The maps of
    square images are square, which decides where `channels` is not known.
    """
    if len(shape) == 1:
        return "vector"
    if len(shape) == 2:
        return layout_of_tokens(shape[0], others)
    first, second, last = shape
    if channels is not None and first != last:
        return "hwc" if last == channels else "chw"
    if larger:
        return "hwc" if last == larger[-1] and first != larger[0] else "chw"
    return "hwc" if first == second != last else "chw"


def find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Aliased layers of a network without a record."""
    return backbone.memo.get("layers", lambda: _find_layers(backbone))


def _find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Its stages, or else its top-level children in the order of use; then the input of
    its classifier and the classes, or what it returns if it has no classifier."""
    structure = structure_of(backbone, backbone.input.image_size)
    found = _find_stages(structure) or _find_children(structure)
    end = end_of(structure)
    named = {
        "penultimate": backbone.penultimate or end.penultimate,
        "logits": end.logits,
    }
    found |= _layers(structure, {alias: node for alias, node in named.items() if node})
    layers = tuple(replace(layer, index=i) for i, layer in enumerate(found.values()))
    if not structure.traceable:
        return layers
    return with_averages(layers, structure.step, structure.skeleton)


def _find_stages(structure: Structure) -> dict[str, Layer]:
    """The stages that a network describes itself, by alias; none if they do not fit."""
    stages = stages_of(structure.skeleton)
    channels = {alias: stage.channels for alias, stage in stages.items()}
    full = {alias: structure.canonical(stage.node) for alias, stage in stages.items()}
    named = {a: structure.where_computed(node) for a, node in full.items() if node}
    found = _layers(structure, named, channels)
    good = {a: layer for a, layer in found.items() if fits(layer, channels[a])}
    return good if len(good) > 1 else {}


def _find_children(structure: Structure) -> dict[str, Layer]:
    """Its top-level children in the order of use, by alias."""
    children = [name for name, _ in structure.skeleton.named_children()]
    used = enumerate(_in_order_of_use(structure, children), 1)
    return _layers(structure, {f"block{i}": name for i, name in used})


def check_node(backbone: Backbone, node: str) -> None:
    """Refuse a name that is neither a node nor a module of a network."""
    structure = structure_of(backbone, backbone.input.image_size)
    if structure.canonical(node) is None:
        raise ValueError(
            f"penultimate={node!r} is neither a node nor a module of backbone "
            f"{backbone.name!r}.{closest(node, structure.nodes)}"
        )


def find_node(backbone: Backbone, node: str, image_size: int) -> Layer:
    """The layer of any node of the traced network, by its full name."""
    found = _layers(structure_of(backbone, image_size), {None: node})
    if not found:
        raise ValueError(
            f"Layer {node!r} of backbone {backbone.name!r} does not give one vector, "
            "map or row of tokens for each image. Choose another node."
        )
    return found[None]


def find_shape(backbone: Backbone, node: str, image_size: int) -> tuple[int, ...]:
    """Shape of one image's output at a node for an input of this size."""
    return structure_of(backbone, image_size).shapes((node,))[node]


def _layers(structure: Structure, named: dict, channels=None) -> dict[Any, Layer]:
    """The layers of nodes or modules by alias, without those that have no layout."""
    full = {alias: structure.canonical(name) or "" for alias, name in named.items()}
    shapes = structure.shapes(tuple(dict.fromkeys(filter(None, full.values()))))
    nodes = {a: n for a, n in full.items() if n in shapes and len(shapes[n]) <= 3}
    maps = tuple(node for node in shapes if len(shapes[node]) == 3)
    larger, others = _larger_shapes(structure, maps), other_tokens(structure.skeleton)
    found = {}
    for alias, node in nodes.items():
        shape, known = shapes[node], (channels or {}).get(alias)
        layout = layout_of(shape, larger.get(node), others, known)
        stride = stride_of(layout, shape, larger.get(node), structure.image_size)
        found[alias] = Layer.from_shape(alias, node, None, layout, shape, stride)
    return found


def _larger_shapes(structure: Structure, nodes: tuple[str, ...]) -> dict[str, tuple]:
    """Shapes of maps for a larger image; none if the network refuses."""
    if not nodes or structure.backbone.size_option:
        return {}
    try:
        return structure.shapes(nodes, structure.image_size + ENLARGED)
    except Exception:  # whatever a network built for one size raises
        return {}


def _in_order_of_use(structure: Structure, names: list[str]) -> list[str]:
    """The modules that are used, in the order of the computation."""
    if not structure.traceable:
        return names
    used = {name: representative_node(name, structure.nodes) for name in names}
    places = {structure.nodes.index(node): name for name, node in used.items() if node}
    return [name for _, name in sorted(places.items())]
