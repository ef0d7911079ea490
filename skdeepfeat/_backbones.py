"""The registry as data: which networks there are, their weights, inputs and layers.

A :class:`Backbone` says how a network is built, which weights exist for it and how
each wants its images, and where its named layers are. Nothing here imports torch: the
records of torchvision's networks are read from ``_torchvision.json``, which
``tools/describe_torchvision.py`` writes, and those of the package's own from
``_weights/manifest.json``.
"""

import copy
import difflib
import functools
import importlib
import json
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ._digests import digest_fields, sha256_file
from ._exceptions import RecipeWarning, warn_user
from ._layouts import LAYOUTS
from ._processes import Lock, fork_safe
from ._shared import Memo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Networks from there are known by their name, whatever happens to the code.
PLAIN = (bool, int, float, str, type(None))  # what may be said besides
PUBLISHERS = {"torchvision.models": "torchvision", __package__: __package__}


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its images.

    Parameters
    ----------
    image_size : int
        Side of the square that enters the network, in pixels.
    resize : int or None
        Length of the short side before the centre crop, in pixels; None squashes the
        whole image to the square.
    interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        Filter of the resize.
    mean, std : tuple of 3 float
        Subtracted from, then divided into, the channels scaled to [0, 1].
    """

    image_size: int
    resize: int | None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def scaled(self, image_size: int | None) -> "InputSpec":
        """The same recipe for another input size, resize and crop in proportion."""
        if image_size is None or image_size == self.image_size:
            return self
        resize = self.resize and round(self.resize * image_size / self.image_size)
        return replace(self, image_size=image_size, resize=resize)


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
    lasting : bool
        Whether it means the same in other processes, so that rows may be kept on disk.
    """

    digest: bytes
    lasting: bool


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
            found = _with_torch("_identity:as_code_stands", self, image_size, found)
        if hooks := _hooks_of_all_modules():
            about = {"network": found.digest, "hooks": hooks}
            found = Identity(digest_fields("network under hooks", 1, about), False)
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
            about, lasting = _with_torch("_identity:describe", self, image_size, about)
            return Identity(digest_fields("network", 1, about), lasting)
        return Identity(digest_fields("network", 1, about), True)

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
        if module.startswith(f"{__package__}."):
            module = __package__
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
            found = _with_torch("_activations:find_head", backbone)
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
        module, tensors = _with_torch("_skeletons:take_out_tensors", self.module)
        return {"module": module, "tensors": tensors}

    def __setstate__(self, state):
        tensors = state.get("tensors", [])  # earlier versions left them inside
        module = _with_torch("_skeletons:put_in_tensors", state["module"], tensors)
        object.__setattr__(self, "module", module)


@fork_safe
def _with_torch(name: str, *args):
    """Call a function "module:name" of the package that needs torch, imported now."""
    module, _, function = name.partition(":")
    found = importlib.import_module(f".{module}", __package__)
    return getattr(found, function)(*args)


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
    return getattr(importlib.import_module(module), function)


def _check_build(build) -> None:
    """Refuse a builder that other processes would not find."""
    known = isinstance(build, (str, Skeleton))
    if not known and "<" in getattr(build, "__qualname__", "<unnamed>"):
        raise TypeError(
            "The 'build' of a Backbone must be a function at the top of a module, or "
            f"'module:function', so that other processes find it. Got {build!r} "
            "instead. Backbone.from_module(net, image_size=...) takes any network."
        )


def digest_tensors(arrays) -> bytes:
    """Digest of the names, shapes and values of tensors, given as arrays."""
    return digest_fields("tensors", 1, arrays)


def as_array(tensor) -> np.ndarray:
    """A copy of a tensor as numpy, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    if "bfloat16" in str(tensor.dtype):
        tensor = tensor.float()
    return tensor.numpy().copy()


# The registry -----------------------------------------------------------------------


def _small_network(name: str, *layers: tuple) -> Backbone:
    """A network to be trained from scratch; its head is all dense layers."""
    spec = InputSpec(32, None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Backbone(
        name=name,
        build=f"{__package__}._smallnets:{name}",
        input=spec,
        head="classifier",
        layers=tuple(
            Layer.from_shape(alias, node, index, layout, shape, stride, share)
            for index, (alias, node, layout, shape, stride, share) in enumerate(layers)
        ),
    )


SMALL_NETWORKS = {
    "smallcnn": _small_network(
        "smallcnn",
        ("block1", "features.1", "chw", (64, 30, 30), 1, 0.0485),
        ("block2", "features.4", "chw", (64, 14, 14), 2, 0.9499),
        ("penultimate", "classifier.1", "vector", (128,), None, 1.0),
        ("logits", "classifier.3", "vector", (10,), None, 1.0),
    ),
    "lenet5": _small_network(
        "lenet5",
        ("block1", "features.2", "chw", (6, 14, 14), 2, 0.5413),
        ("block2", "features.5", "chw", (16, 5, 5), 4, 0.9096),
        ("penultimate", "classifier.3", "vector", (84,), None, 0.9987),
        ("logits", "classifier.4", "vector", (10,), None, 1.0),
    ),
}

_registered: dict[str, Backbone] = dict(SMALL_NETWORKS)
_registry_lock = Lock()

RECORDS = ("_torchvision.json", "_weights/manifest.json")
PACKAGED = "package:"  # begins the address of weights that ship with the package


@functools.cache
def _records() -> dict[str, dict]:
    """What the package knows of torchvision's networks and of its own."""
    folder = resources.files(__package__)
    parts = [json.loads(folder.joinpath(name).read_text()) for name in RECORDS]
    return {name: record for part in parts for name, record in part.items()}


@functools.lru_cache(maxsize=32)  # each remembers the structure of its network
def _backbone_of_record(name: str) -> Backbone:
    """One of the networks that the package knows."""
    record = _records()[name]
    versions = [
        Weights(
            key,
            version["url"],
            record.get("sha256", ""),
            InputSpec(
                version["crop"],
                version["resize"],
                version["interpolation"],
                tuple(version["mean"]),
                tuple(version["std"]),
            ),
        )
        for key, version in record["weights"].items()
    ]
    versions.sort(key=lambda version: version.name != record["default"])
    rows, averages = enumerate(record["layers"]), record.get("averages", {})
    layers = [
        Layer.from_shape(
            alias, node, index, layout, shape, stride, share, averages.get(node)
        )
        for index, (alias, node, layout, shape, stride, share) in rows
    ]
    return Backbone(
        name=name,
        build=record.get("build", f"torchvision.models:{name}"),
        input=versions[0].input,
        head=record["head"],
        weights=tuple(versions),
        layers=tuple(layers),
        options=tuple(record.get("options", {}).items()),
        size_option=record.get("size_option"),
        unused=tuple(record.get("unused", ())),
        rename=tuple(record["rename"]) if "rename" in record else None,
    )


def list_backbones():
    """Names of all networks that `backbone` may be.

    Returns
    -------
    names : list of str
        Sorted: torchvision's classification networks and the registered ones.

    Examples
    --------
    >>> from skdeepfeat import list_backbones
    >>> "resnet50" in list_backbones()
    True
    """
    return sorted({*_records(), *_registered})


def is_listed(backbone: Backbone) -> bool:
    """Whether its name alone means this backbone."""
    name = backbone.name
    return name in list_backbones() and resolve_backbone(name) == backbone


def register_backbone(name, backbone, *, overwrite=False):
    """Make a network of your own known by name.

    Registration holds for this process: worker processes must import the module that
    registers, or be given the :class:`Backbone` itself as parameter.

    Parameters
    ----------
    name : str
        The name that `backbone` may then be.
    backbone : Backbone
        What it means, for instance from :meth:`Backbone.from_module`.
    overwrite : bool, default=False
        Replace a registered backbone of this name instead of refusing.

    Raises
    ------
    ValueError
        If the name is taken.

    Examples
    --------
    >>> import torch
    >>> from skdeepfeat import Backbone, register_backbone
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> register_backbone("doc_example", Backbone.from_module(net, image_size=32))
    """
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"The 'backbone' parameter of register_backbone must be a Backbone. Got "
            f"{backbone!r} instead. Wrap a network with Backbone.from_module(net, "
            "image_size=...)."
        )
    with _registry_lock:
        taken = name in _records() or (
            name in _registered and _registered[name] != backbone
        )
        if taken and not overwrite:
            raise ValueError(
                f"A backbone named {name!r} is registered already. Choose another "
                "name, or pass overwrite=True."
            )
        _registered[name] = backbone


def resolve_backbone(backbone) -> Backbone:
    """The record behind a name, a record, or a fitted fine-tuned classifier."""
    if isinstance(backbone, Backbone):
        return backbone
    if hasattr(backbone, "to_backbone"):
        return backbone.to_backbone()
    if backbone in _registered:
        return _registered[backbone]
    if backbone in _records():
        return _backbone_of_record(backbone)
    raise ValueError(
        f"Unknown backbone {backbone!r}.{closest(backbone, list_backbones())} "
        "list_backbones() names all of them; names of your own must be registered in "
        "each process, with register_backbone."
    )


def closest(name, known) -> str:
    """A sentence with the most similar known name, or nothing."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    return f" Did you mean {match[0]!r}?" if match else ""


# Weights ----------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a network come from, and the preprocessing they want.

    Exactly one of `path`, `published`, `seed` and `embedded` says where.
    """

    backbone: Backbone
    input: InputSpec
    path: Path | None = None
    published: Weights | None = None
    seed: int | None = None
    embedded: bool = False

    @property
    def identity(self) -> Identity:
        """What the network is known by, less its weights, at this input size."""
        return self.backbone.identity_at(self.input.image_size)


def resolve_weights(backbone: Backbone, weights, seed: int) -> WeightsSource:
    """Make the `weights` parameter concrete; loads nothing."""
    if weights is None and backbone.arrays is not None:
        raise ValueError(
            f"Backbone {backbone.name!r} was made of a network with its weights; use "
            "weights='default' for them."
        )
    if weights is None:
        return WeightsSource(backbone, backbone.input, seed=seed)
    if isinstance(weights, tuple):
        if len(weights) != 2:
            raise ValueError(
                "A tuple as 'weights' must be (name of a published version, path). Got "
                f"{weights!r} instead."
            )
        name, path = weights
        recipe = _published(backbone, name).input
        return WeightsSource(backbone, recipe, path=Path(path).expanduser())
    if weights == "default" and backbone.arrays is not None:
        return WeightsSource(backbone, backbone.input, embedded=True)
    if _is_path(weights):
        path = Path(weights).expanduser()
        return WeightsSource(backbone, _recipe_of_file(backbone, path), path=path)
    version = _published(backbone, weights)
    return WeightsSource(backbone, version.input, published=version)


def _is_path(weights) -> bool:
    """Whether this names a file rather than a published version."""
    text = str(weights)
    suffixes = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".pkl")
    looks = text.endswith(suffixes) or "/" in text or "\\" in text
    return looks or not isinstance(weights, str)


def _published(backbone: Backbone, name: str) -> Weights:
    """A version by its name; "default" is the first."""
    if not backbone.weights:
        raise ValueError(
            f"Backbone {backbone.name!r} has no published weights. Pass weights=None "
            "for random ones, which a FineTunedClassifier with unfreeze='all' trains, "
            "or the path of a .pth or .safetensors file."
        )
    known = {version.name: version for version in backbone.weights}
    known["default"] = backbone.weights[0]
    if name in known:
        return known[name]
    allowed = ", ".join(map(repr, known))
    raise ValueError(
        f"Unknown weights {name!r} for backbone {backbone.name!r}."
        f"{closest(name, known)} Published versions: {allowed}. Pass one of them, the "
        "path of a .pth or .safetensors file, or None for random weights."
    )


def _recipe_of_file(backbone: Backbone, path: Path) -> InputSpec:
    """The preprocessing of the version whose checksum the file's name or bytes carry.

    The file is read only if the versions disagree and its name does not tell.
    """
    prefixes = {v.sha256_prefix: v.input for v in backbone.weights if v.sha256_prefix}
    for prefix, recipe in prefixes.items():
        if prefix in path.name:
            return recipe
    if len(set(prefixes.values())) <= 1 or not path.is_file():
        return backbone.input
    checksum = sha256_file(path)
    for prefix, recipe in prefixes.items():
        if checksum.startswith(prefix):
            return recipe
    _warn_of_guess(backbone.name, tuple(v.name for v in backbone.weights), path)
    return backbone.input


@functools.lru_cache(maxsize=1024)
def _warn_of_guess(backbone: str, versions: tuple[str, ...], path: Path) -> None:
    """Say once that the versions disagree on preprocessing and which was taken."""
    warn_user(
        f"{path.name} is no published file of {backbone!r}, whose versions "
        f"{', '.join(map(repr, versions))} want different preprocessing: that of "
        f"{versions[0]!r} is used. To choose another, pass "
        f"weights=({versions[-1]!r}, {str(path)!r}).",
        RecipeWarning,
    )
