"""Frozen blocks: computed once, and refused where they give no finite features."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import count_images
from sklearn.base import clone
from small_fits import classifier, coloured_images, data_of, own_backbone, trunk

from skdeepfeat import ImageError, ImageWarning
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._finetuning import frozen, training
from skdeepfeat._finetuning.new_head import Head
from skdeepfeat._finetuning.parts import Parts
from skdeepfeat._finetuning.tuned_part import find_tuned_part
from skdeepfeat._networks.generators import Draws


@pytest.fixture(scope="module")
def images():
    return coloured_images()


def test_the_frozen_trunk_is_computed_once(images, monkeypatch):
    X, y = images
    classifier().fit(X, y)  # finding the layers runs the network's shapes, once
    seen, forward = [0], torch.nn.Conv2d.forward

    def counted(self, x):
        seen[0] += len(x) if self.in_channels == 3 else 0
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    classifier(unfreeze=1, epochs=4).fit(X, y)
    assert seen[0] == len(X)
    seen[0] = 0
    classifier(unfreeze=1, epochs=4, augment="light").fit(X, y)
    assert seen[0] == 5 * len(X) + 4  # after each epoch one image is looked at
    clf = classifier(unfreeze=1, augment="light").fit(X, y)
    seen[0] = 0
    clf.partial_fit(X, y)  # needs no features of the untouched network
    assert seen[0] == len(X) + 1


def test_too_little_disk_is_said_and_survived(images, monkeypatch):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: usage)
    with pytest.warns(UserWarning, match=r"would take .* bytes, more than half"):
        clf = classifier().fit(*images)
    assert clf.score(*images) > 0.5


def test_activations_too_large_for_half_precision(images):
    net = torch.nn.Sequential(*trunk(), torch.nn.Linear(8, 4))
    backbone = own_backbone(net)
    arrays = {
        name: array * (1e6 if name.startswith("0") else 1)
        for name, array in backbone.arrays.items()
    }
    source = resolve_source(replace(backbone, arrays=arrays), "default", 0, None)
    part = replace(find_tuned_part(source, 1), start="0")
    head = Head(part.width, 2, 0.0)
    parts = Parts(source, source.key(), part, head, Draws(0, torch.device("cpu")))
    pixels = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    data = data_of(pixels, np.arange(4) % 2)
    with pytest.warns(UserWarning, match="do not fit in half precision"):
        computed = frozen.FrozenFeatures(parts, data, keep=True)
        assert computed.entered is None and computed.rows.shape == (4, 8)


out_of_range = pytest.mark.filterwarnings("ignore:Some pixel values are outside")


# Images whose features are not finite -------------------------------------------------


@pytest.fixture
def some_not_finite(images):
    """The images as floats, of which row 3 overflows in the network."""
    X = list(images[0].astype(np.float32) / 255)
    X[3] = np.full((10, 10, 3), 1e37, np.float32)
    return X, images[1]


class Unchanged:
    """An augmentation whose name in test reports is always the same."""

    def __call__(self, image):
        return image

    def __repr__(self):
        return "unchanged"


SETTINGS = [
    {},
    {"unfreeze": 0},
    {"augment": "standard"},
    {"unfreeze": "all", "augment": Unchanged()},
    {"head_epochs": 0, "augment": "light"},
    {"early_stopping": True, "validation_fraction": 0.3},
    {"early_stopping": True, "validation_fraction": 0.3, "head_epochs": 0},
]


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
@out_of_range
def test_images_without_finite_features_are_named_before_training(
    some_not_finite, parameters, monkeypatch
):
    monkeypatch.setattr(training, "train_step", lambda *a: pytest.fail("trained"))
    X, y = some_not_finite
    for seed in range(3):  # with early stopping, the image is trained on or held out
        clf = classifier(**parameters).set_params(random_state=seed)
        with pytest.raises(ImageError, match=r"^row 3 \(.*features are not finite"):
            clf.fit(X, y)
        assert not hasattr(clf, "weights_")


@out_of_range
def test_all_images_without_finite_features_are_named(some_not_finite):
    X, y = some_not_finite
    X[7] = X[3]
    with pytest.raises(ImageError, match=r"row 3 .*2 of 40 images.*rows 7"):
        classifier(early_stopping=True, validation_fraction=0.3).fit(X, y)


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
@out_of_range
def test_fit_leaves_images_without_finite_features_out(some_not_finite, parameters):
    X, y = some_not_finite
    clf = classifier(on_error="nan", class_weight="balanced", **parameters)
    with pytest.warns(ImageWarning, match=r"1 of 40 .* first is row 3"):
        clf.fit(X, y)
    kept = np.delete(np.arange(40), 3)
    without = clone(clf).fit([X[row] for row in kept], y[kept])
    np.testing.assert_array_equal(
        clf.predict_proba(X[4:]), without.predict_proba(X[4:])
    )


@out_of_range
def test_unreadable_images_and_those_without_finite_features(some_not_finite):
    X, y = some_not_finite
    X[5] = None
    clf = classifier(on_error="nan")
    with pytest.warns(ImageWarning) as caught:
        clf.fit(X, y)
    said = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert len(said) == 2 and "row 5" in said[0] and "row 3" in said[1]
    rows = [
        X[3] if label == "bee" else image for image, label in zip(X, y, strict=True)
    ]
    with pytest.warns(ImageWarning), pytest.raises(ImageError, match=r"\['bee'\]"):
        clf.fit(rows, y)


@pytest.mark.parametrize("augment", ["none", "light", "standard"])
@pytest.mark.parametrize("unfreeze", [0, 1, "all"])
@out_of_range
def test_going_on_refuses_images_without_finite_features(
    images, some_not_finite, augment, unfreeze
):
    clf = classifier(augment=augment, unfreeze=unfreeze).fit(*images)
    before = pickle.dumps(clf.weights_)
    with pytest.raises(ImageError, match=r"^row 3 \(.*features are not finite"):
        clf.partial_fit(*some_not_finite)
    assert pickle.dumps(clf.weights_) == before


@out_of_range
def test_going_on_looks_once_more_at_images_out_of_range_only(images, monkeypatch):
    X, y = images
    clf = classifier(augment="light").fit(X, y)
    seen = count_images(monkeypatch)
    X = X.astype(np.float32) / 255
    clf.partial_fit(X, y)
    assert seen[0] == 40 + 1  # the epoch, and a look for divergence
    X[[3, 7]] *= 2
    seen[0] = 0
    clf.partial_fit(X, y)
    assert seen[0] == 40 + 1 + 2
