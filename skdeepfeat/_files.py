"""Files that appear, or change, only once they are complete."""

import contextlib
import glob
import os
import re
import reprlib
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._processes import FileLock

PARTIAL = ".partial"
TOKEN_BYTES = 4
# A pattern, for glob and re; no file of the user's has such a name.
TOKEN = "[0-9a-f]" * (2 * TOKEN_BYTES)

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # longer than the letter of a drive


def check_path(value, name: str = "path", also: str = "") -> None:
    """Refuse what is neither a str nor a path as the value of a parameter."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(
            f"The '{name}' parameter must be {also}a str or a path. Got "
            f"{reprlib.repr(value)} instead."
        )


def local_path(path, what: str) -> Path:
    """A path with the home folder of its user; refuses what is on no disk."""
    check_path(path)
    text = os.fspath(path)
    if URL.match(text):
        raise ValueError(
            f"The {what} must be on a disk of this machine, or on one that is mounted. "
            f"Got the URL {text!r} instead."
        )
    if "\0" in text:
        raise ValueError(f"The {what} must not have a zero byte. Got {text!r} instead.")
    return expanded(text, what)


def expanded(path, what: str) -> Path:
    """A path with the home folder of its user, or a value that may be none."""
    text = os.fspath(path)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"The {what} begins with the name of a user who is not known here. Got "
            f"{text!r} instead; for a folder of this name, pass './{text}'."
        ) from None


def has_content(path) -> bool:
    """Whether there is a file with content at a path.

    Pipes and devices have none, and neither have files that the system makes when they
    are read, such as /proc/kmsg: all of these may block whoever opens them.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def place_to_write(path, what: str) -> Path:
    """A local path where a file can be written; refuses others before any work."""
    path = local_path(path, what)
    _check_place(path)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of another one once it is complete.

    A file that is replaced keeps its permissions, as with open(). What processes that
    were killed have left of it is removed.
    """
    _check_place(path)
    _remove_abandoned(path)
    token = secrets.token_hex(TOKEN_BYTES)
    partial = path.with_name(f"{path.name}.{token}{PARTIAL}")
    try:
        with _being_written(partial):
            yield partial
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _being_written(partial: Path) -> Iterator[None]:
    """A context in which other processes leave a file alone."""
    lock = _lock_of(partial)
    with contextlib.suppress(OSError):  # of a disk without locks
        lock.try_acquire()
    try:
        yield
    finally:
        lock.release()
        lock.remove()


def _remove_abandoned(path: Path) -> None:
    """Remove the parts of a file that no process is writing."""
    for partial in path.parent.glob(f"{glob.escape(path.name)}.{TOKEN}{PARTIAL}"):
        lock = _lock_of(partial)
        with contextlib.suppress(OSError):  # of others, or on a disk without locks
            if lock.is_free():
                partial.unlink(missing_ok=True)
                lock.remove()


def _lock_of(partial: Path) -> FileLock:
    return FileLock(partial.with_name(f"{partial.name}.lock"))


def _check_place(path: Path) -> None:
    """Refuse a path where no file can be written."""
    if path.is_dir():
        raise IsADirectoryError(
            f"There is a folder at {str(path)!r}, where a file is to be written. "
            "Choose another name."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(path.parent)!r} for the file {path.name!r}. "
            "Create it first."
        )
