"""Encoded bytes, PIL images and arrays → pixels: upright, in RGB, on one scale.

An image of 8 bits stays a PIL image, so that it is resized exactly as torchvision's
presets do; floats and images of more bits keep their precision as arrays. Nothing
here imports torch.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .bit_depth import HEAD, WHITES, white_of
from .formats import open_image
from .orientation import upright
from .samples import DEEP_GREY, Samples, grey_samples, is_misread, samples_of

CHANNELS = (1, 3, 4)
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
EIGHT_BIT, SIXTEEN_BIT, UNIT = (0, 255), (0, 65535), (0, 1)

STEPS = {2: 85, 4: 17}  # bits → distance of grey values, in 8 bits

MISREAD = "is from a TIFF that Pillow does not read as its header says; pass the path"
CLOSED = (
    "the file of this PIL image was closed before its pixels were read; call "
    "image.load() before it is closed, or pass the path"
)
CUT = (
    "its file has values up to {} for each colour, but a PIL image only keeps 8 bits, "
    "so value_range cannot hold for it; pass the path, or leave value_range out"
)


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


def _no_limit(size: tuple[int, int]) -> None:
    """Decode images of any size at once."""


def open_bytes(data, value_range=None, enough=None, reserve=_no_limit) -> Pixels:
    """Decode an encoded image; of an animation, its first frame.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if no side gets shorter than
    `enough` pixels. `reserve` is called with width and height before decoding.
    """
    image: Any = open_image(data)
    if image is not None:
        reserve(image.size)
    if (samples := samples_of(image, data, value_range)) is not None:
        return _open_samples(samples, value_range)
    if enough is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (enough, enough))
    _load(image)
    return Pixels(_as_rgb(_of_eight_bits(image, data)))


def open_pil(image, value_range=None, enough=None, reserve=_no_limit) -> Pixels:
    """Pixels of a PIL image; `value_range` is that of more than 8 bits."""
    reserve(image.size)
    settled = settle(image)
    if isinstance(settled, Samples):
        return _open_samples(settled, value_range)
    if value_range is not None and (white := white_of_file(image)) > 255:
        raise ValueError(CUT.format(white))
    return Pixels(_as_rgb(settled))


def open_samples(samples, value_range=None, enough=None, reserve=_no_limit) -> Pixels:
    """Pixels of samples that were taken from an image of more than 8 bits."""
    reserve(samples.values.shape[1::-1])
    return _open_samples(samples, value_range)


def settle(image) -> Image.Image | Samples:
    """The pixels of a PIL image: upright in mode "L" or "RGB", or more than 8 bits."""
    _load(image)
    if is_misread(image):
        raise ValueError(MISREAD)
    if image.mode in DEEP_GREY:
        return grey_samples(image)
    return _of_eight_bits(image)


def _of_eight_bits(image, data=None) -> Image.Image:
    """A loaded PIL image as upright "L" or "RGB"; transparent pixels show white.

    The orientation is read after the pixels, because Pillow rotates some formats while
    it loads them. `data` is the content of the file, if it is at hand.
    """
    image = upright(_with_scaled_transparency(image, data))
    if image.mode in TRANSPARENT or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else _as_rgb(image)


def _with_scaled_transparency(image, data):
    """A grey PNG of 2 or 4 bits: Pillow scales its values, but not the transparent one.

    If the file is gone, the fewest bits that hold the values are assumed.
    """
    value = image.info.get("transparency")
    if image.format != "PNG" or image.mode != "L" or not isinstance(value, int):
        return image
    head = _head_of(image) if data is None else data
    values = np.asarray(image)
    fits = (n for n in STEPS if value < 2**n and not (values % STEPS[n]).any())
    image = image.copy()
    image.info["transparency"] *= STEPS.get(head[24] if head else next(fits, 8), 1)
    return image


def _load(image) -> None:
    """Decode a PIL image; refuses one whose file was closed too early."""
    if 0 in image.size:
        raise ValueError(f"has no pixels, its size is {image.width} x {image.height}")
    try:
        image.load()
    except (AssertionError, AttributeError, ValueError) as error:
        file = getattr(image, "fp", None)
        if file is None or file.closed:
            raise ValueError(CLOSED) from error
        raise


def _as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; itself if it already is."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _head_of(image) -> bytes:
    """The first bytes of the file that a PIL image was opened from, if known."""
    if path := getattr(image, "filename", ""):
        with contextlib.suppress(OSError, TypeError), open(path, "rb") as file:
            return file.read(HEAD)
    return b""


def white_of_file(image) -> int:
    """The largest sample of the file that a PIL image was opened from, if known."""
    if image.format not in WHITES:  # a TIFF, whose tags Pillow keeps, or 8 bits
        return white_of(image, b"")
    head = _head_of(image)
    return white_of(image, head) if head else 255


def open_array(array, value_range=None, enough=None, reserve=_no_limit) -> Pixels:
    """An (h, w[, channels]) array; how it is scaled depends on its dtype alone."""
    array = _with_channels(array)
    reserve(array.shape[1::-1])
    check_numbers(array)
    eight_bit = _as_eight_bit(array) if value_range in (None, EIGHT_BIT) else None
    if eight_bit is not None:
        return open_pil(_pil_of(eight_bit))
    value_range = value_range or default_range(array.dtype)
    scaled = _scale(array, value_range)
    if array.shape[2] in (2, 4):
        scaled = _on_white(scaled[:, :, :-1], scaled[:, :, -1:])
    return Pixels(_with_three(scaled), is_in_range(array, value_range))


def check_numbers(array) -> None:
    """Refuse an array that does not hold real numbers."""
    if array.dtype.kind not in "biuf":
        hint = "; cast them, as image.astype(np.uint8)" if array.dtype.hasobject else ""
        raise ValueError(f"pixels must be real numbers, got dtype {array.dtype}{hint}")


def _open_samples(samples: Samples, value_range) -> Pixels:
    """Samples of a file, in its own range where none is given."""
    if samples.is_plain:
        return open_array(samples.values, value_range)
    values, white = samples.values, samples.white
    own = default_range(values.dtype) if white is None else (0, white)
    scaled = _scale(values, value_range or own)
    if samples.inverted:
        scaled = 1 - scaled
    if samples.alpha is not None:
        scaled = _on_white(scaled, samples.alpha)
    return Pixels(_with_three(scaled), is_in_range(values, value_range or own))


def _scale(values, value_range) -> np.ndarray:
    """Finite floats that are 0 at black and 1 at white."""
    low, high = value_range
    # Single precision keeps too few digits of values that are far from 0.
    is_far = abs(low) > high - low
    with np.errstate(over="ignore"):
        above = values.astype(np.float64 if is_far else np.float32) - low
        scaled = above.astype(np.float32) / (high - low)
    if not np.isfinite(scaled).all():
        raise ValueError("has NaN or infinite pixels")
    return scaled


def _on_white(colour, alpha) -> np.ndarray:
    """Transparent pixels show white."""
    return colour * alpha + (1 - alpha)


def _with_three(scaled) -> np.ndarray:
    """(h, w, 3) of (h, w, 1) or (h, w, 3)."""
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def default_range(dtype) -> tuple[float, float]:
    """The range of pixel values that a dtype stands for."""
    if dtype.kind in "bf":
        return UNIT
    return SIXTEEN_BIT if dtype.kind == "u" and dtype.itemsize == 2 else EIGHT_BIT


def is_in_range(array, value_range) -> bool:
    """Whether an array has no value beyond black or white."""
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
        if array.ndim == 1:
            hint = "; pass encoded bytes as image.tobytes(), flat rows with image_shape"
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
    return Image.frombytes(mode, array.shape[1::-1], memoryview(array))
