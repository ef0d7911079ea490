"""The record of a network: how it is built, its weights, its input, its layers.

A :class:`Backbone` is an immutable value. Nothing here imports torch.
"""

import copy
import importlib
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._caches import Memo
from .._digests import digest_fields
from .._images.recipe import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from .._processes import fork_safe
from .inspector import inspector
from .layouts import LAYOUTS
from .tensors import as_array, digest_tensors

# Networks from there are known by their name, whatever happens to the code.
PLAIN = (bool, int, float, str, type(None))  # what may be said besides
PACKAGE = __package__.partition(".")[0]
PUBLISHERS = {"torchvision.models": "torchvision", PACKAGE: PACKAGE}

PACKAGED = "package:"  # begins the address of weights that ship with the package

HOOKED = "this process has registered hooks on all modules"

# Where builders are now that older pickles name by another module.
MOVED = {f"{PACKAGE}._smallnets": f"{PACKAGE}._networks.smallnets"}


@dataclass(frozen=True)
class Layer:
    """A place in a network where features can be read.

    Attributes
    ----------
    alias : str or None
        Its stable name (``"block3"``), None for a plain node.
    node : str
        Its name in the traced network (``"layer3.22.relu_2"``).
    index : int or None
        Its position among the aliased layers, in order of depth.
    layout : {"chw", "hwc", "tokens", "cls+tokens", "vector"}
        How its output is laid out after the batch axis.
    shape : tuple of int
        Channels, height and width, or tokens and channels, or channels alone, at
        the default input size.
    features : int
        Number of channels: what average pooling leaves.
    stride : int or None
        Input pixels from one place of the map to the next; None for vectors.
    share : float or None
        Part of the network's multiplications needed to reach it, None if unknown.
    average_of : str or None
        For a vector that is the plain average of a map over the image, the node of
        that map: the two are the same features under ``pooling="avg"``.
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
        """Fill in what follows from the shape of the output."""
        shape, features = tuple(shape), shape[LAYOUTS[layout].channels]
        return cls(
            alias, node, index, layout, shape, features, stride, share, average_of
        )


@dataclass(frozen=True)
class Weights:
    """A published version of a network's weights.

    Attributes
    ----------
    name : str
        Its name in torchvision, such as ``"IMAGENET1K_V2"``.
    url : str
        Where it is published. The file name carries the first hexadecimal digits of
        the file's SHA-256. Weights that ship with the package begin with "package:".
    sha256 : str
        The whole checksum where it is known, else "".
    input : InputSpec
        The preprocessing that belongs to it.
    """

    name: str
    url: str
    sha256: str
    input: InputSpec

    @property
    def packaged(self) -> bool:
        """Whether the file ships with the package."""
        return self.url.startswith(PACKAGED)

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.removeprefix(PACKAGED).rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's checksum."""
        found = re.search(r"-([0-9a-f]{8,})\.", self.filename)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Identity:
    """What a network is known by.

    Attributes
    ----------
    digest : bytes
        The same for all networks that compute the same.
    obstacle : str
        Why it means nothing in other processes, so that rows are kept in memory only.
        Empty if it does.
    """

    digest: bytes
    obstacle: str = ""

    @property
    def lasting(self) -> bool:
        """Whether it means the same in other processes."""
        return not self.obstacle


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that features are read from: an immutable, hashable value.

    Use :meth:`from_module` for a network of your own.

    Parameters
    ----------
    name : str
        Name in the registry and in messages.
    build : callable or str
        Returns the network with random weights; called without argument. A string
        ``"module:function"`` is imported when needed.
    input : InputSpec
        How images enter it when no published weights say otherwise.
    head : str or None, default=None
        Name of the module that makes classes of features, which files need not fit
        when only features are asked for.
    weights : tuple of Weights, default=()
        Published versions, the default one first.
    layers : tuple of Layer or None, default=None
        Aliased layers in order of depth; None finds them when first needed.
    options : tuple of (str, object), default=()
        Keyword arguments of ``build`` when published weights or a file are loaded.
    size_option : str or None, default=None
        Keyword argument of ``build`` that must be told the input size.
    unused : tuple of str, default=()
        Prefixes of entries in published files that no feature needs.
    rename : tuple of (str, str) or None, default=None
        Regular expression and replacement for names in old files.
    arrays : mapping of str to ndarray or None, default=None
        The weights themselves, for a network of the user's own.
    version : str or None, default=None
        What you call this state of the network's code. With it, name, version and
        weights are what its features are known by, and the code is not looked at:
        change the version whenever the code changes.

    Attributes
    ----------
    digest : bytes
        What the network is known by. Backbones of the same digest are equal.
    lasting : bool
        Whether the digest means the same in other processes. If not, features are
        kept in memory only, never in a folder.

    Notes
    -----
    A published network is known by its name. Any other is known by what it computes:
    the steps that torch.fx traces, with their constants and settings, and its
    tensors. What cannot be described that way (code that torch.fx cannot trace or
    traces wrongly, hooks, functions that are wrapped as a step) is known by the object
    and its code as it stands, unless you give a `version`.

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
    arrays: dict[str, np.ndarray] | None = field(default=None, repr=False)
    version: str | None = None
    # What a network that cannot be described is known by; copies carry it.
    token: str = field(init=False, repr=False)
    memo: Memo = field(init=False, repr=False)

    def __post_init__(self):
        _check_build(self.build)
        vars(self).update(memo=Memo(), token=secrets.token_hex(16))

    @property
    def digest(self) -> bytes:
        """What the network is known by, at its default input size."""
        return self.identity_at(self.input.image_size).digest

    @property
    def lasting(self) -> bool:
        """Whether the digest means the same in other processes."""
        return self.identity_at(self.input.image_size).lasting

    def identity_at(self, image_size: int) -> Identity:
        """What the network is known by; only some are built for an input size."""
        size = image_size if self.size_option else None
        found = self.memo.get(("identity", size), lambda: self._identify(image_size))
        if not found.lasting:
            found = inspector().as_code_stands(self, image_size, found)
        if hooks := _hooks_of_all_modules():
            about = {"network": found.digest, "hooks": hooks}
            found = Identity(digest_fields("network under hooks", 1, about), HOOKED)
        return found

    def _identify(self, image_size: int) -> Identity:
        about: dict[str, Any] = {
            "tensors": self.tensors_digest,
            "size": self.size_option,
            "rename": self.rename,
            "head": self.head,
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
        """Digest of names, shapes and values of its own weights."""
        if self.arrays is None:
            return None
        return self.memo.get("tensors", lambda: digest_tensors(self.arrays))

    @property
    def is_own(self) -> bool:
        """Whether what it computes is known by nothing but its code."""
        return self.version is None and self.published_name is None

    @property
    def published_name(self) -> str | None:
        """Its name for ever, wherever the code that builds it lies."""
        simple = all(type(value) in PLAIN for _, value in self.options)
        if not isinstance(self.build, str) or not simple:
            return None
        module, _, function = self.build.partition(":")
        if module.startswith(f"{PACKAGE}."):
            module = PACKAGE
        publisher = PUBLISHERS.get(module)
        return publisher and f"{publisher}.{function}"

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "memo"}

    def __setstate__(self, state):
        # Pickles of earlier versions hold a digest that was made in another way.
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
    ):
        """Make a backbone of a network of your own, weights included.

        Parameters
        ----------
        net : torch.nn.Module
            Takes a batch of shape (n, 3, image_size, image_size). It is copied: later
            changes of `net` do not reach the backbone.
        image_size : int
            Images are squashed to a square of this side, without crop.
        mean, std : tuple of 3 float
            Of the channels scaled to [0, 1]; default: those of ImageNet.
        name : str or None, default=None
            For messages; default: the name of the class of `net`.
        head : str or None, default=None
            Name of the module that makes classes. By default the linear layer or
            1 × 1 convolution that ends the network, if one does: only steps without
            weights may follow it, such as softmax or flatten. The layer "penultimate"
            is what enters it, or what the network returns if there is none.
        version : str or None, default=None
            What you call this state of the network's code, so that features are kept
            on disk for a network that cannot be described otherwise: one that
            torch.fx cannot trace, or that has hooks. Change it with the code.

        Returns
        -------
        backbone : Backbone
            It pickles with its weights as arrays.

        Raises
        ------
        ValueError
            If the features of an image depend on the other images of a batch, or are
            different in every call.

        Notes
        -----
        The network is run on two images of noise, and so are the steps that torch.fx
        traces. If they return different values, the network runs as it is, untraced.
        """
        kinds = [base.__name__ for base in type(net).__mro__]
        if "Module" not in kinds or "ScriptModule" in kinds:
            raise TypeError(
                "Backbone.from_module takes a torch.nn.Module in plain Python, got "
                f"{type(net).__name__} instead."
            )
        tensors = dict(net.state_dict()) | dict(net.named_buffers())
        arrays = {key: as_array(value) for key, value in tensors.items()}
        mean, std = (tuple(map(float, values)) for values in (mean, std))
        backbone = cls(
            name=name or type(net).__name__,
            build=Skeleton(_copy_of(net).to("meta").eval()),
            input=InputSpec(image_size, None, mean=mean, std=std),
            head=head,
            arrays=arrays,
            version=version,
        )
        if head is None:
            found = inspector().find_head(backbone)
            object.__setattr__(backbone, "head", found)
        return backbone

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return isinstance(other, Backbone) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


@dataclass(frozen=True)
class Skeleton:
    """Builder of a user's network: its structure, with weights on no device."""

    module: Any

    def __call__(self):
        return copy.deepcopy(self.module)

    def __getstate__(self):
        from .skeletons import take_out_tensors

        module, tensors = take_out_tensors(self.module)
        return {"module": module, "tensors": tensors}

    def __setstate__(self, state):
        from .skeletons import put_in_tensors

        tensors = state.get("tensors", [])  # earlier versions left them inside
        module = put_in_tensors(state["module"], tensors)
        object.__setattr__(self, "module", module)


def _hooks_of_all_modules() -> list[list]:
    """Hooks that this process has put on every module there is, by their numbers."""
    torch = sys.modules.get("torch.nn.modules.module")
    places = ("_global_forward_pre_hooks", "_global_forward_hooks")
    found = [[place, *getattr(torch, place, ())] for place in places]
    return [hooks for hooks in found if len(hooks) > 1]


def _copy_of(net):
    """A deep copy of a network, or a TypeError that says why there is none."""
    try:
        return copy.deepcopy(net)
    except Exception as error:  # whatever copying an attribute raises
        raise TypeError(
            "Backbone.from_module copies the network, and something in this "
            f"{type(net).__name__} cannot be copied: {error}. Keep it outside of the "
            "network, for instance as a global of its module."
        ) from error


def builder_of(backbone: Backbone) -> Callable[..., Any]:
    """The record's builder, imported when it is a name."""
    if not isinstance(backbone.build, str):
        return backbone.build
    module, _, function = backbone.build.partition(":")
    return getattr(importlib.import_module(MOVED.get(module, module)), function)


def _check_build(build) -> None:
    """Refuse a builder that other processes would not find."""
    known = isinstance(build, (str, Skeleton))
    if not known and "<" in getattr(build, "__qualname__", "<unnamed>"):
        raise TypeError(
            "The 'build' of a Backbone must be a function at the top of a module, or "
            f"'module:function', so that other processes find it. Got {build!r} "
            "instead. Backbone.from_module(net, image_size=...) takes any network."
        )
