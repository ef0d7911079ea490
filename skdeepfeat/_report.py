"""Errors, statistics, warnings and progress of one call.

Reports are kept per thread and outside the estimator, which a call never modifies.
"""

import contextlib
import sys
import threading
import weakref
from typing import Any

import numpy as np
from tqdm import tqdm

from ._clock import Clock
from ._exceptions import RowError, Wording, warn_user

# Of a standard stream that is closed, as in services: the work goes on.
unheard = contextlib.suppress(OSError, ValueError)


@contextlib.contextmanager
def progress_bar(n_rows: int, verbose, wording: Wording):
    """Show a progress bar if `verbose`; gives a function that takes the rows done.

    The bar shows the number of distinct rows of X, and how many per second.
    """
    bar = tqdm(disable=True)
    if verbose and sys.stderr is not None:
        with unheard:
            bar = tqdm(total=n_rows, unit=wording.noun, desc="features")

    def show(n_done: int) -> None:
        with unheard:
            bar.update(n_done - bar.n)

    try:
        yield show
    finally:
        with unheard:
            bar.close()


def say(sentence: str) -> None:
    """Print a sentence."""
    with unheard:
        print(sentence)


class FitTask:
    """A context that reports the steps of one fit to scikit-learn's callbacks.

    It does nothing if scikit-learn has no callbacks or if none are set.

    Parameters
    ----------
    estimator : estimator
        The estimator being fitted.
    X : array-like
        The X passed to `fit`.
    step : str
        Name of one step, such as "batch".
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
        """Report a completed step; returns whether a callback requests to stop."""
        if self._context is None:
            return False
        step = self._context.subcontext(self._step)
        step.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
        return bool(step.call_on_fit_task_end(estimator=self._estimator, X=self._X))

    def __exit__(self, kind, error, traceback):
        if self._context is not None and kind is None:
            self._context.call_on_fit_task_end(estimator=self._estimator, X=self._X)


_of_thread = threading.local()  # .reports: estimator → report of its last call


class Report:
    """The errors and statistics of one call, kept per thread.

    Parameters
    ----------
    estimator : estimator
        The estimator that is called. Its `on_error` decides whether an unreadable row
        raises an error.
    n_rows : int
        Number of rows of X.
    wording : Wording
        What messages say about the rows.
    """

    def __init__(self, estimator, n_rows: int, wording: Wording):
        self._wording = wording
        self._raises, self._n_rows = estimator.on_error == "raise", n_rows
        self.failed: dict[int, RowError] = {}
        self.stats: dict[str, Any] = {}
        self.out_of_range: set[int] = set()  # rows
        _keep(self, estimator)

    def fail(self, error: RowError) -> None:
        """Raise the error of a row, or record it."""
        if self._raises:
            raise error
        self.failed[error.row] = error.at(error.row)  # no traceback, which holds images

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of each row that could not be read."""
        failed = self.failed
        return [(row, failed[row].source, failed[row].reason) for row in sorted(failed)]

    def measured(self, device: str, engine: str, n_computed: int, clock: Clock) -> None:
        """Record the statistics of the call."""
        seconds, nouns = clock.total, f"{self._wording.noun}s"
        self.stats = {
            "device": device,
            "engine": engine,
            f"n_{nouns}": self._n_rows,
            "n_computed": n_computed,
            "seconds": seconds,
            f"{nouns}_per_second": self._n_rows / seconds,
            "shares": {part: s / seconds for part, s in clock.seconds.items()},
        }

    def sentence(self) -> str:
        """The statistics in one line."""
        shares, nouns = self.stats["shares"].items(), f"{self._wording.noun}s"
        parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares)
        return (
            f"{self._n_rows} {nouns}, {self.stats['n_computed']} computed on "
            f"{self.stats['device']} with {self.stats['engine']}, "
            f"{self.stats[f'{nouns}_per_second']:.0f} a second: {parts}"
        )

    def finish(self, out) -> None:
        """Fill failed rows with NaN, and warn once about each kind of problem."""
        if out is not None:
            out[list(self.failed)] = np.nan
        if self.failed:
            nouns = f"{self._wording.noun}s"
            warn_user(
                f"{len(self.failed)} of {self._n_rows} {nouns} could not be read; "
                "their rows are nan and errors_ lists them. The first is "
                f"{self.failed[min(self.failed)]}.",
                self._wording.warning,
            )
        if self.out_of_range:
            warn_of_range(self._wording, len(self.out_of_range))


def warn_of_range(wording: Wording, n: int) -> None:
    """Warn that the input of n rows lies outside its range."""
    warn_user(wording.out_of_range.format(n=n), wording.warning)


def last_report(estimator) -> Report:
    """The report of the last call of this thread."""
    report = getattr(_of_thread, "reports", {}).get(estimator)
    if report is None:
        raise AttributeError(
            f"This {type(estimator).__name__} has not computed anything in this thread "
            "yet, so it has nothing to report."
        )
    return report


def hand_over(estimator, other) -> None:
    """Make the last report of an estimator also the last report of another one."""
    _keep(last_report(estimator), other)


def _keep(report: Report, estimator) -> None:
    if not hasattr(_of_thread, "reports"):
        _of_thread.reports = weakref.WeakKeyDictionary()
    _of_thread.reports[estimator] = report
