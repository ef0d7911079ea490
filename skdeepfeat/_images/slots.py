"""Memory that two processes share: tasks are written there, and pixels in reply.

Only a few numbers go through a pipe. What is read here was written by a process that
this one has started, or that has started this one.
"""

import io
import math
import mmap
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

SLOT_BYTES = 2**25  # of one process; they take memory once they are used
ALIGNMENT = 64
# Packages whose classes a task may hold; others may run what belongs to the caller.
OWN = ("skdeepfeat", "numpy", "PIL")


class Full(Exception):
    """There is no room for what is to be written."""


class _Unpickler(pickle.Unpickler):
    """Reads what holds no objects of the caller's own classes."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of the packages above."""
        if module.partition(".")[0] not in OWN:
            raise pickle.UnpicklingError(f"{module}.{name} is left to the caller")
        return super().find_class(module, name)


class Slot:
    """A part of memory that is filled from its start.

    Parameters
    ----------
    file : int
        Descriptor of a file of `SLOT_BYTES` in memory.
    """

    def __init__(self, file: int):
        self._bytes = np.frombuffer(mmap.mmap(file, SLOT_BYTES), np.uint8)
        self._end = 0

    def clear(self) -> None:
        """Let what is written next begin at the start."""
        self._end = 0

    def put(self, array: np.ndarray) -> int:
        """Append an array; returns where it begins."""
        start, stop = self._end, self._end + array.nbytes
        if stop > SLOT_BYTES:
            raise Full
        view = self._bytes[start:stop].view(array.dtype).reshape(array.shape)
        view[...] = array  # without the interpreter's lock
        self._end = -(-stop // ALIGNMENT) * ALIGNMENT
        return start

    def get(self, start: int, shape: Sequence[int], dtype) -> np.ndarray:
        """The array that begins there; it changes when the slot is filled again."""
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        self._end = max(self._end, -(-stop // ALIGNMENT) * ALIGNMENT)
        return self._bytes[start:stop].view(dtype).reshape(shape)

    def put_object(self, value: Any) -> list[tuple[int, int]]:
        """Append a pickle and the arrays in it; returns where each part begins."""
        arrays: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, 5, buffer_callback=arrays.append)
        parts = [memoryview(head), *(array.raw() for array in arrays)]
        return [(self.put(np.asarray(p, np.uint8)), p.nbytes) for p in parts]

    def get_object(self, places: Sequence[tuple[int, int]]) -> Any:
        """What was put there; its arrays are read-only and lie in the slot."""
        head, *arrays = (self.get(start, (n,), np.uint8).data for start, n in places)
        buffers = [array.toreadonly() for array in arrays]
        return _Unpickler(io.BytesIO(head), buffers=buffers).load()
