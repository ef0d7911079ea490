"""Fitted composites are divided into the steps that read images and the rest."""

import numpy as np
import pandas as pd
import pytest
from conftest import coloured_images
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.compose import make_column_transformer
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures
from skdeepfeat._composites import divide, rows_of

X, y = coloured_images(24, 8)
FRAME = pd.DataFrame({"photo": list(X), "size": np.arange(24.0)})


def pipeline(**parameters):
    features = PretrainedCNNFeatures("tiny", **parameters)
    return make_pipeline(features, StandardScaler(), LogisticRegression())


def search():
    return GridSearchCV(pipeline(), {"logisticregression__C": [1, 10]}, cv=2)


def stack():
    several = [("one", pipeline()), ("two", pipeline(layer="block3"))]
    return StackingClassifier(several, cv=2)


COMPOSITES = {
    "pipeline": pipeline,
    "frames": lambda: pipeline().set_output(transform="pandas"),
    "tensors": lambda: make_pipeline(
        PretrainedCNNFeatures("tiny", output="torch"),
        FunctionTransformer(lambda tensor: tensor.cpu().numpy()),
        LogisticRegression(),
    ),
    "frozen": lambda: FrozenEstimator(pipeline().fit(X, y)),
    "frozen inside": lambda: CalibratedClassifierCV(FrozenEstimator(pipeline())),
    "search": search,
    "calibrated": lambda: CalibratedClassifierCV(pipeline(), cv=2),
    "threshold": lambda: TunedThresholdClassifierCV(pipeline(), cv=2),
    "stack": stack,
    "fine-tuned": lambda: FineTunedClassifier("tiny", epochs=1, random_state=0),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_head_predicts_from_rows_as_the_composite_from_images(name):
    labels = y == 1 if name == "threshold" else y
    model = COMPOSITES[name]()
    if name == "frozen inside":
        model.estimator.estimator.fit(X, y)
    model.fit(X, labels)
    composite = divide(model)
    rows = [rows_of(step, X) for step in composite.features]
    assert len(rows) == (2 if name == "stack" else 1)
    before = model.predict_proba(X)
    composite.give(np.concatenate(rows, 1))
    found = composite.head.predict_proba(rows[0])
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(model.predict_proba(X), before)  # it is a copy


def test_columns_beside_photos_keep_their_values():
    beside = make_column_transformer(
        (PretrainedCNNFeatures("tiny"), "photo"), (StandardScaler(), ["size"])
    )
    model = make_pipeline(beside, LogisticRegression()).fit(FRAME, y)
    expected = model.predict_proba(FRAME)
    model[0].n_jobs = 2  # whose processes would not find the rows
    composite = divide(model)
    (given,) = composite.images_of(FRAME)
    assert given.name == "photo" and len(given) == 24
    composite.give(composite.features[0].transform(given))
    found = composite.head.predict_proba(FRAME)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_estimators_without_images_are_refused():
    with pytest.raises(ValueError, match=r"no step that reads images"):
        divide(LogisticRegression().fit(np.eye(2), [0, 1]))
    with pytest.raises(NotFittedError):
        divide(pipeline())


def test_polars_frames_between_steps():
    pytest.importorskip("polars")
    model = pipeline().set_output(transform="polars").fit(X, y)
    composite = divide(model)
    rows = rows_of(composite.features[0], X)
    assert isinstance(rows, np.ndarray)
    composite.give(rows)
    found = composite.head.predict_proba(rows)
    np.testing.assert_allclose(found, model.predict_proba(X), rtol=1e-5)


BLIND = {
    "GridSearchCV": GridSearchCV(pipeline(), {}, cv=2, refit=False),
    "DBSCAN": make_pipeline(PretrainedCNNFeatures("tiny"), DBSCAN()),
    "AgglomerativeClustering": make_pipeline(
        PretrainedCNNFeatures("tiny"), AgglomerativeClustering()
    ),
    "LocalOutlierFactor": make_pipeline(
        PretrainedCNNFeatures("tiny"), LocalOutlierFactor(5)
    ),
}


@pytest.mark.parametrize("name", BLIND)
def test_what_cannot_predict_new_images_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} cannot predict new images.*refit"):
        divide(BLIND[name].fit(X, y))


@pytest.mark.parametrize("bad", [(x for x in X), Image.new("L", (8, 8)), None, [], "a"])
def test_what_predict_refuses_is_refused_in_the_same_words(bad):
    model = pipeline().fit(X, y)
    with pytest.raises(ValueError) as expected:
        model.predict(bad)
    with pytest.raises(ValueError) as found:
        divide(model).images_of(bad)
    assert str(found.value) == str(expected.value)
