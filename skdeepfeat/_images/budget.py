"""A limit on what all threads use at once, such as pixels that are being decoded."""

import contextlib
from collections.abc import Iterator

from .._processes import Condition


class Budget:
    """An amount that all threads share.

    Parameters
    ----------
    whole : int
        The amount. A thread that needs more than that waits for all of it.
    """

    def __init__(self, whole: int):
        self.whole = self._left = whole
        self._changed = Condition()

    @contextlib.contextmanager
    def share(self, needed: int) -> Iterator[None]:
        """A context that begins once this much is left, and reserves it."""
        taken = min(needed, self.whole)
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
        """Free what is reserved by threads that no longer exist."""
        self._left = self.whole
