"""Pools activations (n, c, h, w) to rows (n, d): one function for each pooling.

The functions use only methods of their tensors, so torch is not imported here. Vectors
pass through unchanged. Each entry of POOLINGS is a tuple of functions whose results are
concatenated.

References
----------
.. [1] Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human
   Annotation", 2018 (generalised mean).
.. [2] Zeiler, Fergus, "Stochastic Pooling for Regularization of Deep Convolutional
   Neural Networks", 2013 (probability-weighted form of the test phase).
"""

import math

from .._backbones.layouts import LAYOUTS
from .._exceptions import OutputTooLarge

GEM_POWER = 3.0
GEM_FLOOR = 1e-6
FLATTEN_LIMIT = 4 * 2**30  # bytes


def average(maps):
    """(n, c, h, w) → (n, c): mean of each channel."""
    return maps.mean((2, 3))


def maximum(maps):
    """(n, c, h, w) → (n, c): largest value of each channel."""
    return maps.amax((2, 3))


def generalised_mean(maps):
    """(n, c, h, w) → (n, c): cubic mean of the positive part [1]_."""
    powers = maps.clamp(min=GEM_FLOOR).pow(GEM_POWER)
    return powers.mean((2, 3)).pow(1 / GEM_POWER)


def probability_weighted(maps):
    """(n, c, h, w) → (n, c): mean of the positive part weighted by itself [2]_."""
    positive = maps.clamp(min=0)
    weight = positive.sum((2, 3))
    return (positive * positive).sum((2, 3)) / weight.clamp(min=1e-12)


def unpooled(maps):
    """(n, c, h, w) → (n, c * h * w)."""
    return maps.flatten(1)


POOLINGS = {
    "avg": (average,),
    "max": (maximum,),
    "avgmax": (average, maximum),
    "gem": (generalised_mean,),
    "stochastic": (probability_weighted,),
    "flatten": (unpooled,),
}


def pool(activation, layout, pooling):
    """Rows of one activation, as a list of (n, d) tensors to concatenate."""
    activation = activation.float()
    as_maps = LAYOUTS[layout].as_maps
    if as_maps is None:
        return [activation]
    maps = as_maps(activation)
    return [function(maps) for function in POOLINGS[pooling]]


def pooled_width(layout, shape, pooling):
    """Number of features of one image after pooling."""
    laid_out = LAYOUTS[layout]
    channels, places = shape[laid_out.channels], laid_out.places(shape)
    if not places:
        return channels
    if pooling == "flatten":
        return channels * math.prod(places)
    return channels * len(POOLINGS[pooling])


def check_size(n_rows, n_features, pooling):
    """Raise an error if unpooled output would exceed the limit."""
    size = n_rows * n_features * 4
    if pooling == "flatten" and size > FLATTEN_LIMIT:
        raise OutputTooLarge(
            f"pooling='flatten' would give {n_rows} rows of {n_features} features, "
            f"{size:,} bytes; the limit is {FLATTEN_LIMIT:,}. Use pooling='avg', a "
            "deeper layer, or fewer images at a time."
        )
