"""Leave squares of the input out of the pooling, one after another."""

from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9


@dataclass(frozen=True)
class Squares:
    """Squares whose centres are spread evenly over the input.

    Parameters
    ----------
    n_sides : int
        Number of squares along each side.
    size : float
        Side of each square, as a share of the side of the input.
    """

    n_sides: int
    size: float

    def __len__(self):
        return self.n_sides**2

    def maps(self, falls: np.ndarray) -> np.ndarray:
        """The falls (n, n_squares), as maps (n, n_sides, n_sides)."""
        return falls.reshape(len(falls), self.n_sides, self.n_sides)

    def kept(self, n_places: int) -> np.ndarray:
        """Shares (n_squares, n_places²) of the places of maps that are kept."""
        covered = self._covered(n_places)
        both = covered[:, None, :, None] * covered[None, :, None, :]
        return 1 - both.reshape(self.n_sides**2, n_places**2)

    def _covered(self, n_places: int) -> np.ndarray:
        """Shares (n_sides, n_places) of the places along a side that squares cover.

        Squares at the margins are moved inwards, so that all have the same size.
        """
        centres = (np.arange(self.n_sides) + 0.5) / self.n_sides
        start = np.clip(centres - self.size / 2, 0, 1 - self.size)[:, None]
        edges = np.arange(n_places + 1) / n_places
        first = np.maximum(start, edges[:-1])
        last = np.minimum(start + self.size, edges[1:])
        covered = np.clip((last - first) * n_places, 0, 1)
        whole, none = covered > 1 - ROUNDING, covered < ROUNDING
        return np.where(whole, 1.0, np.where(none, 0.0, covered))
