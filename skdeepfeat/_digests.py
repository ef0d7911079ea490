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

_MEMO_ROWS = 1_000_000
_memo: dict[tuple, bytes] = {}
_memo_lock = threading.Lock()


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


def digest_file(path) -> bytes:
    """Digest of a file's bytes; read once as long as size and time stamp stay."""
    return _hash_once(path, blake3)[:DIGEST_SIZE]


def sha256_file(path) -> str:
    """SHA-256 of a file's bytes, as published beside weights; read once likewise."""
    return _hash_once(path, hashlib.sha256).hex()


def _hash_once(path, algorithm) -> bytes:
    """Hash a file unless the memo knows this state of it.

    The time of the last change of its record tells a rewritten file even where a
    program has set the time stamp back, as archives and synchronisation do.
    """
    stat = os.stat(path)
    state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    known = (algorithm, os.path.abspath(path), *state)
    with _memo_lock:
        if known in _memo:
            return _memo[known]
    hasher = algorithm()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    with _memo_lock:
        if len(_memo) >= _MEMO_ROWS:
            _memo.clear()
        _memo[known] = hasher.digest()
    return hasher.digest()
