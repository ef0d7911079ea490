"""The sources of a network's weights, and the digests that identify them."""

import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from .._digests import digest_fields, digest_file
from .._exceptions import WeightsError
from .._files import has_content, local_path
from .._images.recipe import InputSpec
from .inspector import inspector
from .recipes import FILE, named_recipe, published, recipe_of_file
from .records import Backbone, Identity, Weights
from .registry import names_version, resolve_backbone


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
        if not has_content(self.path):
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


def resolve_weights(
    backbone: Backbone, weights, seed: int, version_is_named=False
) -> WeightsSource:
    """The source of the weights that the `weights` parameter names; loads nothing.

    `version_is_named` is whether the name of the backbone says which version it is.
    """
    own = backbone.arrays is not None
    if weights is None and own:
        raise ValueError(
            f"Backbone {backbone.name!r} was created from a network with its weights, "
            "so weights=None is not allowed. Use weights='default'."
        )
    if weights is None:
        return RandomWeights(backbone, backbone.input, seed)
    if isinstance(weights, tuple):
        return FileWeights(backbone, *named_recipe(backbone, weights))
    if weights == "default" and own:
        return OwnWeights(backbone, backbone.input)
    if _is_path(weights):
        path = local_path(weights, FILE)
        recipe = recipe_of_file(backbone, path, version_is_named)
        return FileWeights(backbone, recipe, path)
    found = published(backbone, weights)
    scheme, address = found.location
    if scheme == "file":
        return FileWeights(backbone, found.input, Path(address))
    return PublishedWeights(backbone, found.input, found)


def _is_path(weights) -> bool:
    """Whether `weights` is a path rather than the name of a published version."""
    text = str(weights)
    looks = "/" in text or "\\" in text or re.search(r"\.[a-z0-9]+$", text, re.I)
    return bool(looks) or not isinstance(weights, str)


def resolve_source(backbone, weights, seed, image_size) -> WeightsSource:
    """The source of the weights, with preprocessing for the requested input size."""
    named = names_version(backbone)
    backbone = resolve_backbone(backbone)
    source = resolve_weights(backbone, weights, seed, named)
    spec = source.input.scaled(image_size)
    fixed = backbone.size_option and not backbone.convert
    if fixed and source.pretrained and spec != source.input:
        raise ValueError(
            f"Backbone {backbone.name!r} with these weights only takes images of "
            f"{source.input.image_size} pixels. Got image_size={image_size!r} instead; "
            "use image_size=None."
        )
    return replace(source, input=spec)
