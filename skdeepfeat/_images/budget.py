"""A share of something that threads take while they work, and give back."""

import contextlib
from collections.abc import Iterator

from .._processes import Condition


class Budget:
    """So much of something for all threads together.

    Parameters
    ----------
    whole : int
        How much there is. Who needs more than that has all of it alone.
    """

    def __init__(self, whole: int):
        self._whole = self._left = whole
        self._changed = Condition()

    @contextlib.contextmanager
    def share(self, needed: int) -> Iterator[None]:
        """A context that begins once so much is left, and holds it."""
        taken = min(needed, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()

    def refill(self) -> None:
        """Take everything back from threads that are gone."""
        self._left = self._whole
