"""The images of one fit, decoded into a memory-mapped file, and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .._exceptions import ImageError, ImageWarning, warn_user
from .._images.batches import Batch, read_batches
from .._images.preparing import Preparation
from .._images.recipe import InputSpec
from .._images.windows import Images
from .._processes import fork_safe, resolve_threads
from .._report import warn_of_range
from .augmentation import margin
from .labels import HoldOut, Labels
from .scratch import scratch_array

READ_AT_ONCE = 32  # images that are written together


class UnusableImages(Exception):
    """Some images cannot be trained on, as their errors say."""

    def __init__(self, errors: list[ImageError]):
        super().__init__(errors)
        self.errors = errors


@dataclass(frozen=True)
class FitImages:
    """The images of a fit that could be read, and the errors of the others.

    Parameters
    ----------
    pixels : torch.Tensor of shape (m, 3, s, s)
        uint8 if all images are, otherwise floats on the scale 0 to 255. The margin
        around the network's own input size is for random crops.
    rows : ndarray of int, shape (m,)
        Their rows in X.
    sources : list of str
        The name of each of them in messages.
    in_range : ndarray of bool, shape (m,)
        Whether all pixel values of an image were within their stated range.
    errors : list of ImageError
        Of the images that could not be read.
    """

    pixels: torch.Tensor
    rows: np.ndarray
    sources: list[str]
    in_range: np.ndarray
    errors: list[ImageError]


@fork_safe
def read_pixels(
    images: Images, rows: Sequence[int], spec: InputSpec, value_range, n_jobs
) -> FitImages:
    """Images at the network's input size, with the margin of its recipe."""
    spec = replace(spec, image_size=spec.image_size + margin(spec))
    stack = _Stack(len(rows), spec.image_size)
    for batch in read_batches(
        images,
        rows,
        Preparation(spec, value_range),
        READ_AT_ONCE,
        resolve_threads(n_jobs),
        meanwhile=True,
    ):
        stack.add(batch)
    if not all(stack.in_range):
        warn_of_range(images.wording, stack.in_range.count(False))
    return stack.as_images()


class _Stack:
    """Images one after another in a file: 8-bit until one has more.

    Parameters
    ----------
    n, side : int
        How many images there may be, and how large they are.
    """

    def __init__(self, n: int, side: int):
        self._shape, self._rows = (n, side, side, 3), list[int]()
        self._sources, self._errors = list[str](), list[ImageError]()
        self.in_range = list[bool]()
        self._array = self._allocate(np.uint8)

    def _allocate(self, dtype) -> np.ndarray:
        return scratch_array(self._shape, dtype, f"The {self._shape[0]:,} images")

    def add(self, batch: Batch) -> None:
        """Add the images and errors of a batch."""
        n = len(self._rows)
        if batch.pixels.dtype != np.uint8 and self._array.dtype == np.uint8:
            before, self._array = self._array, self._allocate(np.float32)
            self._array[:n] = before[:n]
        self._array[n : n + len(batch.rows)] = batch.pixels[: len(batch.rows)]
        self._rows += batch.rows
        self._sources += batch.sources
        self.in_range += batch.in_range
        self._errors += batch.errors

    def as_images(self) -> FitImages:
        """All images that were added."""
        array = torch.from_numpy(self._array[: len(self._rows)])
        return FitImages(
            array.permute(0, 3, 1, 2),
            np.array(self._rows, int),
            self._sources,
            np.array(self.in_range, bool),
            self._errors,
        )


@dataclass(frozen=True)
class Data:
    """Images to train on or to validate with, and their targets.

    Parameters
    ----------
    images : FitImages
    places : torch.Tensor of shape (n,), int64
        Which of the images these are.
    targets : torch.Tensor of shape (n,), int64
    weights : torch.Tensor of shape (n,)
        Of the loss of each image, 1 on average.
    """

    images: FitImages
    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(
        cls,
        images: FitImages,
        places: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
    ) -> "Data":
        """Data from arrays; scales the weights."""
        scaled = torch.from_numpy(weights / weights.mean()).float()
        return cls(images, torch.from_numpy(places), torch.from_numpy(targets), scaled)

    def __len__(self):
        return len(self.targets)

    def at(self, positions) -> "Data":
        """Some of the images, whose pixels are not copied."""
        parts = (part[positions] for part in (self.places, self.targets, self.weights))
        return Data(self.images, *parts)

    def take(self, positions) -> torch.Tensor:
        """Pixels of some of the images, (b, 3, s, s)."""
        return self.images.pixels[self.places[positions]]

    def ranged(self, within: bool) -> "Data":
        """The images with all pixel values within their stated range, or the others."""
        in_range = torch.from_numpy(self.images.in_range)[self.places]
        return self.at(in_range if within else ~in_range)

    def errors(self, chosen: np.ndarray, reason: str) -> list[ImageError]:
        """An error for each image chosen by a mask."""
        rows, sources = self.images.rows, self.images.sources
        places = self.places.numpy()[chosen]
        return [ImageError(int(rows[i]), sources[i], reason) for i in places]


@dataclass(frozen=True)
class TrainingSet:
    """The images of a fit with their labels.

    Parameters
    ----------
    images : FitImages
    labels : Labels
        Of all rows of X; images of weight 0 are left out.
    hold_out : HoldOut or None
        Which images are held out; None trains on all of them.
    """

    images: FitImages
    labels: Labels
    hold_out: HoldOut | None

    @fork_safe
    def split(self) -> tuple[Data, Data | None]:
        """Images to train on, and those held out."""
        weights = self.labels.weights[self.images.rows]
        places = np.flatnonzero(weights)
        targets = self.labels.targets[self.images.rows][places]
        data = Data.of(self.images, places, targets, weights[places])
        if self.hold_out is None:
            return data, None
        train, held_out = self.hold_out.split(targets, self.labels.classes)
        return data.at(train), data.at(held_out)

    def without(
        self, errors: list[ImageError], raises: bool, needs_all_classes: bool
    ) -> "TrainingSet":
        """The images that have none of these errors.

        Parameters
        ----------
        errors : list of ImageError
        raises : bool
            Whether to raise the errors; otherwise one warning reports them.
        needs_all_classes : bool
            Whether each class needs an image; otherwise one image in all is enough.
        """
        if not errors:
            return self
        rows, n = [error.row for error in errors], len(self.labels.used)
        first = min(errors, key=lambda error: error.row)
        if raises:
            raise _all_errors(sorted(rows), first, n) from first.__cause__
        lost = self.labels.classes_without(rows)
        if lost and (needs_all_classes or len(rows) == n):
            reason = f"{first.reason}. No image of the classes {lost[:5]} can be used"
            raise ImageError(first.row, first.source, reason) from first.__cause__
        warn_user(
            f"{len(errors)} of {n} images cannot be used and are left out; errors_ "
            f"lists them. The first is {first}.",
            ImageWarning,
        )
        return replace(self, labels=self.labels.without(rows))


def _all_errors(rows: list[int], first: ImageError, n: int) -> ImageError:
    """The first error, which says how many others there are."""
    if len(rows) == 1:
        return first
    others = ", ".join(map(str, rows[1:6]))
    reason = (
        f"{first.reason}. {len(rows)} of {n} images cannot be used (also rows "
        f"{others}{', ...' if len(rows) > 6 else ''}); nothing was trained"
    )
    return ImageError(first.row, first.source, reason)


def read_training_set(
    images: Images,
    labels: Labels,
    hold_out: HoldOut | None,
    spec: InputSpec,
    value_range,
    n_jobs,
) -> TrainingSet:
    """Decode the images that count, once it is clear that they can be split."""
    used = labels.used
    if hold_out is not None:
        hold_out.split(labels.targets[used], labels.classes)
    read = read_pixels(images, used.tolist(), spec, value_range, n_jobs)
    return TrainingSet(read, labels, hold_out)
