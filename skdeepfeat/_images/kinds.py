"""What one cell of X may be: a table of the kinds of images, with keys and pixels."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from PIL import Image

from .._digests import digest, digest_bytes
from .._processes import fork_safe
from .decoding import (
    CHANNELS,
    Pixels,
    check_numbers,
    open_array,
    open_bytes,
    open_pil,
    open_samples,
    settle,
    white_of_file,
)
from .formats import is_encoded
from .references import (
    read_data_uri,
    read_file_object,
    refer,
    shortened,
    without_secrets,
)
from .samples import Samples

MASKED = (
    "must not be a masked array, whose mask no network can see; fill it, for instance "
    "with image.filled(0)"
)
REDUCED_PIL = (
    "is a PIL image whose file has more than 8 bits, which cannot be sent to the "
    "workers of a cluster; pass the path of the file, or its bytes"
)
ALLOWED = (
    "a path, a URL, encoded bytes, a binary file, a PIL image, a (h, w) or "
    "(h, w, channels) array, or a (channels, h, w) tensor"
)


@dataclass(frozen=True)
class CellKind:
    """One kind of image cell.

    Parameters
    ----------
    name : str
    matches : callable
        Cell → whether it is of this kind.
    describe : callable
        Cell → its name in messages.
    take : callable
        Cell, protocols → what is kept of it: a `Reference`, bytes, or the cell.
    send : callable
        What is kept of a cell → what another process is sent instead.
    digest : callable
        Bytes, or the cell → its content key.
    open : callable
        Bytes, or the cell; value_range, enough, reserve → its `Pixels`.
    """

    name: str
    matches: Callable[[Any], bool]
    describe: Callable[[Any], str]
    digest: Callable[[Any], bytes]
    open: Callable[..., Pixels]
    take: Callable[[Any, Collection[str]], Any] = lambda cell, protocols: cell
    send: Callable[[Any], Any] = lambda held: held

    def __reduce__(self):
        return kind_named, (self.name,)


def is_tensor(cell) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    return any(base.__module__ == "torch" for base in type(cell).__mro__) and hasattr(
        cell, "detach"
    )


def as_array(cell) -> np.ndarray:
    """A (channels, h, w) or (h, w) tensor as an (h, w[, channels]) array."""
    tensor, shape = cell.detach().cpu().resolve_neg(), tuple(cell.shape)
    if len(shape) == 3 and shape[0] not in (1, 2, 3, 4):
        hint = "; pass image.permute(2, 0, 1)" if shape[2] in CHANNELS else ""
        raise ValueError(
            "an image tensor must have the shape (h, w) or (channels, h, w) with 1 to "
            f"4 channels, got {shape}{hint}"
        )
    if is_short_float(tensor):
        tensor = fork_safe(tensor.float)()
    array = tensor.numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def is_short_float(tensor) -> bool:
    """Whether numpy has no dtype for the floats of a tensor."""
    return str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8"))


def _name_of_member(cell) -> str:
    """The path of a member; its name alone if the archive is in memory."""
    try:
        return str(cell)
    except TypeError:
        return cell.name


def _read_member(cell, protocols) -> bytes:
    """The content of a member."""
    if not cell.is_file():  # the errors of an archive in memory have no text
        raise IsADirectoryError if cell.is_dir() else FileNotFoundError
    return cell.read_bytes()


def is_encoded_array(cell) -> bool:
    """Whether this is the content of a file as an array, as cv2.imencode gives it."""
    is_column = isinstance(cell, np.ndarray) and cell.shape[1:] in ((), (1,))
    return is_column and cell.dtype == np.uint8 and is_encoded(cell[:16].tobytes())


def take_array(cell: np.ndarray, protocols) -> np.ndarray:
    """An array of pixels; refuses masked arrays and what is not numbers."""
    if isinstance(cell, np.ma.MaskedArray):
        raise ValueError(MASKED)
    check_numbers(cell)
    return cell


def digest_array(array) -> bytes:
    """Key of pixels: their type, shape and values."""
    return digest("pixels", array)


def digest_pil(image) -> bytes:
    """Key of the pixels that are computed; for 8 bits, that of the same array."""
    settled = settle(image)
    if isinstance(settled, Image.Image):
        key = digest_array(np.asarray(settled))
        # With such a file value_range is refused, so it is another image.
        return key if white_of_file(image) <= 255 else digest("reduced", key)
    return digest_samples(settled)


def digest_samples(samples: Samples) -> bytes:
    """Key of samples of more than 8 bits."""
    alpha = b"" if samples.alpha is None else samples.alpha
    about = f"white {samples.white}, inverted {samples.inverted}"
    return digest("samples", about, samples.values, alpha)


def send_pil(image) -> Image.Image | Samples:
    """The pixels of a PIL image alone, since pickles of PIL lose what its file was."""
    settled = settle(image)
    if isinstance(settled, Samples):
        return settled
    if white_of_file(image) > 255:
        raise ValueError(REDUCED_PIL)
    return Image.fromarray(np.asarray(settled))


# The first that matches counts. A new kind of image is one more entry.
CELL_KINDS = (
    CellKind(
        "data URI",
        matches=lambda c: isinstance(c, str) and c[:5].lower() == "data:",
        describe=shortened,
        take=read_data_uri,
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(
        "path",
        matches=lambda c: isinstance(c, (str, os.PathLike)),
        # Never numpy's own kind of str.
        describe=lambda c: shortened(without_secrets(str(os.fsdecode(c)))),
        take=refer,
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(
        "bytes",
        matches=lambda c: isinstance(c, (bytes, bytearray, memoryview)),
        describe=lambda c: f"{memoryview(c).nbytes} bytes",
        take=lambda c, protocols: c.tobytes() if isinstance(c, memoryview) else c,
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(
        "encoded array",
        matches=is_encoded_array,
        describe=lambda c: f"array of {c.size} bytes",
        take=lambda c, protocols: c.tobytes(),
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(
        "file object",
        matches=lambda c: callable(getattr(c, "read", None)) and hasattr(c, "seek"),
        describe=lambda c: shortened(str(getattr(c, "name", None) or type(c).__name__)),
        take=read_file_object,
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(
        "pil",
        matches=lambda c: isinstance(c, Image.Image),
        describe=lambda c: f"{c.mode} image of {c.width} x {c.height}",
        digest=digest_pil,
        open=open_pil,
        send=send_pil,
    ),
    CellKind(
        "array",
        matches=lambda c: isinstance(c, np.ndarray),
        describe=lambda c: f"array of shape {c.shape}, {c.dtype}",
        take=take_array,
        digest=digest_array,
        open=open_array,
    ),
    CellKind(
        "tensor",
        matches=is_tensor,
        describe=lambda c: f"tensor of shape {tuple(c.shape)}",
        digest=lambda c: digest_array(as_array(c)),
        open=lambda c, *arguments: open_array(as_array(c), *arguments),
        send=as_array,
    ),
    CellKind(
        "member of an archive",
        matches=lambda c: isinstance(c, Traversable),
        describe=lambda c: shortened(_name_of_member(c)),
        take=_read_member,
        digest=digest_bytes,
        open=open_bytes,
    ),
    CellKind(  # what workers are sent for a PIL image of more than 8 bits
        "samples",
        matches=lambda c: isinstance(c, Samples),
        describe=lambda c: f"samples of shape {c.values.shape}",
        digest=digest_samples,
        open=open_samples,
    ),
)


# What contains an image: how it is recognised, and how the image is taken out.
WRAPPED: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    # What data sets keep undecoded.
    (
        lambda c: isinstance(c, dict) and c.keys() <= {"bytes", "path"},
        lambda c: c.get("path") if c.get("bytes") is None else c["bytes"],
    ),
    # A cell of an array of strings in a file.
    (lambda c: isinstance(c, np.ndarray) and c.ndim == 0, lambda c: c.item()),
    (lambda c: isinstance(c, memoryview) and c.ndim > 1, np.asarray),
    # The content of a file, as torchvision.io.read_file gives it.
    (
        lambda c: is_tensor(c) and c.ndim == 1 and str(c.dtype) == "torch.uint8",
        lambda c: c.cpu().numpy(),
    ),
    # An upload, as web frameworks hand it over.
    (
        lambda c: hasattr(getattr(c, "file", None), "seek") and not hasattr(c, "tell"),
        lambda c: c.file,
    ),
)


def kind_named(name: str) -> CellKind:
    """The kind of this name."""
    return next(kind for kind in CELL_KINDS if kind.name == name)


def unwrap(cell):
    """The image in a cell that only contains one; any other cell itself."""
    return next((take(cell) for is_one, take in WRAPPED if is_one(cell)), cell)


def kind_of(cell) -> CellKind | None:
    """The kind of a cell; None if it is not an image."""
    return next((kind for kind in CELL_KINDS if kind.matches(cell)), None)
