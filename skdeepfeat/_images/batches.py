"""Rows → pixels → batches (b, h, w, 3) of the input size, decoded by threads.

torchvision's own decoder gives the same bytes and is faster alone, but not together
with PIL's resize, so there is one decoder. Batches always have the same shape; the last
one is padded with zeros. Nothing here imports torch.
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .._clock import Clock
from .._exceptions import ImageError
from .._processes import after_fork, resolve_threads
from .budget import Budget
from .cells import Cell
from .formats import switches
from .reasons import row_errors
from .recipe import LARGEST_RESIZED, InputSpec, prepare, resized_size
from .windows import Images, Window

# Pixels that all threads decode at once; a larger image is decoded alone.
decoded = Budget(2**27)
after_fork(decoded.refill)

BURST = 32  # images, at least, decoded at once if none are computed meanwhile


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


@dataclass(frozen=True)
class Prepared:
    """One image as it enters a network.

    Parameters
    ----------
    pixels : ndarray of shape (s, s, 3), uint8 or float32
        On the scale 0 to 255.
    in_range : bool
        Whether all pixel values were within their stated range.
    source : str
        The name of the image in messages.
    """

    pixels: np.ndarray
    in_range: bool
    source: str


class Readable(Protocol):
    """A source of rows of X."""

    def read(self, row: int) -> Cell:
        """The image of a row with its content; raises ImageError."""

    def read_ahead(self, row: int) -> None:
        """Prepare for a row that is needed soon."""


def read_row(
    images: Readable, row: int, spec: InputSpec, value_range, decode="exact", clock=None
) -> "Prepared | ImageError":
    """The pixels of a row at the input size, or its error."""
    clock = clock or Clock()
    try:
        with clock.measure("reading"):
            cell = images.read(row)
        with (
            clock.measure("decoding"),
            row_errors(row, cell.source),
            contextlib.ExitStack() as held,
        ):

            def reserve(size: tuple[int, int]) -> None:
                """Wait until there is room for an image of this width and height."""
                enlarged = min(math.prod(resized_size(size, spec)), LARGEST_RESIZED)
                share = decoded.share(max(math.prod(size), enlarged))
                held.enter_context(share)

            enough = None if decode == "exact" else spec.resize or spec.image_size
            pixels = cell.open(value_range, enough, reserve)
            return Prepared(prepare(pixels, spec, decode), pixels.in_range, cell.source)
    except ImageError as error:
        return error


def read_batches(
    images: Readable,
    rows: Iterable[int],
    spec: InputSpec,
    value_range,
    decode: str,
    batch_size: int,
    n_threads: int,
    meanwhile: bool,
) -> Iterator[Batch]:
    """Batches of these rows, in order; the next ones are decoded `meanwhile`.

    Without `meanwhile` several are decoded at once between computations: a network that
    uses all cores loses more to threads that compete with it than decoding gains.
    """

    def read(row):
        clock = Clock()
        return row, read_row(images, row, spec, value_range, decode, clock), clock

    def collect(results):
        return _collect(results, spec, batch_size)

    with ThreadPoolExecutor(n_threads, "skdeepfeat-decode") as pool:
        if meanwhile:
            ahead = 1 + math.ceil(n_threads / batch_size)
            yield from _collect_ahead(pool, read, collect, rows, batch_size, ahead)
        else:
            n = math.ceil(max(BURST, 2 * n_threads) / batch_size) * batch_size
            results = _map_at_once(pool, read, rows, n, images.read_ahead)
            while some := list(islice(results, batch_size)):
                yield collect(some)


def _collect_ahead(pool, read, collect, rows, batch_size, ahead) -> Iterator[Batch]:
    """Batches in order, never more than `ahead` of them waiting to be taken.

    The threads also collect them. A caller that did would wait for the interpreter's
    lock once for each image, and the GPU that it drives would wait with it.
    """

    def collect_all(images: list[Future]):
        return collect([image.result() for image in images])

    waiting: deque[list[Future]] = deque()
    rows = iter(rows)
    try:
        while some := list(islice(rows, batch_size)):
            images = [pool.submit(read, row) for row in some]
            waiting.append([*images, pool.submit(collect_all, images)])
            if len(waiting) > ahead:
                yield waiting.popleft()[-1].result()
        while waiting:
            yield waiting.popleft()[-1].result()
    finally:
        for future in chain.from_iterable(waiting):
            future.cancel()


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


def _collect(results, spec: InputSpec, batch_size: int) -> Batch:
    """Fill one batch with the results of some rows."""
    good = {row: image for row, image, _ in results if isinstance(image, Prepared)}
    errors = [error for _, error, _ in results if isinstance(error, ImageError)]
    eight_bit = all(image.pixels.dtype == np.uint8 for image in good.values())
    shape = (batch_size, spec.image_size, spec.image_size, 3)
    pixels = np.zeros(shape, np.uint8 if eight_bit else np.float32)
    for place, image in enumerate(good.values()):
        pixels[place] = image.pixels
    in_range = [image.in_range for image in good.values()]
    sources = [image.source for image in good.values()]
    return Batch(list(good), pixels, errors, in_range, sources, _shares(results))


def _shares(results) -> dict[str, float]:
    """How the time spent on some rows divides."""
    parts = ("reading", "decoding")
    seconds = [sum(clock.seconds[part] for _, _, clock in results) for part in parts]
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
    """

    value_range: tuple[float, float] | None
    decode: str
    n_jobs: int | None
    spreads = True  # rows are decoded by the workers of a cluster

    @property
    def n_threads(self) -> int:
        """How many images are decoded at once."""
        return resolve_threads(self.n_jobs)

    def in_worker(self, n_threads: int) -> "ImageReading":
        """The same in a process that may use so many threads."""
        return replace(self, n_jobs=self.n_jobs or n_threads)

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
        return images.windows(recall, self.n_threads, rescaled)

    def batches(
        self, images: Readable, rows, spec: InputSpec, batch_size: int, meanwhile: bool
    ) -> Iterator[Batch]:
        """Batches of these rows, in order; the next ones are decoded `meanwhile`."""
        how = (self.value_range, self.decode, batch_size, self.n_threads)
        return read_batches(images, rows, spec, *how, meanwhile)
