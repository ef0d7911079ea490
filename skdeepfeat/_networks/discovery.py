"""Finds the layers of a network without a record, and describes any node."""

from dataclasses import replace
from typing import Any

from torch import fx, nn

from .._backbones.layouts import ENLARGED, stride_of
from .._backbones.records import Backbone, Layer
from .._exceptions import closest
from .averages import with_averages
from .end import End
from .end_when_run import children_in_features
from .head import end_of
from .hooks import CLASSIFIED
from .intermediates import intermediate_stages
from .map_areas import modules_run
from .row_layouts import TOKENS, kind_of_rows, layout_of_rows
from .stages import Stage, fits, stages_of
from .structure import Structure, representative_node, steps_below, structure_of

UNCLEAR_TOKENS = (
    "Layer {node!r} of backbone {name!r} gives {first} tokens for each image, and it "
    "is not clear which of them belong to no place in the image, as a class token "
    "does. Choose another node, or, if they are in front of the others, set the "
    "attribute 'num_prefix_tokens' of the network to their number before you call "
    "Backbone.from_module."
)
UNCLEAR_ROWS = (
    "Layer {node!r} of backbone {name!r} gives {first} × {last} numbers for each "
    "image, and it is not clear which axis is that of the channels; a map without "
    "channels has none. Choose another node."
)


def _layout_at(structure: Structure, node: str, shape, larger, channels) -> str | None:
    """How the output of a node is laid out; None if that is not clear."""
    if len(shape) == 1:
        return "vector"
    if len(shape) == 3:
        return layout_of_maps(shape, larger, channels)
    return layout_of_rows(structure, node, shape, larger, channels)


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
    return backbone.memo.get("layers", lambda: _find_layers(backbone))


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
    """The layers of stages that are what the network says about them."""
    channels = {alias: stage.channels for alias, stage in stages.items()}
    full = {alias: structure.canonical(stage.node) for alias, stage in stages.items()}
    named = {a: structure.where_computed(node) for a, node in full.items() if node}
    found = _layers(structure, named, channels)
    good = {a: layer for a, layer in found.items() if fits(layer, channels[a])}
    several = len(good.keys() - {"stem"}) > 1 or len(good) == len(stages)
    return good if several else {}


def _children(structure: Structure, end: End) -> dict[str, str]:
    """Its top-level children in the order of use, by alias.

    Where a network says what enters its classifier, no later one.
    """
    head = structure.backbone.head or end.classifier
    used = _parts_around(structure, head)
    if structure.classified is not None:
        used = _steps_up_to(structure, used, structure.classified)
    elif end.penultimate == CLASSIFIED:
        before = children_in_features(structure.real_network(), structure.image_size)
        used = [name for name in used if name in before]
    else:
        used = _before_end(structure, used, end, head)
    return {f"block{i}": name for i, name in enumerate(_opened(structure, used), 1)}


def _opened(structure: Structure, names: list[str], whole=True) -> list[str]:
    """These parts, with their own parts in place of those that are not stages.

    `whole` is whether they are all parts of a network.
    """
    full = {name: structure.canonical(name) for name in names}
    shapes = structure.shapes(tuple(node for node in full.values() if node))
    heavy = [name for name in names if structure.has_weights(name, axes=2)]
    found = []
    for name in names:
        parts, is_whole = _parts_of(structure, name), whole and [name] == heavy
        if _is_no_stage(structure, name, shapes.get(full[name] or ""), is_whole):
            parts = _opened(structure, parts, is_whole)
            readable = structure.traceable or structure.shapes(tuple(parts))
            found += parts if parts and readable else [name]
        else:
            found.append(name)
    return _in_order_of_use(structure, found)


def _is_no_stage(structure: Structure, name: str, shape, is_whole: bool) -> bool:
    """Whether the parts of a part are stages, rather than the part itself: of a list of
    modules, of what returns several values, and of a network within the network."""
    weighted = [p for p in _parts_of(structure, name) if structure.has_weights(p)]
    part = structure.skeleton.get_submodule(name)
    listed = isinstance(part, (nn.ModuleList, nn.ModuleDict))
    if listed and type(part).forward is nn.Module.forward:  # it is never called
        return True
    if shape is None:
        return not structure.traceable and bool(weighted)
    has_stages = any(_parts_of(structure, p) for p in weighted)
    return is_whole and (has_stages or (len(shape) == 1 and len(weighted) > 1))


def _parts_of(structure: Structure, name: str) -> list[str]:
    """The children of a module, of the network itself if there is no name."""
    part = structure.skeleton.get_submodule(name)
    return [f"{name}.{child}".lstrip(".") for child, _ in part.named_children()]


def _parts_around(structure: Structure, head: str | None) -> list[str]:
    """The top-level children of a network in the order of use.

    Those of the only child with weights, if the classifier is a part of it: the network
    is a wrapper then.
    """
    inner = ""
    while True:
        names = _parts_of(structure, inner)
        weighs = [name for name in names if structure.has_weights(name)]
        if len(weighs) != 1 or not head or not head.startswith(f"{weighs[0]}."):
            return _in_order_of_use(structure, names)
        inner = weighs[0]


def _before_end(structure: Structure, names: list[str], end: End, head) -> list[str]:
    """These parts without those that are the classifier or may be one, or follow it."""
    if head:
        return _before_head(names, head)
    first = next((name for name in names if structure.has_weights(name)), None)
    around = {n for n in names for h in end.heads if f"{h}.".startswith(f"{n}.")}
    names = [name for name in names if name == first or name not in around]
    node = structure.backbone.penultimate or end.penultimate
    full = structure.canonical(node) if node and structure.traceable else None
    return _steps_up_to(structure, names, structure.step(full)) if full else names


def _before_head(names: list[str], head: str) -> list[str]:
    """The parts before the one that is or contains the classifier."""
    around = [n for n in names if f"{head}.".startswith(f"{n}.")]
    if not around:
        return names
    return names[: names.index(around[0])]


def _steps_up_to(structure: Structure, names: list[str], end: fx.Node) -> list[str]:
    """The modules whose results a step is computed from, or is."""
    steps = {end, *steps_below(end)}
    full = {name: structure.canonical(name) for name in names}
    return [
        name for name, node in full.items() if node and structure.step(node) in steps
    ]


def _ends(structure: Structure, end: End) -> dict[str, str]:
    """The input of its classifier and the class scores, if there are any."""
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
        raise ValueError(_unclear_rows(structure, node, shape))
    if not found:
        raise ValueError(
            f"Layer {node!r} of backbone {backbone.name!r} does not give one vector, "
            "map or row of tokens for each image. Choose another node."
        )
    return found[None]


def _unclear_rows(structure: Structure, node: str, shape: tuple) -> str:
    """Why the rows of a node cannot be pooled."""
    larger = _larger_shapes(structure, (node,)).get(node)
    kind, name = kind_of_rows(structure, node, shape, larger), structure.backbone.name
    reason = UNCLEAR_TOKENS if kind == TOKENS else UNCLEAR_ROWS
    return reason.format(node=node, name=name, first=shape[0], last=shape[1])


def find_shape(backbone: Backbone, node: str, image_size: int) -> tuple[int, ...]:
    """Shape of one image's output at a node for an input of this size."""
    return structure_of(backbone, image_size).shapes((node,))[node]


def _layers(structure: Structure, named: dict, channels=None) -> dict[Any, Layer]:
    """The layers of nodes or modules by alias, without those that have no layout."""
    full = {alias: structure.canonical(name) or "" for alias, name in named.items()}
    shapes = structure.shapes(tuple(dict.fromkeys(filter(None, full.values()))))
    nodes = {a: n for a, n in full.items() if n in shapes and len(shapes[n]) <= 3}
    larger: dict[str, tuple] = {}
    for n_axes in (2, 3):  # rows are more often of one size
        alike = tuple(node for node in shapes if len(shapes[node]) == n_axes)
        larger |= _larger_shapes(structure, alike)
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
    nodes = structure.nodes if structure.traceable else modules_run(structure)
    used = {name: representative_node(name, nodes) for name in names}
    places = {nodes.index(node): name for name, node in used.items() if node}
    return [name for _, name in sorted(places.items())]
