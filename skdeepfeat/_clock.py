"""How many seconds the parts of a call take."""

import contextlib
import time
from collections import defaultdict


class Clock:
    """Measures the parts of a call, and adds up their seconds by name."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, part: str):
        """A context whose duration counts as a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def each(self, items, part: str):
        """The items of an iterable; the time to make them counts as a part."""
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
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started
