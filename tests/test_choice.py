"""With layer="auto", fit chooses the layer that suits y."""

import pickle
import subprocess
import sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import coloured_images, count_images
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from skdeepfeat import (
    Backbone,
    ImageWarning,
    LayerWarning,
    PretrainedCNNFeatures,
    WeightsError,
    clear_caches,
    list_layers,
    load_textures,
)
from skdeepfeat._choice import TOLERANCE, LayerScore, choose_layer, score_layers

N = 48


def forgetful_network():
    """Its first layers see colours; the deepest one hardly does."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
    )
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.normal_(generator=generator)
        net[2].weight *= 1e-20
    return net.eval()


FORGETFUL = Backbone.from_module(forgetful_network(), image_size=8)


def choosing(backbone=FORGETFUL, **parameters):
    return PretrainedCNNFeatures(backbone, layer="auto", **parameters)


@pytest.fixture
def data():
    return coloured_images(N, 8)


def same_scores(found, expected):
    """Check that two estimators measured the same, as far as numbers are exact."""
    assert found.layer_scores_ == pytest.approx(expected.layer_scores_)


def scores(*r2):
    return {f"block{i}": LayerScore(value, value) for i, value in enumerate(r2)}


# The rule ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r2", "chosen"),
    [
        ((0.3, 0.6, 0.5), "block1"),
        ((0.6, 0.5, 0.6 - TOLERANCE / 2), "block2"),
        ((0.6, 0.6 - TOLERANCE / 2, 0.5), "block1"),
        ((TOLERANCE / 2, -0.1, -0.2), "block2"),
        ((-0.1, -0.2, -0.3), "block2"),
        ((0.1, -0.2, -0.3), "block0"),
    ],
)
def test_the_deepest_of_the_best_layers_is_chosen(r2, chosen):
    assert choose_layer(scores(*r2)) == chosen


def test_both_scores_count():
    found = {"a": LayerScore(0.6, 0.5), "b": LayerScore(0.7, 0.2)}
    assert choose_layer(found) == "a"
    weak = {"a": LayerScore(0.1, -0.2), "b": LayerScore(-0.1, -0.2)}
    assert choose_layer(weak) == "a"


def test_a_layer_of_many_idle_features_is_not_chosen():
    """A ridge regression ignores them; classifiers that read distances cannot."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 4
    signal = np.eye(4)[y] + rng.normal(0, 0.3, (200, 4))
    rare = (rng.random((200, 400)) < 0.02) * rng.exponential(size=(200, 400))
    hint = np.eye(4)[y] + rng.normal(0, 0.2, (200, 4))
    found = score_layers({"block": signal, "idle": np.hstack([hint, rare])}, y)
    assert found["idle"].neighbors_r2 < 0.5 < found["block"].neighbors_r2
    assert choose_layer(found) == "block"


# Fit and transform ------------------------------------------------------------------


def test_transform_reads_the_chosen_layer(data):
    X, y = data
    features = choosing().fit(X, y)
    assert features.layer_ == "block2"
    named = PretrainedCNNFeatures(FORGETFUL, layer=features.layer_)
    np.testing.assert_array_equal(features.transform(X), named.transform(X))
    np.testing.assert_array_equal(choosing().fit_transform(X, y), named.transform(X))
    assert len(features.get_feature_names_out()) == 8
    pairs = zip(
        features.layer_scores_.values(),
        features.layer_neighbor_scores_.values(),
        strict=True,
    )
    found = [LayerScore(*pair) for pair in pairs]
    assert choose_layer(dict(zip(features.layer_scores_, found, strict=True))) == (
        features.layer_
    )
    assert features.layer_scores_["block2"] > features.layer_scores_["penultimate"]
    assert features.layer_accuracies_["block2"] > 0.9
    assert features.get_params()["layer"] == "auto"


def test_real_textures():
    textures = load_textures()
    X, y = textures.data[::4], textures.target[::4]
    features = PretrainedCNNFeatures(layer="auto", image_size=64).fit(X, y)
    best = max(features.layer_scores_.values())
    assert best > 0.3
    assert features.layer_scores_[features.layer_] >= best - TOLERANCE
    assert features.layer_accuracies_.keys() == features.layer_scores_.keys()


def test_all_depths_cost_one_pass(data, monkeypatch):
    forwards = count_images(monkeypatch)
    features = choosing(batch_size=1)
    features.fit(*data).transform(data[0])
    assert forwards[0] == N
    clear_caches()
    features.set_params(cache=None).fit_transform(*data)
    assert forwards[0] == 2 * N
    features.fit(*data).transform(data[0])
    assert forwards[0] == 4 * N


def test_images_seen_in_transform_alone_need_no_other_pass_in_a_later_fit(
    data, monkeypatch
):
    X, y = data
    forwards = count_images(monkeypatch)
    choosing(batch_size=1).fit(X[:24], y[:24]).transform(X)
    choosing(batch_size=1).fit(X, y)
    assert forwards[0] == N


def test_warm_stores_what_fit_needs(data, monkeypatch):
    forwards = count_images(monkeypatch)
    features = choosing(batch_size=1).warm(data[0])
    assert not hasattr(features, "layer_")
    features.fit(*data)
    assert forwards[0] == N


def test_layers_of_the_same_features_are_compared_once():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (12, 32, 32, 3), np.uint8), rng.random(12)
    features = PretrainedCNNFeatures("resnet18", weights=None, layer="auto")
    features.set_params(image_size=32)
    aliases = [layer.alias for layer in list_layers("resnet18")]
    distinct = [alias for alias in aliases if alias not in ("block4", "logits")]
    assert list(features.score_layers(X, y)[1]) == distinct
    assert "block4" in features.set_params(pooling="max").score_layers(X, y)[1]


def test_the_head_is_no_depth(data):
    features = PretrainedCNNFeatures("tiny", layer="auto").fit(*data)
    assert not features.layer_scores_.keys() & {"block9", "logits"}
    assert list(features.layer_scores_)[-1] == "penultimate"


def test_a_fit_forgets_the_choice_of_an_earlier_one(data):
    features = choosing().fit(*data)
    features.set_params(layer="block1").fit(data[0])
    fitted = {name for name in vars(features) if name.endswith("_")}
    assert fitted == {"weights_digest_"}
    assert features.transform(data[0]).shape == (N, 8)


# Targets ----------------------------------------------------------------------------

NAMES = np.array(["ant", "bee", "wasp"])
SAME_CLASSES = {
    "strings": lambda y: NAMES[y],
    "objects": lambda y: NAMES[y].astype(object),
    "numbers as objects": lambda y: (10 * y).astype(object),
    "list": lambda y: y.tolist(),
    "column": lambda y: y[:, None],
    "series with another index": lambda y: pd.Series(NAMES[y], np.arange(len(y))[::-1]),
    "categories": lambda y: pd.Series(NAMES[y], dtype="category"),
    "nullable integers": lambda y: pd.Series(y, dtype="Int64"),
    "frame": lambda y: pd.DataFrame({"insect": NAMES[y]}),
    "large": lambda y: y * 10**12 - 7,
    "mixed objects": lambda y: np.array([1, "bee", 2.5], object)[y],
    "bytes": lambda y: NAMES.astype("S")[y],
}


@pytest.mark.parametrize("kind", SAME_CLASSES)
def test_names_of_classes_do_not_matter(kind, data):
    X, y = data
    expected = choosing().fit(X, y)
    found = choosing().fit(X, SAME_CLASSES[kind](y))
    same_scores(found, expected)
    assert found.layer_accuracies_ == expected.layer_accuracies_


def test_two_classes_score_the_same_as_booleans_and_as_numbers(data):
    X, y = data
    expected = choosing().fit(X, y == 0)
    for other in (np.where(y == 0, -1, 1), (y == 0).astype(float) * 3):
        same_scores(choosing().fit(X, other), expected)


def test_floats_are_numbers_to_predict(data):
    X, _ = data
    values = X[..., 0].mean((1, 2))
    features = choosing().fit(X, values)
    assert features.layer_scores_["block1"] > 0.5
    assert features.layer_ == "block2"
    assert not hasattr(features, "layer_accuracies_")
    for same in (1e6 * values - 3, 1e200 * values, 1e-300 * values):
        same_scores(choosing().fit(X, same), features)


def test_several_outputs_count_equally(data):
    X, _ = data
    values = X[..., :2].mean((1, 2))
    one, two = (choosing().fit(X, v).layer_scores_ for v in values.T)
    both = choosing().fit(X, values * [1, 1e6]).layer_scores_
    for layer, r2 in both.items():  # each output alone may take another penalty
        assert abs(r2 - (one[layer] + two[layer]) / 2) < 0.05


def test_several_labels_of_an_image(data):
    X, y = data
    labels = np.column_stack([y == 0, y > 1, y]).astype(int)
    features = choosing().fit(X, labels)
    assert features.layer_ == "block2"
    assert features.layer_accuracies_["block2"] > 0.9
    sparse = choosing().fit(X, csr_array(labels))
    assert sparse.layer_scores_ == features.layer_scores_


def test_few_images_of_rare_classes(data):
    X, y = data
    rare = np.where(np.arange(N) < 40, y, 90 + np.arange(N))
    assert choosing().fit(X, rare).layer_ == "block2"


@pytest.mark.parametrize(
    "y",
    [
        np.arange(N),
        np.zeros(N, int),
        np.full(N, 2.5),
        np.array([f"{i}" for i in range(N)]),
    ],
    ids=["a class each", "one class", "one number", "a name each"],
)
def test_without_signal_the_deepest_layer_is_read_with_a_warning(y, data):
    features = choosing()
    with pytest.warns(LayerWarning, match=r"'penultimate'.*best R² is -?\d\.\d{3}, of"):
        features.fit(data[0], y)
    assert features.layer_ == "penultimate"


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_no_signal(seed, data):
    y = np.random.default_rng(seed).integers(0, 8, N)
    with pytest.warns(LayerWarning):
        assert choosing().fit(data[0], y).layer_ == "penultimate"


def test_equal_images_are_no_signal():
    X = np.zeros((6, 8, 8, 3), np.uint8)
    with pytest.warns(LayerWarning):
        choosing().fit(X, [0, 1] * 3)


def test_two_images(data):
    with pytest.warns(LayerWarning):
        choosing().fit(data[0][:2], [0, 1])


# What is refused --------------------------------------------------------------------


def test_a_target_is_needed(data):
    for method in (choosing().fit, choosing().fit_transform):
        with pytest.raises(ValueError, match=r"y is None.*call fit\(X, y\), or name a"):
            method(data[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda features, X: features.transform(X),
        lambda features, X: features.transform_to("rows.npy", X),
        lambda features, X: features.get_feature_names_out(),
    ],
)
def test_a_layer_must_have_been_chosen(call, data):
    with pytest.raises(NotFittedError, match=r"needs fit\(X, y\).*layer='penultimate'"):
        call(choosing(), data[0])


def test_targets_that_do_not_fit_are_refused_before_the_pass(data, monkeypatch):
    X, y = data
    forwards = count_images(monkeypatch)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples.*48, 47"):
        choosing().fit(X, y[:-1])
    with pytest.raises(ValueError, match="contains NaN"):
        choosing().fit(X, np.where(y == 0, np.nan, y))
    with pytest.raises(ValueError, match="contains infinity"):
        choosing().fit(X, np.where(y == 0, np.inf, y))
    with pytest.raises(ValueError, match=r"strings or booleans. Got date instead"):
        choosing().fit(X, [date(2026, 1, 1), date(2026, 1, 2)] * 24)
    assert forwards[0] == 0


@pytest.mark.parametrize(
    "y",
    [
        pd.Series(["b", pd.NA, "a"] * 16, dtype="string"),
        pd.Series([True, pd.NA, False] * 16, dtype="boolean"),
        np.array(["b", None, "a"] * 16, dtype=object),
        np.array(["2026-01-01", "NaT", "2026-01-02"] * 16, dtype="M8[D]"),
    ],
)
def test_missing_values_of_the_target_are_counted(y, data):
    with pytest.raises(ValueError, match=r"no value in 16 of 48 rows.*row 1\. Leave"):
        choosing().fit(data[0], y)


def test_tensors_that_are_no_arrays_are_refused(data):
    for tensor in (torch.ones(48, requires_grad=True), torch.ones(48).bfloat16()):
        with pytest.raises(ValueError, match=r"y cannot be read.*y\.detach\(\)\.cpu"):
            choosing().fit(data[0], tensor)


def test_one_image_is_too_few(data):
    with pytest.raises(ValueError, match=r"1 sample.*minimum of 2"):
        choosing().fit(data[0][:1], [0])


def test_unreadable_images_do_not_count(data):
    X, y = list(data[0]), data[1]
    expected = choosing().fit(X[2:], y[2:])
    features = choosing(on_error="nan")
    with pytest.warns(ImageWarning):
        rows = features.fit_transform([None, "gone.jpg", *X[2:]], y)
    assert np.isnan(rows[:2]).all() and np.isfinite(rows[2:]).all()
    assert [row for row, *_ in features.errors_] == [0, 1]
    same_scores(features, expected)
    with pytest.warns(ImageWarning), pytest.raises(ValueError, match="0 sample"):
        features.fit([None] * 3, [0, 1, 0])
    assert not hasattr(features, "layer_")


def test_another_network_needs_another_fit(data):
    features = choosing().fit(*data).set_params(backbone="tiny")
    with pytest.raises(WeightsError, match="fit again"):
        features.transform(data[0])


# scikit-learn -----------------------------------------------------------------------


def test_tags_depend_on_the_layer():
    for layer in ("auto", "block1", 2, ("auto",), np.array(["auto"])):
        tags = get_tags(PretrainedCNNFeatures(layer=layer))
        chooses = isinstance(layer, str) and layer == "auto"
        assert (tags.requires_fit, tags.target_tags.required) == (chooses, chooses)


def test_clones_choose_anew_and_pickles_remember(data, tmp_path):
    features = choosing("mini", image_size=32).fit(*data)
    assert not hasattr(clone(features), "layer_")
    assert len(pickle.dumps(features)) < 4096
    (tmp_path / "features.pickle").write_bytes(pickle.dumps(features))
    np.save(tmp_path / "X.npy", data[0])
    code = """
        import pickle, sys, numpy as np
        features = pickle.load(open(sys.argv[1] + "/features.pickle", "rb"))
        rows = features.set_params(engine="torch").transform(
            np.load(sys.argv[1] + "/X.npy")
        )
        np.save(sys.argv[1] + "/rows.npy", rows)
    """
    lines = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    subprocess.run([sys.executable, "-c", lines, str(tmp_path)], check=True)
    np.testing.assert_array_equal(
        np.load(tmp_path / "rows.npy"), features.transform(data[0])
    )


def test_each_fold_chooses_from_its_training_rows_alone(data):
    X, y = data
    folds = [(np.arange(24), np.arange(24, N)), (np.arange(24, N), np.arange(24))]
    mislabelled = np.where(
        np.arange(N) < 24, y, np.random.default_rng(0).permutation(y)
    )
    found = cross_validate(
        make_pipeline(choosing(), DummyClassifier()),
        *(X, mislabelled),
        cv=folds,
        return_estimator=True,
    )
    for (train, _), model in zip(folds, found["estimator"], strict=True):
        clear_caches()
        alone = choosing().fit(X[train], mislabelled[train])
        assert model[0].layer_scores_ == alone.layer_scores_


def test_named_output_and_a_column_of_a_frame(data):
    X, y = data
    frame = pd.DataFrame({"photo": list(X), "price": y})
    columns = ColumnTransformer([("photo", choosing(), "photo")], remainder="drop")
    rows = columns.set_output(transform="pandas").fit_transform(frame, y)
    assert list(rows.columns) == [
        f"photo__photo_pretrainedcnnfeatures{i}" for i in range(8)
    ]
    np.testing.assert_array_equal(columns.transform(frame), rows)


def test_tensors(data):
    rows = choosing(output="torch").fit_transform(*data)
    assert isinstance(rows, torch.Tensor) and rows.shape == (N, 8)
