"""Finds the axis of rows (a, b) that is that of the places: tokens or 1-D maps.

Networks lay out rows as (tokens, channels), as transformers do, or as (channels,
places), as what flattens maps or convolves in one dimension does.
"""

from torch import fx

from .._backbones.layouts import layout_of_tokens
from .map_areas import rows_before
from .structure import Structure
from .token_joins import are_all_places, other_tokens_at
from .tracer import ENDS

TOKENS, CHANNELS = "tokens", "channels"
GROWING = {(0,): TOKENS, (1,): CHANNELS, (0, 1): None}
# What lays out its rows itself, by name: a module, a function or a method.
LAYS_OUT = dict.fromkeys(("conv1d", "batchnorm1d", "instancenorm1d"), CHANNELS)
LAYS_OUT |= dict.fromkeys(("avgpool1d", "maxpool1d", "adaptiveavgpool1d"), CHANNELS)
LAYS_OUT |= dict.fromkeys(("layernorm", "rmsnorm", "multiheadattention"), TOKENS)
LAYS_OUT |= dict.fromkeys(("scaleddotproductattention", "embedding"), TOKENS)
SWAPS = {"transpose", "permute", "swapaxes", "swapdims", "movedim"}
CHANNELS_LAST = SWAPS | {"layernorm", "linear"}  # after which maps are (h, w, channels)
OTHER = {TOKENS: CHANNELS, CHANNELS: TOKENS, None: None}


def layout_of_rows(
    structure: Structure, node: str, shape: tuple, larger: tuple | None, channels=None
) -> str | None:
    """How rows are laid out, without the batch axis; None if that is not clear.

    `larger` is their shape for a larger image, and `channels` their number, where it is
    known.
    """
    kind = kind_of_rows(structure, node, shape, larger, channels)
    if kind == CHANNELS:
        return CHANNELS if are_all_places(structure, node, shape[1]) else None
    others = other_tokens_at(structure, node, shape[0]) if kind else None
    return None if others is None else layout_of_tokens(others)


def kind_of_rows(
    structure: Structure, node: str, shape: tuple, larger: tuple | None, channels=None
) -> str | None:
    """Either "tokens" or "channels", or None, as for a map without channels."""
    if channels in shape and shape[0] != shape[1]:
        return TOKENS if shape[1] == channels else CHANNELS
    grown = [i for i in (0, 1) if larger and larger[i] != shape[i]]
    if grown:
        return GROWING[tuple(grown)]
    find = _kind_in_graph if structure.traceable else _kind_when_run
    return find(structure, node, shape)


def _kind_in_graph(structure: Structure, node: str, shape: tuple) -> str | None:
    """What the last step that lays out rows makes of those that reach a node."""
    shapes, step, swapped = _shapes(structure), structure.step(node), False
    while not (kind := LAYS_OUT.get(structure.kind(step))):
        entered = _entering(structure, step, shapes)
        if entered is None:
            kind = TOKENS
            break
        if len(shapes[entered]) == 3:
            kind = _kind_of_flat(structure, entered, shapes[entered], shapes[step])
            break
        swapped ^= structure.kind(step) in SWAPS
        step = entered
    return OTHER[kind] if swapped else kind


def _entering(structure: Structure, step: fx.Node, shapes: dict) -> fx.Node | None:
    """The first rows or maps of the image that a step reads."""
    rows = (n for n in step.all_input_nodes if n in structure.from_image)
    return next((n for n in rows if len(shapes.get(n, ())) in (2, 3)), None)


def _kind_of_flat(structure, maps: fx.Node, shape: tuple, flat: tuple) -> str | None:
    """How rows are laid out that a step makes of maps of this shape."""
    first, second, last = shape
    permuted = structure.kind(maps) in CHANNELS_LAST
    if first == second and (last != first or permuted):
        return TOKENS if flat[1] == last else CHANNELS if flat[0] == last else None
    return CHANNELS if flat[0] == first else TOKENS if flat[1] == first else None


def _shapes(structure: Structure) -> dict[fx.Node, tuple]:
    """The shapes of all steps that depend on the image."""

    def find():
        names = {
            structure.name_of(n): n for n in structure.from_image if n.op not in ENDS
        }
        return {names[name]: s for name, s in structure.shapes(tuple(names)).items()}

    return structure.backbone.memo.get(("all shapes", structure.image_size), find)


def _kind_when_run(structure: Structure, node: str, shape: tuple) -> str | None:
    """What the last module before a node that says so lays out: it gives rows of the
    same shape, or maps of as many channels."""
    run = rows_before(structure, node)
    for module, given in reversed(run):
        if given == shape:
            return LAYS_OUT.get(type(module).__name__.lower(), TOKENS)
        if len(given) == 3 and given[0] in shape:
            return TOKENS if shape[1] == given[0] else CHANNELS
    as_many = (given[0] == shape[0] for _, given in run if len(given) == 2)
    return TOKENS if any(as_many) else None
