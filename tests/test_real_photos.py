"""The whole job on real photos with real ImageNet weights."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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


def test_real_weights_know_real_classes(shared_data, squeezenet_weights):
    paths = sorted(map(str, (shared_data / "imagenet_samples").glob("*.jpg")))
    some = np.arange(0, 1000, 20)
    features = PretrainedCNNFeatures(
        "squeezenet1_0", weights=squeezenet_weights, layer="logits"
    )
    found = features.transform([paths[i] for i in some]).argmax(1)
    assert (found == some).mean() > 0.5
