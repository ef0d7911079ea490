"""Images on which a graph is compared with its estimator, as they enter a network."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .._composites import Composite
from .._datasets import load_textures
from .._exceptions import ImageError
from .._images.batches import Prepared, read_row
from .._images.input import read_input
from .._images.recipe import InputSpec
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
    recipes = [step._network().source.input for step in composite.features]
    ways = {_way(recipe) for recipe in recipes}
    if len(ways) > 1:
        raise ValueError(
            "The feature steps of this estimator resize images differently, and one "
            f"graph takes one size: {sorted(ways)}. Set image_size to the same value, "
            "or export them separately."
        )
    return recipes[0]


def _way(recipe: InputSpec) -> tuple:
    """What must be the same for several networks to take the same pixels."""
    return recipe.image_size, str(recipe.resize), recipe.interpolation, recipe.mode


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
    value_range = check_value_range(step.value_range)
    found = [
        read_row(images, row, recipe, value_range, step.decode)
        for row in range(len(images))
    ]
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
