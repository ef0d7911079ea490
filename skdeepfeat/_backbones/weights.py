"""Where the weights of a network come from, and the digests that identify them."""

import functools
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from .._digests import digest_fields, digest_file, sha256_file
from .._exceptions import RecipeWarning, WeightsError, closest, warn_user
from .._images.recipe import InputSpec
from .inspector import inspector
from .records import Backbone, Identity, Weights
from .registry import resolve_backbone

# Weights ----------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightsSource:
    """A network, where its weights come from, and the preprocessing they want.

    Parameters
    ----------
    backbone : Backbone
    input : InputSpec
        The preprocessing, at the input size in use.

    Attributes
    ----------
    pretrained : bool
        Whether there are weights to read. If not, the builder draws them from a seed.
    may_lack_head : bool
        Whether the weights may have a head for other classes, or none.
    name : str
        What a person calls the weights.
    parameters : str
        What to look at where saved models find other weights.
    """

    backbone: Backbone
    input: InputSpec
    pretrained: ClassVar[bool] = True
    may_lack_head: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What a person calls the weights."""
        return self.backbone.name

    @property
    def parameters(self) -> str:
        """What to look at where saved models find other weights."""
        return "backbone or weights"

    @property
    def identity(self) -> Identity:
        """What the network is known by, less its weights, at this input size."""
        return self.backbone.identity_at(self.input.image_size)

    def key(self) -> bytes:
        """Digest of the weights, without loading them where that is possible."""
        return digest_fields("weights", 1, self.known_by())

    def known_by(self, by_values: bool = False) -> dict:
        """What the weights are known by, for ever: what they are, or their origin.

        Weights from a seed change with torch, unless they are known `by_values`.
        """
        raise NotImplementedError

    def read(self) -> dict[str, Any] | None:
        """Tensors of the weights, by name; None where the builder draws them."""
        return None


@dataclass(frozen=True)
class PublishedWeights(WeightsSource):
    """A published version, downloaded or shipped with the package."""

    version: Weights

    @property
    def name(self) -> str:
        """The name of the published file."""
        return self.version.filename

    def known_by(self, by_values: bool = False) -> dict:
        """The name of the file, and its checksum."""
        checksum = self.version.sha256_prefix or self.version.sha256
        return {"published": self.version.filename, "checksum": checksum}

    def read(self) -> dict[str, Any]:
        """Read the published file, fetched when it is not on this machine."""
        from .files import read_published

        return read_published(self.version)


@dataclass(frozen=True)
class FileWeights(WeightsSource):
    """A file that the user names."""

    path: Path
    may_lack_head: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def parameters(self) -> str:
        """The file first."""
        return f"The weights file {self.name!r}, or backbone,"

    def known_by(self, by_values: bool = False) -> dict:
        """The content of the file."""
        if not self.path.is_file():
            raise WeightsError.missing(self.path)
        return {"file": digest_file(self.path)}

    def read(self) -> dict[str, Any]:
        """Read the file; code in it never runs."""
        from .files import read_weights_file

        return read_weights_file(self.path)


@dataclass(frozen=True)
class RandomWeights(WeightsSource):
    """Weights that the builder of the network draws from a seed."""

    seed: int
    pretrained: ClassVar[bool] = False

    @property
    def parameters(self) -> str:
        """The seed as well."""
        return "backbone or weights, random_state or the version of torch"

    def known_by(self, by_values: bool = False) -> dict:
        """The values themselves, or the seed and what draws from it."""
        if by_values or self.backbone.is_own:
            return {"values": inspector().seeded_values(self)}
        return {"seed": int(self.seed), "torch": version("torch")}


@dataclass(frozen=True)
class OwnWeights(WeightsSource):
    """Weights that came with a network of the user's own."""

    def known_by(self, by_values: bool = False) -> dict:
        """Their values."""
        return {"tensors": self.backbone.tensors_digest}

    def read(self) -> dict[str, Any]:
        """Copies of the backbone's arrays."""
        from .files import as_tensors

        return as_tensors(self.backbone.arrays or {})


def resolve_weights(backbone: Backbone, weights, seed: int) -> WeightsSource:
    """Make the `weights` parameter concrete; loads nothing."""
    own = backbone.arrays is not None
    if weights is None and own:
        raise ValueError(
            f"Backbone {backbone.name!r} was made of a network with its weights; use "
            "weights='default' for them."
        )
    if weights is None:
        return RandomWeights(backbone, backbone.input, seed)
    if isinstance(weights, tuple):
        recipe, path = _named_recipe(backbone, weights)
        return FileWeights(backbone, recipe, path)
    if weights == "default" and own:
        return OwnWeights(backbone, backbone.input)
    if _is_path(weights):
        path = Path(weights).expanduser()
        return FileWeights(backbone, _recipe_of_file(backbone, path), path)
    found = _published(backbone, weights)
    return PublishedWeights(backbone, found.input, found)


def _named_recipe(backbone: Backbone, weights: tuple) -> tuple[InputSpec, Path]:
    """The recipe of a published version, and the file to use it with."""
    if len(weights) != 2:
        raise ValueError(
            "A tuple as 'weights' must be (name of a published version, path). Got "
            f"{weights!r} instead."
        )
    name, path = weights
    return _published(backbone, name).input, Path(path).expanduser()


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


def resolve_source(backbone, weights, seed, image_size) -> WeightsSource:
    """The weights, with the preprocessing for the input size asked for."""
    backbone = resolve_backbone(backbone)
    source = resolve_weights(backbone, weights, seed)
    spec = source.input.scaled(image_size)
    if backbone.size_option and source.pretrained and spec != source.input:
        raise ValueError(
            f"Backbone {backbone.name!r} with these weights takes images of "
            f"{source.input.image_size} pixels only. Got image_size={image_size!r} "
            "instead; leave it None."
        )
    return replace(source, input=spec)
