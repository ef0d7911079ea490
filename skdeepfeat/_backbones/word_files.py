"""The record of a file of word vectors: GloVe, word2vec or fastText."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from .._caches import user_cache
from .._digests import digest, digest_fields, digest_file, state_of_file
from .._files import replacing
from .._texts.specs import WordSpec
from .._texts.words import RULE, cut, words_of
from .text_records import Tokenize
from .word_tables import WordTable, open_table
from .word_vectors import WordBackbone

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
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def width(self) -> int:
        """Number of features of a word."""
        return self.table().vectors_of_words.shape[1]

    @property
    def input(self) -> WordSpec:
        """Texts of any length."""
        return WordSpec(digest_fields("words", 1, {"rule": RULE}), None)

    @property
    def vectors_digest(self) -> bytes:
        """Digest of the file, which later processes look up."""
        return _known_digest(self.path)

    def load(self) -> WordTable:
        """Open the table of the file, made now if there is none yet."""
        return open_table(self.path, self.vectors_digest)

    def table(self) -> WordTable:
        """The vectors, shared by the whole process."""
        return super().table()  # type: ignore[return-value]

    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The words of a text."""
        return lambda text: cut(words_of(text), max_length)


def _known_digest(path: Path) -> bytes:
    """The digest of a file, which is only read if its state is new."""
    state = state_of_file(path.stat())
    note = user_cache("words") / f"{digest(str(path)).hex()}.json"
    try:
        noted = json.loads(note.read_text())
        if noted["state"] == state:
            return bytes.fromhex(noted["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not noted yet, or damaged
    found = digest_file(path)
    with contextlib.suppress(OSError):  # then the next process hashes it again
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as incomplete:
            about = {"state": state, "digest": found.hex()}
            incomplete.write_text(json.dumps(about))
    return found
