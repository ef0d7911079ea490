"""Files of word vectors (GloVe, word2vec, fastText) → tables in the cache folder.

A file is read once, by gensim's readers of text and binary files, which run no code
that the file may contain. Its table is then opened, not read: words are found by binary
search among their hashes, and only the pages with their vectors are loaded.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from .._caches import user_cache
from .._digests import digest, digest_fields, digest_file, state_of_file
from .._exceptions import WeightsError, in_one_line
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
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(f".{id(path)}.partial")
    partial.write_text(json.dumps({"state": state, "digest": found.hex()}))
    partial.replace(note)
    return found


def table_of(path: Path, file_digest: bytes) -> Path:
    """The folder of the table of a file, which appears when it is complete."""
    folder = user_cache("words") / f"{file_digest.hex()}-{FORMAT}"
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(".partial", folder.name, folder.parent))
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


def _write_table(read: Any, folder: Path) -> None:
    """Write the vectors and words that gensim has read."""
    encoded = [word.encode() for word in read.index_to_key]
    hashes = np.array([_hash(word) for word in encoded], np.uint64)
    order = np.argsort(hashes, kind="stable")
    entries: dict[str, np.ndarray] = {
        "vectors": np.asarray(read.vectors, np.float32),
        "hashes": hashes[order],
        "order": order,
        "ends": np.cumsum([len(word) for word in encoded], dtype=np.int64),
        "letters": np.frombuffer(b"".join(encoded), np.uint8),
    }
    subwords = None
    if getattr(read, "bucket", 0):
        entries["subwords"] = np.asarray(read.vectors_ngrams, np.float32)
        subwords = [read.min_n, read.max_n, read.bucket]
    for name, array in entries.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "about.json").write_text(json.dumps({"subwords": subwords}))


def _read(path: Path) -> Any:
    """The vectors in a file of any kind, as gensim reads them."""
    vectors = optional("gensim.models")
    try:
        start = _start_of(path)
        if start.startswith(PICKLED):
            raise ValueError(
                "it is a pickle, which could run code. Write it again with "
                "save_word2vec_format"
            )
        if start.startswith(FASTTEXT):
            return vectors.fasttext.load_facebook_vectors(str(path))
        return vectors.KeyedVectors.load_word2vec_format(
            str(path), **_options(start), encoding="utf8", unicode_errors="replace"
        )
    except (ValueError, EOFError, OSError, IndexError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{str(path)!r} is not a file of word vectors that can be read "
            f"({in_one_line(error)}). Allowed are GloVe's .txt, word2vec's .txt and "
            ".bin, and fastText's .vec and .bin."
        ) from error


def _start_of(path: Path) -> bytes:
    """The first bytes of a file, which may be compressed."""
    with optional("gensim.utils").open(str(path), "rb") as file:
        return file.read(65536)


def _options(start: bytes) -> dict[str, bool]:
    """Whether a file has a line with its size, and whether it is binary."""
    first, _, rest = start.partition(b"\n")
    sizes = first.split()
    if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        return {"no_header": True, "binary": False}
    return {"no_header": False, "binary": not _are_numbers(rest, int(sizes[1]))}


def _are_numbers(rest: bytes, width: int) -> bool:
    """Whether the first line consists of a word and numbers."""
    numbers = rest.partition(b"\n")[0].split(b" ")[1 : 1 + width]
    try:
        return len([float(number) for number in numbers]) > 0
    except ValueError:
        return False
