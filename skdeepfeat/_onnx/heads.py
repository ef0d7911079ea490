"""A head of scikit-learn → a graph of ONNX, by skl2onnx: rows → predictions."""

import contextlib
import logging
import warnings
from typing import Any

import numpy as np
from onnx import TensorProto, compose, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import BaseEstimator, is_classifier
from sklearn.pipeline import Pipeline

from .._composites import Composite, GivenRows, last_step, parts_of
from .._exceptions import in_one_line
from . import dense
from .extra import OPSETS, state_versions

# What to use instead of estimators that are not converted, or not correctly. Of those
# in one step, the first counts.
INSTEAD = {
    "ColumnTransformer": "a pipeline of the photos alone, or export its "
    "PretrainedCNNFeatures alone, and give their features to the other steps",
    "FixedThresholdClassifier": "its estimator_, and apply its threshold to the "
    "probabilities",
    "TunedThresholdClassifierCV": "its estimator_, and apply its best_threshold_ to "
    "the probabilities",
    "GaussianProcessClassifier": "LogisticRegression or SVC(probability=True)",
    "HistGradientBoostingClassifier": "GradientBoostingClassifier",
    "HistGradientBoostingRegressor": "GradientBoostingRegressor",
    "KNeighborsClassifier": "weights='uniform'",
    "LinearDiscriminantAnalysis": "LogisticRegression",
    "OneVsOneClassifier": "OneVsRestClassifier(LogisticRegression())",
    "CalibratedClassifierCV": "method='sigmoid', around the last step alone",
    "LinearSVC": "LogisticRegression, or CalibratedClassifierCV(LinearSVC()) after all "
    "other steps",
    "BaggingClassifier": "an estimator with predict_proba inside it",
    "StackingClassifier": "estimators of scikit-learn with predict_proba inside it",
    "VotingClassifier": "flatten_transform=False",
    "FunctionTransformer": "a transformer of scikit-learn",
}
OTHERWISE = (
    "Use another one, such as LogisticRegression, SVC or RandomForestClassifier; "
    "skl2onnx.supported_converters() lists more."
)
# Why some are refused although skl2onnx converts them.
REFUSED = {
    "ColumnTransformer": "it reads columns of a table, and the graph reads images",
    "TunedThresholdClassifierCV": "skl2onnx leaves its threshold out",
}
SHOWN = 200  # characters of an error of skl2onnx


def convert_head(composite: Composite, expected: dict[str, np.ndarray]):
    """The graph "rows" (n, width) float32 → what the head predicts, by name.

    Raises a ValueError that names the step which cannot be converted.
    """
    head = with_linear_scores(composite.head)
    try:
        model = convert_steps(head, composite.slices)
        model = compose.add_prefix(model, "raw_", rename_inputs=False)
        _name_outputs(model.graph, expected)
        return model
    except Exception as error:  # skl2onnx raises whatever a converter raises
        place = _first_that_fails(head, composite.slices)
        reason = in_one_line(error)[:SHOWN]
        if any(step.output == "torch" for step in composite.features):
            reason += "; set output='numpy' and fit again if it holds tensors"
        raise _not_converted(head, place, reason) from error


def refuse_known(head) -> None:
    """Refuse steps that skl2onnx converts into something else, and single classes and
    labels that no graph returns."""
    _refuse_labels(head)
    for place, step in enumerate(head if isinstance(head, Pipeline) else [head]):
        for part in parts_of(step):
            if reason := REFUSED.get(type(part).__name__):
                raise _not_converted(head, place, reason)


def _refuse_labels(head) -> None:
    """Refuse a part that was fitted with one class, for which onnxruntime may end the
    process, and one whose classes are times."""
    for part in parts_of(head):
        if isinstance(part, BaseEstimator) and is_classifier(part):
            classes: Any = getattr(part, "classes_", ())
            kind = type(last_step(part))
            if len(classes) == 1:
                raise ValueError(
                    f"to_onnx needs two classes or more. This {kind.__name__} was "
                    f"fitted with one, {str(classes[0])!r}; fit it again with all "
                    "classes."
                )
            if getattr(classes, "dtype", np.dtype(int)).kind in "mM":
                raise ValueError(
                    "to_onnx returns labels that are numbers or strings. The classes "
                    f"of this {kind.__name__} are {classes.dtype}; fit it again with "
                    "y.astype(str)."
                )


def _not_converted(head, place: int, reason: str) -> ValueError:
    """The error of a step that cannot be converted."""
    return ValueError(
        f"{named(head, place)} cannot be converted to ONNX ({reason}). "
        f"{advice(head, place)}"
    )


def advice(head, place: int) -> str:
    """What to use instead of a step of a head, or of a part of it."""
    step = head[place] if isinstance(head, Pipeline) else head
    kinds = {type(part).__name__ for part in parts_of(step)}
    found = (
        f"In place of {kind}, use {instead}."
        for kind, instead in INSTEAD.items()
        if kind in kinds
    )
    return next(found, OTHERWISE)


def named(head, place: int) -> str:
    """A step of a head in a message."""
    if not isinstance(head, Pipeline):
        return type(head).__name__
    name, step = head.steps[place]
    kind = type(getattr(step, "model", step)).__name__
    return f"Step {name!r} ({kind})"


def prefixes(head) -> list:
    """What ends with the first step of a head, with the second, and so on."""
    if not isinstance(head, Pipeline):
        return [head]
    return [head[: end + 1] for end in range(len(head.steps))]


def with_linear_scores(head):
    """The same head with a converter of ours for a linear classifier at its end, also
    at that of a pipeline inside."""
    if isinstance(head, Pipeline):
        name, last = head.steps[-1]
        return Pipeline([*head.steps[:-1], (name, with_linear_scores(last))])
    return dense.LinearScores(head) if dense.is_linear(head) else head


def _first_that_fails(head, slices) -> int:
    """The first step of a head that cannot be converted."""
    *before_last, _ = prefixes(head)
    for place, prefix in enumerate(before_last):
        try:
            convert_steps(prefix, slices)
        except Exception:
            return place
    return len(before_last)


def convert_steps(head, slices):
    """Convert a head or the first steps of one, whatever its end."""
    own = {GivenRows: (_shape_of(slices), _converter_of(slices))}
    own |= dict.fromkeys(dense.LAYERS, (dense.shape, dense.convert))
    with _quiet():
        model = convert_sklearn(
            head,
            initial_types=[("rows", FloatTensorType([None, slices[-1].stop]))],
            target_opset=OPSETS,
            custom_shape_calculators={kind: one for kind, (one, _) in own.items()},
            custom_conversion_functions={kind: two for kind, (_, two) in own.items()},
            custom_parsers=dict.fromkeys(dense.LAYERS, dense.parse),
        )
    state_versions(model)
    _drop_dictionaries(model.graph)
    return model


@contextlib.contextmanager
def _quiet():
    """Without what skl2onnx logs and warns about its own code."""
    logger = logging.getLogger("skl2onnx")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _shape_of(slices):
    def shape(operator):
        """The width of the rows that a stand-in returns."""
        place = slices[operator.raw_operator.place]
        operator.outputs[0].type = FloatTensorType([None, place.stop - place.start])

    return shape


def _converter_of(slices):
    def convert(scope, operator, container):
        """A stand-in takes its part of the rows of all feature steps."""
        place = slices[operator.raw_operator.place]
        names = [scope.get_unique_variable_name(n) for n in ("start", "stop", "axis")]
        for name, value in zip(names, (place.start, place.stop, 1), strict=True):
            container.add_initializer(name, TensorProto.INT64, [1], [value])
        rows, out = operator.inputs[0].full_name, operator.outputs[0].full_name
        container.add_node(
            "Slice", [rows, *names], out, name=scope.get_unique_operator_name("Slice")
        )

    return convert


def _drop_dictionaries(graph) -> None:
    """Let a graph return an array of probabilities instead of dictionaries."""
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        graph.node.remove(node)
        graph.node.append(
            helper.make_node("Identity", list(node.input), list(node.output))
        )


def _name_outputs(graph, expected: dict[str, np.ndarray]) -> None:
    """Return what is expected, under these names; leave out what else there is."""
    found = [
        (output.name, output.type.tensor_type.elem_type) for output in graph.output
    ]
    del graph.output[:]
    flat = helper.make_tensor("flat", TensorProto.INT64, [1], [-1])
    graph.initializer.append(flat)
    for (given, kind), (name, values) in zip(found, expected.items(), strict=False):
        step, shape, axes = "Identity", [], ["n", *values.shape[1:]]
        if values.ndim == 1:
            step, shape = "Reshape", ["flat"]
        kind = kind or TensorProto.FLOAT
        graph.node.append(helper.make_node(step, [given, *shape], [name]))
        graph.output.append(helper.make_tensor_value_info(name, kind, axes))
