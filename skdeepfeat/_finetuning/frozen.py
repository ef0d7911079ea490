"""Features and activations of the frozen blocks, computed once for all epochs."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from .._engines.tf32 import arithmetic
from .._exceptions import FeatureWarning, ImageError, warn_user
from .._images.windows import IMAGES
from .data import Data
from .parts import Parts
from .scratch import scratch_array

FROZEN_BATCH = 16  # images that go through the frozen blocks at once


class _Computed(NamedTuple):
    """What one pass over all images gives.

    Parameters
    ----------
    rows : torch.Tensor of shape (n, d)
    finite : torch.Tensor of shape (n,), bool
        Whether all features of an image are finite.
    entered : torch.Tensor or None
        The activations where the tail begins, in half precision, if they are kept.
    """

    rows: torch.Tensor
    finite: torch.Tensor
    entered: torch.Tensor | None


class FrozenFeatures:
    """Features of all images by the untouched network, computed at first use.

    Parameters
    ----------
    parts : Parts
    data : Data
    keep : bool
        Whether to keep the activations where the tail begins, in half precision.
    """

    def __init__(self, parts: Parts, data: Data, keep: bool = False):
        self._parts, self.data = parts, data
        self.keeps = keep and parts.tuned.start is not None

    @property
    def rows(self) -> torch.Tensor:
        """What enters the head, (n, d)."""
        return self._computed.rows

    @property
    def entered(self) -> torch.Tensor | None:
        """What enters the tail; None if that is not kept."""
        return self._computed.entered if self.keeps else None

    def take_rows(self, device) -> Callable:
        """A function that maps positions to the features of images."""
        return lambda chosen: self.rows[chosen].to(device)

    def take_entered(self, device) -> Callable:
        """A function that maps positions to what enters the tail, if that is kept."""
        entered = self.entered
        assert entered is not None
        return lambda chosen: entered[chosen].to(device).float()

    @cached_property
    def _computed(self) -> _Computed:
        start, end = self._parts.tuned.start, self._parts.tuned.end
        n, kept = len(self.data), None
        rows = _room_for_rows(n, end.features)
        finite = torch.empty(n, dtype=torch.bool)
        for chunk in chunks(n):
            values = self._activations(chunk)
            rows[chunk] = self._parts.pooled(values[end.node]).cpu()
            finite[chunk] = torch.isfinite(rows[chunk]).all(1)
            if self.keeps and chunk.start == 0:
                kept = _room_for(n, values[start])
            if kept is not None and finite[chunk].all():
                kept = _put(kept, chunk, values[start])
        return _Computed(rows, finite, kept)

    @torch.inference_mode()
    def _activations(self, chunk: slice) -> dict:
        batch = self._parts.prepare(self.data.take(chunk))
        with arithmetic("float32", batch.device.type):
            return self._parts.frozen(batch)

    def errors(self, all_images: bool) -> list[ImageError]:
        """Errors of the images whose features are not finite.

        Checking all images costs nothing if their features are needed anyway.
        Otherwise only images with pixel values out of range are checked, since they
        alone differ from what networks are trained on; they pass through the network
        once more.
        """
        if all_images:
            return self.data.errors(~self._computed.finite.numpy(), IMAGES.not_finite)
        suspects = self.data.ranged(within=False)
        if len(suspects) == 0:
            return []
        return FrozenFeatures(self._parts, suspects).errors(all_images=True)

    def scaling(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """Mean and deviation of each feature.

        Deviations are floored at a tenth of their RMS.
        """
        share = (weights / weights.sum()).double()
        mean = self._weighted_mean(share, lambda rows: rows)
        variance = self._weighted_mean(share, lambda rows: (rows - mean).square())
        scale = variance.sqrt()
        floor = 0.1 * scale.square().mean().sqrt()
        if floor == 0:  # all images are the same
            scale = torch.ones_like(scale)
        parts = {"mean": mean, "scale": scale.clamp(min=floor)}
        return {name: part.float().numpy() for name, part in parts.items()}

    def _weighted_mean(self, share: torch.Tensor, function) -> torch.Tensor:
        """Weighted mean of a function of the rows, chunk by chunk."""
        total = torch.zeros(self.rows.shape[1], dtype=share.dtype)
        for chunk in chunks(len(share)):
            total += share[chunk] @ function(self.rows[chunk].double())
        return total


def chunks(n: int) -> Iterator[slice]:
    """Slices of n images, each of which goes through the frozen blocks at once."""
    return (slice(i, min(n, i + FROZEN_BATCH)) for i in range(0, n, FROZEN_BATCH))


def _room_for_rows(n: int, width: int) -> torch.Tensor:
    """A file for the features of n images, as a tensor."""
    what = f"The features of {n:,} images"
    return torch.from_numpy(scratch_array((n, width), np.float32, what))


def _room_for(n: int, first: torch.Tensor) -> torch.Tensor | None:
    """A file for the activations of n images, as a tensor; None if it is too large."""
    shape = (n, *first.shape[1:])
    size = 2 * math.prod(shape)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size <= 0.5 * free:
        return torch.from_numpy(scratch_array(shape, np.float16, "The activations"))
    _warn_not_kept(
        f"would take {size:,} bytes, more than half of the {free:,} bytes free in "
        f"{folder!r}"
    )
    return None


def _put(kept: torch.Tensor, chunk: slice, entered: torch.Tensor):
    """Keep the activations of some images; returns None if they cannot be kept."""
    kept[chunk] = entered.half().cpu()
    if torch.isfinite(kept[chunk]).all():
        return kept
    _warn_not_kept("do not fit in half precision")
    return None


def _warn_not_kept(why: str) -> None:
    warn_user(
        f"The activations of the frozen blocks {why}. They are computed in every epoch "
        "instead of once.",
        FeatureWarning,
    )
