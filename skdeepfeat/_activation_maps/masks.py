"""Which places are left out of the pooling together, and the maps that follow."""

from typing import Protocol

import numpy as np

from .random_cells import RandomCells
from .squares import Squares

SIDE = 1 / 7  # of a square, as a share of the side of the input
MOST = 14  # places along a side of a map


class Masks(Protocol):
    """Shares of places that are kept, one row after another."""

    def __len__(self) -> int:
        """Number of masks."""

    def kept(self, n_places: int) -> np.ndarray:
        """Shares (n_masks, n_places²) of the places of maps that are kept."""

    def maps(self, falls: np.ndarray) -> np.ndarray:
        """Maps (n, h, w), by how much the score falls with each mask (n, n_masks)."""


def masks_over(n_places: int, method: str, smooth: bool) -> Masks:
    """The masks over maps with this number of places along a side.

    If the score is `smooth`, leaving out one place alone shows what it adds.
    """
    if method == "places":
        return Squares(n_places, 1 / n_places)
    n_sides = min(n_places, MOST)
    if smooth:
        return Squares(n_sides, max(SIDE, 1 / n_places))
    return RandomCells(n_sides)
