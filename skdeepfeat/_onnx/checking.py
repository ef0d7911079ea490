"""Compares a graph of ONNX with the estimator that it was made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector

from .._composites import Composite, as_array, by_class, last_step, rows_of
from .._exceptions import in_one_line
from .dense import is_linear
from .heads import (
    SHOWN,
    advice,
    convert_steps,
    named,
    prefixes,
    with_linear_scores,
)

TOLERANCE = 1e-4  # of probabilities; of other numbers, as a share of the largest
N_BETWEEN = 512  # rows between those of the images
FEW = 0.01  # share of them that may differ
TIE = 1e-6  # difference of two probabilities that are the same to single precision


def runnable(model) -> Callable[..., dict[str, np.ndarray]]:
    """What runs a graph: named inputs → its outputs, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, session.run(None, inputs), strict=True))


def run(model, **inputs) -> dict[str, np.ndarray]:
    """The outputs of a graph, by name."""
    return runnable(model)(**inputs)


def expected_outputs(estimator, X) -> dict[str, np.ndarray]:
    """What an estimator predicts for X, by the names of the outputs in ONNX."""
    if not hasattr(estimator, "predict"):
        return {"features": as_array(estimator.transform(X))}
    predicted = as_array(estimator.predict(X))
    if is_outlier_detector(estimator):
        return {"label": predicted, "scores": estimator.decision_function(X)}
    if is_clusterer(estimator):
        return {"label": predicted}
    if not is_classifier(estimator):
        return {"value": predicted}
    if predicted.ndim > 1:
        raise ValueError(
            "to_onnx exports one label for each image, and "
            f"{type(last_step(estimator)).__name__} predicts {predicted.shape[1]}. Fit "
            "and export one classifier for each."
        )
    if hasattr(estimator, "predict_proba"):
        return {"label": predicted, "probabilities": estimator.predict_proba(X)}
    if is_linear(last_step(estimator)):
        return {"label": predicted, "scores": by_class(estimator.decision_function(X))}
    return {"label": predicted}


@dataclass(frozen=True)
class Difference:
    """How outputs differ from what is expected, image by image.

    Parameters
    ----------
    gaps : ndarray of shape (n_images,)
        Largest difference of probabilities; of other numbers, as a share of the largest
        one.
    labels : ndarray of shape (n_images,), bool
        Where labels differ, except those of images whose best classes tie.
    """

    gaps: np.ndarray
    labels: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Images (n,) whose outputs are not the same."""
        return self.labels | ~(self.gaps <= TOLERANCE)

    @property
    def largest(self) -> float:
        """The largest difference of numbers."""
        return float(self.gaps.max())

    def __str__(self):
        n, labels = len(self.gaps), self.labels.sum()
        parts = [f"{labels} of {n} labels differ"] if labels else []
        if not self.largest <= TOLERANCE:
            parts.append(f"numbers differ by up to {self.largest:.1e}")
        return " and ".join(parts)


def difference(found: dict, expected: dict[str, np.ndarray]) -> Difference:
    """Compare outputs by name."""
    n = len(next(iter(expected.values())))
    gaps, labels = np.zeros(n), np.zeros(n, bool)
    for name, wanted in expected.items():
        if name == "label":
            other = np.ravel(found[name]).astype(wanted.dtype) != wanted
            labels = other & ~_ties(expected)
        else:
            scale = 1.0 if name == "probabilities" else np.abs(wanted).max() or 1.0
            apart = np.abs(found[name].reshape(wanted.shape) - wanted) / scale
            gaps = np.maximum(gaps, apart.reshape(n, -1).max(1))
    return Difference(gaps, labels)


def _ties(expected: dict[str, np.ndarray]) -> np.ndarray:
    """Which images have two classes that are equally likely."""
    likely = expected.get("probabilities")
    if likely is None:
        return np.zeros(len(expected["label"]), bool)
    best = np.sort(likely, 1)[:, -2:]
    return best[:, 1] - best[:, 0] <= TIE


def check_rows(rows: np.ndarray, composite: Composite, X) -> None:
    """Refuse a network that computes other features in ONNX."""
    given = composite.images_of(X)
    for step, place, images in zip(
        composite.features, composite.slices, given, strict=True
    ):
        wanted = rows_of(step, images)
        gap = difference({"features": rows[:, place]}, {"features": wanted})
        if gap.wrong.any():
            name = step._network().source.backbone.name
            raise ValueError(
                f"Backbone {name!r} is exported incorrectly: its features differ by "
                f"{gap.largest:.1e} of the largest one. ONNX computes in single "
                "precision: set precision='float32' and fit again, or use another "
                "backbone."
            )


def check_head(model, composite: Composite, rows: np.ndarray, expected) -> None:
    """Refuse a head that predicts something else in ONNX, and name its step.

    Rows between those of the images are compared too, since images may all be far from
    where the prediction changes. There, a few may differ by the rounding of numbers.
    """
    between = _between(rows)
    try:
        predict = runnable(model)
        gap = difference(predict(rows=rows), expected)
    except Exception as error:  # whatever onnxruntime raises
        reason = f"onnxruntime cannot run it: {in_one_line(error)[:SHOWN]}"
        raise _fault(reason, composite, rows) from error
    composite.give(between)
    wanted = expected_outputs(composite.head, between)
    gap_between = difference(predict(rows=between), wanted)
    if gap.wrong.any():
        raise _fault(f"for {len(rows)} images, {gap}", composite, rows)
    if gap_between.wrong.mean() > FEW:
        reason = f"for {len(between)} rows between those of the images, {gap_between}"
        raise _fault(reason, composite, between)


def _between(rows: np.ndarray) -> np.ndarray:
    """Rows at random places between two of these rows."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(rows), (2, N_BETWEEN))
    share = rng.uniform(size=(N_BETWEEN, 1)).astype(np.float32)
    return share * rows[first] + (1 - share) * rows[second]


def _fault(reason: str, composite: Composite, rows: np.ndarray) -> ValueError:
    """The error of a head that differs, which names its step."""
    head = with_linear_scores(composite.head)
    place = _first_that_differs(head, composite, rows)
    return ValueError(
        f"{named(head, place)} is converted to ONNX incorrectly by skl2onnx: {reason}. "
        f"{advice(head, place)}"
    )


def _first_that_differs(head, composite: Composite, rows: np.ndarray) -> int:
    """The first step of a head whose outputs differ, or else the last one."""
    before_last = prefixes(head)[:-1]
    composite.give(rows)
    for place, prefix in enumerate(before_last):
        wanted = {"features": as_array(prefix.transform(rows))}
        outputs = run(convert_steps(prefix, composite.slices), rows=rows)
        found = {"features": next(iter(outputs.values()))}
        if difference(found, wanted).wrong.any():
            return place
    return len(before_last)


def check_resized(model, photos: list[np.ndarray], expected) -> dict[str, str]:
    """By how much predictions differ for photos that the graph resizes, in words."""
    predict = runnable(model)
    found = [predict(image=photo) for photo in photos]
    joined = {name: np.concatenate([one[name] for one in found]) for name in expected}
    gap = difference(joined, expected)
    return {
        "resize_largest_difference": f"{gap.largest:.2e}",
        "resize_labels_changed": f"{gap.labels.sum()} of {len(photos)}",
    }
