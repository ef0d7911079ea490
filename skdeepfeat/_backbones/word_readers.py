"""Files of word vectors (GloVe, word2vec, fastText) → words and their vectors.

No file runs code. Text files, and binary ones of word2vec, are read here; binary files
of fastText by gensim's reader. Pickles are refused.
"""

import bz2
import gzip
import mmap
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._exceptions import WeightsError, in_one_line
from .._texts.words import normalized
from .installed import optional

BOM = b"\xef\xbb\xbf"
FASTTEXT = (793712314).to_bytes(4, "little")  # what its binary files begin with
SAMPLE = 100  # lines, from which the number of features is found


class Vectors(NamedTuple):
    """What a file holds.

    Parameters
    ----------
    words : list of bytes
    matrix : ndarray of shape (n_words, d), float32
    subwords : ndarray of shape (n_buckets, d), float32, or None
    lengths : tuple of int or None
        Of the shortest and the longest subword.
    notes : tuple of str
        What the user should know about the file.
    """

    words: list[bytes]
    matrix: np.ndarray
    subwords: np.ndarray | None = None
    lengths: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def read_vectors(path: Path, scratch: Path) -> Vectors:
    """The vectors in a file of any kind; it is unpacked in the folder `scratch`."""
    try:
        with _unpacked(path, scratch) as plain:
            with plain.open("rb") as file:
                start = file.read(65536)
            read = next(read for is_one, read in READERS if is_one(start))
            return _with_normalized_words(read(plain))
    except ImportError:  # gensim is missing
        raise
    except Exception as error:  # whatever gensim's reader raises of damaged files
        raise WeightsError(
            f"{str(path)!r} is not a file of word vectors that can be read "
            f"({in_one_line(error)}). Allowed are GloVe's .txt, word2vec's .txt and "
            ".bin, and fastText's .vec and .bin, also as .gz and .bz2."
        ) from error


@contextmanager
def _unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    """A path of the same file, uncompressed for a while."""
    with path.open("rb") as file:
        start = file.read(16)
    opened = next((o for magic, o in OPENERS.items() if magic.match(start)), None)
    if opened is None:
        yield path
        return
    plain = scratch / "unpacked"
    try:
        with opened(path, "rb") as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        yield plain
    finally:
        plain.unlink(missing_ok=True)


def _with_normalized_words(found: Vectors) -> Vectors:
    """The same with distinct words, in the form in which those of texts are looked up.

    Of equal words, the first counts.
    """
    rows: dict[bytes, int] = {}
    n_lost = 0
    for row, word in enumerate(found.words):
        try:
            rows.setdefault(normalized(word.decode()).encode(), row)
        except UnicodeDecodeError:
            n_lost += 1
    if not rows:
        raise ValueError("it has no words in UTF-8")
    notes = found.notes
    if n_lost:
        notes = (
            *notes,
            f"{n_lost:,} of {len(found.words):,} words are not UTF-8 and are left out. "
            "Convert it, for instance with iconv -f latin1 -t utf-8",
        )
    matrix = found.matrix
    if len(rows) < len(matrix):
        matrix = matrix[list(rows.values())]
    return found._replace(words=list(rows), matrix=matrix, notes=notes)


# Text files ---------------------------------------------------------------------------


def _read_text(path: Path) -> Vectors:
    """A text file: a word and its numbers in each line, and maybe a line with sizes.

    gensim also reads short lines, and gives them wrong numbers.
    """
    words: list[bytes] = []
    values = array("f")
    with path.open("rb") as file:
        lines = _lines(file)
        sample = list(islice(lines, SAMPLE))
        n_words, width = _sizes(sample)
        for number, line in chain(sample, lines):
            word, numbers = _split(line, width)
            if len(numbers) != width:
                why = "unlike most lines" if n_words is None else "as its header says"
                raise ValueError(
                    f"line {number:,} does not have {width:,} number"
                    f"{'s' * (width != 1)} after its word, {why}"
                )
            words.append(word)
            values.extend(numbers)
    if n_words not in (None, len(words)):
        raise ValueError(
            f"its header says {n_words:,} words, and it has {len(words):,}"
        )
    matrix = np.frombuffer(values, np.float32).reshape(len(words), width)
    return Vectors(words, matrix, notes=_notes_on_end(path))


def _lines(file) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the lines that are not blank, with single spaces.

    A space at the start stays: the word before it consists of spaces.
    """
    for number, line in enumerate(file, 1):
        line = line.removeprefix(BOM) if number == 1 else line
        if fields := line.split():
            start = [b""] if line[:1].isspace() else []
            yield number, b" ".join([*start, *fields])


def _sizes(sample: list[tuple[int, bytes]]) -> tuple[int | None, int]:
    """Numbers of words, if a header says it, and of features; drops the header."""
    n_words = width = None
    if sample and _is_header(sample[0][1]):
        n_words, width = map(int, sample.pop(0)[1].split())
    if not sample:
        raise ValueError("it has no words")
    counts = Counter(_count_numbers(line) for _, line in sample)
    width = counts.most_common(1)[0][0] if width is None else width
    if width < 1:
        raise ValueError("its lines do not consist of a word and numbers")
    return n_words, width


def _is_header(line: bytes) -> bool:
    """Whether a line consists of the numbers of words and of features."""
    fields = line.split()
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _count_numbers(line: bytes) -> int:
    """How many fields at the end of a line are numbers; the first is a word."""
    return sum(1 for _ in takewhile(_is_number, reversed(line.split(b" ")[1:])))


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def _split(line: bytes, width: int) -> tuple[bytes, list[float]]:
    """The word of a line, which may have spaces, and its numbers; none if it has more
    or fewer."""
    word, *fields = line.rsplit(b" ", width)
    has_more = b" " in word and _is_number(word.rpartition(b" ")[2])
    if has_more or b"_" in line[len(word) :]:  # Python reads 1_0 as 10
        return word, []
    try:
        return word.strip(), list(map(float, fields))
    except ValueError:
        return word, []


def _notes_on_end(path: Path) -> tuple[str, ...]:
    """What to say about a file that may have been cut inside its last number."""
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read() in b"\r\n":
            return ()
    return (
        "its last line does not end with a newline, so its last number may be cut. Add "
        "a newline if the file is whole",
    )


# Binary files -------------------------------------------------------------------------


def _is_binary(start: bytes) -> bool:
    """Whether a file of word2vec has binary numbers."""
    first, _, rest = start.removeprefix(BOM).partition(b"\n")
    fields = rest.lstrip().partition(b"\n")[0].split()
    return _is_header(first) and bool(fields) and not _is_number(fields[-1])


def _read_binary(path: Path) -> Vectors:
    """A binary file of word2vec: sizes, and then words and numbers.

    gensim reads no more than the header says, and allocates as much.
    """
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        n_words, width = map(int, data.readline().split())
        sizes = f"its header says {n_words:,} words of {width:,} numbers"
        if width < 1 or n_words * (4 * width + 1) > len(data) - data.tell():
            raise ValueError(f"{sizes}, and it is shorter")
        words: list[bytes] = []
        matrix = np.empty((n_words, width), np.float32)
        place = data.tell()
        for row in range(n_words):
            end = data.find(b" ", place)
            if end < 0:
                raise ValueError(f"{sizes}, and it has {row:,}")
            words.append(data[place:end].lstrip(b"\n"))
            matrix[row] = np.frombuffer(data, "<f4", width, end + 1)
            place = end + 1 + 4 * width
        if data[place:].strip():
            raise ValueError(f"{sizes}, and it is longer")
    return Vectors(words, matrix)


def _read_fasttext(path: Path) -> Vectors:
    """A binary file of fastText, with subwords, as gensim reads it."""
    read = optional("gensim.models.fasttext").load_facebook_vectors(str(path))
    words = [word.encode() for word in read.index_to_key]
    if not read.bucket:
        return Vectors(words, np.asarray(read.vectors))
    lengths = int(read.min_n), int(read.max_n)
    return Vectors(words, np.asarray(read.vectors), read.vectors_ngrams, lengths)


# What is not read ---------------------------------------------------------------------


PICKLED = re.compile(rb"\x80|\W*c[\w.]+\n[\w.]+\n")  # new and old ones
GZIP, BZIP2 = re.compile(rb"\x1f\x8b"), re.compile(rb"BZh[1-9]1AY&SY")
# Of zip, xz, 7z, zstd, and of what was compressed twice; no word begins like this.
ARCHIVE = re.compile(
    rb"PK\x03\x04|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|%b|%b"
    % (GZIP.pattern, BZIP2.pattern)
)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def _refusal(reason: str) -> Callable[[Path], Vectors]:
    """A reader that raises this."""

    def refuse(path: Path) -> Vectors:
        raise ValueError(reason)

    return refuse


OPENERS: dict[re.Pattern, Any] = {GZIP: gzip.open, BZIP2: bz2.open}
# What a file begins with → how it is read; the first that matches counts.
READERS: tuple[tuple[Callable[[bytes], Any], Callable[[Path], Vectors]], ...] = (
    (
        PICKLED.match,
        _refusal(
            "it is a pickle, which could run code. Write it again with "
            "save_word2vec_format"
        ),
    ),
    (
        ARCHIVE.match,
        _refusal("it is an archive. Unpack it, and pass the file that is inside"),
    ),
    (
        lambda start: start.startswith(UTF_16),
        _refusal("it is UTF-16. Convert it, for instance with iconv -t utf-8"),
    ),
    (lambda start: start.startswith(FASTTEXT), _read_fasttext),
    (_is_binary, _read_binary),
    (lambda start: True, _read_text),
)
