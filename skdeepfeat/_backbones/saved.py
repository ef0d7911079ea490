"""Digests of the weights that a saved model needs, which later versions can check."""

from .._digests import changed_fields, digest_fields
from .._exceptions import WeightsError
from .records import Weights
from .weights import PublishedWeights, WeightsSource

SAVED = 1  # version of the digest in saved models


def saved_digest(source: WeightsSource, by_values=False) -> str:
    """Hexadecimal digest of the weights and of their preprocessing, one after another.

    It stays the same in all later versions, as it depends neither on code nor on the
    version of torch. For weights from a seed this holds only with `by_values`, which
    draws the weights.
    """
    about = source.known_by(by_values)
    about["network"] = source.backbone.published_name
    weights = digest_fields("saved weights", SAVED, about)
    recipe = digest_fields("saved recipe", SAVED, changed_fields(source.input))
    return f"{SAVED:02x}{weights.hex()}{recipe.hex()}"


def can_compare(noted: str) -> bool:
    """Whether a saved digest was computed as in this version."""
    return len(noted) == 66 and noted.startswith(f"{SAVED:02x}")


def refuse_other_weights(
    noted, found, source, model: str, consequence: str, remedy: str = "fit again"
):
    """Raise an error if the digests of a saved model's weights differ."""
    if noted == found:
        return
    if retired := _retired(noted, source):
        raise WeightsError.retired(
            f"the weights {retired.name!r} of backbone {source.backbone.name!r}",
            retired.last,
        )
    if can_compare(noted):
        raise WeightsError(
            f"{_what_changed(noted, found, source)} changed since this {model} was "
            f"fitted, so {consequence}. Restore the original, or {remedy}."
        )


def _retired(noted: str, source: WeightsSource) -> Weights | None:
    """The weights that a saved model needs and that this version no longer has.

    Models that were saved before digests could be compared need the oldest ones.
    """
    for version in source.backbone.retired:
        former = PublishedWeights(source.backbone, source.input, version)
        same = _weights_part(saved_digest(former)) == _weights_part(noted)
        if same or not can_compare(noted):
            return version
    return None


def _weights_part(saved: str) -> str:
    """The part of a digest that is about the weights alone."""
    return saved[2:34]


def _what_changed(noted: str, found: str, source: WeightsSource) -> str:
    """The parameters to check if two saved digests differ."""
    if _weights_part(noted) == _weights_part(found):
        return source.recipe_parameters
    return source.parameters
