"""A composite → the same in parts that skl2onnx knows: without tables or words."""

import copy

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer

from .._composites import READS_IMAGES, parts_of, with_output_of


def without_tables(estimator):
    """The estimator, or a copy that takes photos where it took a table of them alone.

    Its column transformers become unions of the same steps.
    """
    unions = {
        id(part): _union(part)
        for part in parts_of(estimator)
        if isinstance(part, ColumnTransformer) and _takes_photos_alone(part)
    }
    return copy.deepcopy(estimator, unions) if unions else estimator


def _used(transformer: ColumnTransformer) -> list[tuple]:
    """Name, fitted step and column of what a column transformer does not drop."""
    found = getattr(transformer, "transformers_", ())
    return [one for one in found if not isinstance(one[1], str) or one[1] != "drop"]


def _takes_photos_alone(transformer: ColumnTransformer) -> bool:
    """Whether all of its steps read the images of one column."""
    used = _used(transformer)
    columns = [columns for _, _, columns in used]
    return len(used) > 0 and all(
        _reads_images(step) and type(one) is type(columns[0]) and one == columns[0]
        for one, (_, step, _) in zip(columns, used, strict=True)
    )


def _reads_images(step) -> bool:
    """Whether a step or a part of it reads images."""
    return any(isinstance(part, READS_IMAGES) for part in parts_of(step))


def _union(transformer: ColumnTransformer) -> FeatureUnion:
    """The steps of a column transformer, side by side."""
    steps = [(name, step) for name, step, _ in _used(transformer)]
    weights = transformer.transformer_weights
    union = FeatureUnion(steps, transformer_weights=weights)
    return with_output_of(transformer, union)


def remove_words(head) -> None:
    """Remove "passthrough", None and "drop" from among the steps of a head."""
    for part in parts_of(head):
        if isinstance(part, FeatureUnion):
            part.transformer_list = _objects(part.transformer_list)
        elif isinstance(part, Pipeline):
            part.steps = _objects(part.steps) or [("nothing", FunctionTransformer())]


def _objects(steps: list[tuple]) -> list[tuple]:
    """The steps that are not strings or None."""
    return [one for one in steps if one[1] is not None and not isinstance(one[1], str)]
