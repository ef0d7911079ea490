"""Pools maps (n, c, p) of p places without some of them, for all masks at once.

Each function takes the shares (k, p) of the places that are kept and returns features
(n, k, c). Where all are kept, they equal those of ``_networks/pooling.py``.
"""

import numpy as np

from .._networks.pooling import GEM_FLOOR, GEM_POWER


def averages(maps, kept):
    """Mean of what is kept."""
    shares = kept / kept.sum(1, keepdims=True)
    return (maps @ shares.T).transpose(0, 2, 1)


def largest(maps, kept):
    """Largest value at the places that are kept by more than half."""
    places = [np.flatnonzero(one > 0.5) for one in kept]
    return np.stack([maps[:, :, some].max(2) for some in places], 1)


def generalised_means(maps, kept):
    """Cubic mean of the positive part of what is kept."""
    powers = np.maximum(maps, GEM_FLOOR) ** GEM_POWER
    return averages(powers, kept) ** (1 / GEM_POWER)


def probability_weighted(maps, kept):
    """Mean of the positive part of what is kept, weighted by itself."""
    positive = np.maximum(maps, 0)
    weight = np.maximum(positive @ kept.T, 1e-12)
    return (positive**2 @ kept.T / weight).transpose(0, 2, 1)


POOLINGS = {
    "avg": (averages,),
    "max": (largest,),
    "avgmax": (averages, largest),
    "gem": (generalised_means,),
    "stochastic": (probability_weighted,),
}
