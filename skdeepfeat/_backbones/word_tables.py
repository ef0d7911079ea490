"""Word vectors → a table in the cache folder of the user, which is opened, not read.

Words are found by binary search among their hashes, and only the pages with their
vectors are loaded.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from .._caches import user_cache
from .._digests import digest_fields, digest_file
from .._exceptions import TextWarning, WeightsError, in_one_line, warn_user
from .._files import replacing
from .installed import optional
from .word_readers import Vectors, read_vectors

FORMAT = 2  # increment when the tables, or what is read from a file, change
AT_ONCE = 4096  # subwords that are added up


class WordTable:
    """Vectors of words in a folder, opened as needed.

    A word that the file lacks has the mean of its subwords, if the file has some, or
    the vector of the word in lower case, or none.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        def opened(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        self._subwords = _read_about(folder)["subwords"]
        self.vectors_of_words = opened("vectors")
        self._hashes, self._order = opened("hashes"), opened("order")
        self._ends, self._letters = opened("ends"), opened("letters")
        self._vectors_of_subwords = opened("subwords") if self._subwords else None

    def vectors(self, words: list) -> np.ndarray:
        """(n, d) float32: the vectors of the words that have one, in order."""
        found = [self._vector(word) for word in words]
        known = [vector for vector in found if vector is not None]
        width = self.vectors_of_words.shape[1]
        return np.array(known, np.float32).reshape(len(known), width)

    def _vector(self, word: str) -> np.ndarray | None:
        row = self._find(word)
        if row is not None:
            return self.vectors_of_words[row]
        if self._vectors_of_subwords is not None:
            return self._from_subwords(word)
        row = self._find(word.lower())
        return None if row is None else self.vectors_of_words[row]

    def _find(self, word: str) -> int | None:
        """The row of a word, by binary search among the hashes."""
        encoded = word.encode()
        wanted = _hash(encoded)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._order[place])
            start = int(self._ends[row - 1]) if row else 0
            if self._letters[start : self._ends[row]].tobytes() == encoded:
                return row
            place += 1
        return None

    def _from_subwords(self, word: str) -> np.ndarray | None:
        """The mean of the subwords of a word, as in fastText."""
        hashed = optional("gensim.models.fasttext").ft_ngram_hashes
        numbers = hashed(word, *self._subwords)
        if not numbers:
            return None
        assert self._vectors_of_subwords is not None
        total = np.zeros((1, self.vectors_of_words.shape[1]), np.float32)
        for start in range(0, len(numbers), AT_ONCE):
            # Row by row, as gensim adds them.
            some = self._vectors_of_subwords[numbers[start : start + AT_ONCE]]
            total = np.concatenate([total, some]).sum(0, keepdims=True)
        return total[0] / len(numbers)


def _hash(word: bytes) -> np.uint64:
    return np.frombuffer(blake3(word).digest(8), "<u8")[0]


# From files to tables ----------------------------------------------------------------


def open_table(path: Path, file_digest: bytes) -> WordTable:
    """The table of a file, made now if there is none, or a damaged one."""
    folder = user_cache("words") / f"{file_digest.hex()}-{FORMAT}"
    if not _is_intact(folder):
        _make_table(path, folder)
    for note in _read_about(folder)["notes"]:
        warn_user(f"{str(path)!r}: {note}.", TextWarning)
    return WordTable(folder)


def _make_table(path: Path, folder: Path) -> None:
    """Read a file into a folder, which appears when it is complete."""
    partial = _new_folder(folder)
    try:
        _write_table(read_vectors(path, partial), partial)
        if _is_intact(folder):  # another process was faster
            return
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        try:
            partial.rename(folder)
        except OSError as error:
            if not _is_intact(folder):
                raise _not_kept(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _new_folder(folder: Path) -> Path:
    """A new folder beside another one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(".partial", folder.name, folder.parent))
    except OSError as error:
        raise _not_kept(folder, error) from error


def _not_kept(folder: Path, error: OSError) -> WeightsError:
    """The error of a folder that cannot be written."""
    return WeightsError(
        f"Word vectors are kept in {str(folder.parent)!r}, which cannot be written "
        f"({in_one_line(error)}). Set the environment variable XDG_CACHE_HOME to a "
        "folder that can."
    )


def _write_table(read: Vectors, folder: Path) -> None:
    """Write the vectors and words of a file."""
    hashes = np.array([_hash(word) for word in read.words], np.uint64)
    order = np.argsort(hashes, kind="stable")
    entries: dict[str, np.ndarray] = {
        "vectors": read.matrix,
        "hashes": hashes[order],
        "order": order,
        "ends": np.cumsum([len(word) for word in read.words], dtype=np.int64),
        "letters": np.frombuffer(b"".join(read.words), np.uint8),
    }
    subwords = None
    if read.subwords is not None and read.lengths is not None:
        entries["subwords"] = read.subwords
        subwords = [*read.lengths, len(read.subwords)]
    for name, entry in entries.items():
        np.save(folder / f"{name}.npy", entry)
    paths = [folder / f"{name}.npy" for name in entries]
    files = {path.name: [_state(path), digest_file(path).hex()] for path in paths}
    about = {"subwords": subwords, "notes": list(read.notes), "files": files}
    _write_about(folder, about)


# Whether a table is as it was written ------------------------------------------------


def _is_intact(folder: Path) -> bool:
    """Whether the files are those that were written.

    They are only read if their times have changed, as those of copies do.
    """
    try:
        about = _read_about(folder)
        states = {name: _state(folder / name) for name in about["files"]}
        changed = [n for n, state in states.items() if state != about["files"][n][0]]
        for name in changed:
            known = about["files"][name][1]
            if digest_file(folder / name).hex() != known:
                return False
            about["files"][name] = [states[name], known]
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return False
    if changed:
        with contextlib.suppress(OSError):  # then the next process reads them again
            _write_about(folder, about)
    return True


def _state(path: Path) -> list[int]:
    """Size and time of a file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write what the arrays are, with a digest of this."""
    noted = {"about": about, "digest": _digest_of(about)}
    with replacing(folder / "about.json") as incomplete:
        incomplete.write_text(json.dumps(noted))


def _read_about(folder: Path) -> dict[str, Any]:
    """What the arrays are; raises ValueError if this has changed."""
    noted = json.loads((folder / "about.json").read_text())
    if noted["digest"] != _digest_of(noted["about"]):
        raise ValueError("about.json is damaged")
    return noted["about"]


def _digest_of(about: dict[str, Any]) -> str:
    return digest_fields("word table", FORMAT, about).hex()
