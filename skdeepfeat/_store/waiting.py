"""Waiting for rows that another worker computes, and saying so."""

import secrets
import struct
import time
from collections.abc import Callable, Sequence

from .._exceptions import StoreWarning, warn_user

# Waiting ------------------------------------------------------------------------------

PATIENCE = 30  # seconds after which a wait says what it waits for


def new_call() -> bytes:
    """What marks the claims of one call, and says when it began."""
    return struct.pack("<d", time.time()) + secrets.token_bytes(8)


def begin_of(call: bytes) -> float:
    """When a call began, in seconds since the epoch; now if it does not say so."""
    return struct.unpack("<d", call[:8])[0] if len(call) == 16 else time.time()


def say_once(what: Callable[[], str]) -> Callable[[float], None]:
    """A function that is given the seconds of a wait, and warns when it is long."""
    said = False

    def say(seconds: float) -> None:
        nonlocal said
        if seconds > PATIENCE and not said:
            said = True
            warn_user(
                f"Waiting for {PATIENCE} seconds now for {what()}, and going on to "
                "wait. If it hangs, end it: what it has not done is done here then.",
                StoreWarning,
            )

    return say


def local_time(seconds: float) -> str:
    """A time as a person reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def some_rows(rows: Sequence[int]) -> str:
    """Rows of X, in words."""
    if len(rows) == 1:
        return f"row {rows[0]} of X"
    first = f", the first of which is row {rows[0]}" if rows else ""
    return f"{len(rows)} rows of X{first}"
