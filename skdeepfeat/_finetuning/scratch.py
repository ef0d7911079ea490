"""Arrays that may be larger than memory: memory-mapped temporary files.

A file never has a name, so nothing remains of it, however the process ends. Its space
is reserved in advance: a full disk raises an error then, instead of killing the process
when a page is written.
"""

import math
import os
import tempfile
from pathlib import Path

import numpy as np

IN_MEMORY = ("tmpfs", "ramfs")  # file systems that live in memory


def scratch_array(shape: tuple[int, ...], dtype, what: str) -> np.ndarray:
    """An array in a file of its own; errors call its content `what`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:  # the map keeps its content
            _reserve(file.fileno(), size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise _no_room(error, size, what) from error


def _reserve(file: int, size: int) -> None:
    """Set the size of a file and, where the system can, reserve its space."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def _no_room(error: OSError, size: int, what: str) -> OSError:
    """The same error, which also says what to do about it."""
    try:
        folder = tempfile.gettempdir()
    except OSError:  # Python found no folder that it can write to
        where = "there is no folder for temporary files"
    else:
        kind = "which is in memory, " if is_in_memory(folder) else ""
        where = f"the folder for temporary files, {folder!r}, {kind}cannot hold them"
    return OSError(
        error.errno,
        f"{what} take {size:,} bytes in a file, and {where} ({error.strerror}). Set "
        "a folder with more space before Python starts, for example: "
        "TMPDIR=/path/on/a/large/disk python ...",
    )


def is_in_memory(folder: str) -> bool:
    """Whether files of a folder are held in memory, if Linux lists its mounts."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {where: kind for _, where, kind, *_ in map(str.split, lines)}
    place = Path(folder).resolve()
    mount = next((p for p in (place, *place.parents) if str(p) in kinds), None)
    return mount is not None and kinds[str(mount)] in IN_MEMORY
