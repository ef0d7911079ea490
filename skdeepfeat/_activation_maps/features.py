"""A feature step before pooling: photos → features with each of the masks."""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from .._backbones.layouts import LAYOUTS
from .._backbones.records import Layer
from .._backbones.weights import WeightsSource
from .._composites import rows_of
from .._exceptions import ImageError, ImageWarning
from .._features import PretrainedCNNFeatures
from .._images.preparing import Preparation, read_row
from .._images.windows import Images
from .._networks.layers import aliased_layers
from .._store.columns import Column
from .._validation import check_value_range, with_parameters
from .masks import Masks
from .pooling import POOLINGS, averages


@dataclass(frozen=True)
class PooledMaps:
    """The maps of one layer, and how a feature step pools them.

    Parameters
    ----------
    layer : Layer
    pooling : str
    side : int
        Places along each side.
    """

    layer: Layer
    pooling: str
    side: int

    @property
    def size(self) -> int:
        """Numbers in the maps of one photo."""
        return self.layer.features * self.side**2

    @property
    def width(self) -> int:
        """Number of features."""
        return self.layer.features * len(POOLINGS[self.pooling])

    def masked(self, flat: np.ndarray, masks: Masks) -> np.ndarray:
        """Flat maps (n, size) → features (n, 1 + n_masks, width): of all places, and
        of those that each mask keeps."""
        maps = flat.reshape(len(flat), self.layer.features, -1)
        kept = np.vstack([np.ones(self.side**2), masks.kept(self.side)])
        return np.concatenate([pool(maps, kept) for pool in POOLINGS[self.pooling]], 2)


class UnpooledFeatures:
    """A feature step that returns maps.

    Parameters
    ----------
    features : PretrainedCNNFeatures
        A step of a fitted composite.

    Attributes
    ----------
    spec : InputSpec
        How photos enter its network.
    maps : list of PooledMaps
        The maps of each layer.
    errors : list of tuple (int, str, str)
        Row, source and reason of the photos that could not be read so far.
    """

    def __init__(self, features: PretrainedCNNFeatures):
        plan = features._plan()
        source, columns = plan.pooled.source, plan.columns.requested
        self.spec = source.input
        self.maps = [_maps_of(column, source) for column in columns]
        self.errors: list[tuple] = []
        self.features = with_parameters(
            features,
            layer=tuple(maps.layer.node for maps in self.maps),
            pooling="flatten",
            cache=None,
            prefetch_layers=(),
            verbose=0,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Name of the column that it was fitted on, if it has one."""
        names = getattr(self.features, "feature_names_in_", ())
        return tuple(names) if self.features.image_shape is None else ()

    @property
    def view(self) -> tuple:
        """What determines which part of a photo enters the network."""
        spec = self.spec
        if spec.resize is None or spec.mode != "crop":
            return (spec.mode,)
        return spec.mode, round(spec.resize / spec.image_size, 2)

    @property
    def finest(self) -> int:
        """Places along a side of the finest maps."""
        return max(maps.side for maps in self.maps)

    @property
    def averages(self) -> bool:
        """Whether all places count equally for a feature, whatever their values."""
        return all(POOLINGS[maps.pooling] == (averages,) for maps in self.maps)

    def numbers(self, masks: Masks) -> int:
        """Numbers in memory for one photo."""
        rows = sum(maps.width for maps in self.maps) * (1 + len(masks))
        return rows + sum(maps.size for maps in self.maps)

    def read(self, X) -> Images:
        """The photos that the step is given."""
        return self.features._read(X, reset=False)

    def pixels(self, images: Images, row: int) -> np.ndarray:
        """A photo (side, side, 3) as it enters the network, from 0 to 1."""
        value_range = check_value_range(self.features.value_range)
        how = Preparation(self.spec, value_range, self.features.decode)
        found = read_row(images, row, how)
        if isinstance(found, ImageError):
            return np.ones((self.spec.image_size, self.spec.image_size, 3))
        return np.clip(found.pixels / 255, 0, 1)

    def masked(self, images: Images, start: int, stop: int, masks: Masks):
        """Features (n, 1 + n_masks, width) of some photos, as in `PooledMaps`."""
        with warnings.catch_warnings():  # which names a row that counts from `start`
            warnings.filterwarnings("ignore", ".* could not be read", ImageWarning)
            flat = self._transform(images, start, stop)
        ends = np.cumsum([maps.size for maps in self.maps])
        parts = np.split(flat.astype(float), ends[:-1], axis=1)
        rows = [m.masked(part, masks) for m, part in zip(self.maps, parts, strict=True)]
        return np.concatenate(rows, 2, dtype=np.float32)

    def _transform(self, images: Images, start: int, stop: int) -> np.ndarray:
        """Flat maps of all layers; keeps the errors of photos that cannot be read."""
        try:
            flat = rows_of(self.features, images.part(start, stop))
        except ImageError as error:
            raise error.at(error.row + start) from error.__cause__
        found = self.features.errors_
        self.errors += [(row + start, *about) for row, *about in found]
        return flat


def _maps_of(column: Column, source: WeightsSource) -> PooledMaps:
    """The maps behind a column; refuses columns that have none."""
    from .._networks.places import map_behind

    if column.pooling == "flatten":
        raise ValueError(
            "activation_maps leaves places out of the pooling, and pooling='flatten' "
            "pools nothing. Use pooling='avg', or another one, and fit again."
        )
    backbone, size = source.backbone, source.input.image_size
    layer, pooling = column.layer, column.pooling
    if layer.layout == "vector":
        layer, pooling = map_behind(backbone, layer, size) or layer, "avg"
    side = _side(layer, source)
    if side < 2:
        raise ValueError(_no_places(column.layer, source))
    return PooledMaps(layer, pooling, side)


def _side(layer: Layer, source: WeightsSource) -> int:
    """Places along a side of the maps of a layer; 0 if they are not square."""
    from .._networks.places import shape_at

    shape = shape_at(source.backbone, layer, source.input.image_size)
    n_places = math.prod(LAYOUTS[layer.layout].places(shape) or (0,))
    side = math.isqrt(n_places)
    return side if side**2 == n_places else 0


def _no_places(layer: Layer, source: WeightsSource) -> str:
    """Why a layer has no map, and which is the deepest that has one."""
    backbone = source.backbone
    others = [x.alias for x in aliased_layers(backbone) if _side(x, source) > 1]
    instead = f" Use layer={others[-1]!r}, and fit again." if others else ""
    return (
        f"Layer {layer.alias or layer.node!r} of backbone {backbone.name!r} is one row "
        "of features for the whole image, and no average over several places that "
        f"could be left out.{instead}"
    )
