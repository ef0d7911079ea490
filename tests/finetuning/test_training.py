"""Training: what learns, how fast, when it stops, and what happens if it diverges."""

import contextlib
import itertools
import warnings

import joblib
import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from small_fits import classifier, coloured_images, own_backbone
from torchvision import models

from skdeepfeat import FineTunedClassifier, ImageError, PretrainedCNNFeatures
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._finetuning import frozen, monitoring, phases, training
from skdeepfeat._networks.sharing import get_network
from skdeepfeat._report import FitTask


@pytest.fixture(scope="module")
def images():
    return coloured_images()


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


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "double precision": lambda: default_dtype(torch.float64),
    "half precision": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("augment", ["none", "standard"])
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_where_fit_is_called_changes_nothing(images, surroundings, augment):
    X, y = images
    parameters = {"augment": augment, "early_stopping": True, "cache": None}
    parameters |= {"validation_fraction": 0.3}
    expected = classifier(**parameters).fit(X, y).predict_proba(X)
    with SURROUNDINGS[surroundings]():
        clf = classifier(**parameters).fit(X, y)
        assert torch.is_inference_mode_enabled() == (surroundings == "inference mode")
        inside = clf.predict_proba(X)
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    assert clf.weights_["head"]["last.weight"].dtype == np.float32


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


@pytest.mark.parametrize("surroundings", ["double precision", None])
def test_fits_in_several_threads_equal_fits_one_by_one(images, surroundings):
    """Also while networks are built in some of them, to predict."""
    X, y = images

    def one(_):
        clf = classifier(augment="standard", dropout=0.3, cache=None)
        return clf.fit(X, y).predict_proba(X)

    expected = one(0)
    around = SURROUNDINGS[surroundings] if surroundings else contextlib.nullcontext
    with around():
        found = joblib.Parallel(4, backend="threading")(
            map(joblib.delayed(one), [0] * 12)
        )
    np.testing.assert_array_equal(found, np.array([expected] * 12))


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


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, torch.nn.InstanceNorm2d])
def test_norms_of_your_own_learn_with_the_statistics_that_predictions_use(norm):
    X, y = coloured_images()
    norm = norm(8, affine=True, track_running_stats=True)
    with torch.no_grad():
        norm.running_mean.add_(0.1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        norm,
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    clf = classifier(own_backbone(net), unfreeze="all").fit(X, y)
    assert not np.array_equal(clf.weights_["tail"]["1.weight"], np.ones(8))
    np.testing.assert_array_equal(
        clf.weights_["tail"]["1.running_mean"], np.float32(0.1)
    )


@pytest.mark.parametrize("unfreeze", ["all", 3])
def test_deep_networks_learn_from_scratch(images, unfreeze):
    """Without statistics, the features of random weights nearly vanish."""
    X, y = images
    clf = classifier("mobilenet_v3_small", weights=None, image_size=32)
    clf.set_params(unfreeze=unfreeze, learning_rate=0.001).fit(X, y)
    assert max(entry["loss"] for entry in clf.history_) < 10
    tail = clf.weights_["tail"]
    means = [v for k, v in tail.items() if k.endswith("running_mean")]
    assert all(mean.any() for mean in means) and len(means) > 1


@pytest.mark.filterwarnings("ignore:Some pixel values")
def test_an_image_that_has_no_finite_features_does_not_spoil_the_others(images):
    X, y = np.array(images[0], np.float32) / 255, images[1]
    X[4] = 1e37
    clf = classifier("resnet18", weights=None, image_size=32, unfreeze="all")
    with pytest.raises(ImageError, match=r"row 4 .*not finite"):
        clf.fit(X, y)


@pytest.mark.parametrize(("batch_size", "n"), [(1, 4), (2, 3)])
def test_a_batch_of_one_image_without_statistics_is_explained(images, batch_size, n):
    X, y = images
    clf = classifier("resnet18", weights=None, image_size=32, unfreeze="all")
    clf.set_params(head_epochs=0, batch_size=batch_size)
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} .* {n} images"):
        clf.fit(X[:n], y[:n])


@pytest.mark.parametrize("augment", ["light", "standard", "strong"])
@pytest.mark.parametrize("image_size", [1, 2])
def test_images_of_a_few_pixels(images, augment, image_size):
    clf = classifier(own_backbone(trunk_of_pixels()), augment=augment)
    clf.set_params(image_size=image_size).fit(*images)
    assert np.isfinite([entry["loss"] for entry in clf.history_]).all()


def trunk_of_pixels():
    layers = torch.nn.Conv2d(3, 8, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, 4))


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


@pytest.mark.parametrize(
    "surroundings", [contextlib.nullcontext, SURROUNDINGS["autocast"]]
)
def test_reduced_precision_learns_as_full_precision_does(images, surroundings):
    full, reduced = (
        classifier(precision=precision, unfreeze=2, epochs=4)
        for precision in ("float32", "bfloat16")
    )
    full.fit(*images)
    with surroundings():
        reduced.fit(*images)
    losses = [[entry["loss"] for entry in clf.history_] for clf in (full, reduced)]
    assert losses[0][-1] < 0.5 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05, atol=0.01)


def test_callbacks_see_epochs_and_stop(images):
    pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")
    clf = classifier(head_epochs=2, epochs=6, unfreeze=1)
    seen = []

    class Stop:
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context, **kwargs): ...

        def on_fit_task_end(self, estimator, context, **kwargs):
            seen.append(context.task_name)
            return len(seen) == 4

    clf.set_callbacks(Stop()).fit(*images)
    assert seen == ["epoch"] * 4 + ["fit"]
    assert [e["phase"] for e in clf.history_] == ["head", "head", "joint", "joint"]


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


def test_a_large_final_loss_is_reported(images):
    with pytest.warns(ConvergenceWarning, match=r"Try learning_rate=100\."):
        classifier(learning_rate=1000).fit(*images)


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


def test_no_warning_without_cause(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier(tiny_backbone(3)).fit(*images).predict(images[0])


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


def test_weights_that_became_infinite_are_not_kept(images):
    parameters = {"learning_rate": 1e20, "unfreeze": "all", "batch_size": 100}
    with pytest.warns(ConvergenceWarning, match="before training"):
        clf = classifier(epochs=1, head_epochs=0, **parameters).fit(*images)
    assert np.isfinite(clf.predict_proba(images[0])).all()


def test_partial_fit_holds_nothing_out(images):
    X, y = images
    clf = classifier(early_stopping=True, validation_fraction=0.3).fit(X, y)
    before = clf.weights_["tail"]["3.weight"].copy()
    clf.partial_fit(X[:3], y[:3])
    assert not np.array_equal(clf.weights_["tail"]["3.weight"], before)
    with pytest.raises(ValueError, match=r"classes=\['ant', 'dog'\] differ from those"):
        clf.partial_fit(X, y, classes=["ant", "dog"])
    with pytest.raises(ValueError, match=r"classes=\[0, 7\] differ from those of the"):
        clf.partial_fit(X, y, classes=np.array([0, 7]))


def test_an_interrupt_while_weights_are_copied_keeps_what_was_learned(
    images, monkeypatch
):
    keep = monitoring.Snapshots.keep

    def interrupted(snapshots, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        keep(snapshots, epoch)

    monkeypatch.setattr(monitoring.Snapshots, "keep", interrupted)
    clf = classifier(unfreeze=0, head_epochs=5)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2"):
        clf.fit(*images)
    assert clf.n_iter_ == 1
    assert clf.predict(images[0]).shape == (len(images[1]),)
