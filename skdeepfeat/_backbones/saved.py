"""What a saved model rests on: a digest that later versions can check."""

from .._digests import changed_fields, digest_fields
from .weights import WeightsSource

SAVED = 1  # the version of what saved models note


def saved_digest(source: WeightsSource, by_values=False) -> str:
    """What a saved model rests on, hexadecimal: its weights, then their recipe.

    It holds for ever: no code, and nothing that changes with torch, is part of it. If
    `by_values`, that is true of weights from a seed too, which are made for it.
    """
    about = source.known_by(by_values)
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
    return source.parameters
