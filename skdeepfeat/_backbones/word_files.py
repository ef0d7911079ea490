"""Files of word vectors (GloVe, word2vec, fastText) → tables in the cache folder.

A file is read once, binary ones by gensim's readers, which run no code that a file may
contain. Its table is then opened, not read: words are found by binary
search among their hashes, and only the pages with their vectors are loaded.
"""

import bz2
import contextlib
import gzip
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from .._caches import user_cache
from .._digests import digest, digest_fields, digest_file, state_of_file
from .._exceptions import WeightsError, in_one_line
from .._files import replacing
from .._texts.specs import WordSpec
from .._texts.words import RULE, cut, words_of
from .installed import optional
from .text_records import Tokenize
from .word_vectors import WordBackbone

FORMAT = 1  # of the tables; increment when it changes
FASTTEXT = (793712314).to_bytes(4, "little")  # what its binary files begin with
PICKLED = b"\x80"
SUFFIXES = (".txt", ".vec", ".bin", ".gz", ".bz2", ".kv", ".model", ".w2v", ".glove")


@dataclass(frozen=True, eq=False)
class WordFile(WordBackbone):
    """The word vectors in a file.

    Parameters
    ----------
    path : Path
    """

    path: Path

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the file."""
        return self.path.name

    @property
    def width(self) -> int:  # type: ignore[override]
        """Number of features of a word."""
        return self.table().vectors_of_words.shape[1]

    @property
    def input(self) -> WordSpec:  # type: ignore[override]
        """Texts of any length."""
        return WordSpec(digest_fields("words", 1, {"rule": RULE}), None)

    @property
    def vectors_digest(self) -> bytes:
        """Digest of the file, which later processes look up."""
        return _known_digest(self.path)

    def load(self) -> "WordTable":
        """Open the table of the file, made now if there is none yet."""
        return WordTable(table_of(self.path, self.vectors_digest))

    def table(self) -> "WordTable":
        """The vectors, shared by the whole process."""
        return super().table()  # type: ignore[return-value]

    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The words of a text."""
        return lambda text: cut(words_of(text), max_length)


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

        about = json.loads((folder / "about.json").read_text())
        self.vectors_of_words = opened("vectors")
        self._hashes, self._order = opened("hashes"), opened("order")
        self._ends, self._letters = opened("ends"), opened("letters")
        self._subwords = about["subwords"]
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
        total = np.zeros(self.vectors_of_words.shape[1], np.float32)
        for number in numbers:  # one by one, as gensim adds them
            total += self._vectors_of_subwords[number]
        return total / len(numbers)


def _hash(word: bytes) -> np.uint64:
    return np.frombuffer(blake3(word).digest(8), "<u8")[0]


# From files to tables ----------------------------------------------------------------


def _known_digest(path: Path) -> bytes:
    """The digest of a file, which is read only if its state is a new one."""
    state = state_of_file(path.stat())
    note = user_cache("words") / f"{digest(str(path)).hex()}.json"
    try:
        noted = json.loads(note.read_text())
        if noted["state"] == state:
            return bytes.fromhex(noted["digest"])
    except (OSError, ValueError, KeyError):
        pass  # not noted yet, or damaged
    found = digest_file(path)
    with contextlib.suppress(OSError):  # then the next process hashes it again
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as incomplete:
            about = {"state": state, "digest": found.hex()}
            incomplete.write_text(json.dumps(about))
    return found


def table_of(path: Path, file_digest: bytes) -> Path:
    """The folder of the table of a file, which appears when it is complete."""
    folder = user_cache("words") / f"{file_digest.hex()}-{FORMAT}"
    if folder.is_dir():
        return folder
    partial = _new_folder(folder)
    try:
        _write_table(_read(path), partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _new_folder(folder: Path) -> Path:
    """A new folder beside another one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(".partial", folder.name, folder.parent))
    except OSError as error:
        raise WeightsError(
            f"Word vectors are kept in {str(folder.parent)!r}, which cannot be written "
            f"({in_one_line(error)}). Set the environment variable XDG_CACHE_HOME to a "
            "folder that can."
        ) from error


class Vectors(NamedTuple):
    """What a file holds.

    Parameters
    ----------
    words : list of bytes
    matrix : ndarray of shape (n_words, d), float32
    subwords : ndarray of shape (n_buckets, d), float32, or None
    lengths : tuple of int or None
        Of the shortest and the longest subword.
    """

    words: list[bytes]
    matrix: np.ndarray
    subwords: np.ndarray | None = None
    lengths: tuple[int, int] | None = None


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
    about = None
    if read.subwords is not None and read.lengths is not None:
        entries["subwords"] = read.subwords
        about = [*read.lengths, len(read.subwords)]
    for name, entry in entries.items():
        np.save(folder / f"{name}.npy", entry)
    (folder / "about.json").write_text(json.dumps({"subwords": about}))


# Reading files ------------------------------------------------------------------------


def _read(path: Path) -> Vectors:
    """The vectors in a file of any kind."""
    try:
        with _opened(path) as file:
            start = file.read(65536)
        return next(read(path) for is_one, read in READERS if is_one(start))
    except (ValueError, EOFError, OSError, IndexError, OverflowError) as error:
        raise WeightsError(
            f"{str(path)!r} is not a file of word vectors that can be read "
            f"({in_one_line(error)}). Allowed are GloVe's .txt, word2vec's .txt and "
            ".bin, and fastText's .vec and .bin."
        ) from error


def _opened(path: Path) -> Any:
    """A file open for reading, uncompressed."""
    with path.open("rb") as file:
        magic = file.read(4)
    opener = next((o for start, o in OPENERS.items() if magic.startswith(start)), open)
    return opener(path, "rb")


def _refuse_pickle(path: Path) -> Vectors:
    raise ValueError(
        "it is a pickle, which could run code. Write it again with save_word2vec_format"
    )


def _read_fasttext(path: Path) -> Vectors:
    """A binary file of fastText, with subwords, as gensim reads it."""
    read = optional("gensim.models.fasttext").load_facebook_vectors(str(path))
    words = [word.encode() for word in read.index_to_key]
    if not read.bucket:
        return Vectors(words, np.asarray(read.vectors))
    lengths = int(read.min_n), int(read.max_n)
    return Vectors(words, np.asarray(read.vectors), read.vectors_ngrams, lengths)


def _read_binary(path: Path) -> Vectors:
    """A binary file of word2vec, as gensim reads it."""
    read = optional("gensim.models").KeyedVectors.load_word2vec_format(
        str(path), binary=True, unicode_errors="replace"
    )
    return Vectors([word.encode() for word in read.index_to_key], read.vectors)


def _read_text(path: Path) -> Vectors:
    """A text file: a word and its numbers in each line, and maybe a line with sizes.

    gensim reads short lines as well, and gives them wrong numbers.
    """
    words: dict[bytes, None] = {}
    values, width = array("f"), 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip().split(b" ")
            if number == 1 and _is_header(fields):
                width = int(fields[1])
                continue
            width = width or len(fields) - 1
            # Some words of GloVe have spaces.
            word = b" ".join(fields[: max(1, len(fields) - width)])
            if width < 1 or len(fields) <= width:
                raise ValueError(f"line {number} does not have {max(1, width)} numbers")
            if word not in words:
                words[word] = None
                values.extend(map(float, fields[-width:]))
    if not words:
        raise ValueError("it has no words")
    matrix = np.frombuffer(values, np.float32).reshape(len(words), width)
    return Vectors(list(words), matrix)


def _is_header(fields: list[bytes]) -> bool:
    """Whether a line consists of the numbers of words and of features."""
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _is_binary(start: bytes) -> bool:
    """Whether a file of word2vec has binary numbers."""
    first, _, rest = start.partition(b"\n")
    if not _is_header(first.split()):
        return False
    numbers = rest.partition(b"\n")[0].split()[1:]
    try:
        return not [float(number) for number in numbers]
    except ValueError:
        return True


OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
# What a file begins with → how it is read; the first that matches counts.
READERS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], Vectors]], ...] = (
    (lambda start: start.startswith(PICKLED), _refuse_pickle),
    (lambda start: start.startswith(FASTTEXT), _read_fasttext),
    (_is_binary, _read_binary),
    (lambda start: True, _read_text),
)
