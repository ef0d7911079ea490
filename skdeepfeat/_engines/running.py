"""Drives batches → activations → pooled rows on one or several devices.

What computes a batch is a network of an engine, one for each device. All have three
steps: ``load`` (pixels to the device), ``start`` (the computation, which need not have
ended when it returns) and ``finish`` (the rows). Nothing here imports torch, so what
another engine has prepared before needs none.
"""

import importlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, cycle
from typing import Any

import numpy as np

from .._caches import SharedCache
from .._clock import Clock
from .._images.batches import Batch, Readable, read_batches
from .._store.base import Computed
from .base import PooledLayers
from .devices import device_class, resolve_batch_size, resolve_threads

NETWORKS = {
    "torch": ".torch:TorchNetwork",
    "openvino": ".openvino:OpenVINONetwork",
}


# Sizes of batches for which memory ran out, by what was computed and where.
_refused = SharedCache(256)


def refused_sizes(pooled: PooledLayers, device: str, precision: str) -> list[int]:
    """The list that all calls share, so that the next one begins below its sizes."""
    return _refused.get((pooled.digest, device, precision), list)


class Engine:
    """Networks cut after the last layer, each on its device.

    Parameters
    ----------
    pooled : PooledLayers
    devices : tuple of str
        Resolved; all of one class.
    precision : str
    batch_size : int or "auto"
    engine : {"torch", "openvino"}, default="torch"
    """

    def __init__(
        self,
        pooled: PooledLayers,
        devices: tuple[str, ...],
        precision,
        batch_size,
        engine="torch",
    ):
        self.spec = pooled.source.input
        size = self.spec.image_size
        kind = device_class(devices)
        most = resolve_batch_size(batch_size, engine, kind, size)
        refused = [refused_sizes(pooled, device, precision) for device in devices]
        self.batch_size = min([most, *(n // 2 for n in chain.from_iterable(refused))])
        module, _, name = NETWORKS[engine].partition(":")
        network = getattr(importlib.import_module(module, __package__), name)
        self.networks = [
            network(pooled, device, precision, self.batch_size) for device in devices
        ]
        self._refused = dict(zip(self.networks, refused, strict=True))

    def run(
        self, images: Readable, rows: Iterable[int], value_range, decode, n_jobs, clock
    ) -> Iterator[Computed]:
        """Features of these rows of X, in order, a batch at a time.

        The devices take turns; a batch is started before the one before it is asked
        for its rows, as far as the networks say. If none is started ahead, a
        computation has all cores, and images are decoded between. The clock measures
        the wait for images, the copying, and the network.
        """
        most = sum(network.ahead for network in self.networks)
        batches = read_batches(
            images,
            rows,
            self.spec,
            value_range,
            decode,
            self.batch_size,
            resolve_threads(n_jobs),
            meanwhile=most > 0,
        )
        turns = cycle(self.networks)
        started: deque[tuple[Batch, Any, list]] = deque()
        for batch in self._waited_for(batches, clock):
            network = next(turns)
            started.append((batch, network, self._start(network, batch.pixels, clock)))
            if len(started) > most:
                yield self._finish(*started.popleft(), clock)
        while started:
            yield self._finish(*started.popleft(), clock)

    def _waited_for(self, batches, clock: Clock) -> Iterator[Batch]:
        """The batches; the wait for each is split as its threads spent their time."""
        wait = Clock()
        for batch in wait.each(batches, "wait"):
            seconds = wait.seconds.pop("wait")
            for part, share in batch.shares.items():
                clock.seconds[part] += share * seconds
            yield batch

    def _start(self, network, pixels: np.ndarray, clock: Clock) -> list:
        """Start a batch, in smaller pieces once memory has run out."""
        pieces: list = []
        start = 0
        while start < len(pixels):
            chunk = pixels[start : start + self.batch_size]
            try:
                with clock.measure("copying"):
                    loaded = network.load(chunk)
                with clock.measure("network"):
                    pieces.append(network.start(loaded))
                start += len(chunk)
            except network.out_of_memory:
                # What is finished is kept; the rest goes on in smaller pieces.
                if len(chunk) == 1:
                    raise
                self._refused[network].append(len(chunk))
                self.batch_size = len(chunk) // 2
        return pieces

    def _finish(self, batch: Batch, network, pieces: list, clock: Clock) -> Computed:
        """Rows of one batch for each layer, without the padding."""
        with clock.measure("network"):
            parts = [network.finish(piece) for piece in pieces]
        n = len(batch.rows)
        features = [np.concatenate(rows)[:n] for rows in zip(*parts, strict=True)]
        return Computed(
            batch.rows, features, batch.errors, batch.in_range, batch.sources
        )
