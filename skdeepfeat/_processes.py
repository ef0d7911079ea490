"""Locks between threads and between processes, and what to do when a process forks.

A forked child has one thread, a copy of the one that forked. Everything else is as it
was at that moment: locks that other threads held, thread pools without threads, open
databases. So all locks of the package are made here and reset in a child, and modules
register here what a child must drop.

If the thread that forked has computed with torch before, it cannot do so in the child:
OpenMP keeps one thread pool per thread, and would wait forever for threads that were
not copied. A thread that is started after the fork has its own pool, and computes the
same bits at the same speed: :func:`fork_safe` runs functions there.
"""

import contextlib
import ctypes
import functools
import os
import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import joblib
import sklearn
from joblib.parallel import get_active_backend

try:
    import fcntl
except ImportError:  # on Windows, processes may compute the same rows at once
    fcntl = None  # type: ignore[assignment]

F = TypeVar("F", bound=Callable)

# Locks ------------------------------------------------------------------------------

_locks: weakref.WeakSet = weakref.WeakSet()


def _renewed(lock):
    """The same lock, which is reset in a forked child."""
    _locks.add(lock)
    return lock


def Lock():
    """A lock that one thread at a time holds."""
    return _renewed(threading.Lock())


def RLock():
    """A lock that the thread which holds it may take again."""
    return _renewed(threading.RLock())


def Condition():
    """A lock whose threads can wait for each other."""
    return _renewed(threading.Condition())


def Event():
    """What one thread sets, and others see."""
    return _renewed(threading.Event())


# Fork -------------------------------------------------------------------------------

FORK_SECONDS = 2  # how long a fork waits for threads in the middle of a change

_pauses: list[Callable[[], AbstractContextManager]] = []
_in_child: list[Callable[[], None]] = []
_paused: dict[int, ExitStack] = {}  # of the threads that are forking now
_survivor: int | None = None  # in a forked process, the thread that forked


def during_fork(pause: F) -> F:
    """Decorate a function that returns a context to fork in, entered within seconds."""
    _pauses.append(pause)
    return pause


def after_fork(function: F) -> F:
    """Decorate a function that every forked child must call, after locks are reset."""
    _in_child.append(function)
    return function


def leave_to_parent(thing: Any) -> None:
    """Never destroy an object with threads or locks of the parent, not even at exit."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before() -> None:
    stack = _paused[threading.get_ident()] = ExitStack()
    for pause in _pauses:
        stack.enter_context(pause())


def _after() -> None:
    _paused.pop(threading.get_ident()).close()


def _after_in_child() -> None:
    global _survivor, _helper
    _after()
    _paused.clear()
    for lock in _locks:
        lock._at_fork_reinit()
    _survivor, _helper = threading.get_ident(), None
    for function in _in_child:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after, after_in_child=_after_in_child
    )


# A thread that computes -------------------------------------------------------------


class _Helper(threading.Thread):
    """Computes what the thread that forked cannot.

    Attributes
    ----------
    asked_from : frame or None
        Where that thread is waiting, for warnings.
    """

    def __init__(self):
        super().__init__(name="skdeepfeat-torch", daemon=True)
        self.asked_from = None
        self._jobs: SimpleQueue = SimpleQueue()
        self.start()

    def run(self) -> None:
        """Do one job after another."""
        with contextlib.suppress(BaseException):  # of `_end`, between jobs
            while self._do(self._jobs.get()):
                pass

    def _do(self, job) -> bool:
        """Do a job, and drop all references to it."""
        if job is None:
            return False
        function, future, settings, self.asked_from = job
        del job
        try:
            with settings.applied():
                result = function()
        except BaseException as error:
            future.set_exception(error)
            del future  # which the traceback of its error would keep
        else:
            future.set_result(result)
        self.asked_from = None
        return True

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function, or its error; an interrupt ends the function."""
        future: Future = Future()
        frame = sys._getframe(1)
        in_context = functools.partial(copy_context().run, function)
        self._jobs.put((in_context, future, Settings.of_this_thread(), frame))
        try:
            return future.result()
        except BaseException as error:
            if future.done():
                raise
            self._end(type(error))
            if not future.done():
                raise
        finally:
            del frame
        return future.result()

    def _end(self, error) -> None:
        """Raise this error in the running job, and wait until it has ended."""
        global _helper
        _helper = None
        thread, kind = ctypes.c_ulong(self.ident or 0), ctypes.py_object(error)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, kind)
        self._jobs.put(None)
        self.join()


_helper: _Helper | None = None


def fork_safe(function: F) -> F:
    """Decorate a function that computes with torch, so that it works after a fork.

    In a child, the thread that forked lets another thread run it, and waits. New
    tensors are on the CPU, as by default in other threads.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        global _helper
        if threading.get_ident() != _survivor:
            with _new_tensors_on_cpu():
                return function(*args, **kwargs)
        if _helper is None or not _helper.is_alive():
            _helper = _Helper()
        return _helper.call(functools.partial(function, *args, **kwargs))

    return cast(F, run)


def _new_tensors_on_cpu() -> AbstractContextManager:
    """A context in which torch makes tensors on the CPU, also if the caller has called
    ``torch.set_default_device``: weights drawn on another device have other values.

    The usual context is left alone, as another one slows down each operation.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return contextlib.nullcontext()
    with contextlib.suppress(RuntimeError, AssertionError):  # of one that is not here
        if torch.empty(0).device.type == "cpu":
            return contextlib.nullcontext()
    return torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """Settings that libraries keep for each thread, to be applied in another thread.

    Parameters
    ----------
    backend, n_jobs
        Of ``joblib.parallel_config``.
    config : dict
        Of scikit-learn.
    n_threads : int or None
        Of torch; None if torch is not imported.
    """

    backend: Any
    n_jobs: Any
    config: dict[str, Any]
    n_threads: int | None

    @classmethod
    def of_this_thread(cls) -> "Settings":
        """The current settings of this thread."""
        backend, n_jobs = get_active_backend()
        return cls(backend, n_jobs, sklearn.get_config(), _n_threads())

    @contextlib.contextmanager
    def applied(self):
        """A context in which this thread has these settings."""
        _limit_threads(self.n_threads)
        with (
            joblib.parallel_config(self.backend, n_jobs=self.n_jobs),
            sklearn.config_context(**self.config),
        ):
            yield


def _n_threads() -> int | None:
    """How many threads torch uses in this thread; None if it is not imported."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _limit_threads(n: int | None) -> None:
    """Use as many threads for torch as the thread that this one computes for."""
    if n != _n_threads():
        from threadpoolctl import threadpool_limits

        threadpool_limits(n, "openmp")  # holds for the calling thread


# The threads of BLAS ----------------------------------------------------------------

_limiting_blas = Lock()


@during_fork
@contextlib.contextmanager
def _without_limit():
    """A context without the limit, which a child would keep."""
    waited = _limiting_blas.acquire(timeout=FORK_SECONDS)
    yield
    if waited:
        _limiting_blas.release()


@contextlib.contextmanager
def one_blas_thread():
    """A context in which BLAS has one thread: others cost small matrices time.

    The limit is that of the process, so one caller at a time sets and restores it.
    """
    from threadpoolctl import threadpool_limits

    with _limiting_blas, threadpool_limits(1, "blas"):
        yield


# Between processes ------------------------------------------------------------------

_thread_locks: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by path
_registry_lock = Lock()


class FileLock:
    """A lock file that one process at a time holds, and one thread in that process.

    It is a POSIX record lock: the system releases it when the process ends, however it
    ends, and children do not inherit it. The process would also lose it by opening and
    closing the file elsewhere, so only this class opens lock files.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    """

    def __init__(self, path):
        self.path = path
        self._file: int | None = None
        with _registry_lock:
            self._thread_lock = _thread_locks.setdefault(os.path.realpath(path), Lock())

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and write this process's name into the file.

        A file of another program that has the same path is locked, but not changed.
        """
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            self._file = _open_locked(self.path, os.O_RDWR | os.O_CREAT)
            with contextlib.suppress(OSError):  # on a full disk the lock is held anyway
                _sign(self._file)
        except BlockingIOError:
            return False
        finally:
            if self._file is None:
                self._thread_lock.release()
        return True

    def acquire(self, say: Callable[[float], None] = lambda seconds: None) -> None:
        """Wait for the lock; meanwhile `say` is called with the seconds so far."""
        wait_until(self.try_acquire, say)

    def is_free(self) -> bool:
        """Whether the lock is not held, or there is no such file."""
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            os.close(_open_locked(self.path, os.O_RDWR))
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        finally:
            self._thread_lock.release()
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._thread_lock.release()

    def drop(self) -> None:
        """In a forked child: the lock stayed with the parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    __enter__ = acquire

    def __exit__(self, *exception):
        self.release()

    def remove(self) -> None:
        """Remove the file, unless a thread holds it or another program wrote it."""
        if not self._thread_lock.acquire(blocking=False):
            return
        try:
            if _signature(self.path) is not None:
                os.unlink(self.path)
        except OSError:  # a later process removes it
            pass
        finally:
            self._thread_lock.release()

    @property
    def held_since(self) -> float:
        """When the lock was taken, in seconds since the epoch."""
        try:
            return os.stat(self.path).st_mtime
        except OSError:
            return time.time()

    @property
    def holder(self) -> str:
        """The process that holds the lock, in words."""
        if not self._thread_lock.acquire(blocking=False):
            return "another thread of this process"
        try:
            return _signature(self.path) or "another process"
        except OSError:
            return "another process"
        finally:
            self._thread_lock.release()


def _open_locked(path, flags: int) -> int:
    """A file that holds the lock; BlockingIOError if another process has it."""
    file = os.open(path, flags, 0o666)
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    return file


# What a lock file contains: nothing yet, or the name of a process.
SIGNATURE = re.compile(rb"(process \d+ on [^\n]*\n?)?")
LONGEST_SIGNATURE = 1000  # bytes; the names of hosts are shorter


def _sign(file: int) -> None:
    """Write this process's name into a lock file; leave what another program wrote."""
    if SIGNATURE.fullmatch(os.read(file, LONGEST_SIGNATURE)):
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, f"{who()}\n".encode())


def _signature(path) -> str | None:
    """The name in a lock file; None if another program wrote the file."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_SIGNATURE)
    return content.decode().strip() if SIGNATURE.fullmatch(content) else None


def who() -> str:
    """This process, in words, for messages of processes that wait for it."""
    return f"process {os.getpid()} on {socket.gethostname()!r}"


def wait_until(is_done: Callable[[], Any], say: Callable[[float], None]) -> None:
    """Poll until something is done; `say` is called with the seconds so far."""
    started, pause = time.monotonic(), 0.005
    while not is_done():
        time.sleep(pause)
        pause = min(0.1, 1.5 * pause)
        say(time.monotonic() - started)


def threads_of_openmp() -> int | None:
    """Threads that OMP_NUM_THREADS allows a process; None if it names no number."""
    first, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")
    return int(first) if first.isdigit() else None


def resolve_threads(n_jobs) -> int:
    """Number of decoding threads; None means one for each core that joblib allows."""
    # A worker that may not start processes may still start threads.
    backend, _ = get_active_backend(prefer="threads")
    if n_jobs is None:  # a cluster has more cores than this machine
        return max(1, min(joblib.cpu_count(), backend.effective_n_jobs(-1)))
    return max(1, backend.effective_n_jobs(n_jobs))
