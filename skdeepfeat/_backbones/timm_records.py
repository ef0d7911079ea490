"""The networks of timm: their names, recipes, licences and layers.

``timm.json`` has those of one version of timm, so that neither timm nor torch is
imported to list them; ``tools/describe_timm.py`` writes it. Networks of later versions
are looked up in timm itself.
"""

import functools
import json
import math
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from .._digests import digest_fields
from .._exceptions import WeightsError
from .._images.recipe import InputSpec
from .records import PACKAGE, Backbone, Layer, Weights, layers_of_rows

PREFIX = "timm/"
BUILDERS = f"{PACKAGE}._networks.timm_networks"
HUB = "hub:"  # begins the address of weights on the hub of Hugging Face

MODES = {"center": "crop", "squash": "squash", "border": "border"}
FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


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
            tuple(mean),
            tuple(std),
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
    name = f"{architecture}.{tag}"
    return Version(
        architecture,
        tag,
        sides,
        tuple(table()["recipes"][recipe]),
        classes,
        table()["licences"][licence],
        f"{HUB}timm/{name}" if url == HUB else url,
        about.get("fixed", False),
        about.get("classifier"),
    )


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
    if version.classes != versions()[version.architecture].classes:
        return None  # the number of parameters is that of the default version
    return table()["architectures"][version.architecture].get(field)


def _version_named(name: str) -> Version:
    return versions()[name.removeprefix(PREFIX)]


def find_version(name: str) -> Version | None:
    """The version of a name; None if there is none."""
    if name in versions():
        return versions()[name]
    return None if _is_current() else _configured(name)


def _configured(name: str) -> Version | None:
    """A version that the installed timm has and the table has not."""
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
    )


def _address_of(about: dict) -> str:
    """Where the weights of a configuration are; "" if they are nowhere."""
    if hub := about.get("hf_hub_id"):
        file = about.get("hf_hub_filename")
        return f"{HUB}{hub}#{file}" if file else f"{HUB}{hub}"
    return about.get("url") or ""


# Backbones ----------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)  # each keeps the structure of its network
def timm_backbone(name: str) -> Backbone | None:
    """The backbone of a name after "timm/"; None if there is no such network."""
    version = find_version(name)
    if version is None:
        return None
    if version.name != name:  # an architecture means its default version
        return timm_backbone(version.name)
    return backbone_of(version, PREFIX + name, name, layers_of(version))


def backbone_of(version: Version, name: str, built_as: str, layers=None) -> Backbone:
    """The backbone of a version."""
    _check_square(version, name)
    return Backbone(
        name=name,
        build=f"{BUILDERS}:{built_as}",
        input=version.input,
        head=version.classifier,
        weights=tuple(_weights_of(other) for other in _interchangeable(version)),
        layers=layers,
        size_option="img_size" if version.fixed else None,
        convert=f"{BUILDERS}:convert",
    )


def _weights_of(version: Version) -> Weights:
    """The published weights of a version."""
    about = {"extra": "timm", "licence": version.licence}
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
    """Refuse networks whose input is no square."""
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
    """Whether timm, if installed, is that of the table, so that its nodes exist."""
    try:
        return metadata.version("timm") == table()["timm"]
    except metadata.PackageNotFoundError:
        return True


# Folders ------------------------------------------------------------------------------


def is_folder(path: str) -> bool:
    """Whether this is a folder that timm has saved a network to."""
    return (Path(path).expanduser() / "config.json").is_file()


def folder_backbone(path: str) -> Backbone:
    """The backbone of a folder with the configuration and the weights of a network."""
    folder = Path(path).expanduser().resolve()
    content = (folder / "config.json").read_text()
    if "architecture" not in json.loads(content):
        raise ValueError(
            f"The folder {str(folder)!r} is not one of a timm network: its config.json "
            "names no 'architecture'."
        )
    return _folder_backbone(folder, content, _weights_in(folder))


@functools.lru_cache(maxsize=32)
def _folder_backbone(folder: Path, content: str, weights: Path) -> Backbone:
    """The same, for the content of its configuration and a file in it."""
    about = json.loads(content)
    configured = {**about, **about.get("pretrained_cfg", {})}
    if "num_classes" in about:
        configured["num_classes"] = about["num_classes"]
    version = version_of(about["architecture"], configured)
    version = replace(version, tag="", url=f"file:{weights}")
    backbone = backbone_of(version, folder.name, f"local-dir:{folder}")
    backbone = replace(backbone, weights=(_weights_of(version),))
    settings = digest_fields("configuration", 1, {"content": content}).hex()
    return replace(backbone, version=f"{version.architecture} {settings}")


def _weights_in(folder: Path) -> Path:
    """The file with the weights in a folder."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"The folder {str(folder)!r} contains no weights: none of "
        f"{', '.join(map(repr, FILES))}."
    )
