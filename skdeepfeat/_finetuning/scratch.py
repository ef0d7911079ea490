"""Arrays too large for memory: files that the system maps and holds as far as it can.

A file has no name from the beginning, so nothing is left of it, however a process ends.
Its room is reserved at once: a full disk is an error there, and not the end of the
process when a page is written.
"""

import math
import os
import tempfile
from pathlib import Path

import numpy as np

IN_MEMORY = ("tmpfs", "ramfs")  # file systems that take memory instead of a disk


def scratch_array(shape: tuple[int, ...], dtype, what: str) -> np.ndarray:
    """An array in a file of its own, for what the error calls `what`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:  # whose content lives with its map
            _reserve(file.fileno(), size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise _no_room(error, size, what) from error


def _reserve(file: int, size: int) -> None:
    """Make a file this long, and where the system can, sure of its place."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def _no_room(error: OSError, size: int, what: str) -> OSError:
    """The same error with what to do about it."""
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none of those that Python tries can be written to
        where = "there is no folder for temporary files"
    else:
        kind = ", which is in memory," if is_in_memory(folder) else ""
        where = f"the folder for temporary files, {folder!r}{kind} cannot hold them"
    return OSError(
        error.errno,
        f"{what} take {size:,} bytes in a file, and {where} ({error.strerror}). Name "
        "a folder with more room before Python starts, for instance: "
        "TMPDIR=/path/on/a/large/disk python ...",
    )


def is_in_memory(folder: str) -> bool:
    """Whether files of a folder take memory; asked where Linux lists its mounts."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {where: kind for _, where, kind, *_ in map(str.split, lines)}
    place = Path(folder).resolve()
    mount = next((p for p in (place, *place.parents) if str(p) in kinds), None)
    return mount is not None and kinds[str(mount)] in IN_MEMORY
