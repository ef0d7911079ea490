"""Drives one or several devices: batches of pixels → pooled rows, in order.

A ``Runner`` of an engine computes the batches of each device. Nothing here imports
torch, which networks that another engine has converted before do not need.
"""

import importlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, cycle

import numpy as np

from .._caches import SharedCache
from .._clock import Clock
from .._store.base import Computed
from .._store.rows import Reading
from .base import Batch, PooledLayers, Runner
from .devices import device_class, resolve_batch_size

# (engine, what the network takes) → the class that runs it
RUNNERS = {
    ("torch", "pixels"): ".torch:TorchRunner",
    ("openvino", "pixels"): ".openvino:OpenVINORunner",
    ("torch", "tokens"): ".tokens:TokenRunner",
    ("numpy", "words"): ".words:WordRunner",
}


def runner_class(engine: str, takes: str) -> type[Runner]:
    """The class that runs networks of an engine, imported when first needed."""
    module, _, name = RUNNERS[engine, takes].partition(":")
    return getattr(importlib.import_module(module, __package__), name)


# Batch sizes for which memory ran out, by what was computed and where.
_refused = SharedCache(256)


def refused_sizes(pooled: PooledLayers, device: str, precision: str) -> list[int]:
    """The list that all calls share, so that the next call starts with smaller ones."""
    return _refused.get((pooled.digest, device, precision), list)


class Engine:
    """One runner for each device, which take turns.

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
        kind = device_class(devices)
        most = resolve_batch_size(batch_size, engine, kind, self.spec)
        refused = [refused_sizes(pooled, device, precision) for device in devices]
        self.batch_size = min([most, *(n // 2 for n in chain.from_iterable(refused))])
        make = runner_class(engine, self.spec.takes)
        self.runners = [
            make(pooled, device, precision, self.batch_size) for device in devices
        ]
        self._layers = pooled.layers
        self._refused = dict(zip(self.runners, refused, strict=True))

    def run(
        self, window, rows: Iterable[int], reading: Reading, clock: Clock
    ) -> Iterator[Computed]:
        """Features of these rows of a window, a batch at a time.

        The devices take turns, and as many batches are started ahead as their runners
        allow. If none is, each computation has all cores, and rows are read in between.
        The clock measures the wait for them, the copying, and the network.
        """
        ahead = sum(runner.ahead for runner in self.runners)
        batches = reading.batches(
            window, rows, self.spec, self.batch_size, meanwhile=ahead > 0
        )
        turns = cycle(self.runners)
        started: deque[tuple[Batch, Runner, list]] = deque()
        for batch in self._waited_for(batches, clock):
            runner = next(turns)
            started.append((batch, runner, self._start(runner, batch.input, clock)))
            if len(started) > ahead:
                yield self._finish(*started.popleft(), clock)
        while started:
            yield self._finish(*started.popleft(), clock)

    def _waited_for(self, batches, clock: Clock) -> Iterator[Batch]:
        """The batches; each wait is split in the way its threads spent their time."""
        wait = Clock()
        for batch in wait.each(batches, "wait"):
            seconds = wait.seconds.pop("wait")
            for part, share in batch.shares.items():
                clock.seconds[part] += share * seconds
            yield batch

    def _start(self, runner: Runner, given, clock: Clock) -> list:
        """Start a batch, in smaller pieces once memory has run out."""
        pieces: list = []
        start = 0
        while start < len(given):
            chunk = given[start : start + self.batch_size]
            try:
                with clock.measure("copying"):
                    loaded = runner.load(chunk)
                with clock.measure("network"):
                    pieces.append(runner.start(loaded))
                start += len(chunk)
            except runner.out_of_memory:
                # What is finished is kept; the rest is computed in smaller pieces.
                if len(chunk) == 1:
                    raise
                self._refused[runner].append(len(chunk))
                self.batch_size = len(chunk) // 2
        return pieces

    def _finish(
        self, batch: Batch, runner: Runner, pieces: list, clock: Clock
    ) -> Computed:
        """Rows of one batch for each layer, without the padding."""
        with clock.measure("network"):
            parts = [runner.finish(piece) for piece in pieces]
        n = len(batch.rows)
        rows = [np.concatenate(pieces)[:n] for pieces in zip(*parts, strict=True)]
        features = dict(zip(self._layers, rows, strict=True))
        return Computed(
            batch.rows, features, batch.errors, batch.in_range, batch.sources
        )
