"""Resolves layers: aliases, indices and names of nodes → records of layers.

torch is needed only for what is not in the registry: nodes without an alias, and
networks of the user's own.
"""

import re
from dataclasses import dataclass, replace
from operator import attrgetter

from .._backbones.listing import check_kind
from .._backbones.records import Backbone, Layer
from .._backbones.registry import is_listed, resolve_backbone
from .._backbones.text_registry import refuse_texts, resolve_text_backbone
from .._backbones.weights import WeightsSource
from .._exceptions import closest
from .._images.recipe import InputSpec
from .._listing import Field, Listing
from .pooling import pooled_width

ALIAS = re.compile(r"stem|block\d+|penultimate|logits")


def aliased_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """The layers of a backbone that have an alias, in order of depth."""
    if backbone.layers is not None:
        return backbone.layers
    from .discovery import find_layers

    return find_layers(backbone)


SHOWN = (  # of each layer, where the list is printed
    Field("layer", attrgetter("alias")),
    Field("node", attrgetter("node")),
    Field("shape", lambda layer: " × ".join(map(str, layer.shape))),
    Field("features", attrgetter("features"), ","),
    Field("stride", attrgetter("stride")),
    Field("share", attrgetter("share"), ".2%"),
)


def _image_layers(backbone, nodes: bool) -> tuple:
    """The layers of a network of images, or the names of its nodes."""
    refuse_texts(backbone)
    record = resolve_backbone(backbone)
    if not nodes:
        return aliased_layers(record)
    from .structure import structure_of

    return structure_of(record, record.input.image_size).nodes


def _text_layers(backbone, nodes: bool) -> tuple:
    """The layers of a network of texts, or the names of their nodes."""
    layers = resolve_text_backbone(backbone).layers
    return tuple(dict.fromkeys(x.node for x in layers)) if nodes else layers


LAYERS = {"image": _image_layers, "text": _text_layers}


def list_layers(backbone="mini", *, nodes=False, kind="image"):
    """Layers that features can be read from, without loading any weights.

    Parameters
    ----------
    backbone : str, path, Backbone or TextBackbone, default="mini"
        The network.
    nodes : bool, default=False
        List the names of all nodes of the traced network instead.
    kind : {"image", "text"}, default="image"
        What the network takes, for a name, a folder or a file.

    Returns
    -------
    layers : list of Layer, or list of str if `nodes`
        Aliased layers in order of depth, with the fields ``alias``, ``node``,
        ``index``, ``layout``, ``shape``, ``features`` (number of channels),
        ``stride`` (in pixels) and ``share`` (of the computation up to there). The list
        of layers prints as a table, also in a notebook.

    Raises
    ------
    ValueError
        If the network is unknown, or takes another kind of input; or if `kind` is not
        one of these.

    See Also
    --------
    list_backbones : List the names of the networks.
    rank_layers : Compare the layers by how well they predict a target.

    Examples
    --------
    >>> from skdeepfeat import list_layers
    >>> list_layers("resnet50")
    layer        node             shape           features  stride    share
    stem         maxpool          64 × 56 × 56          64       4    2.89%
    block1       layer1.2.relu_2  256 × 56 × 56        256       4   19.22%
    block2       layer2.3.relu_2  512 × 28 × 28        512       8   44.35%
    block3       layer3.5.relu_2  1024 × 14 × 14     1,024      16   80.16%
    block4       layer4.2.relu_2  2048 × 7 × 7       2,048      32   99.95%
    penultimate  flatten          2048               2,048           99.95%
    logits       fc               1000               1,000          100.00%
    """
    kind = check_kind(getattr(backbone, "kind", kind), "list_layers")
    found = LAYERS[kind](backbone, nodes)
    return list(found) if nodes else Listing(found, SHOWN)


def resolve_layer(backbone: Backbone, layer, image_size: int) -> Layer:
    """The record of an alias, an index, or a node."""
    aliased = aliased_layers(backbone)
    if isinstance(layer, str):
        for known in aliased:
            if layer in (known.alias, known.node):
                return known
        return backbone.memo.get(
            ("node", layer, image_size),
            lambda: _resolve_node(backbone, layer, image_size),
        )
    if not -len(aliased) <= layer < len(aliased):
        raise ValueError(
            f"Unknown layer {layer} of backbone {backbone.name!r}, which has "
            f"{len(aliased)}: 0 ({aliased[0].alias!r}) to {len(aliased) - 1} "
            f"({aliased[-1].alias!r}).{_remedy(backbone, layer)}"
        )
    return aliased[layer]


def depth_of(backbone, kind: str, layer) -> float:
    """Where a layer, or the deepest of several, is among the aliased layers: an index,
    with a fraction for nodes between them; -1 for what is no layer."""
    if isinstance(layer, tuple):
        return max(depth_of(backbone, kind, part) for part in layer)
    known = LAYERS[kind](backbone, False)
    place = {alias.node: alias.index for alias in reversed(known)}
    place |= {alias.alias: alias.index for alias in known}
    place |= {alias.index: alias.index for alias in known}
    place |= {alias.index - len(known): alias.index for alias in known}
    if layer in place or not isinstance(layer, str):
        return place.get(layer, -1)
    return _depth_of_node(known, LAYERS[kind](backbone, True), layer)


def _depth_of_node(known, nodes, name: str) -> float:
    """The same of a node, or of the last one inside a module."""
    own = [i for i, node in enumerate(nodes) if f"{node}.".startswith(f"{name}.")]
    if not own:
        return -1
    reached = set(nodes[: own[-1] + 1])
    passed = [x.index for x in known if x.node.removesuffix(".input") in reached]
    return max(passed, default=-1) + (own[-1] + 1) / (len(nodes) + 2)


def _resolve_node(backbone: Backbone, node: str, image_size: int) -> Layer:
    """The record of a node of the traced network, aliased if it has one."""
    from .discovery import check_alias, find_node
    from .structure import structure_of

    structure = structure_of(backbone, image_size)
    full = structure.canonical(node)
    if full is None:
        check_alias(backbone, node, image_size)
        aliases = [layer.alias for layer in aliased_layers(backbone)]
        named = repr(backbone.name) if is_listed(backbone) else "backbone"
        why = f" (its modules, as torch.fx cannot trace it: {structure.fault})"
        raise ValueError(
            f"Unknown layer {node!r} of backbone {backbone.name!r}."
            f"{closest(node, [*aliases, *structure.nodes])} Its aliases are "
            f"{', '.join(map(repr, aliases))}; list_layers({named}, nodes=True) names "
            f"all nodes{'' if structure.traceable else why}."
            f"{_remedy(backbone, node) or _unclear(node)}"
        )
    found = find_node(backbone, full, image_size)
    known = {layer.node: layer for layer in aliased_layers(backbone)}
    return known.get(found.node, found)


def _unclear(node: str) -> str:
    """What to do about a network whose end is not one classifier."""
    if node != "penultimate":
        return ""
    return (
        " It does not clearly end with one classifier. Name the layer that is meant "
        "with Backbone.from_module(..., penultimate=...)."
    )


def _remedy(backbone: Backbone, layer) -> str:
    """What to do about a layer of which a network has no weights; else nothing."""
    known = backbone.layers or ()
    if known and known[-1].alias == "penultimate":  # only the classes may be lacking
        is_lacking = layer in ("logits", len(known))
    else:
        is_lacking = not isinstance(layer, str) or bool(ALIAS.fullmatch(layer))
    return f" {backbone.remedy}" if backbone.remedy and is_lacking else ""


def width_of(backbone: Backbone, spec: InputSpec, layer: Layer, pooling: str) -> int:
    """Number of features of a layer after pooling, at this input size."""
    own_size = spec.image_size == backbone.input.image_size
    if pooling == "flatten" and layer.layout != "vector" and not own_size:
        from .discovery import find_shape

        shape = find_shape(backbone, layer.node, spec.image_size)
        layer = replace(layer, shape=shape)
    return pooled_width(layer.layout, layer.shape, pooling)


@dataclass(frozen=True)
class ImageNetwork:
    """A network of images, as a plan needs to know it.

    Parameters
    ----------
    source : WeightsSource
        The network's record, its weights, and its input.
    """

    source: WeightsSource

    def aliased(self) -> tuple[Layer, ...]:
        """The layers that have an alias, in order of depth."""
        return aliased_layers(self.source.backbone)

    def find(self, name) -> Layer:
        """The layer with this alias, index or node."""
        return resolve_layer(self.source.backbone, name, self.source.input.image_size)

    def width(self, layer: Layer, pooling: str) -> int:
        """Number of features of a layer after pooling, at this input size."""
        return width_of(self.source.backbone, self.source.input, layer, pooling)
