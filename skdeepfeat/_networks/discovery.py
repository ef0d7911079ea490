"""Finds the layers of a network without a record, and describes any node."""

from .._backbones.layouts import ENLARGED, stride_of
from .._backbones.records import Backbone, Layer
from .averages import with_averages
from .head import end_of
from .hooks import INPUT_OF
from .structure import Structure, representative_node, structure_of


def layout_of(shape: tuple, larger: tuple | None, has_class_token: bool):
    """How the output of a node is laid out, without the batch axis.

    `larger` is its shape for a larger image: it has more places, but as many channels.
    """
    if len(shape) == 1:
        return "vector"
    if len(shape) == 2:
        return "cls+tokens" if has_class_token else "tokens"
    channels_last = larger and shape[-1] == larger[-1] and shape[0] != larger[0]
    return "hwc" if channels_last else "chw"


def find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Aliased layers of a network without a record."""
    return backbone.memo.get("layers", lambda: _find_layers(backbone))


def _find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Its top-level children in the order of use, the input of its classifier and the
    classes, or what it returns if it does not end with a classifier."""
    structure = structure_of(backbone, backbone.input.image_size)
    children = [name for name, _ in structure.skeleton.named_children()]
    blocks = _in_order_of_use(structure, children)
    aliases = {f"block{i}": name for i, name in enumerate(blocks, 1)}
    classifier, returned = end_of(structure)
    if classifier:
        aliases |= {"penultimate": classifier + INPUT_OF, "logits": classifier}
    elif returned:
        aliases["penultimate"] = returned
    named = {alias: structure.canonical(name) for alias, name in aliases.items()}
    nodes = {alias: node for alias, node in named.items() if node is not None}
    shapes = structure.shapes(tuple(dict.fromkeys(nodes.values())))
    found = [
        (alias, node)
        for alias, node in nodes.items()
        if node in shapes and len(shapes[node]) <= 3
    ]
    layers = tuple(
        _layer(structure, alias, node, index, shapes[node])
        for index, (alias, node) in enumerate(found)
    )
    if not structure.traceable:
        return layers
    return with_averages(layers, structure.step, structure.skeleton)


def find_node(backbone: Backbone, node: str, image_size: int) -> Layer:
    """The layer of any node of the traced network, by its full name."""
    structure = structure_of(backbone, image_size)
    shape = structure.shapes((node,)).get(node)
    if shape is None or len(shape) > 3:
        raise ValueError(
            f"Layer {node!r} of backbone {backbone.name!r} does not give one vector, "
            "map or row of tokens for each image. Choose another node."
        )
    return _layer(structure, None, node, None, shape)


def find_shape(backbone: Backbone, node: str, image_size: int) -> tuple[int, ...]:
    """Shape of one image's output at a node for an input of this size."""
    return structure_of(backbone, image_size).shapes((node,))[node]


def _layer(structure: Structure, alias, node, index, shape) -> Layer:
    net = structure.skeleton
    has_class = hasattr(net, "class_token") or hasattr(net, "cls_token")
    larger = _larger_shape(structure, node, shape)
    layout = layout_of(shape, larger, has_class)
    stride = stride_of(layout, shape, larger, structure.image_size)
    return Layer.from_shape(alias, node, index, layout, shape, stride)


def _larger_shape(structure: Structure, node: str, shape: tuple) -> tuple | None:
    """Shape of a map for a larger image; None if the network refuses."""
    if len(shape) != 3:
        return None
    try:
        return structure.shapes((node,), structure.image_size + ENLARGED).get(node)
    except Exception:  # whatever a network built for one size raises
        return None


def _in_order_of_use(structure: Structure, names: list[str]) -> list[str]:
    """The modules that are used, in the order of the computation."""
    if not structure.traceable:
        return names
    used = {name: representative_node(name, structure.nodes) for name in names}
    places = {structure.nodes.index(node): name for name, node in used.items() if node}
    return [name for _, name in sorted(places.items())]
