"""What long work shows: a clock of its parts, a bar, scikit-learn's callbacks."""

import contextlib
import time
from collections import defaultdict

from tqdm import tqdm


class Clock:
    """Seconds that the parts of a call take, by the name of the part."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, part: str):
        """A context whose duration is added to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def each(self, items, part: str):
        """The items, whose making is added to a part."""
        iterator = iter(items)
        while True:
            with self.measure(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._started


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
