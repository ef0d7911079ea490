"""The recipe of a network's input: pixels → (s, s, 3) at the size and scale it takes.

8-bit images are processed exactly as by torchvision's presets, with PIL. Floats
and images of more bits keep their precision: PIL resizes each channel as a float.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .decoding import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """The size, resize and scale of the images that a network takes.

    Parameters
    ----------
    image_size : int
        Side of the square that enters the network, in pixels.
    resize : int or None
        Length of the short side before the centre crop, in pixels; None squashes the
        whole image to the square.
    interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        Filter of the resize.
    mean, std : tuple of 3 float
        Subtracted from, then divided into, the channels scaled to [0, 1].
    """

    image_size: int
    resize: int | None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def scaled(self, image_size: int | None) -> "InputSpec":
        """The same recipe for another input size, resize and crop in proportion."""
        if image_size is None or image_size == self.image_size:
            return self
        resize = self.resize and round(self.resize * image_size / self.image_size)
        return replace(self, image_size=image_size, resize=resize)


# How far "fast" may shrink an image cheaply before the proper resize: to twice the size
# of its result, at least, where the difference is hard to see.
REDUCING_GAP = {"exact": None, "fast": 2.0}

# Beyond so many pixels only the crop is made, so that a narrow image of few bytes takes
# no gigabytes. Its pixels may differ from those of the published recipe by a little.
LARGEST_RESIZED = 2**24


# Pixels → network input -------------------------------------------------------------


def prepare(pixels: Pixels, spec: InputSpec, decode="exact") -> np.ndarray:
    """(h, w, 3) pixels of the network's input size, on the scale 0 to 255."""
    gap = REDUCING_GAP[decode]
    if isinstance(pixels.image, Image.Image):
        return np.asarray(_resize_and_crop(pixels.image, spec, gap))
    with np.errstate(over="ignore"):  # the features say so
        scaled = pixels.image * np.float32(255)
    channels = [
        np.asarray(_resize_and_crop(Image.fromarray(channel), spec, gap))
        for channel in np.moveaxis(scaled, -1, 0).copy()
    ]
    return np.stack(channels, axis=-1)


def _resize_and_crop(image: Image.Image, spec: InputSpec, gap) -> Image.Image:
    """Resize the short side and crop the centre, or squash to the square."""
    side, resized = spec.image_size, resized_size(image.size, spec)
    filter_ = Image.Resampling[spec.interpolation.upper()]
    left, top = (round((length - side) / 2) for length in resized)
    crop = (left, top, left + side, top + side)
    if resized == image.size:
        return image.crop(crop)
    if math.prod(resized) > LARGEST_RESIZED:
        w, h = (own / other for own, other in zip(image.size, resized, strict=True))
        box = (crop[0] * w, crop[1] * h, crop[2] * w, crop[3] * h)
        return image.resize((side, side), filter_, box=box)
    return image.resize(resized, filter_, reducing_gap=gap).crop(crop)


def resized_size(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """Width and height after the resize, before the crop."""
    if spec.resize is None:
        return spec.image_size, spec.image_size
    short = min(size)
    return int(spec.resize * size[0] / short), int(spec.resize * size[1] / short)
