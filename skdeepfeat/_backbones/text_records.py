"""The record of a network of texts: its tokens, its layers, and its identity.

A record is an immutable value. Nothing here imports torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .._digests import digest_fields
from .._texts.batches import Tokens
from .._texts.specs import TokenSpec, WordSpec
from .records import Identity, Layer, Weights
from .weights import WeightsSource

Tokenize = Callable[[str], Tokens]


class TextRecord(ABC):
    """A network to read features of texts from: an immutable, hashable value.

    Attributes
    ----------
    name : str
        Name of the network in messages.
    input : TokenSpec or WordSpec
        What the network takes.
    layers : tuple of Layer
        Layers in order of depth.
    width : int
        Number of features of a token.
    """

    if TYPE_CHECKING:  # a record has them as attributes or as properties

        @property
        def name(self) -> str: ...
        @property
        def input(self) -> TokenSpec | WordSpec: ...
        @property
        def width(self) -> int: ...
        @property
        def layers(self) -> tuple[Layer, ...]: ...

    # As of a record of images: there are none.
    arrays: Any = None
    retired: tuple[Weights, ...] = ()

    @property
    def published_name(self) -> str | None:
        """Published name, the same in all later versions, or None."""
        return None

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

    def compare_pooling(self, pooling: str) -> None:  # noqa: B027
        """Warn if the network is made for another pooling; most allow any."""

    @property
    def digest(self) -> bytes:
        """Digest that identifies the network with its own weights."""
        weights = self.source("default", 0).key()
        about = {"network": self.identity.digest, "tokenizer": self.input.tokenizer}
        return digest_fields("text backbone", 1, {**about, "weights": weights})

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, TextRecord) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


@dataclass(frozen=True)
class TextSource(WeightsSource):
    """A network of texts with the source of its weights.

    Parameters
    ----------
    backbone : TextRecord
    input : TokenSpec or WordSpec
        What it takes, at the current largest length.
    """

    backbone: Any
    input: Any
    # The function of the code above that builds the network, if torch runs it.
    builder: ClassVar[str] = ""

    @property
    def identity(self) -> Identity:
        """Identity of the network without its weights."""
        return self.backbone.identity

    @property
    def recipe_parameters(self) -> str:
        """The parameters to check if the tokens of a saved model have changed."""
        return "max_length, or the tokenizer,"
