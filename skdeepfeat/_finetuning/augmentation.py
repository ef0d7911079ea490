"""Random augmentation of training images, in whole batches on their device.

The parameters of each image are drawn on the CPU from torch's global generator, so a
seed has the same effect on every device. A batch is (b, 3, h, w)
floats from 0 to 255.

References
----------
.. [1] Müller, Hutter, "TrivialAugment", 2021 (one step of random kind and strength).
.. [2] Zhong et al., "Random Erasing Data Augmentation", 2020.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from .._images.recipe import InputSpec

Augment = Callable[[torch.Tensor], torch.Tensor]

TRIES = 10  # boxes drawn for each image; the first one that fits is used
LUMA = (0.2989, 0.587, 0.114)


def margin(spec: InputSpec) -> int:
    """Pixels that a training image has in each direction beyond the network's input.

    A multiple of 4, so that its centre crop is exactly the crop of the recipe.
    """
    return max(0, (spec.resize or 0) - spec.image_size) // 4 * 4


def augmentation(name, spec: InputSpec) -> Augment:
    """The function that changes a batch of pixels before the crop and normalisation."""
    if callable(name):
        return partial(_one_by_one, name, spec.image_size)
    steps = {
        "none": (),
        "light": (partial(shift, spec),),
        "standard": (partial(crop, spec, 0.5), partial(jitter, 0.2)),
        "strong": (partial(crop, spec, 0.25), trivial_augment, erase),
    }[name]

    def augment(pixels):
        batch = pixels.float()
        for step in steps:
            batch = step(batch)
        return batch

    return augment


def _one_by_one(function: Augment, side: int, pixels: torch.Tensor) -> torch.Tensor:
    """Apply a function of the user's, which takes one 8-bit image."""
    images = pixels.cpu().round().clamp(0, 255).byte()
    changed = [_checked(function(image), side) for image in images]
    return torch.stack([v2.functional.center_crop(c, [side, side]) for c in changed])


def _checked(image, side: int) -> torch.Tensor:
    """What a function of the user's returned, if it is an image that can be cropped."""
    if not isinstance(image, torch.Tensor):
        got = type(image).__name__
    elif (
        image.dtype == torch.uint8
        and image.ndim == 3
        and image.shape[0] == 3
        and min(image.shape[1:]) >= side
    ):
        return image
    else:
        got = f"{image.dtype} tensor of shape {tuple(image.shape)}"
    raise ValueError(
        "The function in the 'augment' parameter of FineTunedClassifier must return a "
        f"torch.uint8 tensor of shape (3, h, w), with h and w of at least {side}. It "
        f"returned a {got} instead. End it with v2.ToDtype(torch.uint8, scale=True) if "
        "it computes with floats from 0 to 1, and leave out Normalize, which comes "
        "afterwards."
    )


# Places -------------------------------------------------------------------------------


class Boxes(NamedTuple):
    """One box for each image of a batch: four tensors (b,)."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor


def shift(spec: InputSpec, batch: torch.Tensor) -> torch.Tensor:
    """Mirror and shift; without a margin, images continue as their reflection."""
    size, side, n = spec.image_size, batch.shape[-1], len(batch)
    padding = 0 if margin(spec) else size // 16
    top, left = torch.randint(side + 2 * padding - size + 1, (2, n)) - padding
    length = torch.full((n,), size)
    return _resized(batch, Boxes(top, left, length, length), size, "nearest")


def crop(spec: InputSpec, smallest: float, batch: torch.Tensor) -> torch.Tensor:
    """Mirror, and resize a random part, of at least this share, to the input size.

    Images are rarely reduced, so there is no smoothing.
    """
    side = batch.shape[-1]
    boxes, found = random_boxes(len(batch), side, (smallest, 1), (3 / 4, 4 / 3))
    boxes = Boxes(
        *(
            torch.where(found, part, whole)
            for part, whole in zip(boxes, (0, 0, side, side), strict=True)
        )
    )
    return _resized(batch, boxes, spec.image_size, spec.interpolation).clamp_(0, 255)


def random_boxes(n: int, side: int, shares, ratios) -> tuple[Boxes, torch.Tensor]:
    """n boxes of random area, shape and position, and which of them fit an image."""
    area = side**2 * torch.empty(n, TRIES).uniform_(*shares)
    ratio = torch.empty(n, TRIES).uniform_(*map(math.log, ratios)).exp()
    height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (height > 0) & (height <= side) & (width > 0) & (width <= side)
    first = fits.byte().argmax(1, keepdim=True)
    height, width = (x.gather(1, first)[:, 0] for x in (height, width))
    top, left = (
        (torch.rand(n) * (side - length + 1)).floor() for length in (height, width)
    )
    return Boxes(top, left, height, width), fits.any(1)


def _resized(batch, boxes: Boxes, size: int, filter_: str) -> torch.Tensor:
    """Parts of images as (b, 3, size, size), half of them mirrored."""
    mirror = torch.rand(len(batch)) < 0.5
    wide = torch.where(mirror, -boxes.width, boxes.width) / size
    start = torch.where(mirror, boxes.left + boxes.width, boxes.left)
    places = _matrices(wide, c=start, e=boxes.height / size, f=boxes.top)
    return _sampled(batch, places, size, filter_, "reflection")


def _matrices(a, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0) -> torch.Tensor:
    """Matrices (b, 6) that map (x, y) to (ax + by + c, dx + ey + f), in pixels."""
    return torch.stack([entry + torch.zeros_like(a) for entry in (a, b, c, d, e, f)], 1)


def _sampled(batch, places, size: int, filter_: str, beyond: str) -> torch.Tensor:
    """Pixels (b, 3, size, size) sampled at the places that matrices map to.

    Without matrix products, which a GPU may round to lower precision.
    """
    a, b, c, d, e, f = places.to(batch.device)[:, :, None, None].unbind(1)
    along = torch.arange(size, device=batch.device) + 0.5
    x, y = along, along[:, None]
    grid = torch.stack([a * x + b * y + c, d * x + e * y + f], 3)  # (b, size, size, 2)
    grid = (grid - 0.5) * (2 / max(1, batch.shape[-1] - 1)) - 1
    return F.grid_sample(batch, grid, filter_, beyond, align_corners=True)


# Colours ------------------------------------------------------------------------------


def jitter(most: float, batch: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation, in random order for each image.

    Each step maps an image x to ``f x + (1 - f) other``, where `other` is black, the
    mean grey, or the grey of each pixel. All three together are therefore one linear
    map of colours and mean colour, and values are clipped only once, at the end.
    """
    n = len(batch)
    others = torch.zeros(3, 2, 3, 3)  # of each step: from the pixel, from the mean
    others[CONTRAST, 1] = others[SATURATION, 0] = torch.tensor(LUMA).expand(3, 3)
    own, mean = torch.eye(3).expand(n, 3, 3), torch.zeros(n, 3, 3)
    steps = torch.rand(n, 3).argsort(1).T
    factors = torch.empty(3, n, 1, 1).uniform_(1 - most, 1 + most)
    for kinds, f in zip(steps, factors, strict=True):
        of_pixel, of_mean = others[kinds].unbind(1)
        mean = f * mean + (1 - f) * (of_pixel @ mean + of_mean @ (own + mean))
        own = f * own + (1 - f) * of_pixel @ own
    own, mean = own.to(batch.device), mean.to(batch.device)
    colours = batch.flatten(2)  # (b, 3, h * w)
    average = colours.mean(2, keepdim=True)
    return torch.baddbmm(mean @ average, own, colours).clamp_(0, 255).view_as(batch)


BRIGHTNESS, CONTRAST, SATURATION = range(3)


def brighten(batch, factor):
    """Blend with black."""
    return _blend(batch, 0.0, factor)


def saturate(batch, factor):
    """Blend with the grey image."""
    return _blend(batch, _grey(batch), factor)


def contrast(batch, factor):
    """Blend with the mean grey."""
    return _blend(batch, _grey(batch).mean((1, 2, 3), keepdim=True), factor)


def sharpen(batch, factor):
    """Blend with a blurred image, whose border is not blurred."""
    if batch.shape[-1] < 3:  # it is all border
        return batch
    kernel = batch.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    blurred = batch.clone()
    blurred[..., 1:-1, 1:-1] = F.conv2d(batch, kernel / 13, groups=3)
    return _blend(batch, blurred, factor)


def _blend(batch, other, factor):
    """``factor * batch + (1 - factor) * other``, clipped."""
    factor = factor.to(batch.device)[:, None, None, None]
    return (factor * batch + (1 - factor) * other).clamp_(0, 255)


def _grey(batch):
    """The luma of each pixel, (b, 1, h, w)."""
    return (batch * batch.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


# One random step ----------------------------------------------------------------------


def trivial_augment(batch: torch.Tensor) -> torch.Tensor:
    """One step of random kind and strength [1]_, on values rounded to 8 bits."""
    kinds = torch.randint(len(TRIVIAL), (len(batch),))
    strength = torch.randint(31, (len(batch),)) / 30
    strength *= 1 - 2 * torch.randint(2, (len(batch),))
    return _by_kind(batch.round(), kinds, TRIVIAL, strength)


def _by_kind(batch, kinds, functions, strength) -> torch.Tensor:
    """Apply the function of each image's kind at its strength."""
    out = torch.empty_like(batch)
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        some = rows.to(batch.device)
        out[some] = functions[kind](batch[some], strength[rows])
    return out


def _moved(batch, places) -> torch.Tensor:
    """Sample each pixel at another place; black outside the image."""
    return _sampled(batch, places, batch.shape[-1], "nearest", "zeros")


def shear_x(batch, m):
    """Shift each row in proportion to its distance from the top."""
    return _moved(batch, _matrices(torch.ones_like(m), b=m))


def shear_y(batch, m):
    """Shift each column in proportion to its distance from the left."""
    return _moved(batch, _matrices(torch.ones_like(m), d=m))


def translate_x(batch, m):
    """Shift by whole pixels."""
    return _moved(batch, _matrices(torch.ones_like(m), c=-m.trunc()))


def translate_y(batch, m):
    """Shift by whole pixels."""
    return _moved(batch, _matrices(torch.ones_like(m), f=-m.trunc()))


def rotate(batch, m):
    """Rotate around the centre, by degrees."""
    cos, sin, centre = m.deg2rad().cos(), m.deg2rad().sin(), batch.shape[-1] / 2
    x, y = centre * (1 - cos + sin), centre * (1 - cos - sin)
    return _moved(batch, _matrices(cos, -sin, x, sin, cos, y))


def posterize(batch, m):
    """Keep the 2 to 8 highest bits."""
    step = 2 ** (6 * m.abs()).round().to(batch.device)[:, None, None, None]
    return (batch / step).floor() * step


def solarize(batch, m):
    """Invert values above a threshold."""
    threshold = 255 * (1 - m.abs().to(batch.device)[:, None, None, None])
    return torch.where(batch >= threshold, 255 - batch, batch)


def _at(most: float, function, least=0.0):
    """The function with its strength scaled to its own range."""
    return lambda batch, m: function(batch, least + most * m)


def _in_bytes(function):
    """The same for a function of torchvision that takes 8-bit images."""
    return lambda batch, m: function(batch.byte()).float()


TRIVIAL = (
    lambda batch, m: batch,
    _at(0.99, shear_x),
    _at(0.99, shear_y),
    _at(32, translate_x),
    _at(32, translate_y),
    _at(135, rotate),
    *(_at(0.99, f, 1) for f in (brighten, saturate, contrast, sharpen)),
    posterize,
    solarize,
    _in_bytes(v2.functional.autocontrast),
    _in_bytes(v2.functional.equalize),
)


def erase(batch: torch.Tensor) -> torch.Tensor:
    """A black box of random shape in every fourth image [2]_."""
    side = batch.shape[-1]
    boxes, fits = random_boxes(len(batch), side, (0.02, 0.33), (0.3, 3.3))
    erased = fits & (torch.rand(len(batch)) < 0.25)
    place = torch.arange(side)
    rows, columns = (
        (place >= start[:, None]) & (place < (start + length)[:, None])
        for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width))
    )
    mask = erased[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return batch.masked_fill(mask[:, None].to(batch.device), 0)
