"""Preprocessing of images for a network: resize and crop to its input size.

8-bit images are processed by PIL, exactly as in torchvision's presets. Floats and
images of more bits keep their precision: PIL resizes each channel as floats.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from .._validation import is_whole
from .decoding import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """The input size, resize and scale that a network requires.

    Parameters
    ----------
    image_size : int
        Side in pixels of the square input of the network.
    resize : int or None
        Length in pixels, before the centre crop, of the sides that `mode` names; None
        resizes the whole image to the square, without keeping its aspect ratio.
    interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        Resampling filter of the resize.
    mean, std : tuple of 3 float
        Mean and standard deviation that standardise the channels, scaled to [0, 1].
    mode : {"crop", "squash", "border"}, default="crop"
        Which sides have the length `resize`: the short one, so that a crop is taken;
        both, without keeping the aspect ratio; or the long one, so that the rest of the
        square is filled with the mean colour.
    crop_pct : float or None, default=None
        Fraction of the resized side that the input takes, from which `resize` follows
        for any input size, rounded down as in timm. None keeps the proportion of
        `resize` to `image_size`.
    """

    takes: ClassVar[str] = "pixels"

    image_size: int
    resize: int | None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mode: str = "crop"
    crop_pct: float | None = None

    def __post_init__(self):
        checked = {
            "image_size": _side(self.image_size),
            "mean": _of_channels("mean", self.mean, -math.inf),
            "std": _of_channels("std", self.std, 0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def relative_number(self) -> float:
        """How many inputs take as much work as one image of 224 pixels."""
        return (224 / self.image_size) ** 2

    def scaled(self, image_size: int | None) -> "InputSpec":
        """The recipe for another input size, with resize and crop in proportion."""
        if image_size is None or image_size == self.image_size:
            return self
        image_size = _side(image_size)
        resize = self.resize and round(self.resize * image_size / self.image_size)
        if self.crop_pct:
            resize = math.floor(image_size / self.crop_pct)
        return replace(self, image_size=image_size, resize=resize)


def _side(image_size) -> int:
    """A side in pixels as a plain int: products of small numpy integers overflow."""
    if not is_whole(image_size) or image_size < 1:
        raise ValueError(
            "The 'image_size' parameter must be an int of at least 1. Got "
            f"{image_size!r} instead."
        )
    return int(image_size)


def _of_channels(name: str, values, above: float) -> tuple[float, ...]:
    """Three numbers on the scale of channels from 0 to 1, as a tuple of floats."""
    numbers = tuple(map(_as_float, values)) if isinstance(values, Iterable) else ()
    if len(numbers) != 3 or not all(above < number <= 1 for number in numbers):
        least = "above 0 and at most 1" if above == 0 else "of at most 1"
        raise ValueError(
            f"The {name!r} parameter must be three numbers {least}, for red, green and "
            f"blue channels that are scaled to [0, 1]. Got {values!r} instead; divide "
            "values for the scale 0 to 255 by 255."
        )
    return numbers


def _as_float(value) -> float:
    """A number, also one in an array or a tensor; nan for all other values."""
    is_none = isinstance(value, (bool, np.bool_, str)) or not hasattr(
        value, "__float__"
    )
    return math.nan if is_none else float(value)


# Before the proper resize, "fast" may shrink an image cheaply to no less than twice the
# target size, where the difference is hard to see.
REDUCING_GAP = {"exact": None, "fast": 2.0}

# Above this number of pixels only the crop is computed, because a narrow image of few
# bytes could need gigabytes. Places are then rounded in another way, so a few pixels
# may differ from the published recipe by one grey level.
LARGEST_RESIZED = 2**24
WIDEST_FILTER = 2  # input pixels on either side that bicubic reads


def prepare(pixels: Pixels, spec: InputSpec, decode="exact") -> np.ndarray:
    """(h, w, 3) pixels of the network's input size, on the scale 0 to 255."""
    gap, colour = REDUCING_GAP[decode], margin_colour(spec)
    if isinstance(pixels.image, Image.Image):
        return np.asarray(_resize_and_crop(pixels.image, spec, gap, colour))
    with np.errstate(over="ignore"):  # features that are not finite are reported later
        scaled = pixels.image * np.float32(255)
    channels = np.moveaxis(scaled, -1, 0).copy()
    prepared = [
        np.asarray(_resize_and_crop(Image.fromarray(channel), spec, gap, level))
        for channel, level in zip(channels, colour, strict=True)
    ]
    return np.stack(prepared, axis=-1)


def margin_colour(spec: InputSpec) -> tuple[int, ...]:
    """The colour of the square where the resized image does not reach."""
    means = spec.mean if spec.mode == "border" else (0, 0, 0)
    return tuple(round(255 * mean) for mean in means)


def _resize_and_crop(image: Image.Image, spec: InputSpec, gap, colour) -> Image.Image:
    """The centre of the resized image, with margins if that is smaller."""
    side, resized = spec.image_size, resized_size(image.size, spec)
    left, top = (_offset(length, side) for length in resized)
    seen = (
        max(left, 0),
        max(top, 0),
        min(left + side, resized[0]),
        min(top + side, resized[1]),
    )
    part = _part_of_resized(image, spec, resized, seen, gap)
    if part.size == (side, side):
        return part
    square = Image.new(part.mode, (side, side), colour)
    square.paste(part, (max(-left, 0), max(-top, 0)))
    return square


def _offset(length: int, side: int) -> int:
    """Where the crop begins, negative for margins, as torchvision rounds them."""
    if length < side:
        return -((side - length) // 2)
    return round((length - side) / 2)


def _part_of_resized(image, spec: InputSpec, resized, part, gap) -> Image.Image:
    """A part of the image at a size, as (left, top, right, bottom)."""
    if resized == image.size:
        return image.crop(part)
    filter_ = Image.Resampling[spec.interpolation.upper()]
    if math.prod(resized) <= LARGEST_RESIZED:
        return image.resize(resized, filter_, reducing_gap=gap).crop(part)
    return _resized_part(image, filter_, resized, part)


def _resized_part(image: Image.Image, filter_, resized, part) -> Image.Image:
    """A part of the image at a size, without computing the rest of it.

    Columns come first and are rounded to whole grey levels, as when Pillow resizes the
    whole image. Of the part alone, recent versions may resize the rows first.
    """
    spans = zip(image.size, resized, part[:2], part[2:], strict=True)
    (left, right, *columns), (top, bottom, *rows) = (_read(*span) for span in spans)
    image = image.crop((left, top, right, bottom))
    w, h = part[2] - part[0], part[3] - part[1]
    box = (columns[0], 0, columns[1], image.height)
    image = image.resize((w, image.height), filter_, box=box)
    return image.resize((w, h), filter_, box=(0, rows[0], w, rows[1]))


def _read(length: int, resized: int, start: int, end: int) -> tuple:
    """What a part of a resized side is computed from: the first and the last pixel that
    the filter reads, and the places of the part, counted from the first."""
    scale = length / resized
    reach = WIDEST_FILTER * max(scale, 1) + 1
    first = max(0, math.floor(start * scale - reach))
    last = min(length, math.ceil(end * scale + reach))
    return first, last, start * scale - first, end * scale - first


def resized_size(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """Width and height after the resize, before the crop."""
    if spec.resize is None:
        return spec.image_size, spec.image_size
    if spec.mode == "squash":
        return spec.resize, spec.resize
    if spec.mode == "border":
        ratio = max(size) / spec.resize
        return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))
    short = min(size)
    return int(spec.resize * size[0] / short), int(spec.resize * size[1] / short)
