"""Images on which a graph is compared with its estimator, as they enter a network."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .._composites import Composite
from .._datasets import load_textures
from .._exceptions import ImageError
from .._features import PretrainedCNNFeatures
from .._images.input import read_input
from .._images.preparing import Preparation, Prepared, read_row
from .._images.recipe import InputSpec, margin_colour
from .._images.windows import Images
from .._validation import check_value_range

N_TEXTURES = 48


def textures() -> list[Image.Image]:
    """Pictures of all the textures that ship with the package, in colour."""
    data = load_textures().data
    chosen = data[:: len(data) // N_TEXTURES][:N_TEXTURES]
    return [Image.fromarray(one).convert("RGB") for one in chosen]


def recipe_of(composite: Composite) -> InputSpec:
    """The preprocessing of all feature steps; refuses several that differ."""
    for step in composite.features:
        _refuse_range(step)
    recipes = [step._network().source.input for step in composite.features]
    ways = set(map(_way, composite.features, recipes))
    if len(ways) > 1:
        raise ValueError(
            "The feature steps of this estimator resize images differently, and one "
            f"graph takes one size: {sorted(ways)}. Set image_size and decode to the "
            "same values, or export them separately."
        )
    return recipes[0]


def _way(step: PretrainedCNNFeatures, recipe: InputSpec) -> tuple:
    """What must be the same for several networks to take the same pixels."""
    resize = recipe.image_size, str(recipe.resize), recipe.interpolation, recipe.mode
    return *resize, margin_colour(recipe), step.decode


def _refuse_range(step: PretrainedCNNFeatures) -> None:
    """Refuse other black and white than those of 8-bit images, which the graph takes.

    A range holds for arrays and not for 8-bit files, which the graph cannot tell apart.
    """
    if check_value_range(step.value_range) not in (None, (0, 255)):
        raise ValueError(
            f"The 'value_range' parameter must be None or (0, 255) for ONNX. Got "
            f"{step.value_range!r} instead; the graph takes 8-bit images. Scale your "
            "arrays to 0 to 255 as uint8, leave value_range out, and fit again."
        )


def refuse_fast(composite: Composite) -> None:
    """Refuse to resize in the graph as ``decode="fast"`` does."""
    if any(step.decode == "fast" for step in composite.features):
        raise ValueError(
            "resize=True needs decode='exact'. Got decode='fast' instead, which reads "
            "JPEGs at a reduced size, and a graph cannot do that. Set decode='exact' "
            "and fit again, or use resize=False."
        )


@dataclass(frozen=True)
class Examples:
    """Images in three forms.

    Parameters
    ----------
    X : sequence of n_images images
        As the estimator takes them.
    images : Images
        As its first feature step is given them.
    recipe : InputSpec
    pixels : ndarray of shape (n_images, side, side, 3), uint8
        As they enter the network.
    """

    X: Any
    images: Images
    recipe: InputSpec
    pixels: np.ndarray

    def photos(self) -> list[np.ndarray]:
        """The images (h, w, 3) in their own sizes, uint8."""
        cells = [self.images.read(row) for row in range(len(self.images))]
        opened = [cell.open(None, None, lambda size: None) for cell in cells]
        return [np.asarray(one.image) for one in opened]


def examples_of(composite: Composite, X) -> Examples:
    """These images, or the textures; refuses images of more than 8 bits."""
    recipe = recipe_of(composite)
    X = textures() if X is None else X
    step = composite.features[0]
    images = read_input(step, composite.images_of(X)[0], reset=False)
    how = Preparation(recipe, None, step.decode)
    found = [read_row(images, row, how) for row in range(len(images))]
    return Examples(X, images, recipe, np.stack([_pixels(one) for one in found]))


def _pixels(found: Prepared | ImageError) -> np.ndarray:
    """The pixels of an image, or its error."""
    if isinstance(found, ImageError):
        raise found
    if found.pixels.dtype != np.uint8:
        raise ValueError(
            f"The graph takes 8-bit images, but X holds others ({found.source}). Pass "
            "paths, PIL images or arrays of uint8 as X, or leave X out."
        )
    return found.pixels
