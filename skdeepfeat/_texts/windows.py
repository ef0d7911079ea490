"""The rows of one call as texts, with their keys, in windows."""

from collections.abc import Iterator
from numbers import Number

import numpy as np

from .._digests import digest
from .._exceptions import TextError, TextWarning, Wording
from .._validation import is_missing

ROWS_HELD = 4096  # by a window, at most

TEXTS = Wording(
    "text",
    TextError,
    TextWarning,
    not_finite=(
        "its features are not finite: some weights are NaN or infinite, or too large "
        "for the precision. Use precision='float32'"
    ),
    out_of_range=(
        "Texts that have more tokens than max_length, or than the network reads, were "
        "cut: {n} in this call. Raise max_length, or split long texts."
    ),
)

BOM = "\ufeff"  # at the start of some files
NO_TEXT = (
    "is not a text; a row must be a str, or bytes in UTF-8. Convert other values with "
    "str(value), and lists of words with ' '.join(value)"
)


class Texts:
    """The rows of one call: a sequence of texts.

    Parameters
    ----------
    cells : list
        The cells of the rows.
    """

    wording = TEXTS

    def __init__(self, cells: list):
        self._cells = cells

    def __len__(self):
        return len(self._cells)

    def windows(self) -> Iterator["TextWindow"]:
        """All rows in order, in windows."""
        for start in range(0, len(self), ROWS_HELD):
            yield TextWindow(start, self._cells[start : start + ROWS_HELD])


class TextWindow:
    """Some rows of X, as texts.

    Parameters
    ----------
    start : int
        Position of the first row.
    cells : list

    Attributes
    ----------
    keys : dict of int to bytes or TextError
        Digest of the text of each row, or why there is none.
    files : list
        Empty: texts come from no files.
    """

    def __init__(self, start: int, cells: list):
        self.texts: dict[int, str] = {}
        self.keys: dict[int, bytes | TextError] = {}
        self.files: list[tuple[str, str, bytes]] = []
        for row, cell in enumerate(cells, start):
            try:
                self.texts[row] = text = text_of(row, cell)
                self.keys[row] = key_of(row, text)
            except TextError as error:
                self.keys[row] = error

    def recognise(self, rows, recall) -> dict[int, bytes]:
        """Nothing: all texts have been hashed."""
        return {}

    def error_of(self, row: int, error: TextError) -> TextError:
        """The error of a row that is equal to another row with this error."""
        return error.at(row)

    def forget(self) -> None:
        """Drop the texts."""
        self.texts.clear()


def text_of(row: int, cell) -> str:
    """The text of a cell; raises TextError."""
    if isinstance(cell, str):
        return str.__str__(cell).removeprefix(BOM)  # not as a subclass shows itself
    if isinstance(cell, (bytes, bytearray, memoryview)):
        try:
            return str(cell, "utf-8").removeprefix(BOM)
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 ({error.reason}); decode it before"
            raise TextError(row, "bytes", reason) from error
    if _is_missing(cell):
        raise TextError(row, "missing", "there is no text in this row")
    raise TextError(row, type(cell).__name__, NO_TEXT)


def _is_missing(cell) -> bool:
    """Whether a cell is a missing value of any kind; it is not compared, which some
    numbers refuse."""
    if is_missing(cell):
        return True
    is_number = isinstance(cell, (Number, np.generic))
    return is_number and str(cell).lower() in ("nan", "-nan", "snan", "-snan", "nat")


def key_of(row: int, text: str) -> bytes:
    """The digest of a text; raises TextError."""
    try:
        return digest("text", text)
    except UnicodeEncodeError as error:
        reason = f"has half a character (a surrogate) at position {error.start}"
        raise TextError(row, name_of(text), reason) from error


def name_of(text: str) -> str:
    """What messages call a text: they never quote it."""
    return f"text of {len(text):,} characters"
