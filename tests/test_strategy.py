"""Recommendations follow from what was measured."""

import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

import skdeepfeat._strategy as strategy
from skdeepfeat import FineTunedClassifier, ImageError, list_layers, load_textures
from skdeepfeat import recommend_strategy as recommend


@pytest.fixture(scope="module")
def textures():
    textures = load_textures()
    return textures.data[::4], textures.target[::4]


def with_scores(monkeypatch, **scores):
    """As if the probe had these accuracies in three folds."""
    noise = np.array([-0.01, 0.0, 0.01])
    found = {
        layer: score + noise * (layer != "block2") for layer, score in scores.items()
    }
    monkeypatch.setattr(strategy, "_probe_every_depth", lambda *a: found)


CASES = [
    (20, {"block2": 0.7, "penultimate": 0.9}, "head only", 0),
    (500, {"block2": 0.7, "penultimate": 0.9}, "fine-tune", 2),
    (20, {"block1": 0.8, "penultimate": 0.8}, "head only", 0),
    (20, {"block2": 0.9, "penultimate": 0.7}, "earlier layers", None),
    (500, {"block2": 0.9, "penultimate": 0.7}, "fine-tune most layers", 8),
]


@pytest.mark.parametrize(("n", "scores", "name", "unfreeze"), CASES)
def test_the_four_cases(monkeypatch, n, scores, name, unfreeze):
    with_scores(monkeypatch, **scores)
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
    found = recommend(X, y, image_size=64, cv=3)
    said = capsys.readouterr().out
    assert said.strip() == found.explanation
    depths = [la.alias for la in list_layers("mini") if la.alias != "logits"]
    assert list(found.accuracy) == depths
    for layer, (mean, error) in found.accuracy.items():
        assert f"{layer:12} {mean:.3f} +- {error:.3f}" in said
    assert found.strategy in said
    assert found.estimator.set_params().fit(X, y).score(X, y) > 0.5


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 images each.*smallest with 1"):
        recommend(np.zeros((3, 4, 4, 3), np.uint8), [0, 0, 1])


def test_an_unreadable_image_is_named_by_its_row_of_X(tmp_path):
    textures = load_textures()
    X, y = (
        [*textures.data[::8], "gone.jpg"],
        [*textures.target[::8], textures.target[0]],
    )
    with pytest.raises(ImageError, match=f"row {len(X) - 1} .*gone.jpg"):
        recommend(X, y, cv=2, verbose=0)
