"""Digests of the weights that a saved model needs, which later versions can check."""

from .._digests import changed_fields, digest_fields
from .weights import WeightsSource

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


def what_changed(noted: str, found: str, source: WeightsSource) -> str:
    """The parameters to check if two saved digests differ."""
    if noted[2:34] == found[2:34]:
        return "image_size, or the preprocessing of the weights,"
    return source.parameters
