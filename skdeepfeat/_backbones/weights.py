"""The sources of a network's weights, and the digests that identify them."""

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


@dataclass(frozen=True)
class WeightsSource:
    """A network with the source of its weights and their preprocessing.

    Parameters
    ----------
    backbone : Backbone
        The network.
    input : InputSpec
        The preprocessing, at the current input size.

    Attributes
    ----------
    pretrained : bool
        Whether there are weights to read. If not, they are drawn from a seed.
    may_lack_head : bool
        Whether the weights may lack the head, or have one for other classes.
    name : str
        Name of the weights in messages.
    parameters : str
        The parameters to check if the weights of a saved model have changed.
    """

    backbone: Backbone
    input: InputSpec
    pretrained: ClassVar[bool] = True
    may_lack_head: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the weights in messages."""
        return self.backbone.name

    @property
    def parameters(self) -> str:
        """The parameters to check if the weights of a saved model have changed."""
        return "backbone or weights"

    @property
    def recipe_parameters(self) -> str:
        """The parameters to check if the input of a saved model has changed."""
        return "image_size, or the preprocessing of the weights,"

    @property
    def identity(self) -> Identity:
        """Identity of the network without its weights, at this input size."""
        return self.backbone._identity_at(self.input.image_size)

    def key(self) -> bytes:
        """Digest of the weights, without loading them if possible."""
        return digest_fields("weights", 1, self.known_by())

    def known_by(self, by_values: bool = False) -> dict:
        """Fields that identify the weights by content or origin in all later versions.

        Weights from a seed depend on the version of torch, unless `by_values` is set.
        """
        raise NotImplementedError

    def read(self) -> dict[str, Any] | None:
        """Tensors of the weights by name; None if they are drawn from a seed."""
        return None


@dataclass(frozen=True)
class PublishedWeights(WeightsSource):
    """A published version, which ships with the package or is downloaded."""

    version: Weights

    @property
    def name(self) -> str:
        """Name of the published file."""
        return self.version.filename

    def known_by(self, by_values: bool = False) -> dict:
        """Name and checksum of the file."""
        checksum = self.version.sha256_prefix or self.version.sha256
        return {"published": self.version.filename, "checksum": checksum}

    def read(self) -> dict[str, Any]:
        """Read the published file, downloaded if needed."""
        from .files import read_published

        return read_published(self.version)


@dataclass(frozen=True)
class FileWeights(WeightsSource):
    """A file chosen by the user."""

    path: Path
    may_lack_head: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self.path)

    @property
    def parameters(self) -> str:
        """The parameters to check, and the path of the file."""
        return f"The weights file {self.name!r}, or backbone,"

    def known_by(self, by_values: bool = False) -> dict:
        """Digest of the content of the file."""
        if not self.path.is_file():
            raise WeightsError.missing(self.path)
        return {"file": digest_file(self.path)}

    def read(self) -> dict[str, Any]:
        """Read the file without running code in it."""
        from .files import read_weights_file

        return read_weights_file(self.path)


@dataclass(frozen=True)
class RandomWeights(WeightsSource):
    """Weights that the builder of the network draws from a seed."""

    seed: int
    pretrained: ClassVar[bool] = False

    @property
    def parameters(self) -> str:
        """The parameters to check, including the seed."""
        return "backbone or weights, random_state or the version of torch"

    def known_by(self, by_values: bool = False) -> dict:
        """The seed and the version of torch, or a digest of the weights."""
        if by_values or self.backbone.is_own:
            return {"values": inspector().seeded_values(self)}
        return {"seed": int(self.seed), "torch": version("torch")}


@dataclass(frozen=True)
class OwnWeights(WeightsSource):
    """Weights that a network of the user's own comes with."""

    def known_by(self, by_values: bool = False) -> dict:
        """Digest of the weights."""
        return {"tensors": self.backbone.tensors_digest}

    def read(self) -> dict[str, Any]:
        """Copies of the backbone's arrays."""
        from .files import as_tensors

        return as_tensors(self.backbone.arrays or {})


def resolve_weights(backbone: Backbone, weights, seed: int) -> WeightsSource:
    """The source of the weights that the `weights` parameter names; loads nothing."""
    own = backbone.arrays is not None
    if weights is None and own:
        raise ValueError(
            f"Backbone {backbone.name!r} was created from a network with its weights, "
            "so weights=None is not allowed. Use weights='default'."
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
    scheme, address = found.location
    if scheme == "file":
        return FileWeights(backbone, found.input, Path(address))
    return PublishedWeights(backbone, found.input, found)


def _named_recipe(backbone: Backbone, weights: tuple) -> tuple[InputSpec, Path]:
    """The recipe of a published version, and the path of the file."""
    if len(weights) != 2:
        raise ValueError(
            "A tuple as 'weights' must be (name of a published version, path). Got "
            f"{weights!r} instead."
        )
    name, path = weights
    return _published(backbone, name).input, Path(path).expanduser()


def _is_path(weights) -> bool:
    """Whether `weights` is a path rather than the name of a published version."""
    text = str(weights)
    suffixes = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".pkl")
    looks = text.endswith(suffixes) or "/" in text or "\\" in text
    return looks or not isinstance(weights, str)


def _published(backbone: Backbone, name: str) -> Weights:
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


def _recipe_of_file(backbone: Backbone, path: Path) -> InputSpec:
    """The preprocessing of the version to which the name or the content belongs.

    The file is read only if the versions differ in preprocessing and its name does not
    contain a checksum.
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
    """Warn once that the versions differ in preprocessing, and which one is used."""
    warn_user(
        f"{path.name} is not a published file of {backbone!r}, whose versions "
        f"{', '.join(map(repr, versions))} need different preprocessing. That of "
        f"{versions[0]!r} is used. To choose another one, pass "
        f"weights=({versions[-1]!r}, {str(path)!r}).",
        RecipeWarning,
    )


def resolve_source(backbone, weights, seed, image_size) -> WeightsSource:
    """The source of the weights, with preprocessing for the requested input size."""
    backbone = resolve_backbone(backbone)
    source = resolve_weights(backbone, weights, seed)
    spec = source.input.scaled(image_size)
    fixed = backbone.size_option and not backbone.convert
    if fixed and source.pretrained and spec != source.input:
        raise ValueError(
            f"Backbone {backbone.name!r} with these weights only takes images of "
            f"{source.input.image_size} pixels. Got image_size={image_size!r} instead; "
            "use image_size=None."
        )
    return replace(source, input=spec)
