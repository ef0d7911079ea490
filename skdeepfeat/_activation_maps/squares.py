"""What is left out of the pooling, one after another: squares in the input."""

from dataclasses import dataclass

import numpy as np

SIDE = 1 / 7  # of a square, as a share of the side of the input
FACTORS = (1, 2, 3)  # of it, for heads whose scores change in steps
MOST = 14  # squares along a side, half a square apart
ROUNDING = 1e-9


@dataclass(frozen=True)
class Squares:
    """Squares whose centres are spread evenly over the input.

    Parameters
    ----------
    n_sides : int
        Number of squares along each side.
    sizes : tuple of float
        Sides of the squares around each centre, as shares of the side of the input.
    """

    n_sides: int
    sizes: tuple[float, ...]

    @classmethod
    def over(cls, n_places: int, method: str, in_steps: bool) -> "Squares":
        """The squares over maps with this number of places along a side."""
        if method == "places":
            return cls(n_places, (1 / n_places,))
        side = max(SIDE, 1 / n_places)
        factors = FACTORS if in_steps else FACTORS[:1]
        sizes = tuple(factor * side for factor in factors if factor * side < 1)
        return cls(min(n_places, MOST), sizes)

    def __len__(self):
        return len(self.sizes) * self.n_sides**2

    def maps(self, falls: np.ndarray) -> np.ndarray:
        """Maps (n, n_sides, n_sides) of numbers (n, k), one for each square."""
        shape = len(falls), len(self.sizes), self.n_sides, self.n_sides
        return falls.reshape(shape).mean(1)

    def kept(self, n_places: int) -> np.ndarray:
        """Shares (1 + n_squares, n_places²) of the places of maps that are kept.

        The first row keeps all of them.
        """
        everything = np.zeros((1, n_places**2))
        left_out = [self._left_out(n_places, size) for size in self.sizes]
        return 1 - np.concatenate([everything, *left_out])

    def _left_out(self, n_places: int, size: float) -> np.ndarray:
        """Shares (n_sides², n_places²) of places that squares of one size cover."""
        covered = self._covered(n_places, size)
        both = covered[:, None, :, None] * covered[None, :, None, :]
        return both.reshape(self.n_sides**2, n_places**2)

    def _covered(self, n_places: int, size: float) -> np.ndarray:
        """Shares (n_sides, n_places) of the places along a side that squares cover.

        Squares at the margins are moved inwards, so that all have the same size.
        """
        centres = (np.arange(self.n_sides) + 0.5) / self.n_sides
        start = np.clip(centres - size / 2, 0, 1 - size)[:, None]
        edges = np.arange(n_places + 1) / n_places
        first = np.maximum(start, edges[:-1])
        last = np.minimum(start + size, edges[1:])
        covered = np.clip((last - first) * n_places, 0, 1)
        whole, none = covered > 1 - ROUNDING, covered < ROUNDING
        return np.where(whole, 1.0, np.where(none, 0.0, covered))
