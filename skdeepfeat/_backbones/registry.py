"""Networks by name: torchvision's, the package's own, and registered ones.

The records of torchvision's networks are read from ``torchvision.json``, which
``tools/describe_torchvision.py`` writes, and those of the weights that ship with the
package from ``shipped/manifest.json``.
"""

import functools
import json
from importlib import resources
from typing import Any

from .._exceptions import closest
from .._images.recipe import InputSpec
from .._listing import Field, Listing
from .._processes import Lock
from .records import PACKAGE, Backbone, Layer, Weights

# The registry -----------------------------------------------------------------------


def _small_network(name: str, *layers: tuple) -> Backbone:
    """A network to be trained from scratch; its head is all dense layers."""
    spec = InputSpec(32, None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Backbone(
        name=name,
        build=f"{PACKAGE}._networks.smallnets:{name}",
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

RECORDS = ("torchvision.json", "shipped/manifest.json")


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


def _stated(name: str, field: str) -> Any:
    """What the record of a network states, None for registered ones."""
    return None if name in _registered else _records()[name].get(field)


def _n_parameters(name: str) -> int | None:
    """Number of parameters, None if the network would have to be built."""
    arrays = _registered[name].arrays if name in _registered else None
    counted = arrays and sum(array.size for array in arrays.values())
    return counted or _stated(name, "parameters")


SHOWN = (  # of each name, where the list is printed
    Field("backbone", str),
    Field("parameters", _n_parameters, ","),
    Field("image size", lambda name: resolve_backbone(name).input.image_size),
    Field("licence", lambda name: _stated(name, "licence")),
)


def list_backbones():
    """Names of all networks that `backbone` may be.

    Returns
    -------
    names : list of str
        Sorted: torchvision's classification networks and the registered ones. The
        list prints as a table, also in a notebook.

    Examples
    --------
    >>> from skdeepfeat import list_backbones
    >>> "resnet50" in list_backbones()
    True
    """
    return Listing(sorted({*_records(), *_registered}), SHOWN)


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
