"""One cell of X: what kind of image it is, its content key, and how it is opened."""

import base64
import contextlib
import io
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from .._digests import digest, digest_bytes, learn_digest, recall_digest
from .._exceptions import ImageError
from .._processes import fork_safe
from .decoding import (
    CHANNELS,
    Pixels,
    check_numbers,
    open_array,
    open_bytes,
    open_pil,
    settle,
    white_of_file,
)
from .formats import FOREIGN_STARTS, begins_like, is_encoded
from .references import File, Reference, refer, without_secrets

LONGEST_NAME = 200  # in messages
STANDARD = bytes.maketrans(b"-_", b"+/")  # alphabet of base64, of that for URLs
MASKED = (
    "must not be a masked array, whose mask no network can see; fill it, for instance "
    "with image.filled(0)"
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
        Cell → what a person calls it.
    take : callable
        Cell, protocols → what is held of it: a `Reference`, bytes, or the cell.
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


def is_encoded_array(cell) -> bool:
    """Whether this is the content of a file as an array, as cv2.imencode gives it."""
    is_column = isinstance(cell, np.ndarray) and cell.shape[1:] in ((), (1,))
    return is_column and cell.dtype == np.uint8 and is_encoded(cell[:16].tobytes())


def take_array(cell: np.ndarray, protocols) -> np.ndarray:
    """An array of pixels, all of which are numbers."""
    if isinstance(cell, np.ma.MaskedArray):
        raise ValueError(MASKED)
    check_numbers(cell)
    return cell


def digest_array(array) -> bytes:
    """Key of pixels: their type, shape and values."""
    return digest("pixels", array)


def digest_pil(image) -> bytes:
    """Key of the very pixels that are computed; of 8 bits, that of their array."""
    settled = settle(image)
    if isinstance(settled, Image.Image):
        key = digest_array(np.asarray(settled))
        # The file of such an image decides whether it may have a range of values.
        return key if white_of_file(image) <= 255 else digest("reduced", key)
    alpha = b"" if settled.alpha is None else settled.alpha
    about = f"white {settled.white}, inverted {settled.inverted}"
    return digest("samples", about, settled.values, alpha)


def shortened(text: str) -> str:
    """A text, its middle left out if it is longer than a name."""
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME // 2]}... ({len(text):,} characters)"


def read_data_uri(cell: str, protocols) -> bytes:
    """The bytes in a "data:" URI."""
    header, comma, data = cell.partition(",")
    if not comma:
        raise ValueError('a "data:" URI must have a comma before its data')
    content = unquote_to_bytes(data)
    is_base64 = header.lower().rpartition(";")[2].strip() == "base64"
    return decode_base64(content) if is_base64 else content


def decode_base64(content: bytes) -> bytes:
    """Bytes of base64 in either alphabet, with or without padding and line breaks."""
    digits = b"".join(content.split()).rstrip(b"=").translate(STANDARD)
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as error:
        raise ValueError('the base64 of this "data:" URI is damaged') from error


def read_file_object(cell, protocols) -> bytes:
    """All bytes of a binary file, which is left where it was."""
    place = cell.tell()
    cell.seek(0)
    try:
        content = cell.read()
    except UnicodeDecodeError:
        content = "binary"
    cell.seek(place)
    if isinstance(content, str):
        raise ValueError("the file is open as text; open it with mode 'rb'")
    return content


CELL_KINDS = (
    CellKind(
        "data URI",
        lambda c: isinstance(c, str) and c[:5].lower() == "data:",
        shortened,
        digest_bytes,
        open_bytes,
        read_data_uri,
    ),
    CellKind(
        "path",
        lambda c: isinstance(c, (str, os.PathLike)),
        # Never numpy's own kind of str.
        lambda c: shortened(without_secrets(str(os.fsdecode(c)))),
        digest_bytes,
        open_bytes,
        refer,
    ),
    CellKind(
        "bytes",
        lambda c: isinstance(c, (bytes, bytearray, memoryview)),
        lambda c: f"{memoryview(c).nbytes} bytes",
        digest_bytes,
        open_bytes,
        lambda c, protocols: c.tobytes() if isinstance(c, memoryview) else c,
    ),
    CellKind(
        "encoded array",
        is_encoded_array,
        lambda c: f"array of {c.size} bytes",
        digest_bytes,
        open_bytes,
        lambda c, protocols: c.tobytes(),
    ),
    CellKind(
        "file object",
        lambda c: callable(getattr(c, "read", None)) and hasattr(c, "seek"),
        lambda c: shortened(str(getattr(c, "name", None) or type(c).__name__)),
        digest_bytes,
        open_bytes,
        read_file_object,
    ),
    CellKind(
        "pil",
        lambda c: isinstance(c, Image.Image),
        lambda c: f"{c.mode} image of {c.width} x {c.height}",
        digest_pil,
        open_pil,
    ),
    CellKind(
        "array",
        lambda c: isinstance(c, np.ndarray),
        lambda c: f"array of shape {c.shape}, {c.dtype}",
        digest_array,
        open_array,
        take_array,
    ),
    CellKind(
        "tensor",
        is_tensor,
        lambda c: f"tensor of shape {tuple(c.shape)}",
        lambda c: digest_array(as_array(c)),
        lambda c, *arguments: open_array(as_array(c), *arguments),
    ),
)


# What holds an image: how it is recognised, and how the image is taken out.
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


def unwrap(cell):
    """What a cell stands for, where it is only a wrapping."""
    return next((take(cell) for is_one, take in WRAPPED if is_one(cell)), cell)


def kind_of(cell) -> CellKind | None:
    """The kind of a cell, None if it is no image."""
    return next((kind for kind in CELL_KINDS if kind.matches(cell)), None)


# Rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The image of one row of X.

    Parameters
    ----------
    row : int
        Position in X.
    kind : CellKind
    held : object
        A `Reference`, encoded bytes, or what X holds.
    source : str
        What a person calls it.
    """

    row: int
    kind: CellKind
    held: Any
    source: str

    @classmethod
    def of(cls, row: int, value, protocols: Collection[str]) -> "Cell":
        """What stands in a row of X; raises ImageError if it is no image."""
        with row_errors(row, type(value).__name__):
            value = unwrap(value)
            if is_missing(value):
                raise ImageError(row, "missing", "there is no image in this row")
            kind = kind_of(value)
            if kind is None:
                raise ValueError(f"no image; a row must be {ALLOWED}")
            source = kind.describe(value)
        with row_errors(row, source):
            return cls(row, kind, kind.take(value, protocols), source)

    @property
    def n_bytes(self) -> int:
        """About how much memory is held."""
        if isinstance(self.held, Reference):
            return 0
        if isinstance(self.held, Image.Image):
            return self.held.width * self.held.height * len(self.held.getbands())
        return getattr(self.held, "nbytes", None) or len(self.held)

    @property
    def is_hashed(self) -> bool:
        """Whether its content key is found without waiting for a disk or a server."""
        if not isinstance(self.held, File):
            return not isinstance(self.held, Reference)
        with contextlib.suppress(OSError, ValueError):
            return recall_digest(self.held.name, self.held.state()) is not None
        return True  # its error is found at once

    def hashed(self) -> "Hashed":
        """Its content key; what was not hashed before is read for that, and held."""
        with row_errors(self.row, self.source):
            if not isinstance(self.held, Reference):
                return Hashed(self, self.kind.digest(self.held))
            name, state = self.held.name, self.held.state()
            known = None if state is None else recall_digest(name, state)
            read = self if known is not None else self.read()
            key = known or self.kind.digest(read.held)
            if state is None:
                return Hashed(read, key)
            if known is None:
                learn_digest(name, state, key)
            return Hashed(read, key, (name, state, key))

    def read(self) -> "Cell":
        """The same with its content, where only a reference is held."""
        if not isinstance(self.held, Reference):
            return self
        with row_errors(self.row, self.source):
            return replace(self, held=self.held.read())

    def open(self, value_range, enough, reserve) -> Pixels:
        """Its pixels; the content must be held. Their number is told to `reserve`
        before they are decoded."""
        return self.kind.open(self.held, value_range, enough, reserve)


@dataclass(frozen=True)
class Hashed:
    """A cell and its content key.

    Parameters
    ----------
    cell : Cell
    key : bytes
    file : tuple of (str, str, bytes) or None
        Name, state and digest, where it has a state to be remembered by.
    """

    cell: Cell
    key: bytes
    file: tuple[str, str, bytes] | None = None

    def read(self) -> Cell:
        """The cell with its content, which must be what was hashed."""
        cell = self.cell.read()
        if cell is not self.cell and cell.kind.digest(cell.held) != self.key:
            reason = "the file was changed while it was in use; try again"
            raise ImageError(cell.row, cell.source, reason)
        return cell


@contextlib.contextmanager
def row_errors(row: int, source: str):
    """A context in which whatever goes wrong is an error of this row.

    But for a lack of memory, which says nothing about the image.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        repeats = any(str(e) != without_secrets(str(e)) for e in _causes(error))
        reason = reason_of(error)
        raise ImageError(row, source, reason) from (None if repeats else error)


# What an exception while reading means; the first that it is, or is caused by, counts.
# Classes of packages that may be missing are named.
REASONS: tuple[tuple[type[Exception] | str, str], ...] = (
    ("ClientPayloadError", "the server sent less than it announced"),
    ("BadHttpMessage", "the server's answer is not valid HTTP"),
    ("TooManyRedirects", "the server redirects without end"),
    ("NonHttpUrlRedirectClientError", "the server redirects to what is no HTTP"),
    ("ClientResponseError", "the server answered {0.status}"),
    ("TimeoutError", "the server did not answer in time"),
    ("ClientConnectionError", "there is no connection to the server"),
    (io.UnsupportedOperation, "the file cannot be read from its start; pass its bytes"),
    (FileNotFoundError, "there is no such file"),
    (IsADirectoryError, "is a folder; load_image_folder(path) lists the images in it"),
    (PermissionError, "the file may not be read by this user"),
    (
        Image.DecompressionBombError,
        "has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows twice over; it could "
        "be a decompression bomb. Raise that limit if you trust the file",
    ),
)


def reason_of(error: Exception) -> str:
    """The reason in the table, or the library's own words."""
    if isinstance(error, OSError) and (looks := _looks_of_name(error.filename)):
        return f"is no path; it looks like {looks}"
    for kind, reason in REASONS:
        if found := next((e for e in _causes(error) if _is_a(e, kind)), None):
            return reason.format(found)
    words = error.strerror if isinstance(error, OSError) else None  # without the name
    return shortened(without_secrets(words or str(error) or type(error).__name__))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what fsspec ("not found") and aiohttp hide behind it."""
    yield error
    hides = isinstance(error, FileNotFoundError) or "aiohttp" in type(error).__module__
    if hides and error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _is_a(error: BaseException, kind: type[Exception] | str) -> bool:
    """Whether an exception is of a class, or of one of this name."""
    if isinstance(kind, str):
        return any(base.__name__ == kind for base in type(error).__mro__)
    return isinstance(error, kind)


def _looks_of_name(name) -> str | None:
    """What a text that is no name of a file begins like, such as base64."""
    return begins_like(name.encode(errors="replace"), FOREIGN_STARTS) if name else None
