"""Maps show the places that a prediction rests on."""

import numpy as np
import pandas as pd
import pytest
from conftest import coloured_images
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from skdeepfeat import (
    ActivationMapDisplay,
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    MapWarning,
    PretrainedCNNFeatures,
    activation_maps,
    load_image_folder,
)

SIDE, SPOT = 32, 12
HEADS = {
    "logistic": LogisticRegression(),
    "svc": SVC(),
    "forest": RandomForestClassifier(100, random_state=0),
    "neighbours": KNeighborsClassifier(5, weights="distance"),
    "bayes": GaussianNB(),  # whose probabilities are rounded to 0 and 1
    "mlp": MLPClassifier((20,), max_iter=2000, random_state=0),
    "pca": make_pipeline(PCA(4), LogisticRegression()),
}


COLOURS = {"blue": (0, 0, 250), "red": (250, 0, 0), "green": (0, 250, 0)}


def spotted(n, n_classes=2):
    """Grey noise with a spot of one colour: images, classes, corners of the spots."""
    rng = np.random.default_rng(0)
    X = rng.integers(100, 150, (n, SIDE, SIDE, 3), dtype=np.uint8)
    names, corners = list(COLOURS)[:n_classes], rng.integers(0, SIDE - SPOT, (n, 2))
    y = np.array(names)[np.arange(n) % n_classes]
    for image, name, (top, left) in zip(X, y, corners, strict=True):
        image[top : top + SPOT, left : left + SPOT] = COLOURS[name]
    return X, y, corners


def hits(maps, corners):
    """Share of maps whose strongest place overlaps the spot."""
    n = maps.shape[1]
    best = maps.reshape(len(maps), -1).argmax(1)
    first = np.stack(np.unravel_index(best, (n, n)), 1) * SIDE / n
    overlap = (first + SIDE / n > corners) & (first < corners + SPOT)
    return overlap.all(1).mean()


@pytest.fixture(scope="module")
def spots():
    return spotted(60)


@pytest.fixture(scope="module")
def three_spots():
    return spotted(90, 3)


def features(**parameters):
    settings = {"image_size": SIDE, "layer": "block3"} | parameters
    return PretrainedCNNFeatures(**settings)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_the_strongest_place_is_in_the_object(head, pooling, spots):
    X, y, corners = spots
    model = make_pipeline(features(pooling=pooling), StandardScaler(), HEADS[head])
    model.fit(X[:40], y[:40])
    maps = activation_maps(model, X[40:], target=y[40:])
    assert maps.shape == (20, 4, 4)
    assert hits(maps, corners[40:]) >= 0.8  # by chance, 0.4


# Heads for three classes, of which some score pairs of classes, are likelihoods without
# a scale, or change in steps.
OF_THREE = {
    "pairs": SVC(decision_function_shape="ovo"),
    "likelihood": make_pipeline(PCA(5), QuadraticDiscriminantAnalysis(reg_param=0.2)),
    "centroids": NearestCentroid(),
    "isotonic": CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=3),
    "votes": VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())]),
}


@pytest.mark.filterwarnings("ignore::skdeepfeat.MapWarning")  # of some with votes
@pytest.mark.parametrize("head", OF_THREE)
def test_the_strongest_place_is_in_one_of_three_objects(head, three_spots):
    X, y, corners = three_spots
    layer = "block2" if head in ("likelihood", "centroids") else "block3"
    model = make_pipeline(features(layer=layer), StandardScaler(), OF_THREE[head])
    maps = activation_maps(model.fit(X[:60], y[:60]), X[60:], target=y[60:])
    assert hits(maps, corners[60:]) >= (0.8 if head != "likelihood" else 0.7)


@pytest.mark.parametrize(
    "around", [lambda svc: svc, lambda svc: BaggingClassifier(svc, 3, random_state=0)]
)
def test_a_machine_of_pairs_has_the_maps_of_one_of_classes(around, three_spots):
    X, y, _ = three_spots
    maps = {}
    for shape in ("ovo", "ovr"):
        head = around(SVC(decision_function_shape=shape))
        model = make_pipeline(features(), StandardScaler(), head).fit(X[:60], y[:60])
        maps[shape] = activation_maps(model, X[60:66])
        assert activation_maps(model, X[:1]).any()
        assert model[-1].get_params().get("decision_function_shape", shape) == shape
    np.testing.assert_array_equal(maps["ovo"], maps["ovr"])


def inner():
    return make_pipeline(features(), StandardScaler(), LogisticRegression())


COMPOSITES = {
    "search": GridSearchCV(inner(), {"logisticregression__C": [0.1, 1]}, cv=2),
    "calibrated": CalibratedClassifierCV(inner(), cv=2),
    "threshold": TunedThresholdClassifierCV(inner(), cv=2),
    "stack": StackingClassifier([("a", inner()), ("b", inner())], cv=2),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_pipelines_in_other_estimators_have_maps(name, spots):
    X, y, corners = spots
    model = clone(COMPOSITES[name]).fit(X[:40], y[:40] == "red")
    maps = activation_maps(model, X[40:], target=y[40:] == "red")
    assert hits(maps, corners[40:]) >= 0.8


def test_a_fine_tuned_classifier_has_maps(spots):
    X, y, corners = spots
    model = FineTunedClassifier(
        "tiny", image_size=SIDE, epochs=30, augment="none", random_state=0
    )
    model.fit(X[:40], y[:40])
    assert model.score(X[40:], y[40:]) > 0.9
    maps = activation_maps(model, X[40:])
    assert hits(maps, corners[40:]) > 0.8
    wrapped = Pipeline([("model", model)])
    np.testing.assert_array_equal(activation_maps(wrapped, X[40:]), maps)


def classical_maps(model, X):
    """Weights of a linear head times the maps of the predicted class [Zhou 2016]."""
    unpooled = PretrainedCNNFeatures(pooling="flatten").transform(X)
    maps = unpooled.reshape(len(X), 1280, 4, 4)
    weights = model[-1].coef_[0] / model[1].scale_
    sign = np.where(model.predict(X) == model.classes_[1], 1, -1)
    return sign[:, None, None] * np.einsum("nchw,c->nhw", maps, weights)


def test_a_linear_head_on_averages_has_the_classical_map(shared_data):
    photos = load_image_folder(shared_data / "hymenoptera" / "train")
    model = make_pipeline(
        PretrainedCNNFeatures(), StandardScaler(), LogisticRegression(max_iter=2000)
    )
    model.fit(photos.data[::6], photos.target[::6])
    X = photos.data[1::30]
    found, expected = activation_maps(model, X), classical_maps(model, X)
    assert found.shape == (len(X), 4, 4)
    for one, classical in zip(found, expected, strict=True):
        assert np.corrcoef(one.ravel(), classical.ravel())[0, 1] > 0.999


def test_the_target_is_the_predicted_class_unless_named(spots):
    X, y, _ = spots
    model = make_pipeline(features(), LogisticRegression()).fit(X[:40], y[:40])
    found = activation_maps(model, X[:4])
    np.testing.assert_array_equal(found, activation_maps(model, X[:4], target=y[:4]))
    red = activation_maps(model, X[:4], target="red")
    np.testing.assert_allclose(red[::2], -found[::2])  # of two classes
    with pytest.raises(ValueError, match=r"unknown class 'rde'. Did you mean 'red'"):
        activation_maps(model, X[:4], target="rde")
    with pytest.raises(ValueError, match=r"one for each of the 4 images.*\(3,\)"):
        activation_maps(model, X[:4], target=["red"] * 3)


UNKNOWN = {
    "the number of a name": (["1", "2"], 1, r"class 1. Did you mean '1'\? The"),
    "the name of a number": ([1, 2], "1", r"class '1'. Did you mean 1\? The"),
    "another number": ([0, 1], -1, r"class -1. The classes are 0, 1"),
    "nan": ([0, 1], np.nan, r"class nan. The classes"),
    "None among names": (["red", "blue"], [None, "red", "blue"], r"class None. The"),
    "a set": (["red", "blue"], {"red"}, r"class \{'red'\}. The"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_classes_are_named_with_what_they_may_mean(name, spots):
    (one, other), target, message = UNKNOWN[name]
    X, y, _ = spots
    labels = np.array([one, other])[(y == "red").astype(int)]
    model = make_pipeline(features(), LogisticRegression()).fit(X, labels)
    with pytest.raises(ValueError, match=message):
        activation_maps(model, X[:3], target=target)


def test_a_single_class_has_flat_maps(spots):
    X, y, _ = spots
    model = make_pipeline(features(), GaussianNB()).fit(X, y == "none")
    with pytest.warns(MapWarning, match=r"2 of 2 photos are flat"):
        maps = activation_maps(model, X[:2])
    assert (maps == 0).all()


def test_several_labels_are_refused(spots):
    X, y, _ = spots
    both = np.stack([y == "red", y == "blue"], 1).astype(int)
    model = make_pipeline(features(), KNeighborsClassifier()).fit(X, both)
    for target in (None, 1):
        with pytest.raises(ValueError, match=r"KNeighborsClassifier predicts 2"):
            activation_maps(model, X[:2], target=target)


def test_numbers_are_explained_by_output(spots):
    X, y, corners = spots
    heights = np.stack([y == "red", y == "blue"], 1) * 1.0
    model = make_pipeline(features(), Ridge(0.1)).fit(X[:40], heights[:40])
    maps = activation_maps(model, X[40:], target=(y[40:] == "blue") * 1)
    assert hits(maps, corners[40:]) > 0.8
    with pytest.raises(ValueError, match=r"one of its 2 outputs, 0 to 1. Got True"):
        activation_maps(model, X[40:], target=True)
    with pytest.raises(ValueError, match=r"one of its 2 outputs, 0 to 1. Got None"):
        activation_maps(model, X[40:])
    for target in (2, True):
        with pytest.raises(ValueError, match=rf"Got {target} instead"):
            activation_maps(model, X[40:], target=target)
    one = make_pipeline(features(), Ridge(0.1)).fit(X[:40], heights[:40, 0])
    assert activation_maps(one, X[40:]).shape == maps.shape
    with pytest.raises(ValueError, match=r"must be None, since.*one number. Got 1"):
        activation_maps(one, X[40:], target=1)


def test_outliers_are_explained_and_clusters_refused(spots):
    X, _, _ = spots
    model = make_pipeline(features(), IsolationForest(random_state=0)).fit(X[:40])
    assert activation_maps(model, X[:3]).shape == (3, 4, 4)
    model = make_pipeline(features(), KMeans(2, random_state=0)).fit(X[:40])
    with pytest.raises(ValueError, match="Got KMeans, which is none"):
        activation_maps(model, X[:3])
    with pytest.raises(ValueError, match="Got PretrainedCNNFeatures, which is none"):
        activation_maps(features(), X[:3])


def test_several_layers_give_one_map_of_the_finest_places(spots):
    X, y, corners = spots
    model = make_pipeline(
        features(layer=("block2", "block3", "block5")), StandardScaler(), SVC()
    )
    model.fit(X[:40], y[:40])
    maps = activation_maps(model, X[40:])
    assert maps.shape == (20, 8, 8) and hits(maps, corners[40:]) > 0.8


def test_single_places_of_fine_maps_on_request(spots):
    X, y, _ = spots
    model = make_pipeline(features(layer="block1"), LogisticRegression()).fit(X, y)
    assert activation_maps(model, X[:2]).shape == (2, 14, 14)
    assert activation_maps(model, X[:2], method="places").shape == (2, 16, 16)
    with pytest.raises(ValueError, match=r"'auto' or 'places'. Got 'squares'"):
        activation_maps(model, X[:2], method="squares")


def test_photos_beside_columns_keep_the_columns(spots):
    X, y, corners = spots
    numbers = np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame({"photo": list(X), "number": numbers})
    beside = make_column_transformer(
        (features(), "photo"), (StandardScaler(), ["number"])
    )
    model = make_pipeline(beside, LogisticRegression()).fit(frame[:40], y[:40])
    maps = activation_maps(model, frame[40:])
    assert hits(maps, corners[40:]) > 0.8
    two = make_column_transformer((features(), "photo"), (features(), "back"))
    frame = frame.assign(back=list(X))
    model = make_pipeline(two, LogisticRegression()).fit(frame, y)
    with pytest.raises(ValueError, match=r"columns back, photo"):
        activation_maps(model, frame)


def test_frames_and_tensors_between_steps_give_the_same_maps(spots):
    pytest.importorskip("polars")
    X, y, _ = spots
    model = make_pipeline(features(), StandardScaler(), LogisticRegression())
    expected = activation_maps(model.fit(X, y), X[:3])
    for container in ("pandas", "polars"):
        model.set_output(transform=container).fit(X, y)
        np.testing.assert_allclose(activation_maps(model, X[:3]), expected, atol=1e-4)
    as_array = FunctionTransformer(lambda tensor: tensor.cpu().numpy())
    steps = features(output="torch"), as_array, StandardScaler(), LogisticRegression()
    found = activation_maps(make_pipeline(*steps).fit(X, y), X[:3])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_chunk_at_a_time_gives_the_same_maps(spots, monkeypatch):
    X, y, _ = spots
    model = make_pipeline(features(), LogisticRegression()).fit(X, y)
    whole = activation_maps(model, X[:5])
    monkeypatch.setattr("skdeepfeat._activation_maps.maps.AT_ONCE", 1)
    np.testing.assert_allclose(activation_maps(model, X[:5]), whole, atol=1e-5)


def test_vectors_behind_an_average_have_its_places():
    X, y = coloured_images(8, 32)
    # The map of the second one has no alias.
    for name, weights in (("resnet18", None), ("efficientnet_lite0", "default")):
        features = PretrainedCNNFeatures(name, weights=weights, image_size=64)
        model = make_pipeline(features, LogisticRegression()).fit(X, y)
        assert activation_maps(model, X[:2]).shape == (2, 2, 2)


def test_tokens_have_places_and_the_class_token_none():
    X, y = coloured_images(6, 32)
    vit = {"backbone": "vit_b_32", "weights": None}
    model = make_pipeline(PretrainedCNNFeatures(**vit, layer="block2"), Ridge())
    assert activation_maps(model.fit(X, y * 1.0), X[:2]).shape == (2, 7, 7)
    model = make_pipeline(PretrainedCNNFeatures(**vit), Ridge()).fit(X, y * 1.0)
    with pytest.raises(ValueError, match=r"no average over.*layer='block12'"):
        activation_maps(model, X)


def test_a_single_place_cannot_be_left_out(spots):
    X, y, _ = spots
    model = make_pipeline(features(layer="penultimate"), SVC()).fit(X, y)
    with pytest.raises(ValueError, match=r"one row of features.*layer='block5'"):
        activation_maps(model, X)


def test_unpooled_features_are_refused(spots):
    X, y, _ = spots
    model = make_pipeline(features(pooling="flatten"), LogisticRegression()).fit(X, y)
    with pytest.raises(ValueError, match=r"pooling='flatten' pools nothing"):
        activation_maps(model, X)


def test_flat_maps_warn(spots):
    X, y, _ = spots
    model = make_pipeline(features(), DecisionTreeClassifier())
    model.fit(X, y == "none")
    with pytest.warns(MapWarning, match=r"2 of 2 photos are flat \(rows 0, 1\)"):
        maps = activation_maps(model, X[:2], target=False)
    assert not maps.any()


def test_scores_that_are_not_finite_warn(spots):
    """A kernel that reaches no training photo divides 0 by 0."""
    X, y, _ = spots
    labels = np.unique(y, return_inverse=True)[1]
    head = LabelSpreading(gamma=1e9)
    model = make_pipeline(features(on_error="nan"), head).fit(X[:40], labels[:40])
    cells = [Image.fromarray(X[40]), b"no photo", Image.fromarray(X[41])]
    with (
        np.errstate(invalid="ignore"),
        pytest.warns(MapWarning, match=r"2 of 3 photos have nan \(rows 0, 2\)"),
        pytest.warns(ImageWarning, match=r"1 of 3 photos could not be read"),
    ):
        display = ActivationMapDisplay.from_estimator(model, cells)
    assert np.isnan(display.maps).all()
    said = [title == "could not be read" for title in display.titles]
    assert said == [False, True, False]


def test_photos_that_cannot_be_read(spots, tmp_path, monkeypatch):
    X, y, _ = spots
    model = make_pipeline(features(), LogisticRegression()).fit(X, y)
    cells = [Image.fromarray(x) for x in X[:2]] + [b"no photo"]
    monkeypatch.setattr("skdeepfeat._activation_maps.maps.AT_ONCE", 1)
    with pytest.raises(ImageError, match=r"^row 2 "):
        activation_maps(model, cells)
    model.set_params(pretrainedcnnfeatures__on_error="nan")
    with pytest.warns(match=r"1 of 3 photos.*first is row 2 "):
        maps = activation_maps(model, cells)
    assert np.isfinite(maps[:2]).all() and np.isnan(maps[2]).all()


def test_pixels_out_of_range_warn(spots):
    X, y, _ = spots
    model = make_pipeline(features(), LogisticRegression()).fit(X, y)
    with pytest.warns(ImageWarning):
        activation_maps(model, X[:2] / 100)
