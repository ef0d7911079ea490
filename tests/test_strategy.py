"""Recommendations follow from what was measured."""

import numpy as np
import pytest
import torch
from conftest import count_images
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from torch import nn

import skdeepfeat._strategy as strategy
from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    ImageError,
    load_textures,
    rank_layers,
)
from skdeepfeat import recommend_strategy as recommend
from skdeepfeat._choice import LayerScore


@pytest.fixture(scope="module")
def textures():
    textures = load_textures()
    return textures.data[::4], textures.target[::4]


def with_scores(monkeypatch, n, **scores):
    """As if the probe had these accuracies, and R², on n images."""
    found = {
        layer: LayerScore(score, score, hits=(np.arange(n) < score * n) * 1.0)
        for layer, score in scores.items()
    }
    monkeypatch.setattr(strategy, "_score_every_depth", lambda *a: found)


CASES = [
    (20, {"block2": 0.7, "penultimate": 0.9}, "head only", 0),
    (500, {"block2": 0.7, "penultimate": 0.9}, "fine-tune", 2),
    (20, {"block1": 0.8, "penultimate": 0.8}, "head only", 0),
    (20, {"block2": 0.9, "penultimate": 0.7}, "earlier layers", None),
    (500, {"block2": 0.9, "penultimate": 0.7}, "fine-tune most layers", 7),
]


@pytest.mark.parametrize(("n", "scores", "name", "unfreeze"), CASES)
def test_the_four_cases(monkeypatch, n, scores, name, unfreeze):
    with_scores(monkeypatch, 2 * n, **scores)
    X, y = np.zeros((2 * n, 4, 4, 3), np.uint8), np.arange(2 * n) % 2
    found = recommend(X, y, verbose=0)
    assert found.strategy == name and found.images_per_class == n
    last_is_best = scores["penultimate"] >= max(scores.values())
    assert (
        "No layer is better than 'penultimate'" in found.explanation
    ) == last_is_best
    assert is_classifier(found.estimator)
    if unfreeze is None:
        assert isinstance(found.estimator, Pipeline)
        assert found.estimator[0].layer == "block2"
    else:
        assert isinstance(found.estimator, FineTunedClassifier)
        assert found.estimator.unfreeze == unfreeze


def test_on_real_images(textures, capsys):
    X, y = textures
    found = recommend(X, y, image_size=64)
    said = capsys.readouterr().out
    assert said.strip() == found.explanation
    ranking = rank_layers(X, y, image_size=64)
    assert {row.layer: row.accuracy for row in ranking} == {
        layer: accuracy for layer, (accuracy, _) in found.accuracy.items()
    }
    assert list(found.accuracy)[-1] == "penultimate"
    for layer, (mean, error) in found.accuracy.items():
        assert f"{layer:12} {mean:.3f} +- {error:.3f}" in said
    assert found.strategy in said
    assert found.estimator.set_params().fit(X, y).score(X, y) > 0.5


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 images each.*smallest with 1"):
        recommend(np.zeros((3, 4, 4, 3), np.uint8), [0, 0, 1])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed"),
        ([[0, 1], [0, 1], [1, 0], [1, 0]], "y should be a 1d array"),
        ([0.1, 0.2, 0.3, 0.4], "Unknown label type"),
        (["a", None, "a", "a"], "y has no value in 1 of 4 rows"),
    ],
)
def test_what_are_no_labels_is_refused(y, message):
    with pytest.raises(ValueError, match=message):
        recommend(np.zeros((4, 4, 4, 3), np.uint8), y)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("layer", ""), ("pooling", ""), ("unfreeze", ""), ("imgsize", "'image_size'")],
)
def test_parameters_that_the_estimators_do_not_share_are_refused(name, meant):
    with pytest.raises(TypeError, match=f"no '{name}' parameter.*{meant}.*It takes"):
        recommend(np.zeros((4, 4, 4, 3), np.uint8), [0, 0, 1, 1], **{name: 1})


def test_a_chosen_layer_of_a_lower_accuracy_is_not_called_better(monkeypatch):
    with_scores(monkeypatch, 40, block1=0.8, penultimate=0.9)
    monkeypatch.setattr(strategy, "choose_layer", lambda scores: "block1")
    said = recommend(np.zeros((40, 4, 4, 3), np.uint8), np.arange(40) % 2).explanation
    assert "'block1' minus that of 'penultimate' is -0.100 +- " in said
    assert "block1       0.800 +- 0.064  <- chosen" in said
    assert "better" not in said and "best" not in said.partition("Strategy")[0]


def test_an_unreadable_image_is_named_by_its_row_of_X(tmp_path):
    textures = load_textures()
    X, y = (
        [*textures.data[::8], "gone.jpg"],
        [*textures.target[::8], textures.target[0]],
    )
    with pytest.raises(ImageError, match=f"row {len(X) - 1} .*gone.jpg"):
        recommend(X, y, verbose=0)


def test_labels_are_classes_whatever_their_type(textures):
    X, y = textures
    found = [
        recommend(X, labels, image_size=64, verbose=0)
        for labels in (y, y.astype(float), y.astype(str), list(y))
    ]
    assert all(other.accuracy == found[0].accuracy for other in found)


def test_each_image_is_computed_once(textures, monkeypatch):
    forwards = count_images(monkeypatch)
    recommend(*textures, image_size=64, verbose=0, batch_size=1)
    assert forwards[0] == len(textures[0])


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return self.fc(torch.stack(list(x)))  # which torch.fx cannot trace


REFUSED = {
    "no trace": ({"backbone": Untraceable}, "cannot be traced by torch.fx"),
    "features alone": ({"precision": "float16"}, "'precision' parameter of FineTuned"),
    "several devices": ({"device": ["cpu", "cpu"]}, "'device' parameter of FineTuned"),
    "seed": ({"random_state": "a"}, "'random_state' parameter of FineTuned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_refused_before_anything_is_computed(
    case, textures, monkeypatch
):
    parameters, message = REFUSED[case]
    if "backbone" in parameters:
        net = parameters["backbone"]().eval()
        parameters = {"backbone": Backbone.from_module(net, image_size=32)}
    forwards = count_images(monkeypatch)
    with pytest.raises(ValueError, match=message):
        recommend(*textures, **{"image_size": 32, **parameters}, verbose=0)
    assert forwards[0] == 0


def test_the_error_is_that_of_pairs():
    earlier, last = np.arange(100) < 75, np.arange(100) < 70
    gain = earlier.astype(float) - last
    error = strategy._standard_error(gain)
    alone = strategy._standard_error(earlier)
    assert error == pytest.approx(gain.std(ddof=1) / 10) and error < alone


def test_labels_of_several_types_are_refused():
    labels = np.array(["a", 1, "a", 1], object)
    with pytest.raises(TypeError, match=r"labels of one type\. Got int and str"):
        recommend(np.zeros((4, 4, 4, 3), np.uint8), labels)
