"""An exception while a row is read → an ImageError: which row, and why, in words."""

import contextlib
import io
from collections.abc import Iterator

from PIL import Image

from .._exceptions import ImageError
from .formats import FOREIGN_STARTS, begins_like
from .references import shortened, without_secrets


@contextlib.contextmanager
def row_errors(row: int, source: str):
    """A context in which every exception becomes an error of this row.

    Except MemoryError, which is not the fault of the image.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        repeats = any(str(e) != without_secrets(str(e)) for e in _causes(error))
        reason = reason_of(error)
        raise ImageError(row, source, reason) from (None if repeats else error)


# Exception → reason; the first that an exception is, or is caused by, counts. Classes
# of optional packages are given by name.
REASONS: tuple[tuple[type[Exception] | str, str], ...] = (
    ("ClientPayloadError", "the server sent less than it announced"),
    ("BadHttpMessage", "the server's answer is not valid HTTP"),
    ("TooManyRedirects", "the server redirects without end"),
    (
        "NonHttpUrlRedirectClientError",
        "the server redirects to what is not HTTP",
    ),
    ("ClientResponseError", "the server answered {0.status}"),
    ("TimeoutError", "the server did not answer in time"),
    ("ClientConnectionError", "there is no connection to the server"),
    (io.UnsupportedOperation, "the file cannot be read from its start; pass its bytes"),
    (FileNotFoundError, "there is no such file"),
    (IsADirectoryError, "is a folder; load_image_folder(path) lists the images in it"),
    (PermissionError, "this user may not read the file"),
    (
        Image.DecompressionBombError,
        "has more than twice as many pixels as PIL.Image.MAX_IMAGE_PIXELS allows; it "
        "could be a decompression bomb. Raise that limit if you trust the file",
    ),
)


def reason_of(error: Exception) -> str:
    """The reason in the table, or else the library's own message."""
    if isinstance(error, OSError) and (looks := _looks_of_name(error.filename)):
        return f"is not a path; it looks like {looks}"
    for kind, reason in REASONS:
        if found := next((e for e in _causes(error) if _is_a(e, kind)), None):
            return reason.format(found)
    words = error.strerror if isinstance(error, OSError) else None  # without the name
    return shortened(without_secrets(words or str(error) or type(error).__name__))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those behind "not found" of fsspec and behind aiohttp's."""
    yield error
    hides = isinstance(error, FileNotFoundError) or "aiohttp" in type(error).__module__
    if hides and error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _is_a(error: BaseException, kind: type[Exception] | str) -> bool:
    """Whether an exception is of a class, or of a class of this name."""
    if isinstance(kind, str):
        return any(base.__name__ == kind for base in type(error).__mro__)
    return isinstance(error, kind)


def _looks_of_name(name) -> str | None:
    """What a file name begins like if it is not one, such as base64."""
    return begins_like(name.encode(errors="replace"), FOREIGN_STARTS) if name else None
