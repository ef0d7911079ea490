"""Displays draw histories and searches."""

import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import count_images, tiny_backbone
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from skdeepfeat import (
    ActivationMapDisplay,
    FineTunedClassifier,
    ImageWarning,
    LayerDepthDisplay,
    PretrainedCNNFeatures,
    PretrainedTextFeatures,
    TrainingHistoryDisplay,
    activation_maps,
    rank_layers,
)

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


HISTORY = [
    {"phase": phase, "accuracy": a, "loss": 1 - a, "validation_accuracy": a / 2}
    for phase, a in [("head", 0.5), ("head", 0.6), ("joint", 0.7)]
]


def test_history():
    clf = FineTunedClassifier()
    with pytest.raises(NotFittedError):
        TrainingHistoryDisplay.from_estimator(clf)
    clf.history_ = clf.weights_ = HISTORY
    display = TrainingHistoryDisplay.from_estimator(clf)
    training, held_out = display.lines_
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(training.get_ydata(), [0.5, 0.6, 0.7])
    np.testing.assert_array_equal(held_out.get_ydata(), [0.25, 0.3, 0.35])
    assert display.ax_.get_ylabel() == "accuracy"
    assert [t.get_text() for t in display.ax_.texts] == [
        "head alone",
        "head and blocks",
    ]
    axes = plt.subplots()[1]
    loss = TrainingHistoryDisplay.from_estimator(clf, metric="loss", ax=axes)
    assert loss.ax_ is axes and len(loss.lines_) == 1 and loss.figure_ is axes.figure


def test_depth():
    X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    pipeline = Pipeline(
        [("features", PretrainedCNNFeatures("tiny")), ("head", GaussianNB())]
    )
    heads = [GaussianNB(), KNeighborsClassifier(3)]
    grid = {"features__layer": ["penultimate", 3, "block1"], "head": heads}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, np.arange(12) % 2)
    display = LayerDepthDisplay.from_search(
        search, names=lambda others: type(others["head"]).__name__
    )
    assert display.layers == ["block1", "3", "penultimate"]
    assert list(display.scores) == ["GaussianNB", "KNeighborsClassifier"]
    results = search.cv_results_
    for params, score in zip(
        results["params"], results["mean_test_score"], strict=True
    ):
        line = display.scores[type(params["head"]).__name__]
        assert line[display.layers.index(str(params["features__layer"]))] == score
    assert len(display.lines_) == 2


def test_a_search_without_layers_is_refused():
    X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    pipeline = Pipeline(
        [("features", PretrainedCNNFeatures("tiny")), ("head", GaussianNB())]
    )
    search = GridSearchCV(pipeline, {"head": [GaussianNB()]}, cv=2)
    with pytest.raises(ValueError, match="'head'"):
        LayerDepthDisplay.from_search(search.fit(X, [0, 1] * 4))


def searched(pipeline, *candidates, metric="score"):
    """As if a search had given the candidates these scores: (layer, others, score)."""
    search = GridSearchCV(pipeline, {})
    search.cv_results_ = {
        "params": [{"features__layer": a} | others for a, others, _ in candidates],
        f"mean_test_{metric}": np.array([score for *_, score in candidates]),
    }
    return search


IMAGES = Pipeline([("features", PretrainedCNNFeatures()), ("head", GaussianNB())])


def test_the_best_of_the_candidates_with_one_label_is_drawn():
    scores = zip([1, 2, 3], [0.5, 0.9, 0.7], strict=True)
    search = searched(IMAGES, *[("block1", {"head__C": c}, s) for c, s in scores])
    display = LayerDepthDisplay.from_search(search, names=lambda others: "any C")
    assert {name: list(line) for name, line in display.scores.items()} == {
        "any C": [0.9]
    }


def test_of_successive_halving_the_last_score_of_a_candidate_is_drawn():
    search = searched(IMAGES, ("block1", {}, 0.9), ("block2", {}, 0.1))
    later = searched(IMAGES, ("block1", {}, 0.6)).cv_results_
    search.cv_results_ = {
        name: [*values, *later[name]] for name, values in search.cv_results_.items()
    }
    assert list(LayerDepthDisplay.from_search(search).scores[""]) == [0.6, 0.1]


def test_layers_of_all_kinds_are_in_order_of_depth():
    layers = [-1, ["block2", "block4"], "block5", 1, ("block1", "block2"), -3]
    search = searched(IMAGES, *[(layer, {}, 0.5) for layer in layers])
    shown = LayerDepthDisplay.from_search(search).layers
    tuples = ["('block1', 'block2')", "('block2', 'block4')"]
    assert shown == ["1", *tuples, "block5", "-3", "-1"]


def test_nodes_are_in_order_of_depth():
    layers = ["blocks.3", "auto", "block4", "blocks.0.bn2", "conv_stem"]
    layers += ["blocks.5.bn1", "penultimate", "block3"]
    search = searched(IMAGES, *[(layer, {}, 0.5) for layer in layers])
    assert LayerDepthDisplay.from_search(search).layers == [
        *("auto", "conv_stem", "blocks.0.bn2", "blocks.3"),
        *("block3", "blocks.5.bn1", "block4", "penultimate"),
    ]


def test_layers_that_the_first_network_lacks_are_in_order_of_depth():
    networks = "features__backbone"
    found = [("logits", {networks: "resnet18"}, 0.5), ("block1", {}, 0.5)]
    search = searched(IMAGES, *found, ("stem", {networks: "resnet18"}, 0.5))
    assert LayerDepthDisplay.from_search(search).layers == ["stem", "block1", "logits"]


def test_networks_with_the_same_text_have_a_line_each():
    networks = [tiny_backbone(seed) for seed in range(2)]
    found = [
        ("block1", {"features__backbone": net}, s) for s, net in enumerate(networks)
    ]
    search = searched(IMAGES, *found)
    names = lambda others: networks.index(others["features__backbone"])  # noqa: E731
    lines = LayerDepthDisplay.from_search(search, names=names).scores
    assert {name: list(line) for name, line in lines.items()} == {0: [0.0], 1: [1.0]}
    assert list(LayerDepthDisplay.from_search(search).scores) == ["Sequential"]


def test_what_is_no_search_is_refused():
    X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    model = clone(IMAGES).set_params(features__backbone="tiny").fit(X, [0, 1] * 4)
    with pytest.raises(TypeError, match=r"fitted search.* Got Pipeline"):
        LayerDepthDisplay.from_search(model)


def test_a_search_over_layers_of_texts_is_drawn():
    pytest.importorskip("wordllama")
    texts = Pipeline([("features", PretrainedTextFeatures()), ("head", GaussianNB())])
    search = searched(texts, ("penultimate", {}, 0.7), ("embeddings", {}, 0.6))
    display = LayerDepthDisplay.from_search(search)
    assert display.layers == ["embeddings", "penultimate"]


def test_a_grid_in_parts_may_leave_out_the_layer():
    search = searched(IMAGES, ("block1", {}, 0.5))
    search.cv_results_["params"].insert(0, {"head": "dummy"})
    search.cv_results_["mean_test_score"] = np.array([0.3, 0.5])
    assert LayerDepthDisplay.from_search(search).layers == ["block1"]


def test_what_a_search_lacks_is_named():
    several = searched(IMAGES, ("block1", {}, 0.5), metric="f1_macro")
    with pytest.raises(ValueError, match=r"no metric 'score'.*=: 'f1_macro'"):
        LayerDepthDisplay.from_search(several)
    assert LayerDepthDisplay.from_search(several, metric="f1_macro").layers
    two = searched(IMAGES, ("block1", {"texts__layer": "block1"}, 0.5))
    with pytest.raises(ValueError, match="several layers, 'features__layer', 'texts__"):
        LayerDepthDisplay.from_search(two)


def test_only_fine_tuned_classifiers_have_a_history():
    with pytest.raises(TypeError, match="must be a fitted FineTunedClassifier"):
        TrainingHistoryDisplay.from_estimator(IMAGES)


@pytest.mark.parametrize("as_frame", [False, True])
def test_a_ranking_is_drawn_against_cost(as_frame):
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    X = (
        rng.integers(0, 100, (24, 8, 8, 3), dtype=np.uint8)
        + 50 * y[:, None, None, None]
    )
    ranking = rank_layers(
        X.astype(np.uint8),
        y,
        backbone=["tiny", "smallcnn"],
        weights=["default", None],
        as_frame=as_frame,
    )
    rows = list(ranking.itertuples() if as_frame else ranking)
    display = LayerDepthDisplay.from_ranking(ranking)
    lines = {line.get_label(): line for line in display.lines_}
    assert lines.keys() == {"tiny", "smallcnn"}
    for name, line in lines.items():
        points = sorted((row.ms, row.score) for row in rows if row.backbone == name)
        assert sorted(zip(*line.get_data(), strict=True)) == points
        assert list(line.get_xdata()) == sorted(line.get_xdata())
    (chosen,) = [row for row in rows if row.chosen]
    assert [text.get_text() for text in display.ax_.texts] == [chosen.layer]
    assert display.ax_.texts[0].xy == (chosen.ms, chosen.score)
    assert display.ax_.get_ylabel() == "score" and "ms" in display.ax_.get_xlabel()


def test_a_part_of_a_ranking_without_the_choice_is_drawn():
    X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    ranking = rank_layers(X, np.arange(12) / 2, backbone="tiny")
    rest = [row for row in ranking if not row.chosen]
    axes = plt.subplots()[1]
    display = LayerDepthDisplay.from_ranking(rest, ax=axes)
    assert display.ax_ is axes and not axes.texts
    assert axes.get_legend() is None


def fitted_to_squares(head, y=None):
    """A pipeline, and images of two colours."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 100, (12, 16, 16, 3), dtype=np.uint8)
    X[::2, :8, :8, 0] += 150
    y = np.arange(12) % 2 if y is None else y
    features = PretrainedCNNFeatures("tiny", image_size=16, layer="block3")
    return make_pipeline(features, head).fit(X, y), X


def test_maps_are_drawn_over_the_photos():
    model, X = fitted_to_squares(GaussianNB())
    display = ActivationMapDisplay.from_estimator(
        model, X[:5], target=0, class_names=["spot", "none"], n_columns=3
    )
    likely = model.predict_proba(X[:5])[:, 0]
    titles = [ax.get_title() for ax in display.axes_]
    assert titles == [f"spot {share:.0%}" for share in likely]
    assert len(display.figure_.axes) == 6 and not display.figure_.axes[5].axison
    maps = activation_maps(model, X[:5], target=0)
    np.testing.assert_array_equal(display.maps, maps)
    photo, over = display.axes_[1].get_images()
    np.testing.assert_allclose(photo.get_array(), X[1] / 255, atol=1e-6)
    assert over.get_array().shape == (16, 16)
    low, high = over.get_clim()
    assert low == -high and high == pytest.approx(np.abs(over.get_array()).max())


def test_maps_are_drawn_on_given_axes_with_what_they_explain():
    figure, axes = plt.subplots(1, 2)
    model, X = fitted_to_squares(Perceptron())
    display = ActivationMapDisplay.from_estimator(model, X[:2], axes=axes)
    assert display.figure_ is figure
    predicted = model.predict(X[:2])
    assert [ax.get_title() for ax in axes] == [str(label) for label in predicted]
    model, X = fitted_to_squares(Ridge(), np.arange(12.0))
    display = ActivationMapDisplay.from_estimator(model, X[:1])
    assert display.axes_[0].get_title() == f"{model.predict(X[:1])[0]:.3g}"
    model, X = fitted_to_squares(Ridge(), np.arange(24.0).reshape(12, 2))
    display = ActivationMapDisplay.from_estimator(model, X[:1], target=1)
    assert display.axes_[0].get_title() == f"{model.predict(X[:1])[0, 1]:.3g}"


def test_photos_that_cannot_be_read_are_white_and_say_so():
    takes_nan = HistGradientBoostingClassifier(min_samples_leaf=2)
    for head in (LogisticRegression(), takes_nan):
        model, X = fitted_to_squares(head)
        model[0].on_error = "nan"
        with pytest.warns(ImageWarning, match="1 of 2 photos"):
            display = ActivationMapDisplay.from_estimator(model, [X[0], b"no photo"])
        known, unknown = (ax.get_title() for ax in display.axes_)
        assert known.endswith("%") and unknown == "could not be read"
        assert np.isnan(display.maps[1]).all() and (display.photos[1] == 1).all()


NAMES = ["spot", "none"]


@pytest.mark.parametrize("names", [np.array(NAMES), pd.Index(NAMES), tuple(NAMES)])
def test_class_names_in_any_sequence(names):
    model, X = fitted_to_squares(Perceptron())
    display = ActivationMapDisplay.from_estimator(
        model, X[:2], target=[0, 1], class_names=names
    )
    assert [ax.get_title() for ax in display.axes_] == NAMES
    again = ActivationMapDisplay(display.photos, display.maps, titles=names).plot()
    assert [ax.get_title() for ax in again.axes_] == NAMES


@pytest.mark.parametrize("names", [["one"], ["a", "b", "c"], "ab", {0: "a", 1: "b"}])
def test_class_names_that_do_not_fit_are_refused(names):
    model, X = fitted_to_squares(Perceptron())
    with pytest.raises(ValueError, match=r"'class_names'.*sequence of 2 names.*\(0, 1"):
        ActivationMapDisplay.from_estimator(model, X[:2], class_names=names)


def test_class_names_of_numbers_are_refused():
    model, X = fitted_to_squares(Ridge(), np.arange(12.0))
    with pytest.raises(ValueError, match=r"'class_names'.*predicts none"):
        ActivationMapDisplay.from_estimator(model, X[:2], class_names=NAMES)


def test_what_cannot_be_drawn_is_refused():
    display = ActivationMapDisplay(np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"'axes'.*each of the 2 photos. Got 1"):
        display.plot(axes=plt.subplots()[1])
    for n_columns in (0, 1.5, True):
        with pytest.raises(ValueError, match=rf"'n_columns'.*Got {n_columns}"):
            display.plot(n_columns=n_columns)
    display.titles = ["one"]
    with pytest.raises(ValueError, match=r"'titles'.*each of the 2 photos. Got 1"):
        display.plot()
    with pytest.raises(ValueError, match=r"'maps'.*each of the 2 photos. Got 3"):
        ActivationMapDisplay(np.zeros((2, 4, 4, 3)), np.zeros((3, 2, 2))).plot()


def test_what_cannot_be_drawn_is_refused_before_it_is_computed(monkeypatch):
    model, X = fitted_to_squares(GaussianNB())
    forwards, draw = count_images(monkeypatch), ActivationMapDisplay.from_estimator
    with pytest.raises(ValueError, match="'n_columns'"):
        draw(model, X[:2], n_columns=0)
    with pytest.raises(ValueError, match="'axes'"):
        draw(model, X[:2], axes=plt.subplots()[1])
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install"):
        draw(model, X[:2])
    assert forwards[0] == 0


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"'metric'.*accuracy, loss.*Got 'acuracy'"):
        TrainingHistoryDisplay(HISTORY, metric="acuracy").plot()
