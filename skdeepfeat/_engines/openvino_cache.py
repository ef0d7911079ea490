"""Converted networks on disk, with what torch computes for some images.

Later processes need neither the conversion nor torch. A converted network is a graph
and plain weights: reading it runs no code.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import numpy as np

from .._caches import user_cache
from .._digests import digest, digest_file
from .openvino_import import openvino

MODEL = "model.xml"  # with its weights beside it, in "model.bin"
EXPECTED = "expected.npz"  # what torch computes for the example images
MAX_BYTES = 2 << 30  # of all converted networks; the least recently used go first


def cache_folder() -> Path:
    """Where converted networks are kept; RuntimeError if this user has no home."""
    return user_cache("openvino")


def keep_converted(model, expected: list[np.ndarray], name: str) -> None:
    """Write a converted network with its checksum; its folder appears when complete.

    If it cannot be written, the next process converts the network again.
    """
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(".partial", name, folder))
    except (OSError, RuntimeError):
        return
    try:
        _write(model, partial)
        np.savez(partial / EXPECTED, *expected)
        (partial / "checksum").write_text(_checksum(partial))
        partial.rename(folder / name)
    except (OSError, RuntimeError):  # OpenVINO's own on a full disk
        shutil.rmtree(partial, ignore_errors=True)
    _make_room()


def read_converted(name: str):
    """A converted network and what torch computes for the examples.

    None if it is missing, or damaged: then it is removed.
    """
    try:
        folder = cache_folder() / name
        read = _state_of(folder)
    except (OSError, RuntimeError):
        return None
    try:
        if (folder / "checksum").read_text() == _checksum(folder):
            os.utime(folder)  # it is in use
            with np.load(folder / EXPECTED) as arrays:
                expected = list(arrays.values())
            return _read(folder), expected
    except (OSError, RuntimeError):
        pass
    _remove(folder, read)
    return None


def as_read(model):
    """A network as processes compute it that read it, which rounds in another order.

    So a process that cannot keep it computes the same rows as one that can.
    """
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            _write(model, Path(name))
            return _read(Path(name))
    except (OSError, RuntimeError):  # there is no place for it at all
        return model


def _write(model, folder: Path) -> None:
    openvino.save_model(model, folder / MODEL, compress_to_fp16=False)


def _read(folder: Path):
    return openvino.Core().read_model(folder / MODEL)


def _state_of(folder: Path) -> tuple[int, int]:
    """What changes if another folder takes the place of this one."""
    about = folder.stat()
    return about.st_ino, about.st_mtime_ns


def _remove(folder: Path, read: tuple[int, int]) -> None:
    """Remove a damaged folder, but not one that has replaced it since."""
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.damaged")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        if _state_of(aside) != read:
            aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _checksum(folder: Path) -> str:
    files = [folder / name for name in (MODEL, "model.bin", EXPECTED)]
    return digest(*map(digest_file, files)).hex()


def _make_room() -> None:
    """Delete the least recently used networks until the rest is within the bound.

    Incomplete folders of killed processes count like any other.
    """
    folders = [f for f in cache_folder().iterdir() if f.is_dir()]
    used = {f: (_modified(f), _size(f)) for f in folders}
    total = sum(size for _, size in used.values())
    for folder in sorted(folders, key=used.__getitem__)[:-1]:
        if total <= MAX_BYTES:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= used[folder][1]


def _modified(folder: Path) -> float:
    """When it was last used; 0 if another process has removed it."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0
