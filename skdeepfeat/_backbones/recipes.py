"""Which preprocessing a weights file needs: that of the version that it is."""

import functools
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path

from .._digests import sha256_file
from .._exceptions import RecipeWarning, WeightsError, closest, warn_user
from .._files import has_content, local_path
from .._images.recipe import InputSpec
from .contents import listed
from .records import Backbone, Weights
from .timm_folders import recipe_beside
from .timm_records import weights_of_architecture

FILE = "weights file"  # in messages


def published(backbone: Backbone, name: str) -> Weights:
    """The published version with this name; "default" is the first."""
    if not backbone.weights:
        raise ValueError(
            f"Backbone {backbone.name!r} has no published weights. Pass weights=None "
            "for random weights, to train with FineTunedClassifier(unfreeze='all'), or "
            "the path of a .pth or .safetensors file."
        )
    known = {version.name: version for version in backbone.weights}
    known["default"] = backbone.weights[0]
    if name in known:
        return known[name]
    for retired in backbone.retired:
        if name == retired.name:
            raise WeightsError.retired(f"the weights {name!r}", retired.last)
    allowed = ", ".join(map(repr, known))
    raise ValueError(
        f"Unknown weights {name!r} for backbone {backbone.name!r}."
        f"{closest(name, known)} Published versions: {allowed}. Pass one of them, the "
        "path of a .pth or .safetensors file, or None for random weights."
    )


def named_recipe(backbone: Backbone, weights: tuple) -> tuple[InputSpec, Path]:
    """The recipe of a published version, and the path of the file."""
    match weights:
        case str(name), (str() | PathLike()) as path:
            backbone = replace(backbone, weights=_versions(backbone))
            return published(backbone, name).input, local_path(path, FILE)
    raise ValueError(
        "A tuple as 'weights' must be (name of a published version, path). Got "
        f"{weights!r} instead."
    )


def recipe_of_file(backbone: Backbone, path: Path, version_is_named: bool) -> InputSpec:
    """The preprocessing of the version that a file is, or of the default version.

    The file is read only if the versions differ in preprocessing and neither its path
    nor a file of timm beside it says which one it is.
    """
    versions = _versions(backbone)
    if stated := recipe_beside(path, backbone):
        return stated
    if found := _named_in(path, versions):
        return found.input
    if len({version.input for version in versions}) <= 1 or not has_content(path):
        return backbone.input
    checksum = sha256_file(path)
    for version in versions:
        if checksum.startswith(version.checksums):
            return version.input
    if not version_is_named:
        _warn_of_guess(backbone.name, versions, path)
    return backbone.input


def _versions(backbone: Backbone) -> tuple[Weights, ...]:
    """All versions of the architecture, also those for other classes."""
    others = weights_of_architecture(backbone)
    return (*backbone.weights, *(w for w in others if w not in backbone.weights))


def _named_in(path: Path, versions: tuple[Weights, ...]) -> Weights | None:
    """The version whose checksum or model on the hub is in a path, last part first."""
    *folders, name = path.absolute().parts
    for version in versions:
        if any(checksum in name for checksum in version.checksums):
            return version
    of_hub = {name: version for version in versions for name in version.names_on_hub}
    for part in (path.stem, *reversed(folders)):
        if part in of_hub:
            return of_hub[part]
    return None


@functools.lru_cache(maxsize=1024)
def _warn_of_guess(backbone: str, versions: tuple[Weights, ...], path: Path) -> None:
    """Warn once that the versions differ in preprocessing, and which one is used."""
    used = versions[0].name
    warn_user(
        f"{path.name} is not a published file of {backbone!r}, whose versions need "
        f"different preprocessing: {_differences(versions)}. That of {used!r} is used. "
        f"To choose, pass weights=({used!r}, {str(path)!r}), or another of these names "
        "with the path.",
        RecipeWarning,
    )


def _differences(versions: tuple[Weights, ...]) -> str:
    """The versions, with the parts of their preprocessing that differ."""
    recipes: dict[InputSpec, list[str]] = {}
    for version in versions:
        recipes.setdefault(version.input, []).append(version.name)
    values = {f.name: {getattr(r, f.name) for r in recipes} for f in fields(InputSpec)}
    differ = [name for name, found in values.items() if len(found) > 1]
    return "; ".join(
        f"{listed(names)} ({', '.join(f'{d}={getattr(r, d)}' for d in differ)})"
        for r, names in recipes.items()
    )
