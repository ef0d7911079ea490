"""Content → digest, the same for two images or weights files of the same content.

BLAKE3 is a cryptographic hash that is several times faster than those of the standard
library, so that hashing stays a small part of the work on a laptop.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
from blake3 import blake3

from ._processes import Lock

DIGEST_SIZE = 16
COARSE_SECONDS = 4  # FAT notes times in steps of two, and may round them up
_CHUNK = 1 << 20

# (algorithm, path or URL) → (state of the file, digest)
_memo: dict[tuple, tuple[str, bytes]] = {}
_memo_lock = Lock()
_MEMO_ROWS = 5_000_000


def digest(*parts) -> bytes:
    """16 bytes that identify these strings, bytes and arrays, in this order."""
    hasher = blake3()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        if isinstance(part, np.ndarray):
            hasher.update(f"{part.dtype.str}{part.shape}".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest(DIGEST_SIZE)


@dataclass(frozen=True)
class Tagged:
    """A value that plain data cannot express, such as a data type."""

    tag: str
    value: Any


def digest_fields(kind: str, version: int, named: Mapping[str, Any]) -> bytes:
    """16 bytes that identify named values, in any order.

    Increase `version` when the same names and values come to mean something else.
    """
    return digest(f"{kind} {version} {_canonical(dict(named))}")


def changed_fields(record) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults.

    So a field that is added later, with a default, does not change existing digests.
    """
    found = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.default is MISSING or value != field.default:
            found[field.name] = value
    return found


def _canonical(value) -> str:
    """JSON that is equal for equal values."""
    return _json(_plain(value))


_json = json.JSONEncoder(separators=(",", ":")).encode


def _plain(value):
    """A value as JSON data; types that JSON lacks become objects with a tag."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tagged):
        return {value.tag: _plain(value.value)}
    for kinds, tag, describe in _TAGS:
        if isinstance(value, kinds):
            return {tag: describe(value)}
    raise TypeError(f"{type(value).__name__} has no digest")


def _pairs(mapping: Mapping) -> list:
    pairs = [[_plain(name), _plain(value)] for name, value in mapping.items()]
    return sorted(pairs, key=_json)


def _array(array: np.ndarray) -> list:
    if array.dtype.hasobject:
        raise TypeError("an array of objects has no digest")
    return [array.dtype.str, list(array.shape), digest(array).hex()]


# (types, tag, value → JSON data); the first that matches counts.
_TAGS: tuple = (
    (bytes, "bytes", bytes.hex),
    (tuple, "tuple", lambda v: [_plain(item) for item in v]),
    (list, "list", lambda v: [_plain(item) for item in v]),
    ((set, frozenset), "set", lambda v: sorted(map(_canonical, v))),
    (Mapping, "dict", _pairs),
    (complex, "complex", lambda v: [v.real, v.imag]),
    (np.generic, "number", lambda v: [v.dtype.str, _plain(v.item())]),
    (np.ndarray, "array", _array),
)


def digest_bytes(data) -> bytes:
    """Digest of encoded bytes, equal to that of a file which contains them."""
    return blake3(data).digest(DIGEST_SIZE)


def digest_file(path) -> bytes:
    """Digest of a file's bytes, read again only if size or time stamps change."""
    return _hash_once(path, blake3)[:DIGEST_SIZE]


def sha256_file(path) -> str:
    """SHA-256 of a file's bytes, as published with weights; also read once."""
    return _hash_once(path, hashlib.sha256).hex()


def recall_digest(name: str, state: str | None) -> bytes | None:
    """Digest of the file or URL of this name in this state; None if unknown."""
    remembered, known = _recall((blake3, name))
    return known[:DIGEST_SIZE] if remembered == state else None


def is_remembered(name: str) -> bool:
    """Whether a digest of the file or URL of this name is known, in any state."""
    return bool(_recall((blake3, name))[0])


def learn_digest(name: str, state: str, known: bytes) -> None:
    """Remember the digest of the file or URL of this name in this state."""
    _remember((blake3, name), state, known)


def _hash_once(path, algorithm) -> bytes:
    """The hash of a file, computed unless it is known for this state of the file."""
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
    """Text that differs once a file has changed.

    It includes the time at which the inode changed, which reveals a rewritten file
    even if a program has reset the modification time, as archives and synchronisation
    do.
    """
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def may_change_unseen(stat: os.stat_result) -> bool:
    """Whether a file could be written again without a change of its times.

    On disks that note only whole seconds, such as FAT with two, for a while.
    """
    is_coarse = stat.st_mtime_ns % 10**9 == 0 and stat.st_ctime_ns % 10**7 == 0
    return is_coarse and stat.st_mtime > time.time() - COARSE_SECONDS


def _recall(name) -> tuple[str, bytes]:
    with _memo_lock:
        return _memo.get(name, ("", b""))


def _remember(name, state: str, known: bytes) -> None:
    with _memo_lock:
        while len(_memo) >= _MEMO_ROWS:
            del _memo[next(iter(_memo))]  # the oldest
        _memo[name] = state, known
