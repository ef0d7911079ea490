"""Our errors and warnings.

::

    Exception
    ├── ValueError
    │   ├── ImageError        one row of X cannot become pixels; knows its row
    │   └── WeightsError      a weights file is missing, unsafe, or of another network
    ├── MemoryError
    │   └── OutputTooLarge    "flatten" would need more than its limit
    └── RuntimeError
        └── ConversionError   an engine cannot take over a network; torch does, then
    UserWarning
    └── FeatureWarning
        ├── EngineWarning     torch runs a network that another engine cannot
        ├── ImageWarning      rows filled with nan, pixel values outside their range
        ├── RecipeWarning     a weights file is read with a guessed preprocessing
        └── StoreWarning      a store on disk is damaged, full, or may not be written

Wrong parameters raise scikit-learn's ``InvalidParameterError`` or a ``ValueError``.
"""

import difflib
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType


def closest(name, known) -> str:
    """A sentence with the most similar known name, or nothing."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    return f" Did you mean {match[0]!r}?" if match else ""


def in_one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# Packages between us and the user's line, and those below a thread.
BETWEEN = {"skdeepfeat", "sklearn", "joblib", "contextlib"}
BETWEEN |= {"concurrent", "threading", "multiprocessing"}


class ImageError(ValueError):
    """One row of X cannot become pixels.

    Parameters
    ----------
    row : int
        Position in X.
    source : str
        What the row is: its path, or its type and shape.
    reason : str
        Why it cannot be read and what to do about it.
    """

    def __init__(self, row, source, reason):
        super().__init__(row, source, reason)
        self.row, self.source, self.reason = row, source, reason

    def at(self, row, source=None):
        """The same trouble in another row, which may be called otherwise."""
        return ImageError(row, source or self.source, self.reason)

    def __str__(self):
        return f"row {self.row} ({self.source}): {self.reason}"


class WeightsError(ValueError):
    """A weights file is missing, damaged, unsafe to load, or of another network."""

    @classmethod
    def missing(cls, path):
        """The error of a path where there is no file."""
        return cls(
            f"No weights file at {str(path)!r}. Check the path, or pass the name of a "
            "published version."
        )


class OutputTooLarge(MemoryError):
    """Unpooled features would take more memory than the limit."""


class ConversionError(RuntimeError):
    """An engine cannot take over a network from torch; says why."""


class FeatureWarning(UserWarning):
    """Base of the warnings of this package."""


class EngineWarning(FeatureWarning):
    """A network runs with torch, because another engine cannot take it over."""


class ImageWarning(FeatureWarning):
    """Some rows became nan, or pixel values lie outside their stated range."""


class RecipeWarning(FeatureWarning):
    """The preprocessing of a weights file had to be guessed."""


class StoreWarning(FeatureWarning):
    """A store on disk is damaged, full, or may not be written; work goes on."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that led here; in a thread, at ours."""
    # A thread may compute for another one, which waits for it.
    frame = getattr(threading.current_thread(), "asked_from", None) or sys._getframe()
    frames = list(_outwards(frame))
    ours = [frame for frame in frames if _package_of(frame) == "skdeepfeat"]
    users = (frame for frame in frames if _package_of(frame) not in BETWEEN)
    frame = next(users, ours[-1])
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__", "<unknown>"),
        names.setdefault("__warningregistry__", {}),
    )


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it."""
    while frame:
        yield frame
        frame = frame.f_back


def _package_of(frame) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
