"""Complete pipelines on real photos with ImageNet weights."""

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from skdeepfeat import PretrainedCNNFeatures, load_image_folder


@pytest.fixture(scope="module")
def ants_and_bees(shared_data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            load_image_folder(shared_data / "hymenoptera" / s) for s in ("train", "val")
        ]


@pytest.mark.slow
def test_accuracy_by_depth_on_ants_and_bees(ants_and_bees, squeezenet_weights):
    train, test = ants_and_bees
    assert (len(train.data), len(test.data)) == (245, 153)
    features = PretrainedCNNFeatures("squeezenet1_0", weights=squeezenet_weights)
    pipe = make_pipeline(
        features, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
    )
    scores = {}
    for layer in ["block8", "block5", "block1"]:
        pipe.set_params(pretrainedcnnfeatures__layer=layer)
        pipe.fit(train.data, train.target)
        scores[layer] = pipe.score(test.data, test.target)
    assert scores["block8"] == pytest.approx(0.935, abs=0.014)
    assert scores["block8"] > scores["block5"] > scores["block1"]


def test_published_weights_recognise_real_classes(shared_data, squeezenet_weights):
    paths = sorted(map(str, (shared_data / "imagenet_samples").glob("*.jpg")))
    some = np.arange(0, 1000, 20)
    features = PretrainedCNNFeatures(
        "squeezenet1_0", weights=squeezenet_weights, layer="logits"
    )
    found = features.transform([paths[i] for i in some]).argmax(1)
    assert (found == some).mean() > 0.5


HEADS = {
    "SVM": SVC(),
    "forest": RandomForestClassifier(random_state=0),
    "neighbours": KNeighborsClassifier(),
    "logistic": LogisticRegression(C=0.01, max_iter=1000),
    "tree": DecisionTreeClassifier(random_state=0),
    "naive Bayes": GaussianNB(),
}


@pytest.mark.slow
def test_grid_over_depth_and_head_beats_raw_pixels(ants_and_bees, squeezenet_weights):
    """Prints its table with `pytest -s`."""
    train, _ = ants_and_bees
    features = PretrainedCNNFeatures("squeezenet1_0", weights=squeezenet_weights)
    pipe = Pipeline(
        [("features", features), ("scale", StandardScaler()), ("head", SVC())]
    )
    layers = ["block8", "block6", "block4", "block2"]
    grid = {"features__layer": layers, "head": list(HEADS.values())}
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(pipe, grid, cv=folds).fit(train.data, train.target)
    scores = search.cv_results_["mean_test_score"].reshape(len(layers), len(HEADS))
    print("\n" + pd.DataFrame(scores, layers, list(HEADS)).round(3).to_string())

    def small(path):
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((32, 32))).ravel()

    pixels = np.stack([small(path) for path in train.data])
    raw = cross_val_score(
        make_pipeline(StandardScaler(), SVC()), pixels, train.target, cv=folds
    ).mean()
    print(f"best {search.best_score_:.3f}, raw pixels {raw:.3f}")
    assert search.best_score_ > raw + 0.2
