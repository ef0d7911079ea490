"""Rows → pixels → batches (b, h, w, 3) of the input size, decoded by threads.

8-bit images take the very path of torchvision's presets: PIL's decoding, resize and
crop. (torchvision's own decoder gives the same bytes and is faster by itself, but not
together with PIL's resize, so there is one decoder.) Floats and 16-bit images keep
their precision: PIL resizes each channel as a float. Batches always have the same
shape; the last one is padded with zeros. Nothing here imports torch.
"""

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageOps

from ._backbones import InputSpec
from ._exceptions import ImageError
from ._images import CHANNELS, ORIENTATION, Images, as_array, is_tensor
from ._progress import Clock

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
EIGHT_BIT, SIXTEEN_BIT, UNIT = (0, 255), (0, 65535), (0, 1)

# How far "fast" may shrink an image cheaply before the proper resize: to twice the size
# of its result, at least, where the difference is hard to see.
REDUCING_GAP = {"exact": None, "fast": 2.0}

BURST = 32  # images, at least, that are decoded where none is computed meanwhile


# Cell → pixels ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """One RGB image, either 8-bit or as floats in [0, 1].

    Parameters
    ----------
    image : PIL.Image.Image or ndarray of shape (h, w, 3), float32
    in_range : bool
        Whether all values were within their stated range.
    """

    image: Image.Image | np.ndarray
    in_range: bool = True


def open_bytes(blob, value_range=None, enough=None) -> Pixels:
    """Decode an encoded image; of an animation, its first frame.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if no side gets shorter than
    `enough` pixels.
    """
    if len(blob) == 0:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(blob))
    if enough is not None:
        image.draft(None, (enough, enough))
    return open_pil(image, value_range)


def open_pil(image, value_range=None, enough=None) -> Pixels:
    """Turn upright and to RGB; transparent pixels show white.

    `value_range` is that of arrays, and of images with more than 8 bits.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which PIL may hold in 32
        return open_array(np.asarray(image), value_range or SIXTEEN_BIT)
    if image.mode == "F":
        return open_array(np.asarray(image), value_range)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    image.load()
    return Pixels(image)


def open_array(array, value_range=None, enough=None) -> Pixels:
    """An (h, w[, channels]) array; how it is scaled depends on its dtype alone."""
    array = _with_channels(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"pixels must be real numbers, got dtype {array.dtype}")
    eight_bit = _as_eight_bit(array) if value_range in (None, EIGHT_BIT) else None
    if eight_bit is not None:
        return open_pil(_pil_of(eight_bit))
    low, high = value_range or default_range(array.dtype)
    scaled = (array.astype(np.float32) - low) / (high - low)
    if not np.isfinite(scaled).all():
        raise ValueError("has NaN or infinite pixels")
    return Pixels(_rgb_of(scaled), is_in_range(array, value_range))


def default_range(dtype) -> tuple[float, float]:
    """The range of pixel values that a dtype stands for."""
    if dtype.kind in "bf":
        return UNIT
    return SIXTEEN_BIT if dtype.kind == "u" and dtype.itemsize == 2 else EIGHT_BIT


def is_in_range(cell, value_range) -> bool:
    """Whether an array or tensor has no value beyond black or white.

    Other cells are not looked into.
    """
    array = as_array(cell) if is_tensor(cell) else cell
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        return True
    low, high = value_range or default_range(array.dtype)
    unsigned = array.dtype.kind == "u" and low <= 0
    if array.size == 0 or (unsigned and np.iinfo(array.dtype).max <= high):
        return True
    slack = 1e-6 * (high - low)
    beyond = array.min() < low - slack or array.max() > high + slack  # nan never is
    return not beyond


def _with_channels(array):
    """(h, w, c) of (h, w) or (h, w, c), never empty."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or array.size == 0:
        planar = array.ndim == 3 and array.shape[0] in CHANNELS
        hint = "; pass image.transpose(1, 2, 0)" if planar else ""
        raise ValueError(
            f"an image array must have the shape (h, w) or (h, w, channels) with 1 to "
            f"4 channels and no side of 0, got {array.shape}{hint}"
        )
    return array


def _as_eight_bit(array):
    """The same pixels as uint8 if they are whole numbers from 0 to 255, else None."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    whole = array.dtype.kind in "iu" and default_range(array.dtype) == EIGHT_BIT
    if whole and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return None


def _pil_of(array):
    """PIL image of (h, w, c) uint8."""
    channels = array.shape[2]
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    array = np.ascontiguousarray(array[:, :, 0] if channels == 1 else array)
    return Image.frombytes(mode, array.shape[1::-1], array.tobytes())


def _rgb_of(scaled):
    """(h, w, 3) of floats with 1 to 4 channels; transparent pixels show white."""
    channels = scaled.shape[2]
    if channels in (2, 4):
        colour, alpha = scaled[:, :, :-1], scaled[:, :, -1:]
        scaled = colour * alpha + (1 - alpha)
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


OPENERS = {
    "path": open_bytes,
    "bytes": open_bytes,
    "pil": open_pil,
    "array": open_array,
    "tensor": lambda cell, *arguments: open_array(as_array(cell), *arguments),
}


# Pixels → network input -------------------------------------------------------------


def prepare(pixels: Pixels, spec: InputSpec, decode="exact") -> np.ndarray:
    """(h, w, 3) pixels of the network's input size, on the scale 0 to 255."""
    gap = REDUCING_GAP[decode]
    if isinstance(pixels.image, Image.Image):
        return np.asarray(_resize_and_crop(pixels.image, spec, gap))
    channels = [
        np.asarray(_resize_and_crop(Image.fromarray(channel), spec, gap))
        for channel in np.moveaxis(pixels.image * np.float32(255), -1, 0).copy()
    ]
    return np.stack(channels, axis=-1)


def _resize_and_crop(image: Image.Image, spec: InputSpec, gap) -> Image.Image:
    """Resize the short side and crop the centre, or squash to the square."""
    (w, h), side = image.size, spec.image_size
    resized = (side, side)
    if spec.resize is not None:
        short = min(w, h)
        resized = (int(spec.resize * w / short), int(spec.resize * h / short))
    if resized != (w, h):
        filter_ = Image.Resampling[spec.interpolation.upper()]
        image = image.resize(resized, filter_, reducing_gap=gap)
    left, top = (round((length - side) / 2) for length in resized)
    return image.crop((left, top, left + side, top + side))


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
    in_range : bool
        Whether all pixel values were within their stated range.
    shares : dict of str to float
        How the threads spent their time on it: "reading" and "decoding".
    """

    rows: list[int]
    pixels: np.ndarray
    errors: list[ImageError]
    in_range: bool
    shares: dict[str, float]


def read_row(
    images: Images, row: int, spec: InputSpec, value_range, decode="exact", clock=None
):
    """(pixels of the input size, whether they were in range), or the row's error."""
    clock = clock or Clock()
    try:
        with clock.measure("reading"):
            kind, cell = images.read(row)
        with clock.measure("decoding"):
            enough = None if decode == "exact" else spec.resize or spec.image_size
            pixels = OPENERS[kind.name](cell, value_range, enough)
            return prepare(pixels, spec, decode), pixels.in_range
    except ImageError as error:
        return error
    except Exception as error:
        failure = images.error(row, error)
        failure.__cause__ = error
        return failure


def read_batches(
    images: Images,
    rows: Iterable[int],
    spec: InputSpec,
    value_range,
    decode: str,
    batch_size: int,
    n_threads: int,
    meanwhile: bool,
) -> Iterator[Batch]:
    """Batches of these rows, in order; the next ones are decoded `meanwhile`.

    Or else several are decoded at once, between computations: those whose threads wait
    for each other on all cores lose more by it than can be gained.
    """

    def read(row):
        clock = Clock()
        return row, read_row(images, row, spec, value_range, decode, clock), clock

    with ThreadPoolExecutor(n_threads, "skdeepfeat-decode") as pool:
        if meanwhile:
            results = _map_ahead(pool, read, rows, ahead=2 * batch_size + n_threads)
        else:
            n = math.ceil(max(BURST, 2 * n_threads) / batch_size) * batch_size
            results = _map_at_once(pool, read, rows, n, images.expect)
        while some := list(islice(results, batch_size)):
            yield _collect(some, spec, batch_size)


def _map_ahead(pool, function, items, ahead) -> Iterator:
    """Results in order, never more than `ahead` of them waiting to be taken."""
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _map_at_once(pool, function, items, n: int, announce) -> Iterator:
    """Results in order, n made at a time; those next in turn are announced."""
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
    good = {row: result for row, result, _ in results if isinstance(result, tuple)}
    errors = [result for _, result, _ in results if isinstance(result, ImageError)]
    eight_bit = all(image.dtype == np.uint8 for image, _ in good.values())
    shape = (batch_size, spec.image_size, spec.image_size, 3)
    pixels = np.zeros(shape, np.uint8 if eight_bit else np.float32)
    for place, (image, _) in enumerate(good.values()):
        pixels[place] = image
    in_range = all(row_in_range for _, row_in_range in good.values())
    return Batch(list(good), pixels, errors, in_range, _shares(results))


def _shares(results) -> dict[str, float]:
    """How the time spent on some rows divides."""
    parts = ("reading", "decoding")
    seconds = [sum(clock.seconds[part] for _, _, clock in results) for part in parts]
    total = sum(seconds) or 1.0
    return {part: s / total for part, s in zip(parts, seconds, strict=True)}
