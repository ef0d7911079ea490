"""Processes that decode images beside a GPU, where threads wait for Python's lock.

Each thread that makes batches borrows one of them for some rows, and waits without the
lock. What no process has prepared, the thread prepares itself: rows that are requested
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
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
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

try:
    import fcntl
except ImportError:  # on Windows threads decode, as may_start says
    fcntl = None  # type: ignore[assignment]

FEWEST, MOST = 4, 32  # processes; two or three are no faster than threads
START_AFTER = 500  # images, since starting takes some seconds
SECONDS_TO_END = 2

SECONDS_TO_ANSWER = 120  # after which a process is taken for one that has stopped
HOME = os.path.abspath(os.path.join(__file__, "../../.."))  # holds the package

# Before the path is set, modules would be imported from the current folder.
CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from skdeepfeat._images.decoder import serve; serve(*map(int, sys.argv[1:3]))"
)
TROUBLE = (
    "A process that decodes images for the GPU {}. Threads decode in its place, which "
    "is slower. After status -9, check that there is enough memory."
)


class Unsendable(Exception):
    """Images are too large for the shared memory, or cannot be pickled."""


class Silent(Exception):
    """A process does not answer."""


class Answer(NamedTuple):
    """What a process has prepared.

    Parameters
    ----------
    images : dict of int to Prepared
        By row; those that it leaves to this process are missing.
    seconds : dict of str to float
        How long "reading" and "decoding" took.
    """

    images: dict[int, Prepared]
    seconds: dict[str, float]


class Decoder:
    """One process that prepares images."""

    def __init__(self):
        memory = _above_standard(os.memfd_create("skdeepfeat-decode"))
        try:
            os.truncate(memory, SLOT_BYTES)
            self._slot = Slot(memory)
            self._messages, other = _pipe()
            with other:
                self._process = _start(other.fileno(), memory)
        finally:
            os.close(memory)
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether it is there; raises EOFError if it has ended."""
        if self._process.poll() is not None:
            raise EOFError
        if not self._is_ready and self._messages.poll():
            self._is_ready = self._messages.recv_bytes() == READY
        return self._is_ready

    def prepare(self, cells: Sequence[Hashed], how: Preparation, most: int) -> Answer:
        """Pixels of the images that have no more than `most` pixels.

        Raises Unsendable; another exception means that it cannot be used again.
        """
        task = Task(cells, how, switches(), Image.MAX_IMAGE_PIXELS, most)
        self._messages.send_bytes(json.dumps(self._put(task)).encode())
        if not self._messages.poll(SECONDS_TO_ANSWER):
            raise Silent
        reply = json.loads(self._messages.recv_bytes())
        shape = (how.spec.image_size, how.spec.image_size, 3)
        images = {}
        for position, start, dtype, in_range in reply["images"]:
            cell, pixels = cells[position].cell, self._slot.get(start, shape, dtype)
            images[cell.row] = Prepared(pixels.copy(), in_range, cell.source)
        return Answer(images, reply["seconds"])

    def _put(self, task: Task) -> list[tuple[int, int]]:
        """Where a task lies in the shared memory."""
        self._slot.clear()
        try:
            return self._slot.put_object(task)
        except Exception as error:
            raise Unsendable from error

    def leave(self) -> None:
        """Stop using it, so that it ends."""
        self._messages.close()

    def kill(self) -> None:
        """End it at once: all that it knows is known here."""
        self._process.kill()

    def end(self) -> int:
        """Its exit status once it has ended, negative for a signal."""
        self.leave()
        try:
            return self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def _above_standard(file: int) -> int:
    """A descriptor that is none of the standard streams, which may be closed here."""
    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(file)


def _pipe() -> list[Connection]:
    """Both ends of a connection."""
    ends = socket.socketpair()
    return [Connection(_above_standard(end.detach())) for end in ends]


def _import_path() -> list[str]:
    """Where modules are found, apart from a current folder that may have changed."""
    found = [entry for entry in sys.path if isinstance(entry, str)]
    return [*filter(os.path.isabs, found), HOME]


def _start(messages: int, memory: int) -> subprocess.Popen:
    """A new interpreter that prepares images."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-c", CODE, str(messages), str(memory)]
    return subprocess.Popen(
        [*command, *_import_path()],
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
        self.free: deque[Decoder] = deque()  # also those that are being started
        self._all: weakref.WeakSet[Decoder] = weakref.WeakSet()  # also those at work
        self._n = self._n_seen = 0  # processes; images since some were started
        self._trouble: list[str] = []  # if there is any, no more are started
        self._n_reported = 0

    def note(self, n_images: int, n_wanted: int) -> None:
        """Count images to prepare; once there are many, start processes."""
        with self._lock:
            self._n_seen += n_images
            if self._n_seen >= START_AFTER and not self._trouble:
                self._n_seen = 0
                self.start(n_wanted - self._n)

    def start(self, n: int) -> None:
        """Start n processes, unless the system refuses."""
        try:
            for _ in range(n):
                decoder = Decoder()
                self._all.add(decoder)
                self.free.append(decoder)
                self._n += 1
        except (OSError, ValueError) as error:  # no memory, an odd sys.path
            self._trouble.append(f"cannot be started: {error}")

    def ask(self, question: Callable[[Decoder], Answer], most: int) -> Answer:
        """What a process answers that decodes `most` pixels; nothing if all work."""
        decoder, answer = self._borrow(), Answer({}, {})
        if decoder is None:
            return answer
        try:
            with decoded.share(most):
                answer = question(decoder)
        except Unsendable:
            pass
        except Silent:
            self._lose(decoder, f"has not answered for {SECONDS_TO_ANSWER} seconds")
            return answer
        except (EOFError, OSError):
            self._lose(decoder)
            return answer
        except BaseException:  # it may still answer, and would be misunderstood
            self._lose(decoder)
            raise
        self.free.append(decoder)
        return answer

    def _borrow(self) -> Decoder | None:
        """A process that is there; the one used last, so that others become idle."""
        for _ in range(len(self.free)):
            with contextlib.suppress(IndexError):  # another thread was faster
                decoder = self.free.pop()
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
            self.free.appendleft(decoder)
        return False

    def _lose(self, decoder: Decoder, trouble: str = "") -> None:
        """Note why a process has ended: it was idle, or there is trouble."""
        if status := decoder.end():
            trouble = trouble or f"has ended with status {status}"
        with self._lock:
            self._n -= 1
            if trouble:
                self._trouble.append(trouble)

    def new_trouble(self) -> str:
        """What has gone wrong for the first time; empty if nothing has."""
        with self._lock:
            new = self._trouble[self._n_reported : 1]
            self._n_reported = len(self._trouble)
        return "".join(new)

    def end(self) -> None:
        """End all processes, also those that are still being started."""
        for decoder in list(self.free):
            decoder.kill()
        while self.free:
            self.free.pop().end()
            self._n -= 1

    def forget(self) -> None:
        """In a forked child: the processes are those of the parent."""
        for decoder in self._all:  # one at work, too, or it would outlive the parent
            decoder.leave()
            leave_to_parent(decoder)
        self.free.clear()
        self._all.clear()
        self._n = self._n_seen = 0


crew = Crew()
after_fork(crew.forget)
atexit.register(crew.end)


def may_start() -> bool:
    """Whether this process may start others that prepare images.

    Only where memory is shared by a descriptor, as on Linux; not in a worker, whose
    siblings use the other cores; and not in a program that is no Python interpreter.
    """
    name = os.path.basename(sys.executable or "").lower()
    is_python = "python" in name and not hasattr(sys, "frozen")
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
        self._crew.note(n_rows, min(self._n, MOST))

    def prepare(self, rows: Sequence[int], clock: Clock) -> dict[int, Prepared]:
        """The rows that a process could prepare."""
        most = decoded.whole // self._n

        def ask(decoder: Decoder) -> Answer:
            return decoder.prepare(self._portable(rows), self._how, most)

        answer = self._crew.ask(ask, most)
        for part, seconds in answer.seconds.items():
            clock.seconds[part] += seconds
        return answer.images

    def _portable(self, rows: Sequence[int]) -> list[Hashed]:
        """What another process can read. URLs need what is set up in this one."""
        cells = []
        for row in rows:
            with contextlib.suppress(ImageError, MemoryError):
                cells.append(self._window.portable(row))
        return [one for one in cells if not isinstance(one.cell.held, Remote)]

    def report(self) -> None:
        """Warn once if threads do the work of processes."""
        if trouble := self._crew.new_trouble():
            warn_user(TROUBLE.format(trouble), EngineWarning)
