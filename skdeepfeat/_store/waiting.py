"""Long waits for rows, folders and GPUs → one warning that says what for."""

import contextlib
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from .._exceptions import StoreWarning, warn_user
from .._processes import FileLock

PATIENCE = 30  # seconds after which a wait warns


# Calls ------------------------------------------------------------------------------


def new_call() -> bytes:
    """The name of one call, which holds the time at which it began."""
    return struct.pack("<d", time.time()) + secrets.token_bytes(8)


def begin_of(call: bytes) -> float:
    """When a call began, in seconds since the epoch; now if its name has no time."""
    return struct.unpack("<d", call[:8])[0] if len(call) == 16 else time.time()


# Waits ------------------------------------------------------------------------------


def say_once(what: Callable[[], str]) -> Callable[[float], None]:
    """A function that takes the seconds of a wait so far, and warns once it is long."""
    said = False

    def say(seconds: float) -> None:
        nonlocal said
        if seconds > PATIENCE and not said:
            said = True
            warn_user(
                f"Still waiting after {PATIENCE} seconds for {what()}. If it hangs, "
                "stop it: this call then computes the rest.",
                StoreWarning,
            )

    return say


@contextlib.contextmanager
def locked(path, what: str, doing: str) -> Iterator[None]:
    """A context in which one process, and in it one thread, holds a lock file.

    A long wait reports which process has been `doing` something with `what`.
    """
    lock = FileLock(path)
    lock.acquire(
        say_once(
            lambda: (
                f"{what}, which {lock.holder} has been {doing} since "
                f"{local_time(lock.held_since)}"
            )
        )
    )
    try:
        yield
    finally:
        lock.release()


def computed_by(rows: Sequence[int], holder: str, since: float) -> str:
    """Rows of X, who computes them, and since when, in words."""
    return (
        f"{some_rows(rows)}, which {holder} has been computing since "
        f"{local_time(since)}"
    )


def local_time(seconds: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def some_rows(rows: Sequence[int]) -> str:
    """Rows of X, in words."""
    if len(rows) == 1:
        return f"row {rows[0]} of X"
    first = f", the first of which is row {rows[0]}" if rows else ""
    return f"{len(rows)} rows of X{first}"
