"""The errors and warnings of the package, and at which line warnings appear.

::

    Exception
    ├── ValueError
    │   ├── RowError          one row of X cannot be read; has its row
    │   │   ├── ImageError    as an image
    │   │   └── TextError     as a text
    │   └── WeightsError      a weights file is missing, unsafe, or for another network
    ├── MemoryError
    │   └── OutputTooLarge    "flatten" would need more than its limit
    └── RuntimeError
        ├── ConversionError   an engine cannot convert a network; torch runs it then
        └── WorkerError       a worker of a cluster cannot compute what the call plans
    UserWarning
    └── FeatureWarning
        ├── EngineWarning     features are computed in a slower way than planned
        ├── ImageWarning      rows filled with nan, pixel values outside their range
        ├── LayerWarning      no layer predicts y, so "auto" reads the deepest one
        ├── MapWarning        maps of activations that are flat or have nan
        ├── RecipeWarning     a weights file is read with a guessed preprocessing
        ├── StoreWarning      a store is damaged, full, or not writable
        └── TextWarning       rows filled with nan, texts cut, another pooling

Wrong parameters raise scikit-learn's ``InvalidParameterError`` or a ``ValueError``.
"""

import difflib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


def closest(name, known, prefix: str = "") -> str:
    """A sentence with the most similar known name, after a prefix, or nothing."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    return f" Did you mean {prefix + match[0]!r}?" if match else ""


def in_one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# Packages whose lines are never the user's: ours, callers of ours, and threads.
BETWEEN = {"skdeepfeat", "sklearn", "joblib", "contextlib"}
BETWEEN |= {"concurrent", "threading", "multiprocessing"}


class RowError(ValueError):
    """One row of X cannot be read.

    Parameters
    ----------
    row : int
        Position in X.
    source : str
        The path of an image, or the type and shape of what is in the row.
    reason : str
        Why it cannot be read, and what to do about it.
    """

    def __init__(self, row, source, reason):
        super().__init__(row, source, reason)
        self.row, self.source, self.reason = row, source, reason

    def at(self, row, source=None):
        """The same error for another row, which may have another source."""
        return type(self)(row, source or self.source, self.reason)

    def __str__(self):
        return f"row {self.row} ({self.source}): {self.reason}"


class ImageError(RowError):
    """One row of X cannot be read as an image.

    Parameters
    ----------
    row : int
        Position in X.
    source : str
        The path of an image, or the type and shape of what is in the row.
    reason : str
        Why it cannot be read, and what to do about it.
    """


class TextError(RowError):
    """One row of X cannot be read as a text.

    Parameters
    ----------
    row : int
        Position in X.
    source : str
        The length of the text, or the type of what is in the row.
    reason : str
        Why it cannot be read, and what to do about it.
    """


class WeightsError(ValueError):
    """A weights file is missing, damaged, unsafe to load, or for another network."""

    @classmethod
    def missing(cls, path):
        """The error of a path where there is no file with content."""
        if os.path.isdir(path):
            return cls(
                f"{str(path)!r} is a folder. Pass the path of the weights file in it, "
                "such as model.safetensors."
            )
        found = f"No weights file at {str(path)!r}"
        if os.path.exists(path):
            found = f"{str(path)!r} is no weights file: it is empty, a pipe or a device"
        return cls(f"{found}. Check the path, or pass the name of a published version.")

    @classmethod
    def retired(cls, what: str, last: str):
        """The error of a model that needs something only older versions have."""
        return cls(
            f"This needs {what}, and skdeepfeat {last} is the last version that has "
            f"it. Install skdeepfeat {last} to use the saved model, or fit it again."
        )


class OutputTooLarge(MemoryError):
    """Unpooled features would take more memory than the limit."""


class ConversionError(RuntimeError):
    """An engine cannot convert a network from torch; the message says why."""


class WorkerError(RuntimeError):
    """A worker of a cluster cannot compute what the call plans; names its host."""


class FeatureWarning(UserWarning):
    """Base of the warnings of this package."""


class EngineWarning(FeatureWarning):
    """Features are computed in a slower way than planned.

    Torch runs a network that another engine cannot convert, or threads decode images
    instead of processes that have ended.
    """


class ImageWarning(FeatureWarning):
    """Some rows were filled with NaN, or pixel values lie outside their range."""


class LayerWarning(FeatureWarning):
    """No layer predicts y, so ``layer="auto"`` reads the deepest one."""


class MapWarning(FeatureWarning):
    """A map of activations is flat, or has nan.

    It is flat if nothing that is left out changes the score of the head, and has nan if
    the score is not finite.
    """


class RecipeWarning(FeatureWarning):
    """The preprocessing of a weights file had to be guessed."""


class StoreWarning(FeatureWarning):
    """A store is damaged, full, or not writable; the features are computed anyway."""


class TextWarning(FeatureWarning):
    """Some rows are NaN, some texts were cut, or other features may be meant.

    They may be if a file of word vectors is damaged, or if a folder of
    sentence-transformers computes more than pooled states.
    """


@dataclass(frozen=True)
class Wording:
    """What messages say about the rows of one kind of input.

    Parameters
    ----------
    noun : str
        What one row is, such as "image".
    error : type
        Of a row that cannot be read.
    warning : type
        About some rows.
    not_finite : str
        The reason why a row has features that are NaN or infinite.
    out_of_range : str
        The warning about rows that are not as they should be; "{n}" in it stands for
        their number.
    """

    noun: str
    error: type[RowError]
    warning: type[FeatureWarning]
    not_finite: str
    out_of_range: str


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line of user code that led here; in a thread, at a line of ours."""
    # A helper thread warns at the line of the thread that waits for it.
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
    """A frame, its caller, and so on."""
    while frame:
        yield frame
        frame = frame.f_back


def _package_of(frame) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
