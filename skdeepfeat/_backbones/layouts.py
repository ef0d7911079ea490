"""Layouts of the output of a layer after the batch axis.

Tensors are changed through their own methods, so torch is not imported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENLARGED = 256  # a multiple of every usual stride


@dataclass(frozen=True)
class Layout:
    """A layout of the output of a layer for one image.

    Parameters
    ----------
    channels : int
        Position of the number of channels in the shape.
    places : callable
        Shape → sizes of the spatial axes, empty if there are none.
    as_maps : callable or None
        Batch → maps of shape (n, c, h, w); None without spatial axes.
    """

    channels: int
    places: Callable[[tuple[int, ...]], tuple[int, ...]]
    as_maps: Callable[[Any], Any] | None


def _tokens_after(n: int) -> Layout:
    """Tokens of the places in an image, after n others, which pooling leaves out."""
    return Layout(
        1, lambda s: (s[0] - n,), lambda x: x[:, n:].transpose(1, 2)[..., None]
    )


MOST_OTHERS = 32
LAYOUTS = {
    "chw": Layout(0, lambda s: s[1:], lambda x: x),
    "hwc": Layout(2, lambda s: s[:2], lambda x: x.permute(0, 3, 1, 2)),
    "tokens": _tokens_after(0),
    "cls+tokens": _tokens_after(1),  # the class token
    **{f"{n}+tokens": _tokens_after(n) for n in range(2, MOST_OTHERS + 1)},
    "channels": Layout(0, lambda s: s[1:], lambda x: x[..., None]),  # (c, places)
    "vector": Layout(0, lambda s: (), None),
}


def layout_of_tokens(others: int) -> str:
    """The layout of tokens with this number of others in front of those of places."""
    return {0: "tokens", 1: "cls+tokens"}.get(others, f"{others}+tokens")


def stride_of(layout: str, shape, larger, image_size: int) -> int | None:
    """Distance in input pixels between neighbouring positions; None for vectors.

    `larger` is the shape for an input whose side is longer by `ENLARGED` and that loses
    as much at its margins. If it is None, as for networks built for one size, the
    margins are not taken into account.
    """
    places = LAYOUTS[layout].places
    if not places(shape):
        return None
    side = math.prod(places(shape)) ** 0.5
    added = math.prod(places(larger)) ** 0.5 - side if larger else 0
    return round(ENLARGED / added if added else image_size / side)
