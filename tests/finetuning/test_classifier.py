"""FineTunedClassifier: what is frozen, what learns, and what goes wrong clearly."""

import contextlib
import gc
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
import weakref
from dataclasses import replace

import joblib
import numpy as np
import pytest
import skops.io
import torch
from conftest import tiny_backbone
from PIL import Image
from safetensors.numpy import load_file
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from torchvision import models

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    WeightsError,
    clear_caches,
    list_layers,
)
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import resolve_source, weights_key
from skdeepfeat._finetuning import frozen, monitoring, phases, training
from skdeepfeat._finetuning.data import Data, FitImages, read_pixels
from skdeepfeat._finetuning.labels import Labels
from skdeepfeat._finetuning.parts import Fitted, Head, Parts, TunedPart, find_tuned_part
from skdeepfeat._images import batches
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.recipe import IMAGENET_MEAN, IMAGENET_STD
from skdeepfeat._networks.sharing import get_network
from skdeepfeat._report import FitTask, last_report


def classifier(backbone="tiny", **parameters):
    defaults = {
        "augment": "none",
        "epochs": 2,
        "random_state": 0,
        "learning_rate": 0.01,
        "batch_size": 8,
    }
    return FineTunedClassifier(backbone, **(defaults | parameters))


@pytest.fixture(scope="module")
def images():
    """40 images of three classes that differ in colour, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = rng.integers(0, 120, (40, 10, 10, 3))
    X[np.arange(40), :, :, y] += 80
    return X.astype(np.uint8), np.array(["ant", "bee", "cat"])[y]


# What learns, and what does not ------------------------------------------------------


def test_it_learns(images):
    X, y = images
    clf = classifier(epochs=5, unfreeze=2).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert clf.classes_.tolist() == ["ant", "bee", "cat"]
    assert clf.n_iter_ == len(clf.history_) == 8
    assert [entry["phase"] for entry in clf.history_] == ["head"] * 3 + ["joint"] * 5
    assert clf.history_[-1]["loss"] < clf.history_[0]["loss"]
    proba = clf.predict_proba(X)
    assert proba.shape == (40, 3) and proba.dtype == np.float32
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert (clf.classes_[proba.argmax(1)] == clf.predict(X)).all()


@pytest.mark.parametrize("augment", ["none", "light"])
def test_frozen_is_frozen(images, augment):
    before = resolve_backbone("tiny").arrays
    clf = classifier(unfreeze=1, augment=augment).fit(*images)
    after = clf.to_backbone().arrays
    tuned = set(clf.weights_["tail"])
    assert tuned == {"3.weight", "3.bias"}
    for name, array in after.items():
        same = np.array_equal(array, before[name])
        assert same != (name in tuned), name
    plain = PretrainedCNNFeatures("tiny", layer="block2", cache=None)
    np.testing.assert_array_equal(
        clf.as_features("block2", cache=None).transform(images[0]),
        plain.transform(images[0]),
    )


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.filterwarnings("ignore:The loss of the last epoch")  # of random features
def test_batch_norms_keep_the_statistics_of_the_pretraining(
    images, pretrained, tmp_path
):
    path = tmp_path / "weights.pth"
    torch.save(models.mobilenet_v3_small(weights=None).state_dict(), path)
    clf = FineTunedClassifier(
        "mobilenet_v3_small",
        weights=path if pretrained else None,
        unfreeze=1,
        image_size=32,
        epochs=1,
        random_state=0,
    ).fit(*images)
    source, key = clf._frozen_source()
    before = get_network(source, key, "cpu", "float32").module.state_dict()
    tail = clf.weights_["tail"]
    moved = not np.array_equal(
        tail["features.12.1.running_mean"], before["features.12.1.running_mean"]
    )
    assert moved != pretrained
    assert not np.array_equal(
        tail["features.12.1.weight"], before["features.12.1.weight"]
    )


def test_the_shared_network_stays_as_it_was(images):
    X, y = images
    features = PretrainedCNNFeatures("tiny", cache=None)
    before = features.transform(X)
    classifier(unfreeze="all").fit(X, y)
    np.testing.assert_array_equal(features.transform(X), before)


def test_head_alone(images):
    clf = classifier(unfreeze=0).fit(*images)
    assert clf.weights_["tail"] == {}
    assert {entry["phase"] for entry in clf.history_} == {"head"}
    assert clf.n_iter_ == 5


def test_lower_blocks_learn_slower():
    source = resolve_source("resnet18", None, 0, None)
    part = find_tuned_part(source, 2)
    head = Head(part.width, 3, 0.0)
    parts = Parts(source, weights_key(source), part, head, torch.device("cpu"))
    rates = {}
    for group in parts.groups(1.0, 0.5, 0.01):
        rates |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    named = dict(parts.tail.named_parameters())
    assert rates[id(named["layer4.0.conv1.weight"])] == (0.5, 0.01)
    assert rates[id(named["layer4.1.bn2.weight"])] == (0.5, 0.0)
    assert rates[id(named["layer3.0.conv1.weight"])] == (0.25, 0.01)
    assert rates[id(head.last.weight)] == (1.0, 0.01)
    assert not any(name.startswith("layer2") for name in named)


FAMILIES = [
    ("resnet18", 2, {"layer3", "layer4"}),
    ("squeezenet1_1", 1, {"features"}),
    ("vgg11", 1, {"features", "classifier"}),
    ("mobilenet_v3_small", "block6", {"features", "classifier"}),
    ("densenet121", 1, {"features"}),
    ("efficientnet_b0", 1, {"features"}),
    ("convnext_tiny", 1, {"features", "classifier"}),
    ("swin_t", 1, {"features", "norm"}),
    ("vit_b_16", 1, {"encoder"}),
    ("googlenet", 1, {"inception5b"}),
    ("shufflenet_v2_x0_5", 1, {"conv5"}),
    ("regnet_y_400mf", 1, {"trunk_output"}),
    ("mini", 1, {"features"}),
    ("smallcnn", 1, {"features"}),
    ("lenet5", "all", {"features"}),
]


@pytest.mark.parametrize(("name", "unfreeze", "tops"), FAMILIES, ids=lambda v: str(v))
def test_every_family_can_be_cut(name, unfreeze, tops):
    """Trunk, tail and head together compute what the whole network does."""
    source = resolve_source(name, "default" if name == "mini" else None, 0, None)
    part, key = find_tuned_part(source, unfreeze), weights_key(source)
    parts = Parts(
        source, key, part, Head(part.width, 2, 0.0, part.inner), torch.device("cpu")
    )
    tuned = {p.split(".")[0] for p, _ in parts.tail.named_parameters()}
    assert tuned == tops
    size = source.input.image_size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    parts.tail.eval()
    with torch.no_grad():
        whole = Parts(source, key, find_tuned_part(source, 0), parts.head, parts.device)
        expected = whole.pooled(whole.frozen(x)[part.end.node])
        left = parts.tail(parts.below(x))
        left = left[part.end.node] if isinstance(left, dict) else left
    torch.testing.assert_close(parts.pooled(left), expected, rtol=1e-5, atol=1e-5)


def test_unfreeze_by_name_and_number_agree():
    source = resolve_source("resnet18", None, 0, None)
    assert find_tuned_part(source, "block3") == find_tuned_part(source, 2)
    everything = find_tuned_part(source, "all")
    assert everything == find_tuned_part(source, 5) == find_tuned_part(source, "stem")
    assert everything.start is None
    assert isinstance(everything, TunedPart)


# Engine -----------------------------------------------------------------------------


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


def test_images_are_decoded_once(images, tmp_path, monkeypatch):
    X, y = images
    paths = []
    for i, pixels in enumerate(X):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    decoded, real = [], batches.read_row
    monkeypatch.setattr(
        batches, "read_row", lambda *a: (decoded.append(a[1]), real(*a))[1]
    )
    clf = classifier(epochs=3, augment="standard").fit(paths, y)
    assert sorted(decoded) == list(range(40))
    same = classifier(epochs=3, augment="standard").fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), same.predict_proba(X))


def test_training_pixels_are_those_of_the_features(images):
    """The crop of the padded training images is the very crop of the recipe."""
    rng = np.random.default_rng(1)
    for side in (60, 61, 62, 63):
        photo = rng.integers(0, 256, (side, 80, 3), dtype=np.uint8)
        X = np.stack([photo, photo[:, ::-1]])
        clf = classifier("mini", unfreeze=0, image_size=32).fit(X, [0, 1])
        source = resolve_source("mini", "default", 0, 32)
        pixels = read_pixels(
            read_images(X), range(len(X)), source.input, None, 1
        ).pixels
        assert pixels.shape[2] > 32
        part = find_tuned_part(source, 0)
        head = Head(part.width, 2, 0.0)
        parts = Parts(source, weights_key(source), part, head, torch.device("cpu"))
        with torch.no_grad():
            rows = parts.pooled(parts.frozen(parts.prepare(pixels))[part.end.node])
        expected = PretrainedCNNFeatures("mini", image_size=32, cache=None).transform(X)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
        assert clf.n_iter_ == 5


@pytest.mark.parametrize("augment", ["light", "standard", "strong", torch.flip])
def test_augmentations(images, augment):
    if callable(augment):
        augment = lambda image: torch.flip(image, (2,))  # noqa: E731
    clf = classifier(augment=augment, unfreeze="all").fit(*images)
    assert np.isfinite([entry["loss"] for entry in clf.history_]).all()


def test_early_stopping_keeps_the_best_epoch(images):
    X, y = images
    clf = classifier(
        early_stopping=True,
        validation_fraction=0.3,
        n_iter_no_change=2,
        head_epochs=20,
        epochs=20,
        unfreeze=2,
    ).fit(X, y)
    assert clf.n_iter_ < 40
    for phase in ("head", "joint"):
        accuracies = [
            entry["validation_accuracy"]
            for entry in clf.history_
            if entry["phase"] == phase
        ]
        if len(accuracies) < 20:
            assert max(accuracies[-2:]) <= max(accuracies) + 1e-4
    assert "validation_loss" in clf.history_[0]


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


def test_the_same_seed_gives_the_same_bits(images):
    X, y = images
    parameters = {"augment": "strong", "dropout": 0.3, "unfreeze": "all"}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = classifier(**parameters).fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = classifier(**parameters).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(first, second)
    other = classifier(**parameters).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), first)


def test_fits_in_threads_do_not_disturb_each_other(images):
    X, y = images
    clf = classifier(dropout=0.3)
    expected = clone(clf).fit(X, y).predict_proba(X)
    with joblib.parallel_config(backend="threading"):
        fitted = joblib.Parallel(n_jobs=3)(
            joblib.delayed(clone(clf).fit)(X, y) for _ in range(3)
        )
    for one in fitted:
        np.testing.assert_array_equal(one.predict_proba(X), expected)


def test_reduced_precision(images):
    clf = classifier(precision="bfloat16", unfreeze=2).fit(*images)
    assert clf.score(*images) > 0.5


def test_verbose_prints_epochs(images, capsys):
    classifier(verbose=1).fit(*images)
    said = capsys.readouterr().out
    assert said.count("epoch") == 5 and "head  epoch 1: loss" in said


def test_callbacks_see_epochs_and_stop(images):
    callback = pytest.importorskip("sklearn.callback")
    del callback
    clf = classifier(head_epochs=2, epochs=6, unfreeze=1)
    seen = []

    class Stop:
        max_estimator_depth = None

        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context, **kwargs): ...

        def on_fit_task_end(self, estimator, context, **kwargs):
            seen.append(context.task_name)
            return context.task_name == "epoch" and len(seen) > 3

    try:
        clf.set_callbacks(Stop())
    except TypeError as error:  # the experimental protocol has changed
        pytest.skip(str(error))
    clf.fit(*images)
    assert "epoch" in seen


# Memory ------------------------------------------------------------------------------


def test_one_float_image_makes_all_of_them_floats_and_keeps_their_values():
    rng = np.random.default_rng(0)
    eight_bit = rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    precise = np.full((8, 8, 3), 0.3, np.float32)
    source = resolve_source("tiny", "default", 0, None)
    images = read_images([*eight_bit[:50], precise, *eight_bit[50:]])
    pixels = read_pixels(images, range(71), source.input, None, 2).pixels
    assert pixels.dtype == torch.float32 and pixels.shape == (71, 3, 8, 8)
    rows = pixels.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.delete(rows, 50, axis=0), eight_bit)
    np.testing.assert_allclose(rows[50], 76.5, rtol=1e-6)
    images = read_images(eight_bit)
    few = read_pixels(images, [3, 60, 5], source.input, None, 2)
    assert few.pixels.dtype == torch.uint8 and few.rows.tolist() == [3, 60, 5]


def data_of(pixels, targets):
    """Images in range, each of weight 1."""
    n = len(pixels)
    sources = [f"image {i}" for i in range(n)]
    images = FitImages(pixels, np.arange(n), sources, np.ones(n, bool), [])
    return Data.of(images, np.arange(n), targets, np.ones(n))


def test_images_held_out_are_not_copied():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    data = data_of(pixels, np.arange(10))
    some = data.at(np.array([7, 2, 5])).at([2, 0])
    assert some.images.pixels is pixels and len(some) == 2
    assert some.take(torch.tensor([0, 1]))[:, 0, 0, 0].tolist() == [5, 7]
    assert some.targets.tolist() == [5, 7]


# Arithmetic --------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "light"])
def test_training_never_rounds_beyond_its_precision(images, augment, monkeypatch):
    """Every convolution, forward and backward, runs in the engine's own context."""
    active, seen = [], set()

    @contextlib.contextmanager
    def noted(precision, kind):
        assert kind == "cpu" and not active
        active.append(precision)
        yield
        active.clear()

    forward = torch.nn.Conv2d.forward

    def watched(self, x):
        seen.add(("forward", *active))
        out = forward(self, x)
        if out.requires_grad:
            out.register_hook(lambda gradient: seen.add(("backward", *active)))
        return out

    for module in (frozen, monitoring, phases, training):
        monkeypatch.setattr(module, "arithmetic", noted)
    X, y = images
    clf = classifier(
        augment=augment, unfreeze=1, early_stopping=True, validation_fraction=0.2
    )
    clone(clf).fit(X, y)  # finding layers and shapes runs the network too
    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    clf.fit(X, y)
    assert seen == {("forward", "float32"), ("backward", "float32")}


def test_functions_of_the_user_do_not_run_in_that_context(images, monkeypatch):
    """They may compute features, which takes the same lock on a GPU."""
    active = []

    @contextlib.contextmanager
    def noted(precision, kind):
        active.append(precision)
        yield
        active.clear()

    for module in (frozen, monitoring, phases, training):
        monkeypatch.setattr(module, "arithmetic", noted)
    seen = []
    augment = lambda image: (seen.append(list(active)), image)[1]  # noqa: E731
    classifier(augment=augment).fit(*images)
    assert seen and not any(seen)


# Prediction --------------------------------------------------------------------------


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


# Images that cannot be read ----------------------------------------------------------


@pytest.fixture
def some_unreadable(images):
    """The images with a missing cell in row 3 and a missing file in row 7."""
    X, y = images
    return [*X[:3], None, *X[4:7], "missing.png", *X[8:]], y


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


@pytest.mark.parametrize("early_stopping", [False, True])
def test_fit_leaves_unreadable_images_out(images, some_unreadable, early_stopping):
    X, y = some_unreadable
    clf = classifier(
        on_error="nan",
        class_weight="balanced",
        early_stopping=early_stopping,
        validation_fraction=0.2,
    )
    with pytest.warns(ImageWarning, match=r"2 of 40 .* first is row 3") as caught:
        clf.fit(X, y)
    assert len([w for w in caught if w.category is ImageWarning]) == 1
    kept = np.delete(np.arange(40), [3, 7])
    without = clone(clf).fit(images[0][kept], y[kept])
    np.testing.assert_array_equal(
        clf.predict_proba(images[0]), without.predict_proba(images[0])
    )


def test_a_class_without_a_readable_image_is_an_error(images):
    X, y = images
    clf = classifier(on_error="nan")
    rows = [
        None if label == "bee" else image for image, label in zip(X, y, strict=True)
    ]
    with pytest.raises(ImageError, match=r"No image of the classes \['bee'\]"):
        clf.fit(rows, y)
    with pytest.raises(ImageError, match=r"\['ant', 'bee', 'cat'\] can be used"):
        clf.fit([None] * 40, y)
    with pytest.warns(ImageWarning, match="left out"):  # more may come
        clf.partial_fit(rows, y, classes=np.unique(y))
    with pytest.raises(ImageError, match="can be used"):
        clf.partial_fit([None] * 40, y)


def test_flat_rows_with_missing_values(images):
    X, y = images
    X = X.reshape(40, -1).astype(float) / 255
    clf = classifier(on_error="nan", image_shape=(10, 10, 3)).fit(X, y)
    X[4, 17] = np.nan
    with pytest.warns(ImageWarning, match="1 of 40"):
        assert np.flatnonzero(np.isnan(clf.predict_proba(X)[:, 0])).tolist() == [4]
    with pytest.warns(ImageWarning, match="left out"):
        clf.fit(X, y)


# Going on ---------------------------------------------------------------------------


def test_warm_start_goes_on(images):
    X, y = images
    clf = classifier(warm_start=True, epochs=3, unfreeze=1).fit(X, y)
    loss = clf.history_[-1]["loss"]
    clf.fit(X, y)
    assert [e["phase"] for e in clf.history_] == ["head"] * 3 + ["joint"] * 6
    assert clf.history_[-1]["loss"] < loss


def test_partial_fit(images):
    X, y = images
    clf = classifier(epochs=7, unfreeze=1)
    with pytest.raises(ValueError, match=r"classes=np\.unique"):
        clf.partial_fit(X, y)
    clf.partial_fit(X[:10], y[:10], classes=np.unique(y))
    assert clf.n_iter_ == 4
    for _ in range(5):
        clf.partial_fit(X, y)
    assert clf.n_iter_ == 9 and clf.score(X, y) > 0.8
    with pytest.raises(ValueError, match="'dog'"):
        clf.partial_fit(X[:2], ["dog", "ant"])


# Persistence ------------------------------------------------------------------------


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
    assert len(pickle.dumps(clf)) < tuned + 10_000 < 0.3 * whole
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


def test_a_small_network_is_transferred(images, tmp_path):
    X, y = images
    base = classifier("smallcnn", weights=None, unfreeze="all", head_epochs=0)
    base.fit(X, y).save_weights(tmp_path / "base.safetensors")
    weights = tmp_path / "base.safetensors"
    clf = classifier("smallcnn", weights=weights, unfreeze=0).fit(X, y)
    assert set(clf.weights_["head"]) == {
        *("inner.0.weight", "inner.0.bias", "last.weight", "last.bias")
    }
    before, after = base.to_backbone().arrays, clf.to_backbone().arrays
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("features")
    assert clf.as_features().transform(X).shape == (40, 128)


# In company -------------------------------------------------------------------------


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


@pytest.mark.parametrize("labels", [[3, 7], ["yes", "no"], [False, True], [1.0, 2.0]])
def test_any_two_labels(images, labels):
    X, y = images
    y = np.array(labels)[(y == "ant").astype(int)]
    clf = classifier().fit(X, y.tolist())
    assert clf.decision_function(X).shape == (40,)
    assert set(clf.predict(X)) <= set(labels)


# Bad input --------------------------------------------------------------------------


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


def test_unreadable_images_are_all_named(images, tmp_path):
    X, y = images
    rows = [*X[:-2], tmp_path / "a.jpg", tmp_path / "b.jpg"]
    with pytest.raises(ImageError, match=r"row 38.*2 of 40 images.*rows 39"):
        classifier().fit(rows, y)


def test_a_row_that_cannot_be_predicted_is_named(images):
    clf = classifier().fit(*images)
    with pytest.raises(ImageError, match="row 1"):
        clf.predict([images[0][0], "missing.png"])


def test_too_deep(images):
    with pytest.raises(ValueError, match=r"unfreeze=9 is deeper.*3 blocks"):
        classifier(unfreeze=9).fit(*images)
    with pytest.raises(ValueError, match="'block77'"):
        classifier(unfreeze="block77").fit(*images)
    with pytest.raises(ValueError, match="no block of backbone"):
        classifier(unfreeze="penultimate").fit(*images)


def test_a_head_for_images_of_another_size_is_said(images):
    with pytest.raises(ValueError, match=r"12544 features.* image_size=40 .*20736"):
        classifier("smallcnn", weights=None, image_size=40).fit(*images)


def test_a_large_loss_in_the_end_is_told(images):
    with pytest.warns(ConvergenceWarning, match=r"Try learning_rate=100\."):
        classifier(learning_rate=1000).fit(*images)


@pytest.mark.parametrize("name", ["weights.pth", "weights"])
def test_weights_are_saved_as_what_they_are(name, images, tmp_path):
    clf = classifier().fit(*images)
    with pytest.raises(ValueError, match=r"must end in '\.safetensors'"):
        clf.save_weights(tmp_path / name)


def test_a_diverging_loss_stops_with_the_last_good_weights(images, monkeypatch):
    X, y = images
    real, calls = training.train_step, [0]

    def diverge(*arguments):
        calls[0] += 1
        loss, right = real(*arguments)
        return (float("nan") if calls[0] > 20 else loss), right

    monkeypatch.setattr(training, "train_step", diverge)
    with pytest.warns(ConvergenceWarning, match=r"epoch 2 of phase 'joint'.*0\.001"):
        clf = classifier(epochs=9).fit(X, y)
    assert clf.n_iter_ == 4
    monkeypatch.undo()
    good = classifier(epochs=9)
    done = itertools.count(1)
    monkeypatch.setattr(FitTask, "step_done", lambda task: next(done) == 4)
    good.fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), good.predict_proba(X))


def test_ctrl_c_leaves_a_usable_model(images, monkeypatch):
    X, y = images
    real, calls = training.train_step, [0]

    def interrupt(*arguments):
        calls[0] += 1
        if calls[0] == 22:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "train_step", interrupt)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2"):
        clf = classifier(epochs=9).fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


def test_networks_that_cannot_be_traced_are_refused(images):
    class Crooked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(x.mean((2, 3)) if x.sum() > -1e9 else x.amax((2, 3)))

    backbone = Backbone.from_module(Crooked(), image_size=8)
    with pytest.raises(ValueError, match="cannot be traced"):
        classifier(backbone).fit(*images)


def test_no_warning_without_cause(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier(tiny_backbone(3)).fit(*images).predict(images[0])


# Uncommon networks and uses ----------------------------------------------------------


def own_backbone(net, **options):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator).mul_(0.3)
    return Backbone.from_module(net, image_size=8, **options)


def trunk(channels=8):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, channels, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )


def as_trained(clf, X):
    """Scores of the tuned tail and head as they were left by training."""
    source, key = clf._frozen_source()
    part = find_tuned_part(source, clf.unfreeze)
    head = Head(part.width, len(clf.classes_), 0.0, part.inner)
    parts = Parts(source, key, part, head, torch.device("cpu"))
    parts.load(Fitted(**clf.weights_))
    parts.tail.eval()
    parts.head.eval()
    pixels = read_pixels(read_images(X), range(len(X)), source.input, None, 1).pixels
    with torch.no_grad():
        return parts.above(parts.below(parts.prepare(pixels))).numpy()


def test_a_classifier_on_a_classifier(images):
    X, y = images
    first = classifier().fit(X, y)
    second = classifier(FrozenEstimator(first)).fit(X, y)
    assert second.predict(X).shape == (40,)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d, torch.nn.LayerNorm])
def test_heads_with_norms(images, norm):
    X, y = images
    head = torch.nn.Sequential(
        norm(8),
        torch.nn.Linear(8, 16),
        norm(16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    )
    net = torch.nn.Sequential(*trunk(), head)
    clf = classifier(own_backbone(net, head="4"), epochs=10).fit(X, y)
    assert clf.score(X, y) > 0.8
    assert "inner.1.weight" in clf.weights_["head"]
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )


class Shared(torch.nn.Module):
    """One convolution under two names."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(3, 8, 3)
        self.b = torch.nn.Conv2d(8, 8, 3)
        self.c = torch.nn.Sequential(self.b, torch.nn.ReLU())
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.c(torch.relu(self.a(x))).mean((2, 3)))


class Twice(Shared):
    """One convolution used below and above."""

    def __init__(self):
        super().__init__()
        self.d = torch.nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = torch.relu(self.d(self.b(self.a(x))))
        return self.fc(self.b(x).mean((2, 3)))


class Constant(Shared):
    """A constant in the code."""

    def forward(self, x):
        return self.fc((self.b(self.a(x)) * torch.tensor(0.5)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Shared, Constant])
def test_predictions_are_those_of_the_trained_network(images, kind):
    X, y = images
    clf = classifier(own_backbone(kind()), unfreeze="all").fit(X, y)
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )


def test_a_module_on_both_sides_of_the_cut_is_refused(images):
    with pytest.raises(ValueError, match="both below and above the cut"):
        classifier(own_backbone(Twice()), unfreeze=1).fit(*images)


def test_one_norm_after_two_convolutions():
    class OneNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.b(torch.relu(self.norm(self.a(x)))))

    net = OneNorm().eval()
    backbone = own_backbone(net)
    X = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    with torch.no_grad():
        expected = net((x - mean) / std).mean((2, 3))
    rows = PretrainedCNNFeatures(backbone, layer="norm_1", cache=None).transform(X)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


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


def test_one_image_at_a_time_does_no_harm(images):
    X, y = images
    clf = classifier(epochs=5, unfreeze=2).fit(X, y)
    for i in range(6):
        clf.set_params(learning_rate=1e-4).partial_fit(X[i : i + 1], y[i : i + 1])
    assert clf.score(X, y) > 0.9


def test_going_on_sees_other_augmentations(images):
    X, y = images
    drawn = []
    clf = classifier(augment=lambda x: (drawn.append(torch.rand(()).item()), x)[1])
    clf.fit(X, y)
    n = len(drawn)
    clf.partial_fit(X, y).partial_fit(X, y)
    assert drawn[n : n + 41] != drawn[n + 41 :] and len(drawn) == n + 82


def test_unfreezing_more_and_more(images):
    X, y = images
    clf = classifier(warm_start=True, unfreeze=1).fit(X, y)
    clf.set_params(unfreeze=2).fit(X, y)
    assert {"1.weight", "3.weight"} <= set(clf.weights_["tail"])
    with pytest.raises(ValueError, match="would be lost"):
        clf.set_params(unfreeze=0).fit(X, y)


def test_weights_that_became_infinite_are_not_kept(images):
    parameters = {"learning_rate": 1e20, "unfreeze": "all", "batch_size": 100}
    with pytest.warns(ConvergenceWarning, match="before training"):
        clf = classifier(epochs=1, head_epochs=0, **parameters).fit(*images)
    assert np.isfinite(clf.predict_proba(images[0])).all()


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
        with pytest.raises(WeightsError, match="fit again"):
            clf.partial_fit(X, y)


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


def test_partial_fit_holds_nothing_out(images):
    X, y = images
    clf = classifier(early_stopping=True, validation_fraction=0.3).fit(X, y)
    before = clf.weights_["tail"]["3.weight"].copy()
    clf.partial_fit(X[:3], y[:3])
    assert not np.array_equal(clf.weights_["tail"]["3.weight"], before)
    with pytest.raises(ValueError, match="differ from those of the first call"):
        clf.partial_fit(X, y, classes=["ant", "dog"])


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
    parts = Parts(source, weights_key(source), part, head, torch.device("cpu"))
    pixels = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    data = data_of(pixels, np.arange(4) % 2)
    with pytest.warns(UserWarning, match="do not fit in half precision"):
        computed = frozen.FrozenFeatures(parts, data, keep=True)
        assert computed.entered is None and computed.rows.shape == (4, 8)
