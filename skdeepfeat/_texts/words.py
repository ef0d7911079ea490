"""Texts → words, and the tokenizers of networks of the user's own."""

import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Number
from typing import Any, Protocol

import numpy as np

from .._digests import digest_fields
from .batches import NoTokens, Tokens

RULE = 2  # increment when the words of a text, or their form, change
MOST_TOKENS = 2**31  # of a network, as tokens are int32
MARKED = range(0x300, 0x20000)  # where the marks are that join letters
# Signs that show nothing, such as soft hyphens, directions and variants of emoji, as
# (first, last). Joiners are not among them, as words of some scripts differ by them.
SHOW_NOTHING = (
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x200E, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xE0100, 0xE01EF),
)
INVISIBLE = {i: None for first, last in SHOW_NOTHING for i in range(first, last + 1)}


def normalized(text: str) -> str:
    """The form in which words are compared: composed, and without invisible signs."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).translate(INVISIBLE)


@cache
def _words(ascii_only: bool) -> re.Pattern:
    """Runs of letters and digits, also with apostrophes or joiners inside, and single
    other signs.

    Marks belong to letters, which \\w does not know.
    """
    marks = ""
    if not ascii_only:
        found = map(chr, MARKED)
        marks = "".join(c for c in found if unicodedata.category(c)[0] == "M")
    word = rf"[\w{marks}]+"
    joined = rf"(?:['’\u200c\u200d]+{word})*"
    return re.compile(rf"{word}{joined}|[^\w\s\u200b-\u200d]")


def words_of(text: str) -> list[str]:
    """The words and signs of a text, in order."""
    return _words(text.isascii()).findall(normalized(text))


def cut(tokens: list, max_length: int | None) -> Tokens:
    """The first tokens of a text, and whether they are all."""
    whole = max_length is None or len(tokens) <= max_length
    return Tokens(tokens if whole else tokens[:max_length], whole)


def known_tokens(tokenize: Callable[[str], Tokens], n_tokens: int):
    """A function that makes the same tokens, and refuses those beyond `n_tokens`."""

    def checked(text: str) -> Tokens:
        found = tokenize(text)
        if not _are_small(found.tokens, n_tokens):
            for token in found.tokens:
                if not is_token(token, n_tokens):
                    raise NoTokens(no_token("its tokenizer", token, n_tokens))
        return found

    return checked


def _are_small(tokens: list, n_tokens: int) -> bool:
    """Whether all tokens are plain integers that a network takes: a fast check."""
    plain = set(map(type, tokens)) == {int}
    return plain and min(tokens) >= 0 and max(tokens) < n_tokens


def is_token(number, n_tokens: int) -> bool:
    """Whether a network of this many tokens takes this one."""
    return isinstance(number, (int, np.integer)) and 0 <= int(number) < n_tokens


def no_token(where: str, found, n_tokens: int) -> str:
    """The sentence about a token that a network does not take; quotes no text."""
    shown = found if isinstance(found, Number) else f"a {type(found).__name__}"
    return (
        f"{where} must give tokens of the network, integers from 0 to "
        f"{n_tokens - 1:,}. Got {shown} instead"
    )


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
        if not self.version:
            return "its tokenizer is a function without version=..."
        if "<lambda>" in self._name[1]:
            return "its tokenizer is a lambda, which has no name; use def"
        return ""

    @property
    def _name(self) -> tuple[str, str]:
        """Module and name of the function, or of the class of what is called."""
        named = hasattr(self.function, "__qualname__")
        thing: Any = self.function if named else type(self.function)
        return str(thing.__module__), thing.__qualname__

    @property
    def digest(self) -> bytes:
        """Digest of its name and version, or of the object."""
        known_by = [*self._name, self.version] if not self.obstacle else self.token
        return digest_fields("function", 1, {"known by": known_by})

    def make(self, max_length: int | None) -> Callable[[str], Tokens]:
        """The tokens that the function returns, cut."""
        return lambda text: cut(self._tokens(text), max_length)

    def _tokens(self, text: str) -> list:
        """What the function returns, as a list."""
        try:
            found = self.function(text)
            is_mapping = isinstance(found, Mapping)
            tokens = list(found.tolist() if hasattr(found, "tolist") else found)
        except Exception as error:  # whatever the user's code raises
            kind = type(error).__name__  # its message may quote the text
            raise NoTokens(f"its tokenizer raised {kind}") from error
        if is_mapping:
            kind = type(found).__name__
            raise NoTokens(f"its tokenizer returned a {kind}; return its 'input_ids'")
        return tokens


def _key(word) -> str:
    """A word of a vocabulary in the form in which it is looked up."""
    return normalized(str.__str__(word) if isinstance(word, str) else str(word))


def tokenizer_of(tokenize, version: str | None) -> Tokenizer:
    """The tokenizer that a `tokenize` parameter stands for."""
    if isinstance(tokenize, Mapping):
        return Vocabulary({_key(word): int(n) for word, n in tokenize.items()})
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
