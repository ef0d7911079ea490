"""One cell of X: what kind of image it is, its content key, and how it is opened."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ._decoding import CHANNELS, ORIENTATION, Pixels, open_array, open_bytes, open_pil
from ._digests import digest, digest_bytes, digest_file

ALLOWED = (
    "a path, encoded bytes, a PIL image, a (h, w) or (h, w, channels) array, or a "
    "(channels, h, w) tensor"
)


@dataclass(frozen=True)
class CellKind:
    """One kind of image cell: how to recognise, hash, name and open it."""

    name: str
    matches: Callable[[Any], bool]
    digest: Callable[[Any], bytes]
    describe: Callable[[Any], str]
    open: Callable[..., Pixels]  # (cell or bytes of a file, value_range, enough)


def is_missing(cell) -> bool:
    """Whether a cell is None, masked, nan or a data frame's own missing value."""
    if cell is None or cell is np.ma.masked:
        return True
    if isinstance(cell, (float, np.floating)):
        return bool(cell != cell)
    return type(cell).__name__ in ("NAType", "NaTType")


def is_tensor(cell) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    return any(base.__module__ == "torch" for base in type(cell).__mro__) and hasattr(
        cell, "detach"
    )


def as_array(cell) -> np.ndarray:
    """A (channels, h, w) or (h, w) tensor as an (h, w[, channels]) array."""
    tensor, shape = cell.detach().cpu(), tuple(cell.shape)
    if len(shape) == 3 and shape[0] not in (1, 2, 3, 4):
        hint = "; pass image.permute(2, 0, 1)" if shape[2] in CHANNELS else ""
        raise ValueError(
            "an image tensor must have the shape (h, w) or (channels, h, w) with 1 to "
            f"4 channels, got {shape}{hint}"
        )
    if is_bfloat16(tensor):
        tensor = tensor.float()
    array = tensor.numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def is_bfloat16(tensor) -> bool:
    """Whether numpy has no dtype for the numbers of a tensor."""
    return "bfloat16" in str(tensor.dtype)


def digest_array(array) -> bytes:
    """Key of pixels: their type, shape and values."""
    return digest("pixels", array)


def digest_pil(image) -> bytes:
    """Key of a PIL image; a plain 8-bit one has that of its array."""
    orientation = image.getexif().get(ORIENTATION, 1)
    transparency = image.info.get("transparency")
    if image.mode in ("RGB", "L") and orientation == 1 and transparency is None:
        return digest_array(np.asarray(image))
    palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
    about = repr((image.mode, image.size, palette, transparency, orientation))
    return digest("pil", about, image.tobytes())


CELL_KINDS = (
    CellKind(
        "path",
        lambda c: isinstance(c, (str, os.PathLike)),
        digest_file,
        lambda c: str(os.fsdecode(c)),  # never numpy's own kind of str
        open_bytes,
    ),
    CellKind(
        "bytes",
        lambda c: isinstance(c, (bytes, bytearray, memoryview)),
        digest_bytes,
        lambda c: f"{len(c)} bytes",
        open_bytes,
    ),
    CellKind(
        "pil",
        lambda c: isinstance(c, Image.Image),
        digest_pil,
        lambda c: f"{c.mode} image of {c.width} x {c.height}",
        open_pil,
    ),
    CellKind(
        "array",
        lambda c: isinstance(c, np.ndarray),
        digest_array,
        lambda c: f"array of shape {c.shape}, {c.dtype}",
        open_array,
    ),
    CellKind(
        "tensor",
        is_tensor,
        lambda c: digest_array(as_array(c)),
        lambda c: f"tensor of shape {tuple(c.shape)}",
        lambda c, *arguments: open_array(as_array(c), *arguments),
    ),
)


def unwrap(cell):
    """The image inside {"bytes": ..., "path": ...}, as data sets keep undecoded."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        return cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    return cell


def kind_of(cell) -> CellKind | None:
    """The kind of a cell, None if it is no image."""
    return next((kind for kind in CELL_KINDS if kind.matches(cell)), None)


# What an exception while reading means, the first match counts.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (FileNotFoundError, "there is no such file"),
    (IsADirectoryError, "is a folder; load_image_folder(path) lists the images in it"),
    (PermissionError, "the file may not be read by this user"),
    (
        Image.DecompressionBombError,
        "has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows twice over; it could "
        "be a decompression bomb. Raise that limit if you trust the file",
    ),
    (UnidentifiedImageError, "is no image in a format that Pillow reads"),
)


def reason_of(error: Exception) -> str:
    """The reason in the table, or the library's own words."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    return str(error) or type(error).__name__
