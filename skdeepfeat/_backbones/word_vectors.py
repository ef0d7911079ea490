"""Vectors of words: the features of a text are their mean; torch is not imported."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from .._caches import SharedCache
from .._digests import digest_fields
from .._texts.specs import WordSpec
from .._texts.words import cut
from .installed import installed, optional
from .records import Identity, Layer, Weights
from .text_records import TextRecord, TextSource, Tokenize

NODE = "vectors"
_tables = SharedCache(4)
_tokenizers = SharedCache(4)


class VectorTable(Protocol):
    """Vectors of words."""

    def vectors(self, words: list) -> np.ndarray:
        """(n, d) float32: the vectors of the words that have one, in order."""


class WordBackbone(TextRecord):
    """Vectors of words."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One layer, by two names."""
        shape = (self.width,)
        names = enumerate(("embeddings", "penultimate"))
        return tuple(
            Layer(name, NODE, i, "tokens", shape, self.width, None, 1.0)
            for i, name in names
        )

    @property
    def identity(self) -> Identity:
        """All vectors are looked up in the same way."""
        return Identity(digest_fields("word vectors", 1, {"width": self.width}))

    def source(self, weights, seed: int) -> "VectorsSource":
        """The vectors; there are no others."""
        if weights != "default":
            raise ValueError(
                f"The 'weights' of backbone {self.name!r} are its vectors. Got "
                f"{weights!r} instead; use weights='default'."
            )
        return VectorsSource(self, self.input)

    def table(self) -> VectorTable:
        """The vectors, shared by the whole process."""
        return _tables.get(self.vectors_digest, self.load)

    @property
    def vectors_digest(self) -> bytes:
        """Digest of the vectors."""
        raise NotImplementedError

    def load(self) -> VectorTable:
        """Load or open the vectors."""
        raise NotImplementedError


class VectorsSource(TextSource):
    """Vectors of words."""

    def known_by(self, by_values: bool = False) -> dict:
        """Digest of the vectors."""
        return {"vectors": self.backbone.vectors_digest}


# WordLlama ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of numbered tokens.

    Parameters
    ----------
    matrix : ndarray of shape (n_tokens, d), float32
    """

    matrix: np.ndarray

    def vectors(self, words: list) -> np.ndarray:
        """(n, d) float32: the vectors of n tokens."""
        return self.matrix[words]


def _file(name: str, sha256: str) -> Weights:
    """A file that pip installs with wordllama."""
    url = f"pip:wordllama/wordllama/{name}"
    about = {"extra": "text", "licence": "mit"}
    return Weights(name, url, sha256, None, **about)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class WordLlama(WordBackbone):
    """The token vectors of a language model, distilled; pip installs them [1]_.

    References
    ----------
    .. [1] Miller, "WordLlama: Recycled Token Embeddings from Large Language Models",
       2024.
    """

    name: str = "wordllama"
    width: int = 256
    parameters: ClassVar[int] = 32_000 * 256
    vectors_file: ClassVar[Weights] = _file(
        "weights/l2_supercat_256.safetensors",
        "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    )
    tokenizer_file: ClassVar[Weights] = _file(
        "tokenizers/l2_supercat_tokenizer_config.json",
        "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
    )

    @property
    def published_name(self) -> str:
        """Its name, the same in all later versions."""
        return "wordllama.l2_supercat_256"

    @property
    def input(self) -> WordSpec:
        """Texts of any length."""
        return WordSpec(bytes.fromhex(self.tokenizer_file.sha256), None)

    @property
    def vectors_digest(self) -> bytes:
        """The checksum of the file."""
        return bytes.fromhex(self.vectors_file.sha256)

    def load(self) -> TokenVectors:
        """Read the vectors, which the file has in half precision."""
        from safetensors.numpy import load_file

        entries = load_file(installed(self.vectors_file))
        return TokenVectors(entries["embedding.weight"].astype(np.float32))

    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The tokens of a text, without any at its start or end."""
        encode = _tokenizers.get(self.name, self._load_tokenizer).encode
        return lambda text: cut(encode(text, add_special_tokens=False).ids, max_length)

    def _load_tokenizer(self):
        path = str(installed(self.tokenizer_file))
        tokenizer = optional("tokenizers").Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
