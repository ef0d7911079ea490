"""What both estimators do with `X` and with the parameters that name a network."""

from dataclasses import replace
from numbers import Integral

from ._backbones import Backbone, WeightsSource, resolve_backbone, resolve_weights
from ._images import (
    Images,
    is_table,
    lazily,
    read_images,
    shape_rows,
    unwrap_container,
)
from ._validation import (
    HasBackbone,
    HasMethods,
    Interval,
    check_columns,
    check_rows_exist,
    check_table,
)

CONSTRAINTS: dict = {
    "backbone": [str, Backbone, HasBackbone()],
    "weights": [str, HasMethods("__fspath__"), tuple, None],
    "image_shape": [tuple, list, None],
    "value_range": [tuple, list, None],
    "protocols": [tuple, list],
    "image_size": [Interval(Integral, 1, None, closed="left"), None],
    "n_jobs": [Integral, None],
    "verbose": ["verbose"],
}


def read_input(estimator, X, *, reset, allow_nan=False) -> Images:
    """X as rows of images; remembers or compares its columns on the estimator."""
    if isinstance(X, Images):  # by an estimator that rests on this one
        return X
    X = unwrap_container(X)
    rows = lazily(X)
    if is_table(rows):
        shape = estimator.image_shape
        table = check_table(
            estimator, X, reset=reset, image_shape=shape, allow_nan=allow_nan
        )
        return shape_rows(table, shape)
    images = read_images(rows, estimator.protocols)
    check_rows_exist(estimator, len(images))
    check_columns(estimator, X, reset=reset)
    return images


def resolve_source(backbone, weights, seed, image_size) -> WeightsSource:
    """The weights, with the preprocessing for the input size asked for."""
    backbone = resolve_backbone(backbone)
    source = resolve_weights(backbone, weights, seed)
    spec = source.input.scaled(image_size)
    if backbone.size_option and source.seed is None and spec != source.input:
        raise ValueError(
            f"Backbone {backbone.name!r} with these weights takes images of "
            f"{source.input.image_size} pixels only. Got image_size={image_size!r} "
            "instead; leave it None."
        )
    return replace(source, input=spec)


def set_input_tags(tags, image_shape) -> None:
    """Tell scikit-learn which kinds of X are taken: flat rows only with a shape."""
    flat = image_shape is not None
    tags.input_tags.two_d_array = flat
    tags.input_tags.three_d_array = True
    tags.input_tags.one_d_array = not flat
    tags.input_tags.string = not flat
