"""What one call reports: errors, statistics, warnings and progress.

It is kept outside the estimator, by thread, so that a call leaves no trace on it.
"""

import contextlib
import threading
import weakref
from typing import Any

import numpy as np
from tqdm import tqdm

from ._clock import Clock
from ._exceptions import ImageError, ImageWarning, warn_user


@contextlib.contextmanager
def progress_bar(n_rows: int, verbose):
    """A function to call with the number of rows that are done; a bar if `verbose`.

    The bar counts distinct rows of X, and images per second.
    """
    bar = tqdm(total=n_rows, unit="image", desc="features", disable=not verbose)
    with bar:
        yield lambda n_done: bar.update(n_done - bar.n)


class FitTask:
    """Reports the steps of one fit to scikit-learn's callbacks.

    Does nothing where scikit-learn has no callbacks or none are set.

    Parameters
    ----------
    estimator : estimator
    X : array-like
    step : str
        What one step is called.
    """

    def __init__(self, estimator, X, step: str):
        self._estimator, self._X, self._step = estimator, X, step
        self._context = None

    def __enter__(self):
        if hasattr(self._estimator, "_init_callback_context"):
            self._context = self._estimator._init_callback_context(max_subtasks=None)
            self._context.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
        return self

    def step_done(self) -> bool:
        """One step is done; says whether a callback wants to stop."""
        if self._context is None:
            return False
        step = self._context.subcontext(self._step)
        step.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
        return bool(step.call_on_fit_task_end(estimator=self._estimator, X=self._X))

    def __exit__(self, kind, error, traceback):
        if self._context is not None and kind is None:
            self._context.call_on_fit_task_end(estimator=self._estimator, X=self._X)


_of_thread = threading.local()  # its reports: estimator → report of its last call


class Report:
    """What went wrong in one call; kept by thread, outside the estimator.

    Parameters
    ----------
    estimator : PretrainedCNNFeatures
        Its `on_error` decides whether an unreadable row raises.
    n_rows : int
    """

    def __init__(self, estimator, n_rows: int):
        self._raises, self._n_rows = estimator.on_error == "raise", n_rows
        self.failed: dict[int, ImageError] = {}
        self.stats: dict[str, Any] = {}
        self.out_of_range = False  # whether any pixel value lies outside its range
        _keep(self, estimator)

    def fail(self, error: ImageError) -> None:
        """Raise the error of a row, or remember it."""
        if self._raises:
            raise error
        self.failed[error.row] = error.at(error.row)  # without its frames, and images

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of what could not be read."""
        failed = self.failed
        return [(row, failed[row].source, failed[row].reason) for row in sorted(failed)]

    def measured(self, device: str, engine: str, n_computed: int, clock: Clock) -> None:
        """Keep what a call took."""
        seconds = clock.total
        self.stats = {
            "device": device,
            "engine": engine,
            "n_images": self._n_rows,
            "n_computed": n_computed,
            "seconds": seconds,
            "images_per_second": self._n_rows / seconds,
            "shares": {part: s / seconds for part, s in clock.seconds.items()},
        }

    def sentence(self) -> str:
        """What a call took, in one line."""
        shares = self.stats["shares"].items()
        parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares)
        return (
            f"{self.stats['n_images']} images, {self.stats['n_computed']} computed on "
            f"{self.stats['device']} with {self.stats['engine']}, "
            f"{self.stats['images_per_second']:.0f} a second: {parts}"
        )

    def finish(self, out) -> None:
        """Fill failed rows with nan, and warn once of each kind of trouble."""
        if out is not None:
            out[list(self.failed)] = np.nan
        if self.failed:
            warn_user(
                f"{len(self.failed)} of {self._n_rows} images could not be read; their "
                "rows are nan and errors_ lists them. The first is "
                f"{self.failed[min(self.failed)]}.",
                ImageWarning,
            )
        if self.out_of_range:
            warn_of_range()


def warn_of_range() -> None:
    """Say that pixel values lie outside what is taken as black to white."""
    warn_user(
        "Some pixel values lie outside the range that is taken as black to white for "
        "their dtype. If they are on another scale, type for instance "
        "value_range=(0, 255).",
        ImageWarning,
    )


def last_report(estimator) -> Report:
    """What the last call of this thread reports."""
    report = getattr(_of_thread, "reports", {}).get(estimator)
    if report is None:
        raise AttributeError(
            f"This {type(estimator).__name__} has not computed anything in this thread "
            "yet, so it has nothing to report."
        )
    return report


def hand_over(estimator, other) -> None:
    """Make the last report of an estimator that of another one too."""
    _keep(last_report(estimator), other)


def _keep(report: Report, estimator) -> None:
    if not hasattr(_of_thread, "reports"):
        _of_thread.reports = weakref.WeakKeyDictionary()
    _of_thread.reports[estimator] = report
