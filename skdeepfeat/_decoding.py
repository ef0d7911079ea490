"""Encoded bytes, PIL images and arrays → pixels: upright, in RGB, on one scale.

An image of 8 bits stays a PIL image, which takes the very path of torchvision's
presets; floats and images of more bits keep their precision as arrays. Nothing here
imports torch.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

CHANNELS = (1, 3, 4)
ORIENTATION = 0x0112  # the EXIF tag
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
EIGHT_BIT, SIXTEEN_BIT, UNIT = (0, 255), (0, 65535), (0, 1)


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
