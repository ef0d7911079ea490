"""Processes that decode images beside a GPU, where threads wait for Python's lock.

Each thread that makes batches borrows one of them for some rows, and waits without the
lock. What no process has prepared, the thread prepares itself: rows that are asked for
before the processes are there, in another call or after one was killed, and rows with
errors or warnings. So rows, errors and warnings are those of threads.

They are started as new interpreters: a process that uses CUDA must not fork, and
scripts without `if __name__ == "__main__"` must not run again. They end with this
process, however it ends, because their end of a pipe is closed then.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from .._clock import Clock
from .._exceptions import EngineWarning, ImageError, warn_user
from .._processes import Lock, after_fork, leave_to_parent
from .cells import Hashed
from .decoder import READY, Task
from .formats import switches
from .preparing import Preparation, Prepared, decoded
from .references import Remote
from .slots import SLOT_BYTES, Slot
from .windows import Window

FEWEST = 4  # processes; two or three are no faster than threads
START_AFTER = 500  # images, since starting takes some seconds
SECONDS_TO_END = 2

CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from skdeepfeat._images.decoder import serve; serve(*map(int, sys.argv[2:]))"
)
TROUBLE = (
    "A process that decodes images for the GPU {}. Threads of this process decode in "
    "its place, which is slower. If the status is -9, memory may be short."
)


class Unsendable(Exception):
    """Images are too large for the shared memory, or cannot be pickled."""


class Answer(NamedTuple):
    """What a process has prepared.

    Parameters
    ----------
    images : list of Prepared or None
        None for each that it leaves to this process.
    seconds : dict of str to float
        How long "reading" and "decoding" took.
    """

    images: list[Prepared | None]
    seconds: dict[str, float]


class Decoder:
    """One process that prepares images."""

    def __init__(self):
        memory = os.memfd_create("skdeepfeat-decode")
        try:
            os.truncate(memory, SLOT_BYTES)
            self._slot = Slot(memory)
            self._messages, other = multiprocessing.Pipe()
            with other:
                self._process = _start(other.fileno(), memory)
        finally:
            os.close(memory)
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether it is there; raises EOFError if it has ended."""
        if not self._is_ready and self._messages.poll():
            self._is_ready = self._messages.recv_bytes() == READY
        return self._is_ready

    def prepare(self, cells: Sequence[Hashed], how: Preparation, most: int) -> Answer:
        """Pixels of the images that have no more than `most` pixels.

        Raises Unsendable; another exception means that it cannot be used again.
        """
        task = Task(cells, how, switches(), Image.MAX_IMAGE_PIXELS, most)
        self._messages.send_bytes(json.dumps(self._put(task)).encode())
        reply = json.loads(self._messages.recv_bytes())
        side = how.spec.image_size
        images: list[Prepared | None] = [None] * len(cells)
        for i, found in enumerate(reply["images"]):
            if found is not None:
                start, dtype, in_range = found
                pixels = self._slot.get(start, (side, side, 3), dtype).copy()
                images[i] = Prepared(pixels, in_range, cells[i].cell.source)
        return Answer(images, reply["seconds"])

    def _put(self, task: Task) -> list[tuple[int, int]]:
        """Where a task lies in the shared memory."""
        self._slot.clear()
        try:
            return self._slot.put_object(task)
        except Exception as error:
            raise Unsendable from error

    def leave(self) -> None:
        """Need it no more, so that it ends."""
        self._messages.close()

    def end(self) -> int:
        """Its exit status once it has ended, negative for a signal."""
        self.leave()
        try:
            return self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _start(messages: int, memory: int) -> subprocess.Popen:
    """A new interpreter that prepares images."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-c", CODE, json.dumps(sys.path)]
    return subprocess.Popen(
        [*command, str(messages), str(memory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(messages, memory),
        env=os.environ | limits,
        start_new_session=True,  # an interrupt is for this process alone
    )


class Crew:
    """The processes of this one that prepare images, which all its calls share."""

    def __init__(self):
        self._lock = Lock()
        self._free: deque[Decoder] = deque()  # also those that are being started
        self._n = self._n_seen = 0  # processes; images since some were started
        self.trouble = ""  # why no more are started

    def note(self, n_images: int, n_wanted: int) -> None:
        """Count images to prepare; once there are many, start processes."""
        with self._lock:
            self._n_seen += n_images
            if self._n_seen >= START_AFTER and not self.trouble:
                self._n_seen = 0
                self.start(n_wanted - self._n)

    def start(self, n: int) -> None:
        """Start so many processes, unless the system refuses it."""
        try:
            for _ in range(n):
                self._free.append(Decoder())
                self._n += 1
        except (OSError, TypeError) as error:  # no memory, an odd sys.path
            self.trouble = f"cannot be started: {error}"

    def prepare(self, cells: Sequence[Hashed], how: Preparation, most: int) -> Answer:
        """What a process prepares of some images; nothing if none is free."""
        nothing = Answer([None] * len(cells), {})
        decoder = self._borrow()
        if decoder is None:
            return nothing
        try:
            with decoded.share(most):  # for what it decodes at once
                answer = decoder.prepare(cells, how, most)
        except Unsendable:
            answer = nothing
        except Exception:
            self._lose(decoder)
            return nothing
        self._free.append(decoder)
        return answer

    def _borrow(self) -> Decoder | None:
        """A process that is there; the one used last, so that others become idle."""
        for _ in range(len(self._free)):
            with contextlib.suppress(IndexError):  # another thread was faster
                decoder = self._free.pop()
                if self._is_ready(decoder):
                    return decoder
        return None

    def _is_ready(self, decoder: Decoder) -> bool:
        """Whether a process is there; if not, it is put back, or lost."""
        try:
            if decoder.is_ready:
                return True
        except (EOFError, OSError):
            self._lose(decoder)
        else:
            self._free.appendleft(decoder)
        return False

    def _lose(self, decoder: Decoder) -> None:
        """Note why a process has ended: it was idle, or there is trouble."""
        status = decoder.end()
        with self._lock:
            self._n -= 1
            if status != 0:
                self.trouble = f"has ended with status {status}"

    def end(self) -> None:
        """End all processes."""
        while self._free:
            self._free.pop().end()

    def forget(self) -> None:
        """In a forked child: the processes are those of the parent."""
        for decoder in self._free:
            decoder.leave()
            leave_to_parent(decoder)
        self._free.clear()
        self._n = self._n_seen = 0


crew = Crew()
after_fork(crew.forget)
atexit.register(crew.end)


def may_start() -> bool:
    """Whether this process may start others that prepare images.

    Only where memory is shared by a descriptor, as on Linux; not in a worker, whose
    siblings use the other cores; and not in a program that is no Python interpreter.
    """
    is_python = "python" in os.path.basename(sys.executable or "").lower()
    is_child = multiprocessing.parent_process() is not None
    return hasattr(os, "memfd_create") and is_python and not is_child


class Helped:
    """The processes, for the rows of one window.

    Parameters
    ----------
    window : Window
    how : Preparation
    n : int
        How many images are decoded at once.
    crew : Crew
    """

    def __init__(self, window: Window, how: Preparation, n: int, crew: Crew = crew):
        self._window, self._how, self._n, self._crew = window, how, n, crew

    def note(self, n_rows: int) -> None:
        """Count rows that will be prepared, by which processes are started."""
        self._crew.note(n_rows, self._n)

    def prepare(self, rows: Sequence[int], clock: Clock) -> dict[int, Prepared]:
        """The rows that a process could prepare."""
        cells = self._portable(rows)
        most = decoded.whole // self._n
        answer = self._crew.prepare([*cells.values()], self._how, most)
        for part, seconds in answer.seconds.items():
            clock.seconds[part] += seconds
        found = zip(cells, answer.images, strict=True)
        return {row: image for row, image in found if image is not None}

    def _portable(self, rows: Sequence[int]) -> dict[int, Hashed]:
        """What another process can read. URLs need what is set up in this one."""
        cells = {}
        for row in rows:
            with contextlib.suppress(ImageError):
                cells[row] = self._window.portable(row)
        return {r: c for r, c in cells.items() if not isinstance(c.cell.held, Remote)}

    def report(self) -> None:
        """Warn if threads do the work of processes."""
        if self._crew.trouble:
            warn_user(TROUBLE.format(self._crew.trouble), EngineWarning)
