"""How the output of a layer is laid out after the batch axis.

The functions on tensors use their own methods alone, so torch is not imported here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENLARGED = 256  # a multiple of every usual stride


@dataclass(frozen=True)
class Layout:
    """One way to lay out what a layer gives for an image.

    Parameters
    ----------
    channels : int
        Position of the number of channels in the shape.
    places : callable
        Shape → sizes of the axes that go over the image, empty if there are none.
    as_maps : callable or None
        Batch → the same as maps (n, c, h, w); None if it has no places.
    """

    channels: int
    places: Callable[[tuple[int, ...]], tuple[int, ...]]
    as_maps: Callable[[Any], Any] | None


# The class token is not a place in the image, so it is left out of pooling.
LAYOUTS = {
    "chw": Layout(0, lambda s: s[1:], lambda x: x),
    "hwc": Layout(2, lambda s: s[:2], lambda x: x.permute(0, 3, 1, 2)),
    "tokens": Layout(1, lambda s: s[:1], lambda x: x.transpose(1, 2)[..., None]),
    "cls+tokens": Layout(
        1, lambda s: (s[0] - 1,), lambda x: x[:, 1:].transpose(1, 2)[..., None]
    ),
    "vector": Layout(0, lambda s: (), None),
}


def stride_of(layout: str, shape, larger, image_size: int) -> int | None:
    """Input pixels from one place of a map to the next; None for vectors.

    `larger` is the shape for an input whose side is longer by `ENLARGED`, which loses
    as much at its margins; None, of a network built for one size, leaves these out of
    account.
    """
    places = LAYOUTS[layout].places
    if not places(shape):
        return None
    side = math.prod(places(shape)) ** 0.5
    added = math.prod(places(larger)) ** 0.5 - side if larger else 0
    return round(ENLARGED / added if added else image_size / side)
