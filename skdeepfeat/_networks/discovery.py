"""Finds the layers of a network without a record, and describes any node."""

from dataclasses import replace
from typing import Any

from .._backbones.layouts import ENLARGED, layout_of_tokens, stride_of
from .._backbones.records import Backbone, Layer
from .._exceptions import closest
from .averages import with_averages
from .end import End
from .end_when_run import children_in_features
from .head import end_of
from .hooks import CLASSIFIED
from .intermediates import intermediate_stages
from .stages import Stage, fits, stages_of
from .structure import Structure, representative_node, steps_below, structure_of
from .token_joins import other_tokens_at


def _layout_at(structure: Structure, node: str, shape, larger, channels) -> str | None:
    """How the output of a node is laid out; None if that is not clear."""
    if len(shape) == 1:
        return "vector"
    if len(shape) == 3:
        return layout_of_maps(shape, larger, channels)
    others = other_tokens_at(structure, node, shape[0])
    return None if others is None else layout_of_tokens(others)


def layout_of_maps(shape: tuple, larger: tuple | None, channels=None) -> str:
    """How maps are laid out, without the batch axis.

    `larger` is their shape for a larger image: they have more places, but as many
    channels. The maps of square images are square, which decides where `channels` is
    not known.
    """
    first, second, last = shape
    if channels is not None and first != last:
        return "hwc" if last == channels else "chw"
    if larger:
        return "hwc" if last == larger[-1] and first != larger[0] else "chw"
    return "hwc" if first == second != last else "chw"


def find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Aliased layers of a network without a record."""
    return backbone.memo.get("layers", lambda: _layers_or_reason(backbone))


def _layers_or_reason(backbone: Backbone) -> tuple[Layer, ...]:
    """The layers; the error of a network that takes other images says what it takes."""
    try:
        return _find_layers(backbone)
    except RuntimeError as error:  # of torch, where shapes do not fit
        side = backbone.input.image_size
        raise ValueError(
            f"Backbone {backbone.name!r} does not take a batch of images, of shape "
            f"(n, 3, {side}, {side}): {error}. Create it with the image_size that its "
            "network takes. Before a network of grey images, put a step that makes "
            "them grey, such as torchvision.transforms.v2.Grayscale()."
        ) from error


def _find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Its stages, or else its top-level children in the order of use; then the input of
    its classifier and the classes, or what it returns if it has no classifier."""
    structure = structure_of(backbone, backbone.input.image_size)
    end = end_of(structure)
    found = _find_stages(structure) or _layers(structure, _children(structure, end))
    found |= _layers(structure, _ends(structure, end))
    layers = tuple(replace(layer, index=i) for i, layer in enumerate(found.values()))
    if not structure.traceable:
        return layers
    return with_averages(layers, structure.step, structure.skeleton)


def _find_stages(structure: Structure) -> dict[str, Layer]:
    """The stages that a network describes itself, by alias; none if they do not fit.

    They are the modules that it names, or else the intermediates that it returns.
    """
    named = _fitting(structure, stages_of(structure.skeleton))
    return named or _fitting(structure, intermediate_stages(structure))


def _fitting(structure: Structure, stages: dict[str, Stage]) -> dict[str, Layer]:
    """The layers of stages, as far as they are what the network says of them."""
    channels = {alias: stage.channels for alias, stage in stages.items()}
    full = {alias: structure.canonical(stage.node) for alias, stage in stages.items()}
    named = {a: structure.where_computed(node) for a, node in full.items() if node}
    found = _layers(structure, named, channels)
    good = {a: layer for a, layer in found.items() if fits(layer, channels[a])}
    return good if len(good) > 1 else {}


def _children(structure: Structure, end: End) -> dict[str, str]:
    """Its top-level children in the order of use, by alias.

    Where a network says what enters its classifier, no later one.
    """
    head = structure.backbone.head or end.classifier
    used = _parts_around(structure, head)
    if structure.classified is not None:
        used = [name for name in used if _is_before_head(structure, name)]
    elif end.penultimate == CLASSIFIED:
        before = children_in_features(structure.real_network(), structure.image_size)
        used = [name for name in used if name in before]
    else:
        used = _before_head(structure, used, head)
    return {f"block{i}": name for i, name in enumerate(used, 1)}


def _parts_around(structure: Structure, head: str | None) -> list[str]:
    """The top-level children of a network in the order of use.

    Those of the only child with weights, if the classifier is a part of it: the network
    is a wrapper then.
    """
    inner = ""
    while True:
        part = structure.skeleton.get_submodule(inner)
        names = [f"{inner}.{n}".lstrip(".") for n, _ in part.named_children()]
        weighs = [name for name in names if structure.has_weights(name)]
        if len(weighs) != 1 or not head or not head.startswith(f"{weighs[0]}."):
            return _in_order_of_use(structure, names)
        inner = weighs[0]


def _before_head(structure: Structure, names: list[str], head: str | None) -> list[str]:
    """These parts up to the one that is or contains the classifier, without it."""
    around = [n for n in names if head and f"{head}.".startswith(f"{n}.")]
    if not around:
        return names
    before = names[: names.index(around[0])] if structure.traceable else names
    return [name for name in before if name not in around]


def _is_before_head(structure: Structure, name: str) -> bool:
    """Whether a module is computed before what enters the classifier."""
    node, classified = structure.canonical(name), structure.classified
    assert node is not None and classified is not None
    return structure.step(node) in steps_below(classified)


def _ends(structure: Structure, end: End) -> dict[str, str]:
    """The input of its classifier and the classes, as far as there are any."""
    named = {
        "penultimate": structure.backbone.penultimate or end.penultimate,
        "logits": end.logits,
    }
    return {alias: node for alias, node in named.items() if node}


def check_alias(backbone: Backbone, alias: str, image_size: int) -> None:
    """Raise an error for an alias of what cannot be read as features, as for a node."""
    if backbone.layers is not None:
        return
    structure = structure_of(backbone, image_size)
    end = end_of(structure)
    node = (_children(structure, end) | _ends(structure, end)).get(alias)
    if full := node and structure.canonical(node):
        find_node(backbone, full, image_size)


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
    structure = structure_of(backbone, image_size)
    found = _layers(structure, {None: node})
    shape = () if found else structure.shapes((node,)).get(node, ())
    if len(shape) == 2:
        raise ValueError(
            f"Layer {node!r} of backbone {backbone.name!r} gives {shape[0]} tokens for "
            "each image, and it is not clear which of them belong to no place in the "
            "image, as a class token does. Choose another node, or, if they are in "
            "front of the others, set the attribute 'num_prefix_tokens' of the network "
            "to their number before you call Backbone.from_module."
        )
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
    larger = _larger_shapes(structure, maps)
    found = {}
    for alias, node in nodes.items():
        shape, known = shapes[node], (channels or {}).get(alias)
        layout = _layout_at(structure, node, shape, larger.get(node), known)
        if layout is None:
            continue
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
