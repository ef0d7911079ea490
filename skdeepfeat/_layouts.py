"""How the output of a layer is laid out after the batch axis.

The functions on tensors use their own methods alone, so torch is not imported here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """One way to lay out what a layer gives for an image.

    Parameters
    ----------
    channels : int
        Position of the number of channels in the shape.
    places : callable
        Shape → sizes of the axes that go over the image, empty if there are none.
    as_maps : callable
        Batch → the same as maps (n, c, h, w).
    """

    channels: int
    places: Callable[[tuple[int, ...]], tuple[int, ...]]
    as_maps: Callable[[Any], Any]


# The class token is not a place in the image, so it is left out of pooling.
LAYOUTS = {
    "chw": Layout(0, lambda s: s[1:], lambda x: x),
    "hwc": Layout(2, lambda s: s[:2], lambda x: x.permute(0, 3, 1, 2)),
    "tokens": Layout(1, lambda s: s[:1], lambda x: x.transpose(1, 2)[..., None]),
    "cls+tokens": Layout(
        1, lambda s: (s[0] - 1,), lambda x: x[:, 1:].transpose(1, 2)[..., None]
    ),
    "vector": Layout(0, lambda s: (), lambda x: x[..., None, None]),
}
