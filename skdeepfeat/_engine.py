"""Drives batches → activations → pooled rows on a device.

The engine turns the rows of X that the store lacks into features, batch by batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ._activations import activations_of
from ._backbones import Layer, WeightsSource
from ._batches import Batch, read_batches
from ._device import resolve_batch_size, resolve_device, resolve_threads
from ._exceptions import ImageError, WeightsError
from ._images import Images
from ._networks import PRECISIONS, get_network
from ._pooling import pool
from ._progress import Clock


@dataclass(frozen=True)
class Computed:
    """Features of one batch.

    Parameters
    ----------
    rows : list of int
        Positions in X.
    features : list of ndarray of shape (len(rows), width), float32
        One for each layer of the plan.
    errors : list of ImageError
        Of the rows of this batch that could not be read.
    in_range : bool
        Whether all pixel values were within their stated range.
    """

    rows: list[int]
    features: list[np.ndarray]
    errors: list[ImageError]
    in_range: bool


class Engine:
    """A network cut after the last layer, on its device.

    Parameters
    ----------
    source : WeightsSource
    weights_key : bytes
        Digest of the weights.
    layers : sequence of (Layer, str)
        What to read, and how it is pooled.
    device, precision : str
    batch_size : int or "auto"
    """

    def __init__(
        self,
        source: WeightsSource,
        weights_key: bytes,
        layers: Sequence[tuple[Layer, str]],
        device: str,
        precision: str,
        batch_size,
    ):
        self.spec, self.layers = source.input, layers
        self.device = resolve_device(device)
        self.dtype = PRECISIONS[precision]
        size = self.spec.image_size
        self.batch_size = resolve_batch_size(batch_size, self.device, size)
        network = get_network(source, weights_key, str(self.device), precision)
        nodes = tuple(dict.fromkeys(layer.node for layer, _ in layers))
        self.network = activations_of(
            network, source.backbone, self.spec.image_size, nodes
        )
        _check_head(self.network, network.absent, source)

    def run(
        self, images: Images, rows: Iterable[int], value_range, n_jobs, clock: Clock
    ) -> Iterator[Computed]:
        """Features of these rows of X, in order, a batch at a time.

        The clock measures the network, and the wait for decoded images.
        """
        threads = resolve_threads(n_jobs)
        size = self.batch_size
        batches = read_batches(images, rows, self.spec, value_range, size, threads)
        for batch in clock.each(batches, "decoding"):
            with clock.measure("network"):
                features = self._features(batch)
            yield Computed(batch.rows, features, batch.errors, batch.in_range)

    def _features(self, batch: Batch) -> list[np.ndarray]:
        """Rows of one batch for each layer, without the padding."""
        parts: list[list[torch.Tensor]] = []
        start = 0
        while start < len(batch.pixels):
            chunk = batch.pixels[start : start + self.batch_size]
            try:
                parts.append(self._forward(chunk))
                start += len(chunk)
            except torch.OutOfMemoryError:
                # What is finished is kept; the rest goes on in smaller pieces.
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
        n = len(batch.rows)
        return [torch.cat(rows)[:n].numpy() for rows in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(b, 3, h, w) → one (b, width) float32 tensor on the CPU for each layer."""
        activations = self.network(pixels.to(self.device, self.dtype))
        return [
            torch.cat(pool(activations[layer.node], layer.layout, pooling), 1).cpu()
            for layer, pooling in self.layers
        ]


def _check_head(cut, absent: frozenset, source: WeightsSource) -> None:
    """Refuse a layer beyond a head that the weights file does not have."""
    if absent.intersection(cut.state_dict()):
        raise WeightsError(
            f"The weights in {str(source.path)!r} have no classes that fit backbone "
            f"{source.backbone.name!r}, so layer='logits' cannot be read from them. "
            "Ask for layer='penultimate' or an earlier one."
        )
