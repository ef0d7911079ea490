"""A process that prepares images for the one that has started it; see ``crew.py``.

It returns pixels of what it can prepare without any trouble. The rest is prepared by
the process that asks, with its own warnings and errors. Nothing here imports torch.
"""

import json
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from .._clock import Clock
from .cells import Hashed
from .formats import switches
from .preparing import Preparation
from .slots import Slot

READY = b"ready"
IDLE_SECONDS = 300  # without a task, after which it ends, as joblib's workers do


@dataclass(frozen=True)
class Task:
    """Some images to prepare.

    Parameters
    ----------
    cells : sequence of Hashed
    how : Preparation
    switches : dict of str to str
        Settings of Pillow in the process that asks, which must be the same here.
    largest : int or None
        Its ``PIL.Image.MAX_IMAGE_PIXELS``.
    most_pixels : int
        Larger images are left to the process that asks.
    """

    cells: Sequence[Hashed]
    how: Preparation
    switches: dict[str, str]
    largest: int | None
    most_pixels: int


class _Limit:
    """A budget that is the same for each image, however many there are.

    Parameters
    ----------
    whole : int
    """

    def __init__(self, whole: int):
        self._whole = whole

    def share(self, needed: int) -> AbstractContextManager[None]:
        """A context for an image that is within the limit."""
        if needed > self._whole:
            raise ValueError("too large for this process")
        return nullcontext()


def serve(connection: int, memory: int) -> None:
    """Prepare images until the other process ends, or needs no more.

    Parameters
    ----------
    connection, memory : int
        Descriptors of a socket for messages, and of the memory for all else.
    """
    messages, slot = Connection(connection), Slot(memory)
    with suppress(EOFError, OSError):
        messages.send_bytes(READY)
        while messages.poll(IDLE_SECONDS):
            places = json.loads(messages.recv_bytes())
            messages.send_bytes(json.dumps(_answer(places, slot)).encode())
            slot.clear()


def _answer(places: Sequence[tuple[int, int]], slot: Slot) -> dict[str, Any]:
    """What comes of a task; nothing if it holds what exists only for its caller."""
    try:
        task = slot.get_object(places)
    except Exception:
        return {"images": [], "seconds": {}}
    return _carry_out(task, slot)


def _carry_out(task: Task, slot: Slot) -> dict[str, Any]:
    """Where the pixels of each image lie, if any, and how the time was spent."""
    Image.MAX_IMAGE_PIXELS = task.largest
    clock = Clock()
    cells = task.cells if switches() == task.switches else ()
    tried = (_try_to_prepare(cell, task, slot, clock) for cell in cells)
    found = [[position, *image] for position, image in enumerate(tried) if image]
    return {"images": found, "seconds": dict(clock.seconds)}


def _try_to_prepare(hashed: Hashed, task: Task, slot: Slot, clock: Clock):
    """Where its pixels begin, dtype, and whether in range; None after any trouble."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _prepare(hashed, task, slot, clock)
        except Exception:
            return None
    return None if caught else found


def _prepare(hashed: Hashed, task: Task, slot: Slot, clock: Clock):
    """The same; raises what goes wrong."""
    with clock.measure("reading"):
        cell = hashed.read()
    with clock.measure("decoding"):
        ready = task.how.apply(cell, _Limit(task.most_pixels))
        return slot.put(ready.pixels), ready.pixels.dtype.str, bool(ready.in_range)
