"""The record of a network of texts: its tokens, its layers, and who it is.

A :class:`TextBackbone` is an immutable value. Nothing here imports torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._caches import Memo
from .._digests import digest_fields
from .._texts.batches import Tokens
from .._texts.specs import TokenSpec, WordSpec
from .records import Identity, Layer, Weights
from .weights import WeightsSource

Tokenize = Callable[[str], Tokens]


class TextBackbone(ABC):
    """A network to read features of texts from: an immutable, hashable value.

    Attributes
    ----------
    name : str
        Name of the network in messages.
    input : TokenSpec or WordSpec
        What the network takes.
    layers : tuple of Layer
        Layers in order of depth.
    digest : bytes
        Digest that identifies the network. Backbones with the same digest are equal.
    """

    name: str
    input: TokenSpec | WordSpec
    # As of a record of images: there are none.
    arrays: Any = None
    retired: tuple[Weights, ...] = ()
    published_name: str | None = None

    @cached_property
    def memo(self) -> Memo:
        """Facts about the network, each found once."""
        return Memo()

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers that have an alias, in order of depth."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """The identity of the network without its weights."""

    @abstractmethod
    def source(self, weights, seed: int) -> "TextSource":
        """The source of the weights that the `weights` parameter names."""

    @abstractmethod
    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The function that makes the tokens of a text."""

    @property
    def digest(self) -> bytes:
        """Digest that identifies the network with its own weights."""
        about = {"network": self.identity.digest, "tokenizer": self.input.tokenizer}
        return digest_fields("text backbone", 1, about)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "memo"}

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, TextBackbone) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


@dataclass(frozen=True)
class TextSource(WeightsSource):
    """A network of texts with the source of its weights.

    Parameters
    ----------
    backbone : TextBackbone
    input : TokenSpec or WordSpec
        What it takes, at the current largest length.
    """

    backbone: Any
    input: Any

    @property
    def identity(self) -> Identity:
        """Identity of the network without its weights."""
        return self.backbone.identity

    @property
    def recipe_parameters(self) -> str:
        """The parameters to check if the tokens of a saved model have changed."""
        return "max_length, or the tokenizer,"
