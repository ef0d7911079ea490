"""Distinguishes tokens of places in an image from others, such as a class token.

A graph shows where the others are joined to those of places.
"""

import math
import operator
from dataclasses import dataclass

from torch import fx

from .._backbones.layouts import MOST_OTHERS
from .constant_tokens import constant_in_front, constant_tokens
from .map_areas import areas_before
from .stages import other_tokens, stated_tokens
from .structure import Structure, steps_below
from .tracer import ENDS

JOINS = {"cat", "concat", "concatenate"}
LENGTHENS = JOINS | {"hstack", "vstack", "stack", "columnstack", "pad", "setitem"}


@dataclass(frozen=True)
class Join:
    """A step that joins rows of tokens.

    Parameters
    ----------
    total : int
        Number of tokens after it.
    others : int or None
        How many of those in front belong to no place; None if that is not clear.
    """

    total: int
    others: int | None


def other_tokens_at(structure: Structure, node: str, n: int) -> int | None:
    """How many of the n tokens of a node belong to no place; they are in front.

    None if that is not clear. Images are square, so that the number of places is a
    square, also where a network lacks the others that it states.
    """
    if not structure.traceable:
        return _others_when_run(structure, node, n)
    below = _steps_to(structure, node)
    joins = {structure.step(name): join for name, join in _joins(structure).items()}
    if same := _nearest(joins, below, n):  # if that is not clear, only the user knows
        stated = getattr(structure.skeleton, "num_prefix_tokens", None)
        return stated if same.others is None else same.others
    stated = other_tokens(structure.skeleton)
    if stated and stated < n and (_is_square(n - stated) or not _is_square(n)):
        return stated
    return 0 if stated == 0 or are_all_places(structure, node, n) else None


def are_all_places(structure: Structure, node: str, n: int) -> bool:
    """Whether n tokens are those of the places of maps, and no others."""
    below = _steps_to(structure, node)
    if below and not _may_join(structure, below):
        return True
    return _are_places(n, areas_before(structure, node, below))


def _others_when_run(structure: Structure, node: str, n: int) -> int | None:
    """The same without a graph: as the network states, or those that are constant.

    The rest are as many as places.
    """
    stated = stated_tokens(structure.skeleton)
    if stated is not None and (stated == 0 or _is_square(n - stated)):
        return stated
    others = constant_in_front(structure, n)
    areas = areas_before(structure, node, set())
    if not others:
        return others if others is None or _are_places(n, areas) else None
    rows = {*areas, *constant_tokens(structure)}
    return others if others <= MOST_OTHERS and n - others in rows else None


def _are_places(n: int, areas: list[int]) -> bool:
    """Whether n tokens are those of the places of a map, by the areas of the maps.

    They are not if a later map has a few places less: then others are among them.
    """
    if n not in areas:
        return False
    later = areas[len(areas) - areas[::-1].index(n) :]
    return not any(0 < n - area <= MOST_OTHERS for area in later)


def _nearest(joins: dict[fx.Node, Join], below: set[fx.Node], n: int) -> Join | None:
    """The last one of these joins, among some steps, that gives n tokens."""
    same = [join for step, join in joins.items() if step in below and join.total == n]
    return same[-1] if same else None


def _steps_to(structure: Structure, node: str) -> set[fx.Node]:
    """The steps that a node is computed from, and its own; none without a graph."""
    if not structure.traceable:
        return set()
    step = structure.step(node)
    return {step, *steps_below(step)}


def _may_join(structure: Structure, steps: set[fx.Node]) -> bool:
    """Whether one of these steps makes rows longer."""
    longer = [n for n in steps if n.op not in ENDS and structure.kind(n) in LENGTHENS]
    found = structure.shapes(tuple(map(structure.name_of, longer))) if longer else {}
    return any(len(shape) == 2 for shape in found.values())


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def _joins(structure: Structure) -> dict[str, Join]:
    """The steps of a graph that join tokens, by name, in order."""
    if not structure.traceable:
        return {}
    name = ("joins", structure.image_size)
    return structure.backbone.memo.get(name, lambda: _joins_of(structure))


def _joins_of(structure: Structure) -> dict[str, Join]:
    assert structure.graph is not None
    joined = {n: both for n in structure.graph.nodes if (both := _joined(n))}
    names = {
        part: structure.name_of(part) for parts in joined.values() for part in parts
    }
    shapes = structure.shapes(tuple(names.values())) if names else {}
    lengths = {part: shapes[name] for part, name in names.items() if name in shapes}
    joins: dict[fx.Node, Join] = {}
    for node, parts in joined.items():
        if all(len(lengths.get(part, ())) == 2 for part in parts):
            found = [_part_of(structure, p, lengths[p][0], joins) for p in parts]
            joins[node] = Join(sum(part.n for part in found), _others_in(found))
    return {structure.name_of(node): join for node, join in joins.items()}


@dataclass(frozen=True)
class Part:
    """A part of a join.

    Parameters
    ----------
    n : int
        Number of tokens.
    others : int or None
        How many of those in front belong to no place; None if that is not clear.
    """

    n: int
    others: int | None


def _part_of(structure: Structure, node: fx.Node, n: int, joins: dict) -> Part:
    """What a step gives to a join, with the earlier joins."""
    if node not in structure.from_image:
        return Part(n, n)
    cut = _cut_from(node)
    source = cut and _nearest_total(joins, {cut, *steps_below(cut)})
    if source and source.others is not None and n <= source.others:
        return Part(n, n)
    inner = _nearest(joins, {node, *steps_below(node)}, n)
    return Part(n, inner.others if inner else 0)


def _nearest_total(joins: dict[fx.Node, Join], below: set[fx.Node]) -> Join | None:
    """The last one of these joins among some steps."""
    found = [join for step, join in joins.items() if step in below]
    return found[-1] if found else None


def _cut_from(node: fx.Node) -> fx.Node | None:
    """The tokens from which a step takes those in front, if it does so."""
    index = node.args[1] if node.target is operator.getitem else None
    if not isinstance(index, tuple) or len(index) < 2:
        return None
    source, (rows, taken) = node.args[0], index[:2]
    front = isinstance(taken, slice) and taken.start in (None, 0) and taken.stop
    if not isinstance(source, fx.Node) or not front or rows != slice(None):
        return None
    return source


def _others_in(parts: list[Part]) -> int | None:
    """How many tokens in front of joined parts belong to no place.

    A single token next to more belongs to no place. Other parts have to be alike.
    """
    longest = max(part.n for part in parts)
    apart = [part.n == part.others or part.n == 1 < longest for part in parts]
    if False not in apart:
        return None
    first = apart.index(False)
    front, (placed, *rest) = parts[:first], parts[first:]
    if placed.others is None or any(part != Part(placed.n, 0) for part in rest):
        return None
    others = sum(part.n for part in front) + placed.others
    return others if others <= MOST_OTHERS and not (rest and placed.others) else None


def _joined(node: fx.Node) -> list[fx.Node]:
    """What a step joins along the axis of tokens, in order."""
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    joins = getattr(node.target, "__name__", "") in JOINS and axis in (1, -2)
    parts = node.args[0] if joins and node.args else node.kwargs.get("tensors", ())
    if not joins or not isinstance(parts, (list, tuple)):
        return []
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    return [] if any(part.op in ENDS for part in nodes) else nodes
