"""Networks of texts of the user's own; torch is not imported."""

import secrets
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .._digests import digest_fields
from .._processes import fork_safe
from .._texts.specs import TokenSpec
from .._texts.words import Tokenizer, tokenizer_of
from .inspector import inspector
from .records import PACKAGE, Identity, Layer, Skeleton, check_module, copy_of
from .tensors import as_array, digest_tensors
from .text_records import TextRecord, TextSource, Tokenize


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
        The token that stands where there is none.
    layers : tuple of Layer
    known_by : dict
        Named values that identify what the network computes, weights apart.
    obstacle : str
        Why they mean nothing in other processes, or "".
    """

    name: str
    build: Skeleton
    arrays: dict[str, np.ndarray] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    input: TokenSpec
    padding: int
    layers: tuple[Layer, ...] = field(repr=False)  # type: ignore[assignment]
    known_by: dict[str, Any] = field(repr=False)
    obstacle: str

    @property
    def width(self) -> int:  # type: ignore[override]
        """Number of features of the deepest layer."""
        return self.layers[-1].features

    @property
    def identity(self) -> Identity:
        """What the network computes, and with which tokens."""
        about = {**self.known_by, "padding": self.padding}
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
        """The function that makes the tokens of a text."""
        return self.tokenizer.make(max_length)


class ModuleSource(TextSource):
    """The weights that a network of the user's own comes with."""

    builder: ClassVar[str] = f"{PACKAGE}._networks.token_modules:build_module"

    def known_by(self, by_values: bool = False) -> dict:
        """Digest of the weights."""
        return {"tensors": digest_tensors(self.backbone.arrays)}


@dataclass(frozen=True, eq=False)
class TextBackbone:
    """A network to read features of texts from: an immutable, hashable value.

    Use :meth:`from_module` to create one from a network of your own. Networks of others
    need none: pass their name, folder or file as `backbone`.

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
            (words that it lacks are left out), a tokenizer of the packages tokenizers
            or transformers, or a function that takes a str and returns a list of int.
        max_length : int or None, default=None
            Number of tokens after which texts are cut. None cuts no text.
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
            whenever you change the code. None identifies a network of modules of torch
            by these modules.

        Returns
        -------
        backbone : TextBackbone
            The backbone, which pickles with its weights as arrays.

        Raises
        ------
        ValueError
            If the network does not take texts of different lengths, or if the features
            of a text depend on the other texts in the batch, or differ from call to
            call.
        TypeError
            If `net` is not a torch.nn.Module in plain Python, or cannot be copied.

        Notes
        -----
        The layers are the parts of the network that return one vector for each text, or
        for each place in it: its children, and those of its lists and sequences. Of a
        recurrent network, the states of its top layer are read: use one module for each
        layer to read them all. Maps of 1-D convolutions are pooled over the places that
        begin with a token.

        Texts are padded to a few lengths that depend on the text alone. The network
        sees the padding, so let `padding` be a token that it was trained with.
        """
        check_module(net)
        tensors = dict(net.state_dict()) | dict(net.named_buffers())
        tokenizer = tokenizer_of(tokenize, version)
        copied = copy_of(net).cpu().eval()
        layers = inspector().find_text_layers(copied, padding, max_length, head)
        known_by, obstacle = inspector().describe_text_module(copied)
        if version is not None:
            known_by, obstacle = {"name": name, "version": version}, ""
        elif obstacle:
            known_by = {"token": secrets.token_hex(16)}
        record = ModuleRecord(
            name=name or type(net).__name__,
            build=Skeleton(copied.to("meta")),
            arrays={key: as_array(value) for key, value in tensors.items()},
            tokenizer=tokenizer,
            input=TokenSpec(tokenizer.digest, max_length),
            padding=padding,
            layers=layers,
            known_by=known_by,
            obstacle=obstacle,
        )
        return cls(record)

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, TextBackbone) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)
