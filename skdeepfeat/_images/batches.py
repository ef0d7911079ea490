"""Rows → pixels → batches (b, h, w, 3) of the input size, made by threads.

torchvision's own decoder gives the same bytes and is faster alone, but not together
with PIL's resize, so there is one decoder. Batches always have the same shape; the last
one is padded with zeros. Nothing here imports torch.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .._clock import Clock
from .._exceptions import ImageError
from .._processes import resolve_threads
from .crew import FEWEST, Helped, may_start
from .formats import switches
from .preparing import Preparation, Prepared, Readable, read_row
from .recipe import InputSpec
from .windows import Images, Window

BURST = 32  # images, at least, decoded at once if none are computed meanwhile
MOST_AT_ONCE = 16  # images that a thread prepares, or lets a process prepare
FEWEST_SENT = 8  # images that a process prepares at once: messages take time, too


# Rows → batches ---------------------------------------------------------------------


@dataclass
class Batch:
    """One computed shape's worth of images.

    Parameters
    ----------
    rows : list of int
        Positions in X of the images that could be read, in order.
    pixels : ndarray of shape (b, h, w, 3), uint8 or float32
        Their pixels on the scale 0 to 255, then zeros up to the fixed size.
    errors : list of ImageError
        Of the images that could not be read.
    in_range : list of bool
        Of each of `rows`, whether all pixel values were within their stated range.
    sources : list of str
        The name of each of `rows` in messages.
    shares : dict of str to float
        How the threads spent their time on it: "reading" and "decoding".
    """

    rows: list[int]
    pixels: np.ndarray
    errors: list[ImageError]
    in_range: list[bool]
    sources: list[str]
    shares: dict[str, float]

    @property
    def input(self) -> np.ndarray:
        """What enters the network."""
        return self.pixels


class Elsewhere(Protocol):
    """Where images are prepared if not by the threads of this process."""

    def note(self, n_rows: int) -> None:
        """Learn that this many rows will be prepared."""

    def prepare(self, rows: Sequence[int], clock: Clock) -> dict[int, Prepared]:
        """Those of these rows that could be prepared; threads prepare the others."""

    def report(self) -> None:
        """Warn of trouble; called by the thread that wants the batches."""


@dataclass(frozen=True)
class PreparedRows:
    """Some rows that a thread has prepared.

    Parameters
    ----------
    images : dict of int to Prepared or ImageError
        By row, in order.
    clock : Clock
        How the time was spent.
    """

    images: dict[int, Prepared | ImageError]
    clock: Clock


def read_batches(
    images: Readable,
    rows: Iterable[int],
    how: Preparation,
    batch_size: int,
    n_threads: int,
    meanwhile: bool,
    elsewhere: Elsewhere | None = None,
) -> Iterator[Batch]:
    """Batches of these rows, in order; the next ones are decoded `meanwhile`.

    Without `meanwhile` several are decoded at once between computations: a network that
    uses all cores loses more to threads that compete with it than decoding gains.
    """
    making = _Making(images, how, batch_size, n_threads, elsewhere)
    make = making.ahead if meanwhile else making.between
    with ThreadPoolExecutor(n_threads, "skdeepfeat-decode") as pool:
        yield from make(pool, iter(rows))
    if elsewhere:
        elsewhere.report()


@dataclass(frozen=True)
class _Making:
    """How rows become batches.

    Parameters
    ----------
    images : Readable
    how : Preparation
    batch_size, n_threads : int
    elsewhere : Elsewhere or None
    """

    images: Readable
    how: Preparation
    batch_size: int
    n_threads: int
    elsewhere: Elsewhere | None

    def ahead(self, pool: Executor, rows: Iterator[int]) -> Iterator[Batch]:
        """Batches in order; only a few are made in advance.

        A thread also collects them. A caller that did would wait for the interpreter's
        lock once for each image, and the GPU that it drives would wait with it.
        """
        most = 1 + math.ceil(self.n_threads * self._at_once / self.batch_size)
        waiting: deque[list[Future]] = deque()
        with ThreadPoolExecutor(1, "skdeepfeat-collect") as collector:
            try:
                while some := list(islice(rows, self.batch_size)):
                    waiting.append(self._begin(pool, collector, some))
                    if len(waiting) > 1:  # one batch alone promises no others
                        self._note(len(some))
                    if len(waiting) > most:
                        yield waiting.popleft()[-1].result()
                while waiting:
                    yield waiting.popleft()[-1].result()
            finally:
                for future in chain.from_iterable(waiting):
                    future.cancel()

    def _begin(self, pool, collector, rows: list[int]) -> list[Future]:
        """Begin to make one batch, which is the result of the last future."""

        def collect(prepared: list[Future]) -> Batch:
            return self._collect([future.result() for future in prepared])

        starts = range(0, len(rows), self._at_once)
        parts = (rows[start : start + self._at_once] for start in starts)
        prepared = [pool.submit(self._prepare, part) for part in parts]
        return [*prepared, collector.submit(collect, prepared)]

    @property
    def _at_once(self) -> int:
        """How many images a thread prepares at once."""
        fewest = FEWEST_SENT if self.elsewhere else 1
        share = math.ceil(self.batch_size / self.n_threads)
        return min(MOST_AT_ONCE, max(fewest, share))

    def _note(self, n_rows: int) -> None:
        """Announce that this many rows will be prepared."""
        if self.elsewhere:
            self.elsewhere.note(n_rows)

    def between(self, pool: Executor, rows: Iterator[int]) -> Iterator[Batch]:
        """Batches in order; several are made at once."""
        size = self.batch_size
        n = math.ceil(max(BURST, 2 * self.n_threads) / size) * size
        read, announce = lambda row: self._prepare([row]), self.images.read_ahead
        prepared = _map_at_once(pool, read, rows, n, announce)
        while some := list(islice(prepared, size)):
            yield self._collect(some)

    def _prepare(self, rows: Sequence[int]) -> PreparedRows:
        """Prepare some rows, elsewhere or in this thread."""
        clock = Clock()
        found = self.elsewhere.prepare(rows, clock) if self.elsewhere else {}

        def read(row: int) -> Prepared | ImageError:
            return read_row(self.images, row, self.how, clock)

        images = {row: found.get(row) or read(row) for row in rows}
        return PreparedRows(images, clock)

    def _collect(self, prepared: list[PreparedRows]) -> Batch:
        """Fill one batch with images that several threads have prepared."""
        images = {row: image for rows in prepared for row, image in rows.images.items()}
        errors = [image for image in images.values() if isinstance(image, ImageError)]
        good = {r: image for r, image in images.items() if isinstance(image, Prepared)}
        pixels = self._stacked([image.pixels for image in good.values()])
        in_range = [image.in_range for image in good.values()]
        sources = [image.source for image in good.values()]
        return Batch(list(good), pixels, errors, in_range, sources, _shares(prepared))

    def _stacked(self, images: list[np.ndarray]) -> np.ndarray:
        """Images in an array of the fixed size, with zeros behind them."""
        eight_bit = all(pixels.dtype == np.uint8 for pixels in images)
        side = self.how.spec.image_size
        shape = (self.batch_size, side, side, 3)
        stack = np.zeros(shape, np.uint8 if eight_bit else np.float32)
        for place, pixels in enumerate(images):
            stack[place] = pixels
        return stack


def _map_at_once(pool, function, items, n: int, announce) -> Iterator:
    """Results in order, n at a time; the items of the next n are announced."""
    items = iter(items)
    some = list(islice(items, n))
    while some:
        results, following = list(pool.map(function, some)), list(islice(items, n))
        for item in following:
            pool.submit(announce, item)
        yield from results
        some = following


def _shares(prepared: list[PreparedRows]) -> dict[str, float]:
    """How the time spent on some rows divides."""
    parts = ("reading", "decoding")
    seconds = [sum(rows.clock.seconds[part] for rows in prepared) for part in parts]
    total = sum(seconds) or 1.0
    return {part: s / total for part, s in zip(parts, seconds, strict=True)}


@dataclass(frozen=True)
class ImageReading:
    """How images are read, and become the input of a network.

    Parameters
    ----------
    value_range : tuple of float or None
        Values of black and white; None depends on the dtype.
    decode : {"exact", "fast"}
    n_jobs : int or None
        How many images are decoded at once, as joblib counts.
    beside_gpu : bool, default=False
        Whether a GPU computes, so that processes may decode on all cores. Workers of a
        cluster leave the other cores to each other.
    """

    value_range: tuple[float, float] | None
    decode: str
    n_jobs: int | None
    beside_gpu: bool = False
    spreads = True  # rows are decoded by the workers of a cluster

    @property
    def n_threads(self) -> int:
        """How many images are decoded at once."""
        return resolve_threads(self.n_jobs)

    def in_worker(self, n_threads: int) -> "ImageReading":
        """The same in a process that may use this many threads."""
        return replace(self, n_jobs=self.n_jobs or n_threads, beside_gpu=False)

    @property
    def about(self) -> dict[str, Any]:
        """Named values that determine pixels, apart from image and network."""
        fields = {"value_range": self.value_range, "decode": self.decode}
        return {**fields, "decoders": switches()}

    @property
    def settings(self) -> dict[str, str]:
        """Settings of this process that decide what is read."""
        return switches() | {"PIL.Image.MAX_IMAGE_PIXELS": f"{Image.MAX_IMAGE_PIXELS}"}

    def windows(self, images: Images, recall) -> Iterator[Window]:
        """All images in order, in windows, hashed."""
        # Whether arrays have a range of values other than that of 8-bit images.
        rescaled = self.value_range not in (None, (0, 255))
        make = images.windows_ahead if self.beside_gpu else images.windows
        return make(recall, self.n_threads, rescaled)

    def batches(
        self, window: Window, rows, spec: InputSpec, batch_size: int, meanwhile: bool
    ) -> Iterator[Batch]:
        """Batches of these rows, in order; the next ones are decoded `meanwhile`."""
        how = Preparation(spec, self.value_range, self.decode)
        elsewhere = self._elsewhere(window, how) if self.beside_gpu else None
        sizes = (batch_size, self.n_threads)
        return read_batches(window, rows, how, *sizes, meanwhile, elsewhere)

    def _elsewhere(self, window: Window, how: Preparation) -> Elsewhere | None:
        """Processes that decode, where they are faster than threads."""
        n = self.n_threads
        if n < FEWEST or not may_start():
            return None
        return Helped(window, how, n)
