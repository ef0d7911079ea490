"""Images of more than 8 bits → the exact samples of their file, upright.

Of colours with 16 bits Pillow keeps the high bytes; a second pass reads the low ones.
Other kinds of TIFF are read by tifffile, if that is installed.
"""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from PIL import Image

from .bit_depth import BITS, white_of
from .formats import DAMAGED, is_tiff, open_image, refusal
from .orientation import ON_ITS_SIDE, ORIENTATION, orientation_of, rotated

DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
SIXTEEN_IN_32 = ("PNG", "PPM")  # formats whose 16 bits Pillow may hold in 32

# Tags of TIFF, and some of their values.
WIDTH, HEIGHT = 256, 257
PHOTOMETRIC, PLANAR, PREDICTOR, KIND = 262, 284, 317, 339
WHITE_IS_ZERO, SEPARATE, OF_FLOATS, UNSIGNED, SIGNED = 0, 2, 3, 1, 2
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # alpha: none, multiplied in, apart
COLOURS = {0: 1, 1: 1, 2: 3}  # photometric interpretation → number of channels

# Formats whose colours Pillow reduces to 8 bits with white as white. (In JPEG 2000 it
# rounds white up, to black.)
REDUCIBLE = ("TIFF", "PPM", "AVIF", "HEIF")

REDUCED = (
    "the file has values up to {} for each colour, but Pillow only keeps 8 bits, so "
    "value_range cannot hold for it; save it as a PNG or TIFF of 16 bits, or leave "
    "value_range out"
)
WRONG = (
    "the file has values up to {} for each colour, which Pillow reads wrongly from "
    "this format; save it as a PNG or TIFF of 16 bits"
)
NO_TIFFFILE = (
    "is a kind of TIFF that Pillow does not read, or not exactly; tifffile does. Type: "
    "pip install 'skdeepfeat[tiff]'"
)
ODD_TIFF = (
    "is a kind of TIFF that is not read: {}, {} samples of {} bits for each pixel; "
    "pass its pixels as an array, for instance from tifffile.imread(path)"
)


@dataclass(frozen=True)
class Samples:
    """Pixels of more than 8 bits as their file holds them, upright.

    Parameters
    ----------
    values : ndarray of shape (h, w, 1) or (h, w, 3)
    white : int or None
        The value of white, where black is 0; None for the range of the dtype.
    alpha : ndarray of shape (h, w, 1), float32, or None
        From 0, transparent, to 1.
    inverted : bool
        Whether low values are white and high ones black.
    """

    values: np.ndarray
    white: int | None = None
    alpha: np.ndarray | None = None
    inverted: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether there is no more to them than to an array of these values."""
        return self.white is None and self.alpha is None and not self.inverted


def samples_of(image: Any, data, value_range) -> Samples | None:
    """Samples of a file, whether Pillow can open it or not; None if 8 bits suffice.

    Parameters
    ----------
    image : PIL.Image.Image or None
        The open file, not yet decoded.
    data : bytes
        Its content.
    value_range : tuple of float or None
        If given, the samples must be exact.
    """
    if image is None and not is_tiff(data):
        raise ValueError(refusal(data))
    if image is None or is_misread(image):
        return _samples_by_tifffile(data)
    if image.mode in DEEP_GREY:
        image.load()
        return _on_own_scale(grey_samples(image), image, data)
    white = white_of(image, data)
    if white <= 255:
        return None
    samples = _colour_samples(image, data)
    if samples is None and image.format not in REDUCIBLE:
        raise ValueError(WRONG.format(white))
    if samples is None and value_range is not None:
        raise ValueError(REDUCED.format(white))
    return samples


def is_misread(image: Any) -> bool:
    """Whether Pillow reads a TIFF differently from what its header says."""
    tags = getattr(image, "tag_v2", None) or {}
    deep, kind = max(tags.get(BITS, (1,))) > 8, tags.get(KIND, (UNSIGNED,))[0]
    in_planes = deep and image.mode not in DEEP_GREY and tags.get(PLANAR) == SEPARATE
    signed = kind == SIGNED and not deep
    swapped = tags.get(PREDICTOR) == OF_FLOATS and tags.prefix == b"MM"  # type: ignore
    return in_planes or signed or swapped or _is_mapped_askew(image)


def _is_mapped_askew(image: Any) -> bool:
    """Whether Pillow took the height of a TIFF that lies on its side for its width.

    It does when it maps a file that it opened by its name. The tag is gone since then,
    so it is read again from the mapped file.
    """
    tags, mapped = getattr(image, "tag_v2", None), getattr(image, "map", None)
    if not tags or mapped is None or ORIENTATION not in tags.tagtype:
        return False
    stored = tags.get(WIDTH), tags.get(HEIGHT)
    if stored[0] == stored[1] or image.size != stored:
        return False
    return orientation_of(cast(Image.Image, open_image(mapped[:]))) in ON_ITS_SIDE


# Grey ---------------------------------------------------------------------------------


def grey_samples(image: Image.Image) -> Samples:
    """Samples of a loaded PIL image that has one channel of more than 8 bits."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", None) or {}
    if image.mode == "I" and tags and tags.get(KIND, (UNSIGNED,))[0] == UNSIGNED:
        values = values.view(np.uint32)
    if image.mode == "I" and image.format in SIXTEEN_IN_32:
        values = values.astype(np.uint16)
    values = rotated(values, orientation_of(image))[:, :, None]
    transparent = image.info.get("transparency")
    return Samples(
        values,
        white=_odd_white(values.dtype, max(tags.get(BITS, (32,)))),
        alpha=None if transparent is None else _not_equal(values, transparent),
        inverted=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
    )


def _odd_white(dtype, bits: int) -> int | None:
    """White where the file has fewer bits than the dtype; else that of the dtype."""
    return 2**bits - 1 if dtype.kind == "u" and bits < 8 * dtype.itemsize else None


def _not_equal(values, colour) -> np.ndarray:
    """Alpha of an image in which one colour is transparent."""
    return (values != colour).any(axis=2, keepdims=True).astype(np.float32)


# Formats whose grey Pillow scales to 16 bits: (values, white of the file) → its values.
SCALED: dict[str | None, Callable[[np.ndarray, int], np.ndarray]] = {
    "PPM": lambda values, white: np.rint(values * (white / 65535)),
    "JPEG2000": lambda values, white: values >> (16 - white.bit_length()),
    "HEIF": lambda values, white: values >> (16 - white.bit_length()),
}


def _on_own_scale(samples: Samples, image, data) -> Samples:
    """The values of the file itself, if Pillow has scaled them."""
    if image.format not in SCALED or samples.values.dtype.kind != "u":
        return samples
    white = min(white_of(image, data), 65535)
    if white <= 255:  # its header was not found
        return samples
    values = SCALED[image.format](samples.values, white).astype(np.uint16)
    return Samples(values, white, samples.alpha)


# Colour -------------------------------------------------------------------------------

DEEP_COLOUR = re.compile("(RGB|RGBX|RGBA|RGBa);16([BLN])")
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _colour_samples(image: Any, data) -> Samples | None:
    """Samples that Pillow unpacks from 16 bits; None if there are none."""
    rawmode = next((_rawmode_of(tile) for tile in image.tile), "")
    transparent = image.info.get("transparency")
    if rawmode == "LA;16B":  # the four bytes of each pixel
        return _split(_unpack(data, "RGBA").view(">u2"), 1, 65535)
    if not (match := DEEP_COLOUR.fullmatch(rawmode)):
        return None
    bands, order = match[1].upper(), match[2]
    high = _unpack(data, f"{bands};16{order}").astype(np.uint16)
    pixels = high << 8 | _unpack(data, f"{bands};16{OTHER_BYTE[order]}")
    return _split(pixels, 3, 65535, match[1] == "RGBa", transparent)


def _rawmode_of(tile) -> str:
    """How Pillow is to unpack a part of a file."""
    return str(tile[3] if isinstance(tile[3], str) else tile[3][0])


def _unpack(data, rawmode: str) -> np.ndarray:
    """Decode a file, but unpack its bytes as if they were in this raw mode."""
    image: Any = open_image(data)  # it was opened before
    image.tile = [_with_rawmode(tile, rawmode) for tile in image.tile]
    image.load()
    return rotated(np.asarray(image), orientation_of(image))


def _with_rawmode(tile, rawmode: str):
    """The same tile, a tuple or in newer versions a named one, in another raw mode."""
    arguments = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return tuple.__new__(type(tile), (*tile[:3], arguments))


def _split(pixels, n_colours, top, premultiplied=False, transparent=None) -> Samples:
    """Colours and alpha of (h, w, channels) pixels, whose full alpha is `top`."""
    values, rest = pixels[:, :, :n_colours], pixels[:, :, n_colours : n_colours + 1]
    white = _odd_white(pixels.dtype, int(top).bit_length())
    if not rest.size:
        alpha = None if transparent is None else _not_equal(values, transparent)
        return Samples(values, white, alpha)
    alpha = (rest / top).astype(np.float32)
    if premultiplied:
        values, white = values / np.where(alpha > 0, alpha, 1), int(top)
    return Samples(values, white, alpha)


# TIFF by tifffile ---------------------------------------------------------------------


def _samples_by_tifffile(data) -> Samples:
    """Samples of the first page of a TIFF."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(NO_TIFFFILE) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not file.pages:
            raise ValueError(DAMAGED.format("TIFF"))
        page: Any = file.pages[0]
        _check_page(page)
        planes = page.asarray(maxworkers=1).reshape(page.shaped)[:, 0]
        orientation = page.tags.valueof(ORIENTATION)
    pixels = np.moveaxis(planes, 0, 2).reshape(*planes.shape[1:3], -1)
    n_colours = COLOURS[page.photometric]
    kind = page.extrasamples[0] if page.extrasamples else UNASSOCIATED
    if kind == UNSPECIFIED:
        pixels = pixels[:, :, :n_colours]
    top = 2**page.bitspersample - 1 if pixels.dtype.kind == "u" else 1
    samples = _split(rotated(pixels, orientation), n_colours, top, kind == ASSOCIATED)
    return replace(samples, inverted=page.photometric == WHITE_IS_ZERO)


def _check_page(page) -> None:
    """Refuse a page that is not certainly a grey or colour image, or too large."""
    n_colours, bits = COLOURS.get(page.photometric, 0), page.bitspersample
    n_extra = page.samplesperpixel - n_colours
    declared = n_extra == len(page.extrasamples) or n_colours == 3
    flat = n_colours and n_extra in (0, 1) and declared and page.imagedepth == 1
    numbers = page.dtype is not None and page.dtype.kind in "uif"
    if not (flat and numbers and isinstance(bits, int) and bits >= 8):
        about = getattr(page.photometric, "name", page.photometric)
        raise ValueError(ODD_TIFF.format(about, page.samplesperpixel, bits))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and page.imagewidth * page.imagelength > 2 * limit:
        raise Image.DecompressionBombError
