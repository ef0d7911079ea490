"""Dense layers as steps of ONNX: heads that skl2onnx does not convert, or not well."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from skl2onnx.common.data_types import (
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC, NuSVC

from .._finetuning.detached_head import DetachedHead
from .extra import OPSET

# Modules between dense layers → operators; some do nothing in prediction.
ACTIVATIONS: dict[str, list[str]] = {
    "Dropout": [],
    "Identity": [],
    "ReLU": ["Relu"],
    "Hardswish": ["HardSwish"],
    "Sigmoid": ["Sigmoid"],
    "Tanh": ["Tanh"],
}
# Kinds of arrays → their type in ONNX, and in numpy on the way there.
TENSORS: tuple[tuple[str, int, Any], ...] = (
    ("f", onnx.TensorProto.FLOAT, np.float32),
    ("biu", onnx.TensorProto.INT64, np.int64),
    ("OUS", onnx.TensorProto.STRING, str),
)
NUMBERS = "biuf"

Dense = tuple[np.ndarray, np.ndarray]  # weights (width, width after it), and biases


def layers_of_head(head: DetachedHead) -> list[Dense | str]:
    """Dense layers and operators of the head of a fine-tuned classifier, in order."""
    steps: list[Dense | str] = []
    for name, module in [] if head.inner is None else head.inner.named_children():
        kind = type(module).__name__
        if kind == "Linear":
            steps.append(_dense(head.weights, f"inner.{name}"))
        elif kind not in ACTIVATIONS:
            raise NotImplementedError(f"a step of its head is a {kind}")
        else:
            steps += ACTIVATIONS[kind]
    return [*steps, _dense(head.weights, "last"), "Softmax"]


class LinearScores(ClassifierMixin, BaseEstimator):
    """A linear classifier without probabilities, with a score for each class.

    Parameters
    ----------
    model : estimator
        With `coef_`, `intercept_` and `classes_`.
    """

    def __init__(self, model):
        self.model = model
        self.classes_ = model.classes_


def is_linear(model) -> bool:
    """Whether a classifier has nothing but a linear decision function."""
    needed = all(hasattr(model, name) for name in ("coef_", "intercept_", "classes_"))
    by_pairs = isinstance(model, (SVC, NuSVC))
    return needed and not by_pairs and not hasattr(model, "predict_proba")


def layers_of_linear(scores: LinearScores) -> list[Dense | str]:
    """Its one layer; of two classes, the first has the score of the second, negated."""
    weights = np.atleast_2d(scores.model.coef_).T  # (width, n_classes)
    biases = np.ravel(scores.model.intercept_)
    if weights.shape[1] == 1:
        weights, biases = np.hstack([-weights, weights]), np.hstack([-biases, biases])
    return [(weights, np.broadcast_to(biases, weights.shape[1:]))]


LAYERS: dict[type, Callable] = {
    DetachedHead: layers_of_head,
    LinearScores: layers_of_linear,
}


def _dense(weights, name: str) -> Dense:
    return weights[f"{name}.weight"].T, weights[f"{name}.bias"]


def parse(scope, model, inputs, custom_parsers=None):
    """Declare a classifier: labels, and a score or a probability for each class."""
    operator = scope.declare_local_operator(f"Sklearn{type(model).__name__}", model)
    operator.inputs.extend(inputs)
    numbers = model.classes_.dtype.kind in NUMBERS
    kind = Int64TensorType if numbers else StringTensorType
    scores = FloatTensorType([None, len(model.classes_)])
    for name, type_ in (("label", kind([None])), ("scores", scores)):
        operator.outputs.append(scope.declare_local_variable(name, type_))
    return operator.outputs


def shape(operator) -> None:
    """Do nothing: `parse` has declared the shapes."""


def convert(scope, operator, container) -> None:
    """Add the layers, and the label of the largest score."""
    model, steps = operator.raw_operator, Steps(scope, container)
    label, scores = (variable.full_name for variable in operator.outputs)
    value = operator.inputs[0].full_name
    for layer in LAYERS[type(model)](model):
        if isinstance(layer, str):
            value = steps.add(layer, [value])
        else:
            value = steps.add("Gemm", [value, *map(steps.constant, layer)])
    steps.add("Identity", [value], scores)
    best = steps.add("ArgMax", [value], axis=1, keepdims=0)
    classes = model.classes_
    if classes.dtype.kind in NUMBERS:  # whole ones, as scikit-learn requires
        classes = classes.astype(np.int64)
    steps.add("Gather", [steps.constant(classes), best], label)


class Steps:
    """Adds steps and constants with names of their own to a graph of skl2onnx."""

    def __init__(self, scope, container):
        self._scope, self._container = scope, container

    def add(self, kind: str, inputs: list[str], output=None, **options) -> str:
        """Add a step; returns the name of its output."""
        output = output or self._scope.get_unique_variable_name(kind)
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(
            kind, inputs, output, name=name, op_version=OPSET, **options
        )
        return output

    def constant(self, values: np.ndarray) -> str:
        """Add numbers or labels; returns their name."""
        kind, as_type = next(
            (kind, one) for kinds, kind, one in TENSORS if values.dtype.kind in kinds
        )
        flat = np.ravel(values).astype(as_type).tolist()
        flat = [one.encode() if isinstance(one, str) else one for one in flat]
        name = self._scope.get_unique_variable_name("constant")
        self._container.add_initializer(name, kind, list(values.shape), flat)
        return name
