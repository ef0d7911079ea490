"""Content → digest: what makes two images, or two weights files, the same.

BLAKE3 is a cryptographic hash that is several times faster than those in the standard
library, so that hashing stays a small part of the work on a laptop.
"""

import hashlib
import os
import threading

import numpy as np
from blake3 import blake3

DIGEST_SIZE = 16
_CHUNK = 1 << 20

# (algorithm, path or URL) → (state of the file, digest)
_memo: dict[tuple, tuple[str, bytes]] = {}
_memo_lock = threading.Lock()
_MEMO_ROWS = 5_000_000


def _after_fork() -> None:
    """In a child process nobody holds the lock."""
    global _memo_lock
    _memo_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def digest(*parts) -> bytes:
    """16 bytes that stand for these strings, bytes and arrays, in this order."""
    hasher = blake3()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        if isinstance(part, np.ndarray):
            hasher.update(f"{part.dtype.str}{part.shape}".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest(DIGEST_SIZE)


def digest_bytes(data) -> bytes:
    """Digest of encoded bytes, the same as that of a file which contains them."""
    return blake3(data).digest(DIGEST_SIZE)


def digest_file(path) -> bytes:
    """Digest of a file's bytes; read once as long as size and time stamp stay."""
    return _hash_once(path, blake3)[:DIGEST_SIZE]


def sha256_file(path) -> str:
    """SHA-256 of a file's bytes, as published beside weights; read once likewise."""
    return _hash_once(path, hashlib.sha256).hex()


def recall_digest(name: str, state: str) -> bytes | None:
    """Digest of what was hashed under this name in this state, None if unknown."""
    remembered, known = _recall((blake3, name))
    return known[:DIGEST_SIZE] if remembered == state else None


def learn_digest(name: str, state: str, known: bytes) -> None:
    """Trust that what has this name has this digest while it is in this state."""
    _remember((blake3, name), state, known)


def _hash_once(path, algorithm) -> bytes:
    """Hash a file unless the memo knows this state of it."""
    name = (algorithm, os.path.abspath(path))
    remembered, known = _recall(name)
    if remembered == state_of_file(os.stat(path)):
        return known
    hasher = algorithm()
    with open(path, "rb") as file:
        state = state_of_file(os.fstat(file.fileno()))
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    _remember(name, state, hasher.digest())
    return hasher.digest()


def state_of_file(stat: os.stat_result) -> str:
    """What tells a changed file from the same one.

    The time of the last change of its record tells a rewritten file even where a
    program has set the time stamp back, as archives and synchronisation do.
    """
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _recall(name) -> tuple[str, bytes]:
    with _memo_lock:
        return _memo.get(name, ("", b""))


def _remember(name, state: str, known: bytes) -> None:
    with _memo_lock:
        while len(_memo) >= _MEMO_ROWS:
            del _memo[next(iter(_memo))]  # the oldest
        _memo[name] = state, known
