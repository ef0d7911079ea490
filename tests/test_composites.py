"""Fitted composites are divided into the steps that read images and the rest."""

import numpy as np
import pandas as pd
import pytest
from conftest import coloured_images
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures
from skdeepfeat._composites import divide

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
    "search": search,
    "calibrated": lambda: CalibratedClassifierCV(pipeline(), cv=2),
    "threshold": lambda: TunedThresholdClassifierCV(pipeline(), cv=2),
    "stack": stack,
    "fine-tuned": lambda: FineTunedClassifier("tiny", epochs=1, random_state=0),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_head_predicts_from_rows_as_the_composite_from_images(name):
    labels = y == 1 if name == "threshold" else y
    model = COMPOSITES[name]().fit(X, labels)
    composite = divide(model)
    rows = [step.transform(X) for step in composite.features]
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
