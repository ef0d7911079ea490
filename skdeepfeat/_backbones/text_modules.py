"""Networks of texts of the user's own; torch is not imported."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .._digests import digest_fields
from .._processes import fork_safe
from .._texts.specs import TokenSpec
from .._texts.words import Tokenizer, is_token, known_tokens, no_token, tokenizer_of
from .._validation import WholeNumber, validate_parameter_constraints
from .builders import PACKAGE, Skeleton
from .copies import check_module, copy_of
from .inspector import inspector
from .records import Identity, Layer
from .tensors import as_array, digest_tensors, named_tensors
from .text_records import TextRecord, TextSource, Tokenize

CONSTRAINTS = {
    "max_length": [WholeNumber(1), None],
    "padding": [WholeNumber(0)],
}


@dataclass(frozen=True, eq=False)
class ModuleRecord(TextRecord):
    """A network of the user's own, with its weights.

    Parameters
    ----------
    name : str
    build : Skeleton
        Returns the network without its weights.
    arrays : dict of str to ndarray
        The weights.
    tokenizer : Tokenizer
    input : TokenSpec
    padding : int
        The token that fills up shorter texts.
    layers : tuple of Layer
    known_by : dict
        Named values that identify what the network computes, weights apart.
    obstacle : str
        Why they mean nothing in other processes, or "".
    n_tokens : int
        How many different tokens the network takes.
    """

    name: str
    build: Skeleton
    arrays: dict[str, np.ndarray] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    input: TokenSpec
    padding: int
    layers: tuple[Layer, ...] = field(repr=False)
    known_by: dict[str, Any] = field(repr=False)
    obstacle: str
    n_tokens: int

    @property
    def width(self) -> int:
        """Number of features of the deepest layer."""
        return self.layers[-1].features

    @property
    def identity(self) -> Identity:
        """What the network computes, and with which tokens."""
        layers = [[layer.alias, layer.node] for layer in self.layers]
        about = {**self.known_by, "padding": self.padding, "layers": layers}
        obstacle = self.obstacle or self.tokenizer.obstacle
        return Identity(digest_fields("text network", 1, about), obstacle)

    def source(self, weights, seed: int) -> "ModuleSource":
        """The weights that the network came with."""
        if weights != "default":
            raise ValueError(
                f"Backbone {self.name!r} was created from a network with its weights. "
                f"Got weights={weights!r} instead; use weights='default'."
            )
        return ModuleSource(self, self.input)

    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The function that makes the tokens of a text, if the network takes them."""
        return known_tokens(self.tokenizer.make(max_length), self.n_tokens)


class ModuleSource(TextSource):
    """The weights that a network of the user's own comes with."""

    builder: ClassVar[str] = f"{PACKAGE}._networks.token_modules:build_module"

    def known_by(self, by_values: bool = False) -> dict:
        """Digest of the weights."""
        return {"tensors": digest_tensors(self.backbone.arrays)}


def _check_tokens(tokenize, padding: int, n_tokens: int) -> None:
    """Refuse tokens that a network does not take, as far as they are known."""
    numbers = tokenize.values() if isinstance(tokenize, Mapping) else ()
    given = [("tokenize", n) for n in numbers] + [("padding", padding)]
    for name, number in given:
        if not is_token(number, n_tokens):
            where = f"The {name!r} parameter of TextBackbone.from_module"
            raise ValueError(f"{no_token(where, number, n_tokens)}.")


def _identify(net, version, name) -> tuple[dict[str, Any], str]:
    """Named values that identify a network, and why they do not last, or ""."""
    known_by, obstacle = inspector().describe_text_module(net, version)
    if obstacle:
        return {"token": secrets.token_hex(16)}, obstacle
    return (known_by if version is None else {**known_by, "name": name}), obstacle


@dataclass(frozen=True, eq=False)
class TextBackbone:
    """A network to read features of texts from: an immutable, hashable value.

    Use :meth:`from_module` to create one from a network of your own. For a published
    network, pass its name, folder or file as `backbone` instead.

    Parameters
    ----------
    record : object
        What the package knows about the network.

    Attributes
    ----------
    name : str
        Name of the network in messages.
    digest : bytes
        Digest that identifies the network. Backbones with the same digest are equal.
    lasting : bool
        Whether the digest is the same in other processes. If not, features are stored
        in memory only, never in a folder.

    Examples
    --------
    >>> import torch
    >>> from skdeepfeat import PretrainedTextFeatures, TextBackbone
    >>> net = torch.nn.Sequential(torch.nn.Embedding(3, 8), torch.nn.Linear(8, 4))
    >>> words = {"good": 1, "bad": 2}
    >>> backbone = TextBackbone.from_module(net, tokenize=words)
    >>> PretrainedTextFeatures(backbone).transform(["good", "not bad"]).shape
    (2, 4)
    """

    record: TextRecord = field(repr=False)
    kind: ClassVar[str] = "text"

    @property
    def name(self) -> str:
        """Name of the network in messages."""
        return self.record.name

    @property
    def digest(self) -> bytes:
        """Digest that identifies the network with its weights."""
        return self.record.digest

    @property
    def lasting(self) -> bool:
        """Whether the digest is the same in other processes."""
        return self.record.identity.lasting

    @classmethod
    @fork_safe
    def from_module(
        cls,
        net,
        *,
        tokenize,
        max_length=None,
        padding=0,
        name=None,
        head=None,
        version=None,
    ):
        """Create a backbone from a network of your own, including its weights.

        Parameters
        ----------
        net : torch.nn.Module
            The network, which takes tokens of shape (n, length), int64, of any length.
            It is copied, so later changes to `net` do not affect the backbone.
        tokenize : dict, tokenizer, or callable
            What makes the tokens of a text: a dictionary of words and their numbers
            (other words are left out), a tokenizer of the packages tokenizers or
            transformers, or a function that takes a str and returns a list of int. A
            text with tokens that the network does not take is an error of its row.
        max_length : int or None, default=None
            Number of tokens after which texts are cut. None does not cut them.
        padding : int, default=0
            The token that fills up shorter texts, which pooling leaves out.
        name : str or None, default=None
            Name of the backbone in messages. None means the name of the class of `net`.
        head : str or None, default=None
            Name of the module that computes the class scores. The layer "penultimate"
            is the input of this module. None means a linear layer at the end of the
            network. If there is none, "penultimate" is the output of the network.
        version : str or None, default=None
            Version of the network's code and of a function as `tokenize`. Set it to
            store features in a folder if either is code of your own, and change it
            whenever you change the code. Networks of one version are distinguished by
            their weights, classes and settings, and functions by their names, which a
            lambda does not have. None identifies a network that consists of torch's
            modules by these modules.

        Returns
        -------
        backbone : TextBackbone
            The backbone, which pickles with its weights as arrays.

        Raises
        ------
        ValueError
            If the network does not take texts of different lengths (the shortest are
            padded to 8 tokens or to `max_length`); if `padding` or a number of
            `tokenize` is not one of its tokens; or if the features of a text depend on
            the other texts in the batch, or differ from call to call.
        TypeError
            If `net` is not a torch.nn.Module in plain Python, or cannot be copied.

        Notes
        -----
        The layers are the parts of the network that return one vector for each text, or
        for each place in it: its children, and those of its lists and sequences. For a
        recurrent module, the states of its top layer are read: use one module for each
        layer to read them all. Maps of 1-D convolutions are pooled over the places that
        begin with a token.

        Texts are padded to a few lengths that depend on the text alone. The network
        sees the padding, so let `padding` be a token that it was trained with.
        """
        check_module(net)
        given = {"max_length": max_length, "padding": padding}
        validate_parameter_constraints(CONSTRAINTS, given, "TextBackbone.from_module")
        padding, max_length = int(padding), max_length and int(max_length)
        copied = copy_of(net).cpu()
        arrays = {key: as_array(value) for key, value in named_tensors(copied).items()}
        n_tokens = inspector().count_tokens(copied)
        _check_tokens(tokenize, padding, n_tokens)
        layers = inspector().find_text_layers(copied, max_length, head)
        known_by, obstacle = _identify(copied, version, name)
        tokenizer = tokenizer_of(tokenize, version)
        record = ModuleRecord(
            name=name or type(net).__name__,
            build=Skeleton(copied.to("meta")),
            arrays=arrays,
            tokenizer=tokenizer,
            input=TokenSpec(tokenizer.digest, max_length),
            padding=padding,
            layers=layers,
            known_by=known_by,
            obstacle=obstacle,
            n_tokens=n_tokens,
        )
        return cls(record)

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, TextBackbone) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)
