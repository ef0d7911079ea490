"""Leave random halves of the input out of the pooling (Petsiuk et al. 2018)."""

import math
from dataclasses import dataclass

import numpy as np

N_MASKS = 200
CELL = 1 / 3  # side of what is left out or kept together, of that of the input


@dataclass(frozen=True)
class RandomCells:
    """Grids of cells at random offsets, each cell kept or not; always the same ones.

    Parameters
    ----------
    n_sides : int
        Number of places along each side of the maps of what was left out.
    """

    n_sides: int

    def __len__(self):
        return N_MASKS

    def maps(self, falls: np.ndarray) -> np.ndarray:
        """How much more the score falls without each place than with it, on average.

        Falls (n, n_masks) → maps (n, n_sides, n_sides).
        """
        kept = self.kept(self.n_sides)
        with_place = falls @ kept / kept.sum(0)
        without = falls @ (1 - kept) / (1 - kept).sum(0)
        return (without - with_place).reshape(-1, self.n_sides, self.n_sides)

    def kept(self, n_places: int) -> np.ndarray:
        """Which of the places of maps are kept, 1 or 0: (n_masks, n_places²)."""
        rng = np.random.default_rng(0)
        n_cells = math.ceil(1 / CELL) + 1
        cells = rng.random((N_MASKS, n_cells, n_cells)) < 0.5
        centres = (np.arange(n_places) + 0.5) / n_places
        y, x = ((rng.random((2, N_MASKS, 1)) * CELL + centres) / CELL).astype(int)
        mask = np.arange(N_MASKS)[:, None, None]
        kept = cells[mask, y[:, :, None], x[:, None, :]].reshape(N_MASKS, -1)
        kept[~kept.any(1)] = True  # without any place there is nothing to pool
        return kept.astype(float)
