"""One row of X → pixels at the input size of a network. Nothing here imports torch."""

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .._clock import Clock
from .._exceptions import ImageError
from .._processes import after_fork
from .budget import Budget
from .cells import Cell
from .reasons import row_errors
from .recipe import LARGEST_RESIZED, InputSpec, prepare, resized_size

# Pixels that all threads decode at once; a larger image is decoded alone.
decoded = Budget(2**27)
after_fork(decoded.refill)


@dataclass(frozen=True)
class Prepared:
    """One image as it enters a network.

    Parameters
    ----------
    pixels : ndarray of shape (s, s, 3), uint8 or float32
        On the scale 0 to 255.
    in_range : bool
        Whether all pixel values were within their stated range.
    source : str
        The name of the image in messages.
    """

    pixels: np.ndarray
    in_range: bool
    source: str


@dataclass(frozen=True)
class Preparation:
    """How cells become pixels.

    Parameters
    ----------
    spec : InputSpec
        What the network requires.
    value_range : tuple of float, default=None
        Values of black and white; None depends on the dtype.
    decode : {"exact", "fast"}, default="exact"
    """

    spec: InputSpec
    value_range: tuple[float, float] | None = None
    decode: str = "exact"

    def apply(self, cell: Cell, budget: "Shares | None" = None) -> Prepared:
        """The pixels of a cell that holds its content; raises ImageError."""
        budget = budget or decoded
        with row_errors(cell.row, cell.source), contextlib.ExitStack() as held:

            def reserve(size: tuple[int, int]) -> None:
                """Wait until there is room for an image of this width and height."""
                held.enter_context(budget.share(self.n_pixels(size)))

            exact = self.decode == "exact"
            enough = None if exact else self.spec.resize or self.spec.image_size
            pixels = cell.open(self.value_range, enough, reserve)
            ready = prepare(pixels, self.spec, self.decode)
            return Prepared(ready, pixels.in_range, cell.source)

    def n_pixels(self, size: tuple[int, int]) -> int:
        """How many pixels an image of this width and height takes at most."""
        enlarged = min(math.prod(resized_size(size, self.spec)), LARGEST_RESIZED)
        return max(math.prod(size), enlarged)


class Shares(Protocol):
    """What limits how many pixels are decoded at once."""

    def share(self, needed: int) -> AbstractContextManager[None]:
        """A context in which this many pixels may be decoded."""


class Readable(Protocol):
    """A source of rows of X."""

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError."""

    def read_ahead(self, row: int) -> None:
        """Prepare for a row that is needed soon."""


def read_row(
    images: Readable, row: int, how: Preparation, clock: Clock | None = None
) -> Prepared | ImageError:
    """The pixels of a row at the input size, or its error."""
    clock = clock or Clock()
    try:
        with clock.measure("reading"):
            cell = images.read(row)
        with clock.measure("decoding"):
            return how.apply(cell)
    except ImageError as error:
        return error
