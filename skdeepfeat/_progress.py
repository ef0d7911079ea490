"""What long work shows while it runs: a bar on request, scikit-learn's callbacks."""

import contextlib

from tqdm import tqdm


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
