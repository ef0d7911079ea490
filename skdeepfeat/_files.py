"""Files that appear, or change, only once they are complete."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of another one once it is complete.

    A file that is replaced keeps its permissions, as with open().
    """
    _check_place(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
