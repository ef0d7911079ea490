"""Where the weights of a network come from, and the digests that identify them."""

import functools
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from .._digests import changed_fields, digest_fields, digest_file, sha256_file
from .._exceptions import RecipeWarning, WeightsError, closest, warn_user
from .._images.recipe import InputSpec
from .inspector import inspector
from .records import Backbone, Identity, Weights
from .registry import resolve_backbone

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


# What identifies weights --------------------------------------------------------------


def weights_key(source: WeightsSource) -> bytes:
    """Digest of the weights, without loading them where that can be."""
    return digest_fields("weights", 1, _about_weights(source))


def _about_weights(source: WeightsSource) -> dict:
    """What weights are known by, for ever: what they are, or where they come from."""
    if source.path is not None:
        if not source.path.is_file():
            raise WeightsError.missing(source.path)
        return {"file": digest_file(source.path)}
    if source.published is not None:
        checksum = source.published.sha256_prefix or source.published.sha256
        return {"published": source.published.filename, "checksum": checksum}
    if source.seed is None:
        return {"tensors": source.backbone.tensors_digest}
    if source.backbone.is_own:
        return {"values": _seeded_values(source)}
    return {"seed": int(source.seed), "torch": version("torch")}


def _seeded_values(source: WeightsSource) -> bytes:
    """Digest of what a seed gives; builds the network the first time."""
    return inspector().seeded_values(source)


SAVED = 1  # the version of what saved models note


def saved_digest(source: WeightsSource, by_values=False) -> str:
    """What a saved model rests on, hexadecimal: its weights, then their recipe.

    It holds for ever: no code, and nothing that changes with torch, is part of it. If
    `by_values`, that is true of weights from a seed too, which are made for it.
    """
    about = _about_weights(source)
    if source.seed is not None and by_values:
        about = {"values": _seeded_values(source)}
    about["network"] = source.backbone.published_name
    weights = digest_fields("saved weights", SAVED, about)
    recipe = digest_fields("saved recipe", SAVED, changed_fields(source.input))
    return f"{SAVED:02x}{weights.hex()}{recipe.hex()}"


def can_compare(noted: str) -> bool:
    """Whether this version knows how a saved digest was made."""
    return len(noted) == 66 and noted.startswith(f"{SAVED:02x}")


def what_changed(noted: str, found: str, source: WeightsSource) -> str:
    """Which parameters to look at where two saved digests differ."""
    if noted[2:34] == found[2:34]:
        return "image_size, or the preprocessing of the weights,"
    if source.path is not None:
        return f"The weights file {str(source.path)!r}, or backbone,"
    seed = ", random_state or the version of torch" if source.seed is not None else ""
    return f"backbone or weights{seed}"


def resolve_source(backbone, weights, seed, image_size) -> WeightsSource:
    """The weights, with the preprocessing for the input size asked for."""
    backbone = resolve_backbone(backbone)
    source = resolve_weights(backbone, weights, seed)
    spec = source.input.scaled(image_size)
    if backbone.size_option and source.seed is None and spec != source.input:
        raise ValueError(
            f"Backbone {backbone.name!r} with these weights takes images of "
            f"{source.input.image_size} pixels only. Got image_size={image_size!r} "
            "instead; leave it None."
        )
    return replace(source, input=spec)
