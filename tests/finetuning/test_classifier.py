"""FineTunedClassifier: predictions, persistence, and its company in scikit-learn."""

import gc
import os
import pickle
import subprocess
import sys
import textwrap
import weakref

import joblib
import numpy as np
import pytest
import skops.io
import torch
from safetensors.numpy import load_file
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from small_fits import classifier, coloured_images, with_unreadable

from skdeepfeat import (
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    WeightsError,
    clear_caches,
    embed_weights,
    list_layers,
)
from skdeepfeat._finetuning import training
from skdeepfeat._report import last_report


@pytest.fixture(scope="module")
def images():
    return coloured_images()


@pytest.fixture
def some_unreadable(images):
    return with_unreadable(images)


def test_verbose_prints_epochs(images, capsys):
    classifier(verbose=1).fit(*images)
    said = capsys.readouterr().out
    assert said.count("epoch") == 5 and "head  epoch 1: loss" in said


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_one_image_is_computed_alone_and_only_once(images, unfreeze, monkeypatch):
    X, y = images
    clf = classifier(unfreeze=unfreeze).fit(X, y)
    expected = clf.predict_proba(X)
    clear_caches()
    clf.predict(X[:1])  # what is found out about a network is found out by now
    sizes, forward = [], torch.nn.Conv2d.forward

    def counted(self, x):
        if not x.is_meta:  # shapes alone are found without pixels
            sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    proba = clf.predict_proba(X[5:6])
    np.testing.assert_allclose(proba, expected[5:6], atol=1e-6)
    assert set(sizes) == {1}
    sizes.clear()
    np.testing.assert_array_equal(clf.predict_proba(X[5:6]), proba)
    assert sizes == []
    clone_of_it = pickle.loads(pickle.dumps(clf)).set_params(cache=None)
    clone_of_it.predict(X[5:6])
    assert sizes != []


def test_predictions_and_features_share_their_rows(images, tmp_path):
    X, y = images
    clf = classifier(cache=tmp_path / "store").fit(X, y)
    clf.predict(X)
    features = clf.as_features()
    assert features.cache == tmp_path / "store"
    features.transform(X)
    assert features.stats_["n_computed"] == 0
    head = classifier(unfreeze=0, cache=tmp_path / "store").fit(X, y)
    plain = PretrainedCNNFeatures("tiny", cache=tmp_path / "store")
    plain.transform(X)
    assert head.predict(X).shape == (40,)
    head.as_features().transform(X)
    clf.partial_fit(X, y)
    features = clf.as_features()
    features.transform(X)
    assert features.stats_["n_computed"] == 40  # the network is another one now


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        ("logits", True),
        ((0, "logits"), True),
        (9, True),
        ("blokc1", False),
        (20, False),
    ],
)
def test_a_tuned_network_says_where_its_classes_are(images, layer, remedy):
    X, y = images
    features = classifier(unfreeze=0).fit(X, y).as_features(layer)
    with pytest.raises(ValueError, match="Unknown layer") as error:
        features.transform(X)
    assert "embed_weights" not in str(error.value)
    assert (
        "FineTunedClassifier, whose decision_function" in str(error.value)
    ) is remedy


def test_so_does_an_embedded_one(images):
    features = embed_weights(classifier(unfreeze=0).fit(*images)).as_features("logits")
    with pytest.raises(ValueError, match="whose decision_function returns their scor"):
        features.transform(images[0])


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_output_of_transformers_does_not_matter(output, images):
    """Which the user sets for all transformers, and so for those inside."""
    clf = classifier().fit(*images)
    expected = clf.predict_proba(images[0])
    with config_context(transform_output=output):
        np.testing.assert_array_equal(clf.predict_proba(images[0]), expected)
        assert clf.score(*images) == np.mean(clf.predict(images[0]) == images[1])


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_openvino_predicts_the_same(images, unfreeze, monkeypatch):
    pytest.importorskip("openvino")
    X, y = images
    clf = FineTunedClassifier(
        epochs=1, image_size=32, unfreeze=unfreeze, random_state=0, engine="torch"
    ).fit(X, y)
    expected = clf.predict_proba(X)
    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    clf.set_params(engine="openvino")
    ours = clf.predict_proba(X)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert last_report(clf).stats["engine"] == "openvino"
    assert not np.array_equal(ours, expected)


def test_an_engine_that_cannot_be_had_is_refused_before_training(images, monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda *a: pytest.fail("trained"))
    with pytest.raises(ImportError, match=r"skdeepfeat\[openvino\]"):
        classifier(engine="openvino").fit(*images)


def test_probabilities_of_unreadable_images_are_nan(images, some_unreadable):
    X, _ = some_unreadable
    clf = classifier(on_error="nan").fit(*images)
    expected = clf.predict_proba(images[0])
    assert clf.errors_ == []
    for method in (clf.predict_proba, clf.decision_function):
        with pytest.warns(ImageWarning, match="2 of 40 images could not be read"):
            found = method(X)
        bad = np.isnan(found).all(axis=1)
        assert np.flatnonzero(bad).tolist() == [3, 7]
        assert [(row, source) for row, source, _ in clf.errors_] == [
            (3, "missing"),
            (7, "missing.png"),
        ]
    np.testing.assert_array_equal(found[4:7], clf.decision_function(images[0][4:7]))
    np.testing.assert_array_equal(
        clf.predict_proba(X[:3] + X[4:7]), expected[[0, 1, 2, 4, 5, 6]]
    )
    two = classifier(on_error="nan").fit(images[0], images[1] == "ant")
    with pytest.warns(ImageWarning):
        assert np.flatnonzero(np.isnan(two.decision_function(X))).tolist() == [3, 7]


def test_an_unreadable_image_has_no_label(images, some_unreadable):
    X, _ = some_unreadable
    clf = classifier(on_error="nan").fit(*images)
    with pytest.raises(ImageError, match=r"row 3 .*predict_proba gives it a row of"):
        clf.predict(X)
    clf.set_params(on_error="raise")
    with pytest.raises(ImageError, match=r"row 3") as caught:
        clf.predict(X)
    assert "predict_proba" not in str(caught.value)
    with pytest.raises(ImageError, match=r"row 3"):
        clf.predict_proba(X)


@pytest.mark.parametrize("how", ["pickle", "skops"])
def test_round_trips(images, how):
    X, y = images
    clf = classifier().fit(X, y)
    if how == "pickle":
        back = pickle.loads(pickle.dumps(clf))
    else:
        trusted = ["skdeepfeat.FineTunedClassifier"]
        back = skops.io.loads(skops.io.dumps(clf), trusted=trusted)
    np.testing.assert_array_equal(back.predict_proba(X), clf.predict_proba(X))


def test_only_tuned_blocks_are_stored(images):
    clf = FineTunedClassifier(epochs=1, image_size=32, random_state=0).fit(*images)
    tuned = sum(a.nbytes for part in clf.weights_.values() for a in part.values())
    whole = sum(a.nbytes for a in clf.to_backbone().arrays.values())
    assert len(pickle.dumps(clf)) < tuned + 10_000 < 0.35 * whole
    before = dict(vars(clf))
    clf.predict(images[0])
    assert vars(clf).keys() == before.keys()
    plain = (np.ndarray, str, int, float, bool, type(None), list, tuple, dict)
    assert all(isinstance(value, plain) for value in vars(clf).values())


def test_a_new_process_predicts_the_same(images, tmp_path):
    X, y = images
    clf = FineTunedClassifier(epochs=1, image_size=32, random_state=0).fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "proba.npy", clf.predict_proba(X))
    code = """
        import joblib, numpy as np
        clf = joblib.load("clf.joblib")
        proba = clf.predict_proba(np.load("X.npy"))
        assert (proba == np.load("proba.npy")).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ)


def test_changed_weights_are_refused(images, tmp_path):
    X, y = images
    base = classifier("smallcnn", weights=None, unfreeze="all", epochs=1).fit(X, y)
    base.save_weights(tmp_path / "base.safetensors")
    clf = classifier("smallcnn", weights=tmp_path / "base.safetensors", unfreeze=0)
    clf.fit(X, y).predict(X)
    base.partial_fit(X, y).save_weights(tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match="fit again"):
        clf.predict(X)


def test_saved_weights_serve_both_estimators(images, tmp_path):
    X, y = images
    clf = FineTunedClassifier(
        "resnet18", weights=None, epochs=1, image_size=32, random_state=0
    ).fit(X, y)
    path = tmp_path / "tuned.safetensors"
    clf.save_weights(path)
    assert "layer4.1.conv2.weight" in load_file(path)
    features = PretrainedCNNFeatures("resnet18", weights=path, image_size=32)
    np.testing.assert_allclose(
        features.transform(X), clf.as_features().transform(X), rtol=1e-5, atol=1e-6
    )
    again = FineTunedClassifier(
        "resnet18", weights=path, image_size=32, unfreeze=0, random_state=0
    )
    assert again.fit(X, y).score(X, y) > 0.5


def test_features_of_the_tuned_network(images):
    X, y = images
    clf = classifier(unfreeze=2).fit(X, y)
    features = clf.as_features(("block1", "penultimate"))
    assert features.transform(X).shape == (40, 16)
    copied = clone(make_pipeline(features, LogisticRegression())).fit(X, y)
    assert copied.score(X, y) > 0.8
    np.testing.assert_array_equal(clone(features).transform(X), features.transform(X))
    back = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(back.transform(X), features.transform(X))
    assert "logits" not in [layer.alias for layer in list_layers(clf.to_backbone())]
    before = features.transform(X)
    clf.partial_fit(X, y)
    assert not np.array_equal(features.transform(X), before)


def test_in_a_grid_search(images):
    search = GridSearchCV(
        classifier(), {"unfreeze": [0, 1], "learning_rate": [0.01, 0.001]}, cv=2
    ).fit(*images)
    assert search.best_score_ > 0.5


def test_calibrated_and_stacked(images):
    X, y = images
    calibrated = CalibratedClassifierCV(classifier(), cv=2).fit(X, y)
    assert calibrated.predict_proba(X).shape == (40, 3)
    untuned = make_pipeline(PretrainedCNNFeatures("tiny"), GaussianNB())
    estimators = [("tuned", classifier()), ("frozen", untuned)]
    stacked = StackingClassifier(estimators, LinearSVC(), cv=2)
    assert stacked.fit(X, y).score(X, y) > 0.5


def test_a_row_that_cannot_be_predicted_is_named(images):
    clf = classifier().fit(*images)
    with pytest.raises(ImageError, match="row 1"):
        clf.predict([images[0][0], "missing.png"])


@pytest.mark.parametrize("name", ["weights.pth", "weights"])
def test_weights_are_saved_as_what_they_are(name, images, tmp_path):
    clf = classifier().fit(*images)
    with pytest.raises(ValueError, match=r"must end in '\.safetensors'"):
        clf.save_weights(tmp_path / name)


@pytest.mark.parametrize(
    "path, said",
    [
        (None, "'path' parameter must be a str or a path. Got None"),
        ("s3://bucket/tuned.safetensors", "path of save_weights .*Got the URL"),
        ("~nobody of this name/tuned.safetensors", "user who is not known"),
    ],
)
def test_weights_are_only_saved_on_a_disk(path, said, images):
    clf = classifier().fit(*images)
    with pytest.raises(ValueError, match=said):
        clf.save_weights(path)


def test_weights_are_only_saved_where_there_is_a_folder(images, tmp_path):
    clf = classifier().fit(*images)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* Create it"):
        clf.save_weights(tmp_path / "missing" / "tuned.safetensors")
    with pytest.raises(ValueError, match="path of save_weights must be on a disk"):
        clf.save_weights("s3://models/tuned.safetensors")


def test_the_folder_of_saved_weights_may_be_in_the_home(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    classifier().fit(*images).save_weights("~/tuned.safetensors")
    assert (tmp_path / "tuned.safetensors").is_file()


def test_a_backbone_that_lost_its_fit_says_how_to_keep_it(images):
    features = PretrainedCNNFeatures(classifier().fit(*images))
    with pytest.raises(NotFittedError, match=r"FrozenEstimator.*as_features\(\)"):
        clone(features).fit(images[0])


def test_a_changed_network_says_how_to_start_anew(images):
    clf = classifier(warm_start=True).fit(*images)
    clf.set_params(image_size=24)
    with pytest.raises(WeightsError, match="or call fit with warm_start=False"):
        clf.fit(*images)
    with pytest.raises(WeightsError, match="or call fit with warm_start=False"):
        clf.partial_fit(*images)
    with pytest.raises(WeightsError, match="or fit again"):
        clf.predict(images[0])
    assert clf.set_params(warm_start=False).fit(*images).score(*images) > 0


def test_a_classifier_on_a_classifier(images):
    X, y = images
    first = classifier().fit(X, y)
    second = classifier(FrozenEstimator(first)).fit(X, y)
    assert second.predict(X).shape == (40,)


def test_tuned_weights_are_not_kept_alive(images):
    X, y = images
    clf = classifier("smallcnn", weights=None, unfreeze="all", epochs=1).fit(X, y)
    alive = []
    for _ in range(3):
        clf.partial_fit(X, y).as_features(cache=None).transform(X[:1])
        alive.append(weakref.ref(clf.to_backbone()))
    clear_caches()
    gc.collect()
    assert not any(ref() for ref in alive)


def test_unpooled_features_at_another_size(images):
    X, y = images
    clf = classifier("mini", image_size=32).fit(X, y)
    tuned = clf.as_features("block2", pooling="flatten", cache=None)
    plain = PretrainedCNNFeatures(
        "mini", layer="block2", pooling="flatten", image_size=32, cache=None
    )
    np.testing.assert_array_equal(tuned.transform(X), plain.transform(X))


@pytest.mark.parametrize(
    "changed", [{"image_size": 16}, {"backbone": "lenet5"}, {"random_state": 3}]
)
def test_parameters_changed_after_fit(images, changed):
    """Those that training rested on are refused; others do not matter."""
    X, y = images
    clf = classifier("smallcnn", weights=None, unfreeze=0).fit(X, y)
    proba = clf.predict_proba(X)
    clf.set_params(unfreeze=99, learning_rate=5.0, **changed)
    if "random_state" in changed:
        np.testing.assert_array_equal(clf.predict_proba(X), proba)
    else:
        with pytest.raises(WeightsError, match="fit again"):
            clf.predict(X)
        with pytest.raises(WeightsError, match="call fit with warm_start=False"):
            clf.partial_fit(X, y)
