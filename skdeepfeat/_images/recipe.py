"""Preprocessing of images for a network: resize and crop to its input size.

8-bit images are processed by PIL, exactly as in torchvision's presets. Floats and
images of more bits keep their precision: PIL resizes each channel as floats.
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
    """The input size, resize and scale that a network requires.

    Parameters
    ----------
    image_size : int
        Side in pixels of the square input of the network.
    resize : int or None
        Length of the short side in pixels before the centre crop; None resizes the
        whole image to the square, without keeping its aspect ratio.
    interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        Resampling filter of the resize.
    mean, std : tuple of 3 float
        Mean and standard deviation that standardise the channels, scaled to [0, 1].
    """

    image_size: int
    resize: int | None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def scaled(self, image_size: int | None) -> "InputSpec":
        """The recipe for another input size, with resize and crop in proportion."""
        if image_size is None or image_size == self.image_size:
            return self
        resize = self.resize and round(self.resize * image_size / self.image_size)
        return replace(self, image_size=image_size, resize=resize)


# Before the proper resize, "fast" may shrink an image cheaply to no less than twice the
# target size, where the difference is hard to see.
REDUCING_GAP = {"exact": None, "fast": 2.0}

# Above this number of pixels only the crop is computed, because a narrow image of few
# bytes could need gigabytes. Its pixels may differ slightly from the published recipe.
LARGEST_RESIZED = 2**24


def prepare(pixels: Pixels, spec: InputSpec, decode="exact") -> np.ndarray:
    """(h, w, 3) pixels of the network's input size, on the scale 0 to 255."""
    gap = REDUCING_GAP[decode]
    if isinstance(pixels.image, Image.Image):
        return np.asarray(_resize_and_crop(pixels.image, spec, gap))
    with np.errstate(over="ignore"):  # features that are not finite are reported later
        scaled = pixels.image * np.float32(255)
    channels = [
        np.asarray(_resize_and_crop(Image.fromarray(channel), spec, gap))
        for channel in np.moveaxis(scaled, -1, 0).copy()
    ]
    return np.stack(channels, axis=-1)


def _resize_and_crop(image: Image.Image, spec: InputSpec, gap) -> Image.Image:
    """Resize the short side and crop the centre, or resize to the square."""
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
