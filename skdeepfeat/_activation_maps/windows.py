"""What is left out of the pooling, one after another: squares in the network's input."""

from dataclasses import dataclass

import numpy as np

SIDE = 1 / 7  # of a window, as a share of the side of the input
MOST = 14  # windows along a side, half a window apart
ROUNDING = 1e-9


@dataclass(frozen=True)
class Windows:
    """Square windows, whose centres are spread evenly over the input.

    Parameters
    ----------
    n_sides : int
        Number of windows along each side.
    side : float
        Side of a window, as a share of the side of the input.
    """

    n_sides: int
    side: float

    @classmethod
    def over(cls, n_places: int, method: str) -> "Windows":
        """The windows over maps with this number of places along a side."""
        if method == "places":
            return cls(n_places, 1 / n_places)
        return cls(min(n_places, MOST), max(SIDE, 1 / n_places))

    def __len__(self):
        return self.n_sides**2

    def kept(self, n_places: int) -> np.ndarray:
        """Shares (1 + n_windows, n_places²) of the places of maps that are kept.

        The first row keeps all of them.
        """
        covered = self._covered(n_places)
        both = covered[:, None, :, None] * covered[None, :, None, :]
        left_out = both.reshape(len(self), n_places**2)
        return 1 - np.concatenate([np.zeros((1, n_places**2)), left_out])

    def _covered(self, n_places: int) -> np.ndarray:
        """Shares (n_sides, n_places) of the places along a side that windows cover.

        Windows at the margins are moved inwards, so that all have the same size.
        """
        centres = (np.arange(self.n_sides) + 0.5) / self.n_sides
        start = np.clip(centres - self.side / 2, 0, 1 - self.side)[:, None]
        edges = np.arange(n_places + 1) / n_places
        first, last = np.maximum(start, edges[:-1]), np.minimum(start + self.side, edges[1:])
        covered = np.clip((last - first) * n_places, 0, 1)
        whole, none = covered > 1 - ROUNDING, covered < ROUNDING
        return np.where(whole, 1.0, np.where(none, 0.0, covered))
