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
    """Reports the batches of one `fit_transform` to scikit-learn's callbacks.

    Does nothing where scikit-learn has no callbacks or none are set.

    Parameters
    ----------
    estimator : estimator
    X : array-like
    """

    def __init__(self, estimator, X):
        self._estimator, self._X = estimator, X
        self._context = None

    def __enter__(self):
        if hasattr(self._estimator, "_init_callback_context"):
            self._context = self._estimator._init_callback_context(max_subtasks=None)
            self._context.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
        return self

    def batch_done(self):
        """One batch was computed."""
        if self._context is not None:
            batch = self._context.subcontext("batch")
            batch.call_on_fit_task_begin(estimator=self._estimator, X=self._X)
            batch.call_on_fit_task_end(estimator=self._estimator, X=self._X)

    def __exit__(self, kind, error, traceback):
        if self._context is not None and kind is None:
            self._context.call_on_fit_task_end(estimator=self._estimator, X=self._X)
