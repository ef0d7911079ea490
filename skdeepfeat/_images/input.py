"""Validation of X, as an estimator receives it, and its rows as images."""

from .._validation import check_columns, check_rows_exist, check_table, whole_dtype
from .containers import lazily, read_images, unwrap_container
from .flat_rows import is_table, shape_rows
from .windows import Images


def read_input(estimator, X, *, reset, allow_nan=False) -> Images:
    """The rows of X as images; records the columns of X, or compares them."""
    if isinstance(X, Images):  # from an estimator that uses this one
        return X
    X = unwrap_container(X)
    rows = lazily(X)
    if is_table(rows):
        shape = estimator.image_shape
        table = check_table(
            estimator, X, reset=reset, image_shape=shape, allow_nan=allow_nan
        )
        return shape_rows(table, shape, whole_dtype(X))
    images = read_images(rows, estimator.protocols)
    check_rows_exist(estimator, len(images))
    check_columns(estimator, X, reset=reset)
    return images


def set_input_tags(tags, image_shape) -> None:
    """Set the tags for the kinds of X accepted: flat rows only with a shape."""
    flat = image_shape is not None
    tags.input_tags.two_d_array = flat
    tags.input_tags.three_d_array = True
    tags.input_tags.one_d_array = not flat
    tags.input_tags.string = not flat
