"""The images of one fit, decoded into a memory-mapped file, with their targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .._engines.devices import resolve_threads
from .._exceptions import ImageError
from .._images.batches import read_batches
from .._images.recipe import InputSpec
from .._images.windows import Images
from .._report import warn_of_range
from .augmentation import margin
from .scratch import scratch_array

READ_AT_ONCE = 32  # images that are written together


@dataclass(frozen=True)
class FitImages:
    """The images of a fit that could be read, and the errors of the others.

    Parameters
    ----------
    pixels : torch.Tensor of shape (m, 3, s, s)
        8-bit where all images are, or floats on the scale 0 to 255. The margin around
        the network's own input size is for random crops.
    rows : ndarray of int, shape (m,)
        Their places in X.
    errors : list of ImageError
    """

    pixels: torch.Tensor
    rows: np.ndarray
    errors: list[ImageError]


def read_pixels(
    images: Images, rows: Sequence[int], spec: InputSpec, value_range, n_jobs
) -> FitImages:
    """Images at the network's input size and the margin of its recipe."""
    spec = replace(spec, image_size=spec.image_size + margin(spec))
    stack = _Stack(len(rows), spec.image_size)
    read: list[int] = []
    errors: list[ImageError] = []
    in_range = True
    for batch in read_batches(
        images,
        rows,
        spec,
        value_range,
        "exact",
        READ_AT_ONCE,
        resolve_threads(n_jobs),
        meanwhile=True,
    ):
        stack.add(batch.pixels[: len(batch.rows)])
        read += batch.rows
        errors += batch.errors
        in_range &= all(batch.in_range)
    if not in_range:
        warn_of_range()
    return FitImages(stack.as_tensor(), np.array(read, int), errors)


class _Stack:
    """Images one after another in a file: of 8 bits until one has more.

    Parameters
    ----------
    n, side : int
        How many images there may be, and how large they are.
    """

    def __init__(self, n: int, side: int):
        self._shape, self._n = (n, side, side, 3), 0
        self._array = self._room(np.uint8)

    def _room(self, dtype) -> np.ndarray:
        return scratch_array(self._shape, dtype, f"The {self._shape[0]:,} images")

    def add(self, pixels: np.ndarray) -> None:
        """Some more images (b, s, s, 3)."""
        if pixels.dtype != np.uint8 and self._array.dtype == np.uint8:
            before, self._array = self._array, self._room(np.float32)
            self._array[: self._n] = before[: self._n]
        self._array[self._n : self._n + len(pixels)] = pixels
        self._n += len(pixels)

    def as_tensor(self) -> torch.Tensor:
        """(m, 3, s, s)"""
        return torch.from_numpy(self._array[: self._n]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Data:
    """Images to learn from or to check with, and their targets.

    Parameters
    ----------
    pixels : torch.Tensor of shape (m, 3, s, s)
        As in :class:`FitImages`.
    places : torch.Tensor of shape (n,), int64
        Which of them are meant.
    targets : torch.Tensor of shape (n,), int64
    weights : torch.Tensor of shape (n,)
        Of the loss of each image, 1 on average.
    """

    pixels: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, pixels: torch.Tensor, targets: np.ndarray, weights: np.ndarray):
        """All images, from arrays; scales the weights."""
        scaled = torch.from_numpy(weights / weights.mean()).float()
        places = torch.arange(len(targets))
        return cls(pixels, places, torch.from_numpy(targets), scaled)

    def __len__(self):
        return len(self.targets)

    def at(self, rows) -> "Data":
        """Some of the images, which stay where they are."""
        parts = (part[rows] for part in (self.places, self.targets, self.weights))
        return Data(self.pixels, *parts)

    def take(self, rows) -> torch.Tensor:
        """Pixels of some of the images, (b, 3, s, s)."""
        return self.pixels[self.places[rows]]
