"""A clock of the parts of a call."""

import contextlib
import time
from collections import defaultdict


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
