"""Maps of the places in a photo that a prediction rests on.

The maps of features that a network computes before pooling are computed once for each
photo. Places are then left out of the pooling, and the fitted head predicts what is
left: the more its score falls, the more the prediction rests on these places.

References
----------
.. [1] Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
.. [2] Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
.. [3] Desai, Ramaswamy, "Ablation-CAM", 2020.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.base import is_outlier_detector, is_regressor

from ._backbones.layouts import LAYOUTS
from ._backbones.records import Layer
from ._composites import Composite, divide
from ._exceptions import ImageError, MapWarning, closest, warn_user
from ._features import PretrainedCNNFeatures
from ._images.input import read_input
from ._images.windows import Images
from ._networks.layers import aliased_layers
from ._networks.pooling import GEM_FLOOR, GEM_POWER
from ._store.columns import Column
from ._validation import StrOptions, count_rows, take_rows

WINDOW = 1 / 7  # side of what is left out at once, as a share of the side of the input
FINEST = 14  # windows along a side: half a window apart
NUMBERS_AT_ONCE = 2**24  # of maps, or of rows for the head


# Pooling without some places --------------------------------------------------------


def _averages(maps, kept):
    """(n, c, p) maps and (k, p) kept shares → (n, k, c): means of what is kept."""
    shares = kept / kept.sum(1, keepdims=True)
    return (maps @ shares.T).transpose(0, 2, 1)


def _largest(maps, kept):
    """(n, c, p), (k, p) → (n, k, c): largest values of places mostly kept."""
    places = [np.flatnonzero(one > 0.5) for one in kept]
    return np.stack([maps[:, :, some].max(2) for some in places], 1)


def _generalised_means(maps, kept):
    """(n, c, p), (k, p) → (n, k, c): cubic means of what is kept."""
    powers = np.maximum(maps, GEM_FLOOR) ** GEM_POWER
    return _averages(powers, kept) ** (1 / GEM_POWER)


def _probability_weighted(maps, kept):
    """(n, c, p), (k, p) → (n, k, c): means weighted by themselves."""
    positive = np.maximum(maps, 0)
    weight = np.maximum(positive @ kept.T, 1e-12)
    return ((positive * positive) @ kept.T / weight).transpose(0, 2, 1)


# As POOLINGS in _networks/pooling.py, without the one that keeps the places apart.
POOLINGS_WITHOUT = {
    "avg": (_averages,),
    "max": (_largest,),
    "avgmax": (_averages, _largest),
    "gem": (_generalised_means,),
    "stochastic": (_probability_weighted,),
}


@dataclass(frozen=True)
class Windows:
    """What is left out, one after another: squares in the input of the network.

    Parameters
    ----------
    n_sides : int
        Number of windows along each side.
    side : float
        Side of a window, as a share of the side of the input.
    """

    n_sides: int
    side: float

    @classmethod
    def over(cls, n_places: int, method: str) -> "Windows":
        """The windows over maps with this number of places along a side."""
        if method == "places":
            return cls(n_places, 1 / n_places)
        return cls(min(n_places, FINEST), max(WINDOW, 1 / n_places))

    def kept(self, n_places: int) -> np.ndarray:
        """Shares (1 + n_windows, n_places²) of each place that are kept.

        The first row keeps all of them.
        """
        covered = self._covered(n_places)
        both = covered[:, None, :, None] * covered[None, :, None, :]
        left_out = both.reshape(self.n_sides**2, n_places**2)
        return 1 - np.concatenate([np.zeros((1, n_places**2)), left_out])

    def _covered(self, n_places: int) -> np.ndarray:
        """Shares (n_sides, n_places) of the places along a side that windows cover."""
        centres = (np.arange(self.n_sides) + 0.5) / self.n_sides
        start = np.clip(centres - self.side / 2, 0, 1 - self.side)[:, None]
        edges = np.arange(n_places + 1) / n_places
        upper = np.minimum(start + self.side, edges[1:])
        overlap = np.clip(upper - np.maximum(start, edges[:-1]), 0, None) * n_places
        return np.where(overlap > 1 - 1e-9, 1.0, np.where(overlap < 1e-9, 0.0, overlap))


# Maps of features -------------------------------------------------------------------


class MapsOfFeatures:
    """A feature step before pooling.

    Parameters
    ----------
    features : PretrainedCNNFeatures
        A fitted step.

    Attributes
    ----------
    sides : list of int
        Places along a side of the maps of each of its layers.
    """

    def __init__(self, features: PretrainedCNNFeatures):
        from ._networks.places import shape_at

        plan = features._plan()
        source, columns = plan.pooled.source, plan.columns.requested
        places = [_with_places(column, source) for column in columns]
        self._poolings = [pooling for _, pooling in places]
        size = source.input.image_size
        shapes = [shape_at(source.backbone, layer, size) for layer, _ in places]
        self._channels = [layer.features for layer, _ in places]
        laid_out = [LAYOUTS[layer.layout].places(shape) for (layer, _), shape in zip(places, shapes, strict=True)]
        self.sides = [math.isqrt(math.prod(sizes)) for sizes in laid_out]
        nodes = tuple(layer.node for layer, _ in places)
        self._unpooled = copy.copy(features).set_params(
            **{"layer": nodes, "pooling": "flatten", "cache": None, "output": "numpy"},
            **{"prefetch_layers": (), "verbose": 0},
        )

    @property
    def size(self) -> int:
        """Numbers in the maps of one photo."""
        pairs = zip(self._channels, self.sides, strict=True)
        return sum(channels * side**2 for channels, side in pairs)

    @property
    def width(self) -> int:
        """Number of features."""
        pairs = zip(self._channels, self._poolings, strict=True)
        return sum(n * len(POOLINGS_WITHOUT[how]) for n, how in pairs)

    def images(self, X) -> Images:
        """The photos that this step is given."""
        allow_nan = self._unpooled.on_error == "nan"
        return read_input(self._unpooled, X, reset=False, allow_nan=allow_nan)

    def rows_without(self, images: Images, start, stop, windows: Windows):
        """Features (n, 1 + n_windows, width) of some photos: whole, and without each of
        the windows."""
        maps = self._maps(images, start, stop)
        parts = []
        for of_layer, side, pooling in zip(maps, self.sides, self._poolings, strict=True):
            kept = windows.kept(side)
            parts += [pool(of_layer, kept) for pool in POOLINGS_WITHOUT[pooling]]
        return np.concatenate(parts, 2, dtype=np.float32)

    def _maps(self, images: Images, start: int, stop: int) -> list[np.ndarray]:
        """Maps (n, c, p) of each layer."""
        try:
            flat = self._unpooled.transform(images.part(start, stop))
        except ImageError as error:
            raise error.at(error.row + start) from error.__cause__
        pairs = zip(self._channels, self.sides, strict=True)
        ends = np.cumsum([channels * side**2 for channels, side in pairs])
        parts = np.split(flat.astype(float), ends[:-1], axis=1)
        return [part.reshape(len(flat), c, -1) for part, c in zip(parts, self._channels, strict=True)]


def _with_places(column: Column, source) -> tuple[Layer, str]:
    """The maps of a column and how they are pooled; refuses columns without places."""
    from ._networks.places import map_behind, shape_at

    layer, pooling, backbone = column.layer, column.pooling, source.backbone
    size = source.input.image_size
    if layer.layout == "vector":
        layer, pooling = map_behind(backbone, layer, size) or layer, "avg"
    places = LAYOUTS[layer.layout].places(shape_at(backbone, layer, size))
    n_places = math.prod(places)
    name = column.layer.alias or column.layer.node
    if pooling == "flatten":
        raise ValueError(
            "activation_maps leaves places out of the pooling, and pooling='flatten' "
            "pools nothing. Use pooling='avg', or another one, and fit again."
        )
    if not places or n_places < 2 or math.isqrt(n_places) ** 2 != n_places:
        raise ValueError(
            f"Layer {name!r} of backbone {backbone.name!r} has no places in the image "
            f"that could be left out.{_deepest_with_places(backbone)}"
        )
    return layer, pooling


def _deepest_with_places(backbone) -> str:
    """What to use instead of a layer without places."""
    layers = [x for x in aliased_layers(backbone) if x.layout != "vector" and x.alias]
    return f" Use layer={layers[-1].alias!r} and fit again." if layers else ""


# Scores -----------------------------------------------------------------------------


def _class_scores(head: Composite, X, rows, classes) -> np.ndarray:
    """Scores (n, n_classes) of the classes, the more the likelier."""
    for method in ("decision_function", "predict_proba"):
        if hasattr(head.head, method):
            scores = np.asarray(head.call(method, X, rows))
            if scores.ndim == 1:
                scores = np.stack([-scores, scores], 1)
            if scores.shape == (len(rows[0]), len(classes)):
                return scores
    return (head.call("predict", X, rows)[:, None] == classes).astype(float)


# Public -----------------------------------------------------------------------------


def activation_maps(estimator, X, *, target=None, method="auto"):
    composite = divide(estimator)
    return Explanation(composite, X, target, method).maps()


class Explanation:
    def __init__(self, composite, X, target, method):
        self._composite, self._X = composite, X
        self._parts = [MapsOfFeatures(features) for features in composite.features]
        given = composite.images_of(X)
        self._alone = all(one is X for one in given)
        self._images = [part.images(one) for part, one in zip(self._parts, given, strict=True)]
        self._windows = Windows.over(max(side for part in self._parts for side in part.sides), method)

    def maps(self):
        n, k = len(self._images[0]), self._windows.n_sides**2
        found = [self._some(start, min(start + 32, n)) for start in range(0, n, 32)]
        return np.concatenate(found)

    def _some(self, start, stop):
        n, side = stop - start, self._windows.n_sides
        rows = [part.rows_without(images, start, stop, self._windows).reshape(n * (1 + side**2), -1) for part, images in zip(self._parts, self._images, strict=True)]
        X = rows[0] if self._alone else take_rows(self._X, np.repeat(np.arange(start, stop), 1 + side**2))
        classes = self._composite.head.classes_
        scores = _class_scores(self._composite, X, rows, classes).reshape(n, 1 + side**2, -1)
        predicted = self._composite.call("predict", X, rows).reshape(n, -1)[:, 0]
        column = np.searchsorted(classes, predicted)
        chosen = scores[np.arange(n), :, column]
        return (chosen[:, :1] - chosen[:, 1:]).reshape(n, side, side)
