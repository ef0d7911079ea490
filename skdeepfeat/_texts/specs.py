"""What a network of texts takes: tokens in batches of fixed shapes, or words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

PADDING = -1
# Longest text → steps of its padded length.
STEPS = ((64, 8), (128, 16), (256, 32), (math.inf, 64))
SHORT = 64  # tokens; of longer texts, as many fewer are computed at once
UNLIMITED = 2**31 - 1  # tokens

# What is concatenated: the mean or the largest value of each feature over the tokens,
# or the features of the first token.
POOLINGS = {
    "mean": ("mean",),
    "max": ("max",),
    "cls": ("first",),
    "meanmax": ("mean", "max"),
}
# Layouts of layers that have features for each place in a text → how a batch of them
# becomes states (b, length, d); all others are vectors already.
AS_STATES: dict[str, Callable[[Any], Any]] = {
    "tokens": lambda states: states,
    "channels": lambda maps: maps.transpose(1, 2),
}


@dataclass(frozen=True)
class TextSpec:
    """What a network of texts takes.

    Parameters
    ----------
    tokenizer : bytes
        Digest of everything that determines the tokens of a text.
    max_length : int or None
        Number of tokens after which a text is cut; None cuts none.
    """

    tokenizer: bytes
    max_length: int | None
    takes: ClassVar[str]
    poolings: ClassVar[frozenset[str]] = frozenset(POOLINGS)

    def limited(self, max_length: int | None):
        """The same, for texts that are cut earlier."""
        lengths = [n for n in (max_length, self.max_length) if n is not None]
        return replace(self, max_length=min(lengths, default=None))


class WordSpec(TextSpec):
    """The words of a text, each of which has a vector; they are never padded."""

    takes = "words"
    poolings = frozenset(POOLINGS) - {"cls"}  # no word stands for the whole text
    relative_number = 16.0

    def number_at_once(self, length: int, batch_size: int) -> int:
        """The same for all lengths."""
        return batch_size

    def padded_length(self, n_tokens: int) -> int:
        """The same for all texts."""
        return 0

    def collate(self, texts: Sequence[Any], length: int, batch_size: int) -> list:
        """The words of each text, as they are."""
        return list(texts)


@dataclass(frozen=True)
class TokenSpec(TextSpec):
    """The numbers of the tokens of a text, padded to a few lengths.

    Parameters
    ----------
    padded_to : int or None, default=None
        The largest length that a network takes, if texts are cut earlier: those are
        padded as others are. None means `max_length`.
    """

    padded_to: int | None = None
    takes = "tokens"
    relative_number = 4.0

    def limited(self, max_length: int | None):
        """The same, for texts that are cut earlier."""
        longest = self.padded_to or self.max_length or UNLIMITED
        return replace(super().limited(max_length), padded_to=longest)

    def number_at_once(self, length: int, batch_size: int) -> int:
        """How many texts of a padded length are computed at once."""
        return max(1, batch_size * SHORT // max(SHORT, length))

    def padded_length(self, n_tokens: int) -> int:
        """The length to which a text is padded, which depends on it alone."""
        step = next(step for longest, step in STEPS if n_tokens <= longest)
        length = step * math.ceil(max(1, n_tokens) / step)
        return min(length, self.padded_to or self.max_length or length)

    def collate(
        self, texts: Sequence[Sequence[int]], length: int, batch_size: int
    ) -> np.ndarray:
        """Tokens (batch_size, length) int32, padded with `PADDING`."""
        tokens = np.full((batch_size, length), PADDING, np.int32)
        for place, text in enumerate(texts):
            tokens[place, : len(text)] = text
        return tokens
