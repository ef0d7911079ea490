"""The networks of timm: their names, recipes, licences and layers.

``timm.json`` has those of one version of timm, so that neither timm nor torch is
imported to list them; ``tools/describe_timm.py`` writes it. Networks of later versions
are looked up in timm itself.
"""

import functools
import json
import math
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

from .._exceptions import closest
from .._images.recipe import InputSpec
from .builders import TIMM_BUILDERS
from .records import Backbone, Layer, Weights, checksum_in, layers_of_rows

PREFIX = "timm/"
HUB = "hub:"  # begins the address of weights on the hub of Hugging Face

MODES = {"center": "crop", "squash": "squash", "border": "border"}


@dataclass(frozen=True)
class Version:
    """A version of the weights of an architecture, as timm configures it.

    Parameters
    ----------
    architecture : str
    tag : str
        The name of the version, or "" for an architecture without weights.
    size : tuple of int
        Height and width of the input.
    recipe : tuple
        crop_pct, mode, interpolation, mean and std of the preprocessing.
    classes : int
        Number of classes; 0 for a network without classifier.
    licence : str
        Licence of the weights, or "" if timm does not know it.
    url : str
        Address of the weights, or "" if there are none.
    fixed : bool
        Whether the network is built for one input size.
    classifier : str or None
        Name of the module that computes the class scores.
    former : str
        First digits of the checksum of an older file with the weights, or "".
    """

    architecture: str
    tag: str
    size: tuple[int, int]
    recipe: tuple
    classes: int
    licence: str
    url: str
    fixed: bool
    classifier: str | None
    former: str = ""

    @property
    def name(self) -> str:
        """Name of the network in timm."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    @property
    def input(self) -> InputSpec:
        """The preprocessing."""
        crop_pct, mode, interpolation, mean, std = self.recipe
        size = self.size[0]
        return InputSpec(
            size,
            math.floor(size / crop_pct),
            interpolation,
            mean,
            std,
            MODES[mode],
            crop_pct,
        )


# The table ----------------------------------------------------------------------------


@functools.cache
def table() -> dict[str, Any]:
    """The content of the file."""
    return json.loads(resources.files(__package__).joinpath("timm.json").read_text())


@functools.cache
def versions() -> dict[str, Version]:
    """All versions by name, and the default of each architecture by its name alone."""
    found: dict[str, Version] = {}
    for architecture, about in table()["architectures"].items():
        for row in about["tags"]:
            version = _version_of_row(architecture, about, *row)
            found.setdefault(architecture, version)
            found[version.name] = version
    return found


def _version_of_row(
    architecture: str, about: dict, tag, size, recipe, classes, licence, url=HUB
) -> Version:
    """A version from the numbers that the file has of it."""
    sides = tuple(size) if isinstance(size, list) else (size, size)
    *resizing, mean, std = table()["recipes"][recipe]
    name = f"{architecture}.{tag}"
    return Version(
        architecture,
        tag,
        sides,
        (*resizing, tuple(mean), tuple(std)),
        classes,
        table()["licences"][licence],
        f"{HUB}timm/{name}" if url == HUB else url,
        about.get("fixed", False),
        about.get("classifier"),
        about.get("checksums", {}).get(tag, ""),
    )


def is_of_timm(name: str) -> bool:
    """Whether this is the full name of a network of timm, or begins as one."""
    return name.startswith(PREFIX)


def meant(wrong: str) -> str:
    """A sentence with the name of a network that may have been meant, or nothing."""
    rest = f"{wrong}/".removeprefix(PREFIX).rstrip("/")
    return closest(rest, versions(), PREFIX)


def timm_names() -> list[str]:
    """Full names of all networks of timm, as `backbone` parameters take them."""
    return [name for name in all_names() if name == PREFIX + _version_named(name).name]


def all_names() -> list[str]:
    """Full names, and those of architectures, which mean a default version."""
    return [PREFIX + name for name in versions()]


def stated(name: str, field: str) -> Any:
    """The licence or the number of parameters of a network; None if it is unknown."""
    version = _version_named(name)
    if field == "licence":
        return version.licence or None
    counts = table()["architectures"][version.architecture]["counts"]
    return counts.get(str(version.classes))


def _version_named(name: str) -> Version:
    return versions()[name.removeprefix(PREFIX)]


def find_version(name: str) -> Version | None:
    """The version of a name; None if there is none."""
    if name in versions():
        return versions()[name]
    return None if _is_current() else _configured(name)


def _configured(name: str) -> Version | None:
    """A version that the installed timm has, but not the table."""
    from timm.models import get_pretrained_cfg, is_model

    try:
        found = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # there is no such tag
        return None
    return version_of(name.partition(".")[0], found.to_dict()) if found else None


def version_of(architecture: str, about: dict) -> Version:
    """A version from a configuration of timm."""
    classes = about.get("num_classes", 1000)
    classifier = about.get("classifier")
    recipe = (
        about.get("crop_pct", 0.875),
        about.get("crop_mode", "center"),
        about.get("interpolation", "bicubic"),
        tuple(about.get("mean", InputSpec.mean)),
        tuple(about.get("std", InputSpec.std)),
    )
    return Version(
        architecture,
        about.get("tag") or "",
        tuple(about.get("input_size", (3, 224, 224))[1:]),
        recipe,
        classes,
        about.get("license") or "",
        _address_of(about),
        bool(about.get("fixed_input_size")),
        classifier if classes and isinstance(classifier, str) else None,
        checksum_in(str(about.get("url", ""))),
    )


def _address_of(about: dict) -> str:
    """Where the weights of a configuration are; "" if they are nowhere."""
    if hub := about.get("hf_hub_id"):
        file = about.get("hf_hub_filename")
        return f"{HUB}{hub}#{file}" if file else f"{HUB}{hub}"
    return about.get("url") or ""


# Backbones ----------------------------------------------------------------------------


def named_backbone(name: str) -> Backbone | None:
    """The backbone of a full name; None if timm has no such network."""
    return timm_backbone(name.removeprefix(PREFIX)) if is_of_timm(name) else None


def timm_backbone(name: str) -> Backbone | None:
    """The backbone of a name after "timm/"; None if there is no such network.

    An architecture means its default version.
    """
    version = find_version(name)
    return None if version is None else _backbone_of_version(version)


@functools.lru_cache(maxsize=32)  # each keeps the structure of its network
def _backbone_of_version(version: Version) -> Backbone:
    name = version.name
    return backbone_of(version, PREFIX + name, name, layers_of(version))


def backbone_of(version: Version, name: str, built_as: str, layers=None) -> Backbone:
    """The backbone of a version."""
    _check_square(version, name)
    return Backbone(
        name=name,
        build=f"{TIMM_BUILDERS}:{built_as}",
        input=version.input,
        head=version.classifier,
        weights=tuple(weights_of(other) for other in _interchangeable(version)),
        layers=layers,
        size_option="img_size" if version.fixed else None,
        convert=f"{TIMM_BUILDERS}:convert",
    )


def weights_of(version: Version) -> Weights:
    """The published weights of a version."""
    about = {"extra": "timm", "licence": version.licence, "former": version.former}
    return Weights(version.tag, version.url, "", version.input, **about)


def _interchangeable(version: Version) -> list[Version]:
    """The version, and others of its architecture with as many classes."""
    others = [
        other
        for name, other in versions().items()
        if name == other.name != version.name
        if other.architecture == version.architecture
        if other.classes == version.classes
    ]
    return [found for found in (version, *others) if found.url]


def _check_square(version: Version, name: str) -> None:
    """Refuse networks whose input is not square."""
    height, width = version.size
    if height != width:
        raise ValueError(
            f"Backbone {name!r} takes images of {width} × {height} pixels. Only square "
            "inputs are supported; choose another backbone."
        )


def layers_of(version: Version) -> tuple[Layer, ...] | None:
    """The layers that the table has of a version; None if they have to be found."""
    about = table()["architectures"].get(version.architecture, {})
    default = versions().get(version.architecture)
    if "layers" not in about or default is None or not _is_current():
        return None
    if version.size != default.size or bool(version.classes) != bool(default.classes):
        return None
    classes = [version.classes]  # may be others than those of the default version
    rows = (
        [alias, node, layout, classes if alias == "logits" else shape, stride, share]
        for alias, node, layout, shape, stride, share in about["layers"]
    )
    return layers_of_rows(rows, about.get("averages", {}))


@functools.cache
def _is_current() -> bool:
    """Whether timm, if installed, has the version of the table, and so its nodes."""
    try:
        return metadata.version("timm") == table()["timm"]
    except metadata.PackageNotFoundError:
        return True


def weights_of_architecture(backbone: Backbone) -> tuple[Weights, ...]:
    """All published weights of the architecture of a network of timm; else none."""
    architecture = architecture_of(backbone)
    if architecture is None:  # the table need not be read
        return ()
    return tuple(
        weights_of(version)
        for name, version in versions().items()
        if version.architecture == architecture and name == version.name and version.url
    )


def architecture_of(backbone: Backbone) -> str | None:
    """The architecture of a network of timm by name; None for all others."""
    publisher, _, name = (backbone.published_name or "").partition(".")
    architecture = name.partition(".")[0]
    return architecture if f"{publisher}/" == PREFIX else None
