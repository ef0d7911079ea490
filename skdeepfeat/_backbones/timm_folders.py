"""Folders with a network of timm: its configuration, and its weights."""

import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._digests import digest_fields
from .._exceptions import WeightsError, closest
from .._files import expanded
from .._images.recipe import InputSpec
from .._validation import is_number, is_whole
from .contents import OF_MODELS, listed
from .records import Backbone
from .timm_records import (
    MODES,
    Version,
    architecture_of,
    backbone_of,
    table,
    version_of,
    weights_of,
)

CONFIGURATION = "config.json"
FILTERS = ["nearest", "bilinear", "bicubic"]


def _are_numbers(value: Any, least: float) -> bool:
    """Whether these are three finite numbers, none below the least."""
    numbers = isinstance(value, list) and all(map(is_number, value))
    return numbers and len(value) == 3 and all(least <= v < math.inf for v in value)


# Settings in a configuration → what is allowed, and whether a value is.
SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architecture": ("a name", lambda v: isinstance(v, str)),
    "pretrained_cfg": ("settings by name", lambda v: isinstance(v, dict)),
    "num_classes": ("a number", lambda v: is_whole(v) and v >= 0),
    "input_size": (
        "[3, height, width]",
        lambda v: _are_numbers(v, 1) and v[0] == 3 and set(map(type, v)) == {int},
    ),
    "mean": ("three numbers", lambda v: _are_numbers(v, -math.inf)),
    "std": ("three positive numbers", lambda v: _are_numbers(v, 1e-9)),
    "crop_pct": (
        "a fraction",
        lambda v: is_number(v) and 0.01 < v < 100,
    ),
    "crop_mode": (f"one of {list(MODES)}", lambda v: v in list(MODES)),
    "interpolation": (f"one of {FILTERS}", lambda v: v in FILTERS),
    "license": ("a name", lambda v: isinstance(v, str)),
}


def is_folder(path: str) -> bool:
    """Whether this is a folder that timm has saved a network to."""
    return os.path.isfile(expanded(path, "backbone") / CONFIGURATION)


def folder_backbone(path: str) -> Backbone:
    """The backbone of a folder with the configuration and the weights of a network."""
    folder = expanded(path, "backbone").resolve()
    content = (folder / CONFIGURATION).read_bytes()
    version = _version_in(folder, content)
    if not _is_architecture(version.architecture):
        known = table()["architectures"]
        raise ValueError(
            f"The {CONFIGURATION} in {str(folder)!r} names the architecture "
            f"{version.architecture!r}, which timm does not have."
            f"{closest(version.architecture, known)}"
        )
    return _folder_backbone(folder, content, version, _weights_in(folder))


def _is_architecture(name: str) -> bool:
    """Whether timm has an architecture, or code of the user's has registered it."""
    if name in table()["architectures"]:
        return True
    try:
        from timm.models import is_model
    except ModuleNotFoundError:
        return False
    return is_model(name)


@functools.lru_cache(maxsize=32)
def _folder_backbone(
    folder: Path, content: bytes, version: Version, weights: Path
) -> Backbone:
    """The same, for the content of its configuration and a file in it."""
    version = replace(version, tag="", url=f"file:{weights}")
    backbone = backbone_of(version, folder.name, f"local-dir:{folder}")
    backbone = replace(backbone, weights=(weights_of(version),))
    settings = digest_fields("configuration", 1, {"content": content.decode()}).hex()
    return replace(backbone, version=f"{version.architecture} {settings}")


def _version_in(folder: Path, content: bytes) -> Version:
    """The version that the configuration in a folder describes."""
    try:
        about = json.loads(content)
    except ValueError as error:
        raise _not_of_timm(folder, f"is not JSON: {error}") from None
    if not isinstance(about, dict) or not about.get("architecture"):
        raise _not_of_timm(folder, "names no 'architecture'")
    for part in (about, about.get("pretrained_cfg") or {}):
        for name, (allowed, is_allowed) in SETTINGS.items():
            if part.get(name) is not None and not is_allowed(part[name]):
                why = f"has {name}={part[name]!r} instead of {allowed}"
                raise _not_of_timm(folder, why)
    configured = about | (about.get("pretrained_cfg") or {})
    configured |= {n: about[n] for n in ("num_classes",) if n in about}
    given = {name: value for name, value in configured.items() if value is not None}
    return version_of(about["architecture"], given)


def _not_of_timm(folder: Path, why: str) -> ValueError:
    """The error of a folder with a configuration that timm has not written."""
    return ValueError(
        f"The folder {str(folder)!r} is not one of a timm network: its "
        f"{CONFIGURATION} {why}. Save the network with timm.models.save_for_hf."
    )


def recipe_beside(path: Path, backbone: Backbone) -> InputSpec | None:
    """The preprocessing that timm has saved beside a file with weights, if it has."""
    architecture = architecture_of(backbone)
    if architecture is None:
        return None
    try:
        version = _version_in(path.parent, (path.parent / CONFIGURATION).read_bytes())
    except (OSError, ValueError):  # there is none, or it is of another program
        return None
    return version.input if version.architecture == architecture else None


def _weights_in(folder: Path) -> Path:
    """The file with the weights in a folder."""
    for name in OF_MODELS:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"The folder {str(folder)!r} contains no weights: none of {listed(OF_MODELS)}."
    )
