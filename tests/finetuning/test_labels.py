"""Labels, the weights of classes and images, and what is held out."""

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils.class_weight import compute_sample_weight
from small_fits import classifier, coloured_images

from skdeepfeat._finetuning.labels import Labels


@pytest.fixture(scope="module")
def images():
    return coloured_images()


def test_weights_of_images_count_like_copies(images):
    """Statistically: a weight of 3 and three copies give nearly the same scores."""
    X, y = images
    weights = np.where(y == "ant", 3, 1)
    copies = np.repeat(np.arange(40), weights)
    common = {"unfreeze": 0, "epochs": 60, "batch_size": 100}
    weighted = classifier(**common).fit(X, y, sample_weight=weights)
    copied = classifier(**common).fit(X[copies], y[copies])
    plain = classifier(**common).fit(X, y)
    a, b, c = (clf.predict_proba(X) for clf in (weighted, copied, plain))
    assert np.abs(a - b).mean() < 0.2 * np.abs(a - c).mean()


def test_images_of_weight_zero_are_left_out(images):
    X, y = images
    weights = (np.arange(40) < 30).astype(float)
    some = classifier().fit(X, y, sample_weight=weights)
    without = classifier().fit(X[:30], y[:30])
    np.testing.assert_array_equal(some.predict_proba(X), without.predict_proba(X))


@pytest.mark.parametrize("labels", [[3, 7], ["yes", "no"], [False, True], [1.0, 2.0]])
def test_any_two_labels(images, labels):
    X, y = images
    y = np.array(labels)[(y == "ant").astype(int)]
    clf = classifier().fit(X, y.tolist())
    assert clf.decision_function(X).shape == (40,)
    assert set(clf.predict(X)) <= set(labels)


def test_one_class_is_refused(images):
    with pytest.raises(ValueError, match=r"at least 2 classes.*'ant'"):
        classifier().fit(images[0], ["ant"] * 40)


def test_labels_must_match_the_images(images):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier().fit(images[0], images[1][:-1])


def test_a_class_that_cannot_be_held_out_is_named(images):
    X, y = images
    y = y.copy()
    y[0] = "dog"
    with pytest.raises(ValueError, match=r"'dog'\)?.* has 1 images.*early_stopping"):
        classifier(early_stopping=True, validation_fraction=0.2).fit(X, y)


def test_enough_images_must_be_left_to_train_on(images):
    clf = classifier(early_stopping=True, validation_fraction=0.95)
    with pytest.raises(ValueError, match=r"leaves 2 of 40 .* 3 classes. Lower valid"):
        clf.fit(*images)


@pytest.mark.parametrize(
    "classes", [["ant", "bee", None], [[0, 1]], "ant", {"ant", "bee"}, [0.0, np.nan]]
)
def test_classes_must_be_a_list_of_labels(images, classes):
    X, y = images
    with pytest.raises(ValueError, match=r"'classes' .* must be a list"):
        classifier().partial_fit(X, y, classes=classes)
    clf = classifier().partial_fit(X, y, classes=["cat", "bee", "ant", "ant"])
    with pytest.raises(ValueError, match=r"'classes' .* must be a list"):
        clf.partial_fit(X, y, classes=classes)


def test_labels_that_the_first_classes_lack_are_named(images):
    with pytest.raises(ValueError, match=r"\['cat'\].* of partial_fit. Pass all"):
        classifier().partial_fit(*images, classes=["ant", "bee"])


def test_balanced_weights_ignore_images_of_weight_zero(images):
    X, y = images
    weights = (np.arange(40) < 25).astype(float)
    clf = classifier(class_weight="balanced")
    some = clone(clf).fit(X, y, sample_weight=weights).predict_proba(X)
    without = clone(clf).fit(X[:25], y[:25]).predict_proba(X)
    np.testing.assert_array_equal(some, without)
    with pytest.raises(ValueError, match="balanced"):
        clf.partial_fit(X, y, classes=np.unique(y))
    clf.set_params(class_weight={"ant": 2.0}).partial_fit(X, y, classes=np.unique(y))
    clf.partial_fit(X[:2], y[:2])


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_class_of_weight_zero_is_known_and_not_learned(images, early_stopping):
    """As with scikit-learn's linear models and support vector machines."""
    X, y = images
    weights = np.where(y == "bee", 0.0, 1.0)
    clf = classifier(
        class_weight="balanced",
        early_stopping=early_stopping,
        validation_fraction=0.2,
        epochs=5,
    )
    clf.fit(X, y, sample_weight=weights)
    assert clf.classes_.tolist() == ["ant", "bee", "cat"]
    assert clf.score(X[y != "bee"], y[y != "bee"]) > 0.8
    by_dict = clone(clf).set_params(class_weight={"ant": 1.0, "bee": 0.0, "cat": 1.0})
    assert "bee" not in set(by_dict.fit(X, y).predict(X))


def test_a_later_fit_need_not_show_all_classes(images):
    X, y = images
    some = y != "cat"
    clf = classifier(warm_start=True, class_weight="balanced").fit(X, y)
    clf.fit(X[some], y[some])
    assert clf.classes_.tolist() == ["ant", "bee", "cat"]


def test_balanced_classes_count_alike(images):
    """Weights of images are part of the balance, as in scikit-learn."""
    _, y = images
    weights = np.where(y == "ant", 5.0, np.where(y == "bee", 0.5, 1.0))
    labels = Labels.encode(y, weights, "balanced", None, None)
    sums = np.bincount(labels.targets, labels.weights)
    np.testing.assert_allclose(sums, sums[0])
    expected = compute_sample_weight("balanced", y)
    plain = Labels.encode(y, np.ones(40), "balanced", None, None).weights
    np.testing.assert_allclose(plain / plain[0], expected / expected[0])


@pytest.mark.parametrize("by_class", [None, "balanced", 1e308, 1e-308])
@pytest.mark.parametrize("scale", [2.0**1022, 2.0**-1000])
def test_only_the_ratio_of_weights_counts(by_class, scale):
    y = np.array(["ant", "ant", "bee", "bee", "cat", "cat", "cat"])
    ratios = np.array([1, 2, 0.5, 0, 1, 3, 0.25])
    if isinstance(by_class, float):
        by_class = {"ant": by_class, "bee": by_class / 2, "cat": by_class}
    expected = Labels.encode(y, ratios, by_class, None, None).weights
    found = Labels.encode(y, ratios * scale, by_class, None, None).weights
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found.sum()) and found.mean() > 0


def test_huge_weights_train_as_ones_do(images):
    X, y = images
    weights = np.where(y == "ant", 1.0, 0.5)
    huge = classifier(unfreeze=0).fit(X, y, sample_weight=weights * 2.0**1023)
    same = classifier(unfreeze=0).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(huge.predict_proba(X), same.predict_proba(X))


def test_class_weights_by_dict(images):
    X, y = images
    clf = classifier(class_weight={"ant": 2.0, "dog": 1.0})
    with pytest.raises(ValueError, match=r"\['bee', 'cat'\], are not in class_weight"):
        clf.fit(X, y)
    for wrong in ({"ant": -1.0}, dict.fromkeys(["ant", "bee", "cat"], 0.0)):
        with pytest.raises(ValueError, match=r"'class_weight' .* above 0"):
            clf.set_params(class_weight=wrong).fit(X, y)
    zero = clf.set_params(class_weight={"ant": 0.0}).fit(X, y)
    without = classifier().fit(X, y, sample_weight=(y != "ant").astype(float))
    np.testing.assert_array_equal(zero.predict_proba(X), without.predict_proba(X))


@pytest.mark.parametrize("dispatch", [False, True])
def test_labels_in_a_tensor(images, dispatch):
    X, y = images
    if dispatch:
        pytest.importorskip("scipy", "1.14")  # which scikit-learn needs for it
    codes = (y == "ant") * 1
    weights = np.where(codes, 3.0, 1.0)
    expected = classifier().fit(X, codes, weights).predict_proba(X)
    with config_context(array_api_dispatch=dispatch):
        clf = classifier().fit(X, torch.tensor(codes), torch.tensor(weights))
        part = classifier().partial_fit(X, torch.tensor(codes), torch.tensor([0, 1]))
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    assert clf.classes_.tolist() == part.classes_.tolist() == [0, 1]
