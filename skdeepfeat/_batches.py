"""Rows → pixels → preprocessed batches (b, 3, h, w), decoded ahead by threads.

8-bit images take the very path of torchvision's presets: PIL's resize and crop, then
scaling. Floats and 16-bit images keep their precision: PIL resizes each channel as a
float. Batches always have the same shape; the last one is padded with zeros.
"""

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ._backbones import InputSpec
from ._exceptions import ImageError
from ._images import ORIENTATION, Images, as_array

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
EIGHT_BIT, SIXTEEN_BIT, UNIT = (0, 255), (0, 65535), (0, 1)


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


def open_bytes(blob, value_range) -> Pixels:
    """Decode an encoded image; of an animation, its first frame."""
    if len(blob) == 0:
        raise ValueError("the file is empty")
    return open_pil(Image.open(io.BytesIO(blob)), value_range)


def open_pil(image, value_range) -> Pixels:
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


def open_array(array, value_range) -> Pixels:
    """An (h, w[, channels]) array; how it is scaled depends on its dtype alone."""
    array = _with_channels(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"pixels must be real numbers, got dtype {array.dtype}")
    eight_bit = _as_eight_bit(array) if value_range in (None, EIGHT_BIT) else None
    if eight_bit is not None:
        return open_pil(_pil_of(eight_bit), None)
    low, high = value_range or default_range(array.dtype)
    scaled = (array.astype(np.float32) - low) / (high - low)
    if not np.isfinite(scaled).all():
        raise ValueError("has NaN or infinite pixels")
    in_range = scaled.min() >= -1e-6 and scaled.max() <= 1 + 1e-6
    return Pixels(_rgb_of(scaled), bool(in_range))


def default_range(dtype) -> tuple[float, float]:
    """The range of pixel values that a dtype stands for."""
    if dtype.kind in "bf":
        return UNIT
    return SIXTEEN_BIT if dtype.kind == "u" and dtype.itemsize == 2 else EIGHT_BIT


def _with_channels(array):
    """(h, w, c) of (h, w) or (h, w, c), never empty."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or array.size == 0:
        raise ValueError(
            f"an image array must have the shape (h, w) or (h, w, channels) with 1 to "
            f"4 channels and no side of 0, got {array.shape}"
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
    "tensor": lambda cell, value_range: open_array(as_array(cell), value_range),
}


# Pixels → network input -------------------------------------------------------------


def prepare(pixels: Pixels, spec: InputSpec) -> torch.Tensor:
    """(h, w, 3) pixels of the network's input size, on the scale 0 to 255."""
    if isinstance(pixels.image, Image.Image):
        return torch.from_numpy(np.array(_resize_and_crop(pixels.image, spec)))
    channels = [
        np.asarray(_resize_and_crop(Image.fromarray(channel), spec))
        for channel in np.moveaxis(pixels.image * np.float32(255), -1, 0).copy()
    ]
    return torch.from_numpy(np.stack(channels, axis=-1))


def _resize_and_crop(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Resize the short side and crop the centre, or squash to the square."""
    interpolation = InterpolationMode(spec.interpolation)
    if spec.resize is None:
        return F.resize(image, [spec.image_size] * 2, interpolation)
    return F.center_crop(F.resize(image, [spec.resize], interpolation), spec.image_size)


def normalise(batch: torch.Tensor, spec: InputSpec) -> None:
    """(b, 3, h, w) on the scale 0 to 255 → what the network was trained on."""
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    batch.div_(255).sub_(mean).div_(std)


# Rows → batches ---------------------------------------------------------------------


@dataclass
class Batch:
    """One computed shape's worth of images.

    Parameters
    ----------
    rows : list of int
        Positions in X of the images that could be read, in order.
    pixels : torch.Tensor of shape (b, 3, h, w)
        Their preprocessed pixels, then zeros up to the fixed size.
    errors : list of ImageError
        Of the images that could not be read.
    in_range : bool
        Whether all pixel values were within their stated range.
    """

    rows: list[int]
    pixels: torch.Tensor
    errors: list[ImageError]
    in_range: bool


def read_row(images: Images, row: int, spec: InputSpec, value_range):
    """(pixels of the input size, whether they were in range), or the row's error."""
    try:
        kind, cell = images.read(row)
        pixels = OPENERS[kind.name](cell, value_range)
        return prepare(pixels, spec), pixels.in_range
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
    batch_size: int,
    n_threads: int,
) -> Iterator[Batch]:
    """Batches of these rows, in order; the next ones are decoded meanwhile."""

    def read(row):
        return row, read_row(images, row, spec, value_range)

    with ThreadPoolExecutor(n_threads, "skdeepfeat-decode") as pool:
        results = _map_ahead(pool, read, rows, ahead=2 * batch_size + n_threads)
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


def _collect(results, spec: InputSpec, batch_size: int) -> Batch:
    """Fill one batch with the results of some rows."""
    size = spec.image_size
    pixels = torch.zeros(batch_size, 3, size, size).contiguous(
        memory_format=torch.channels_last
    )
    kept: list[int] = []
    errors: list[ImageError] = []
    in_range = True
    for row, result in results:
        if isinstance(result, ImageError):
            errors.append(result)
            continue
        image, row_in_range = result
        pixels[len(kept)] = image.permute(2, 0, 1)  # (h, w, 3) → (3, h, w)
        kept.append(row)
        in_range &= row_in_range
    normalise(pixels[: len(kept)], spec)
    return Batch(kept, pixels, errors, in_range)
