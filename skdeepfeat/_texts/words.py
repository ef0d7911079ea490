"""Texts → words, and the tokenizers of networks of the user's own."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .._digests import digest_fields
from .batches import Tokens

# Runs of letters and digits, also with apostrophes inside, and single other signs.
WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
RULE = 1  # increment when the rule changes


def words_of(text: str) -> list[str]:
    """The words and signs of a text, in order."""
    return WORDS.findall(text)


def cut(tokens: list, max_length: int | None) -> Tokens:
    """The first tokens of a text, and whether they are all."""
    whole = max_length is None or len(tokens) <= max_length
    return Tokens(tokens if whole else tokens[:max_length], whole)


class Tokenizer(Protocol):
    """What makes the tokens of a text."""

    @property
    def obstacle(self) -> str:
        """Why the digest means nothing in other processes, or ""."""

    @property
    def digest(self) -> bytes:
        """Digest of everything that determines the tokens."""

    def make(self, max_length: int | None) -> Callable[[str], Tokens]:
        """The function that makes the tokens of a text."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Words with numbers; words without one are left out.

    Parameters
    ----------
    numbers : dict of str to int
    """

    numbers: dict[str, int]
    obstacle: str = ""

    @property
    def digest(self) -> bytes:
        """Digest of the words, their numbers, and the rule that finds words."""
        about = {"numbers": self.numbers, "rule": RULE}
        return digest_fields("vocabulary", 1, about)

    def make(self, max_length: int | None) -> Callable[[str], Tokens]:
        """The numbers of the words, as they are written or else in lower case."""
        numbers = self.numbers

        def tokenize(text: str) -> Tokens:
            words = words_of(text)
            found = [numbers.get(word, numbers.get(word.lower())) for word in words]
            return cut([n for n in found if n is not None], max_length)

        return tokenize


@dataclass(frozen=True)
class SavedTokenizer:
    """A tokenizer of the package tokenizers.

    Parameters
    ----------
    content : str
        As JSON.
    side : {"right", "left"}, default="right"
        Where long texts are cut.
    splits_special : bool, default=False
        Whether special tokens in a text are read as other words are.
    """

    content: str
    side: str = "right"
    splits_special: bool = False
    obstacle: str = ""

    @property
    def digest(self) -> bytes:
        """Digest of the JSON, and of what it lacks."""
        about = {"json": self.content}
        if (self.side, self.splits_special) != ("right", False):
            about |= {"side": self.side, "splits special": str(self.splits_special)}
        return digest_fields("tokenizer", 1, about)

    def make(self, max_length: int | None) -> Callable[[str], Tokens]:
        """The tokens of a text, with those that the tokenizer puts around them."""
        from tokenizers import Tokenizer as Fast

        fast = Fast.from_str(self.content)
        return fast_tokenizer(fast, max_length, self.side, self.splits_special)


def fast_tokenizer(
    fast, max_length: int | None, side: str, splits_special: bool
) -> Callable[[str], Tokens]:
    """A function that makes the tokens of a text, and cuts them on one side.

    One text at a time, as the threads of tokenizers do not survive a fork.
    """
    fast = type(fast).from_str(fast.to_str())  # which may be in use elsewhere
    fast.no_padding()
    fast.no_truncation()
    fast.encode_special_tokens = splits_special  # which its JSON does not have
    if max_length is not None:
        around = fast.num_special_tokens_to_add(is_pair=False)
        if max_length <= around:
            raise ValueError(
                f"The 'max_length' parameter must be at least {around + 1}, as the "
                f"tokenizer puts {around} tokens around a text. Got {max_length} from "
                "the parameter or from 'model_max_length' of the tokenizer."
            )
        fast.enable_truncation(max_length, direction=side)

    def tokenize(text: str) -> Tokens:
        found = fast.encode(text)
        return Tokens(found.ids, not found.overflowing)

    return tokenize


@dataclass(frozen=True)
class Function:
    """A function of the user's own: text → list of int.

    Parameters
    ----------
    function : callable
    version : str or None
        Of its code; without one, it is known by the object alone.
    """

    function: Callable[[str], Any]
    version: str | None
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def obstacle(self) -> str:
        """Why the digest means nothing in other processes."""
        return "" if self.version else "its tokenizer is a function without version=..."

    @property
    def digest(self) -> bytes:
        """Digest of its name and version, or of the object."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        known_by = [name, self.version] if self.version else self.token
        return digest_fields("function", 1, {"known by": known_by})

    def make(self, max_length: int | None) -> Callable[[str], Tokens]:
        """The tokens that the function returns, cut."""
        return lambda text: cut(list(map(int, self.function(text))), max_length)


def tokenizer_of(tokenize, version: str | None) -> Tokenizer:
    """The tokenizer that a `tokenize` parameter stands for."""
    if isinstance(tokenize, Mapping):
        return Vocabulary({str(word): int(n) for word, n in tokenize.items()})
    fast = getattr(tokenize, "backend_tokenizer", tokenize)
    if hasattr(fast, "to_str") and hasattr(fast, "encode"):
        cut_at = (getattr(fast, "truncation", None) or {}).get("direction", "right")
        side = getattr(tokenize, "truncation_side", cut_at)
        splits_special = bool(getattr(fast, "encode_special_tokens", False))
        return SavedTokenizer(fast.to_str(), side, splits_special)
    if callable(tokenize):
        return Function(tokenize, version)
    raise TypeError(
        "The 'tokenize' parameter of TextBackbone.from_module must be a dictionary of "
        "words and their numbers, a tokenizer of tokenizers or transformers, or a "
        f"function from str to a list of int. Got {type(tokenize).__name__} instead."
    )
