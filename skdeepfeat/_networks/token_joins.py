"""Tells the tokens of places in an image from others, such as a class token.

A graph shows where the others are joined to those of places.
"""

import math
from dataclasses import dataclass

from torch import fx

from .._backbones.layouts import MOST_OTHERS
from .stages import other_tokens
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
    below = _steps_to(structure, node)
    joins = {structure.step(name): join for name, join in _joins(structure).items()}
    same = [join for step, join in joins.items() if step in below and join.total == n]
    if same:
        return same[-1].others
    stated = other_tokens(structure.skeleton)
    if stated and stated < n and (_is_square(n - stated) or not _is_square(n)):
        return stated
    clear = _is_square(n) or stated == 0 or (below and not _may_join(structure, below))
    return 0 if clear else None


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
    parts = {n: found for n in structure.graph.nodes if (found := _joined(n))}
    names = {p: structure.name_of(p) for both in parts.values() for p in both}
    shapes = structure.shapes(tuple(names.values())) if names else {}
    lengths = {part: shapes.get(name, ())[:-1] for part, name in names.items()}
    return {
        structure.name_of(node): _join_of(
            [(part in structure.from_image, *lengths[part]) for part in both]
        )
        for node, both in parts.items()
        if all(len(lengths[part]) == 1 for part in both)
    }


def _joined(node: fx.Node) -> list[fx.Node]:
    """What a step joins along the axis of tokens, in order."""
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    joins = getattr(node.target, "__name__", "") in JOINS and axis in (1, -2)
    parts = node.args[0] if joins and node.args else node.kwargs.get("tensors", ())
    if not joins or not isinstance(parts, (list, tuple)):
        return []
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    return [] if any(part.op in ENDS for part in nodes) else nodes


def _join_of(parts: list[tuple[bool, int]]) -> Join:
    """The join of parts of which is known whether they come from the image, and their
    length: a single token next to more is that of no place."""
    total, longest = sum(n for _, n in parts), max(n for _, n in parts)
    placed = [from_image and (n > 1 or longest == 1) for from_image, n in parts]
    if True not in placed:
        return Join(total, None)
    first = placed.index(True)
    leading = sum(n for _, n in parts[:first])
    clear = all(placed[first:]) and leading <= MOST_OTHERS
    return Join(total, leading if clear else None)
