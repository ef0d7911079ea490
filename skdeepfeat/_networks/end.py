"""The end of a network: its classifier, and what enters it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """The end of a network; each part is None if there is no such node.

    Parameters
    ----------
    classifier : str or None
        Name of the module that computes the class scores.
    penultimate : str or None
        The node of what enters the classifier; without one, of what is returned.
    logits : str or None
        The node of the class scores.
    heads : tuple of str
        Other modules that may compute class scores, if that is not clear.
    """

    classifier: str | None = None
    penultimate: str | None = None
    logits: str | None = None
    heads: tuple[str, ...] = ()


def is_vector(shape) -> bool:
    """Whether an image has a row of numbers, for a single place."""
    return bool(shape) and math.prod(shape) == max(shape)
