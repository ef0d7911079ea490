"""Activations and features of the frozen blocks, computed once for all epochs."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from .._engines.arithmetic import arithmetic
from .._exceptions import FeatureWarning, warn_user
from .data import Data
from .parts import Parts
from .scratch import scratch_array

FROZEN_BATCH = 16  # images that go through the frozen blocks at once


class Frozen:
    """Activations of the frozen trunk for all images, computed when first asked for.

    Parameters
    ----------
    parts : Parts
    data : Data
    keep : bool
        Whether to keep the activations where the tail begins, in half precision.
    """

    def __init__(self, parts: Parts, data: Data, keep: bool):
        self._parts, self._data = parts, data
        self._keep = keep and parts.tuned.start is not None

    @property
    def rows(self) -> torch.Tensor:
        """What enters the head, (n, d)."""
        return self._computed[0]

    @property
    def entered(self) -> torch.Tensor | None:
        """What enters the tail; None if that is not kept."""
        return self._computed[1] if self._keep else None

    @cached_property
    def _computed(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts, n = self._parts, len(self._data)
        size, kept = (n, parts.tuned.width), None
        array = scratch_array(size, np.float32, f"The features of {n:,} images")
        rows = torch.from_numpy(array)
        for chunk in chunks(n):
            values = self._frozen(chunk)
            rows[chunk] = parts.pooled(values[parts.tuned.end.node]).cpu()
            if self._keep and chunk.start == 0:
                kept = _room_for(n, values[parts.tuned.start])
            if kept is not None:
                kept = _put(kept, chunk, values[parts.tuned.start])
        return rows, kept

    @torch.inference_mode()
    def _frozen(self, chunk: slice) -> dict:
        batch = self._parts.prepare(self._data.take(chunk))
        with arithmetic("float32", batch.device.type):
            return self._parts.frozen(batch)

    def scaling(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """Mean and deviation of each feature; hardly any is as good as a little."""
        share = (weights / weights.sum()).double()
        mean = self._weighted(share, lambda rows: rows)
        scale = self._weighted(share, lambda rows: (rows - mean).square()).sqrt()
        floor = 0.1 * scale.square().mean().sqrt()
        if floor == 0:  # images that are all the same tell nothing
            scale = torch.ones_like(scale)
        parts = {"mean": mean, "scale": scale.clamp(min=floor)}
        return {name: part.float().numpy() for name, part in parts.items()}

    def _weighted(self, share: torch.Tensor, function) -> torch.Tensor:
        """Weighted mean of a function of the rows, chunk by chunk."""
        total = torch.zeros(self.rows.shape[1], dtype=share.dtype)
        for chunk in chunks(len(share)):
            total += share[chunk] @ function(self.rows[chunk].double())
        return total


def chunks(n: int) -> Iterator[slice]:
    """What goes through the frozen trunk at once."""
    return (slice(i, min(n, i + FROZEN_BATCH)) for i in range(0, n, FROZEN_BATCH))


def _room_for(n: int, first: torch.Tensor) -> torch.Tensor | None:
    """A file for the activations of n images, as a tensor; None if it is too large."""
    shape = (n, *first.shape[1:])
    size = 2 * math.prod(shape)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size <= 0.5 * free:
        return torch.from_numpy(scratch_array(shape, np.float16, "The activations"))
    _say_not_kept(
        f"would take {size:,} bytes, more than half of the {free:,} that are free in "
        f"{folder!r}"
    )
    return None


def _put(kept: torch.Tensor, chunk: slice, entered: torch.Tensor):
    """Keep the activations of some images; gives None if they cannot be kept."""
    kept[chunk] = entered.half().cpu()
    if torch.isfinite(kept[chunk]).all():
        return kept
    _say_not_kept("do not fit in half precision")
    return None


def _say_not_kept(why: str) -> None:
    warn_user(
        f"The activations of the frozen blocks {why}. They are computed in every epoch "
        "instead of once.",
        FeatureWarning,
    )
