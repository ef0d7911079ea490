"""ONNX files predict as the estimators that they come from."""

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import count_images
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    load_image_folder,
    load_textures,
    to_onnx,
)

onnxruntime = pytest.importorskip("onnxruntime")
for name in ("onnx", "onnxscript", "skl2onnx"):
    pytest.importorskip(name)

TEXTURES = load_textures()
X = [Image.fromarray(x).convert("RGB") for x in TEXTURES.data[::4]]
Y = np.array(TEXTURES.target_names)[TEXTURES.target[::4]]
TWO = np.isin(Y, np.unique(Y)[:4])
RECIPE = {"layer": "block2", "image_size": 64}
HEADS = {
    "logistic": LogisticRegression(max_iter=1000),
    "ridge": RidgeClassifier(),
    "svc": SVC(probability=True, random_state=0),
    "calibrated": CalibratedClassifierCV(LinearSVC(), cv=3),
    "forest": RandomForestClassifier(30, random_state=0),
    "extra trees": ExtraTreesClassifier(30, random_state=0),
    "neighbours": KNeighborsClassifier(),
    "boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
    "bayes": GaussianNB(),
    "mlp": MLPClassifier((20,), max_iter=2000, random_state=0),
    "linear svc": LinearSVC(),
    "pca": make_pipeline(PCA(10), LogisticRegression()),
    "linear svc in a pipeline": make_pipeline(PCA(10), LinearSVC()),
    "stack": StackingClassifier(
        [("a", GaussianNB()), ("b", LogisticRegression())], cv=2
    ),
}


@pytest.fixture(scope="module", autouse=True)
def exported_once():
    """Export each network once; heads are what most of these tests are about."""
    from skdeepfeat._onnx import networks

    export, known, patch = networks.export_networks, {}, pytest.MonkeyPatch()

    def once(steps, side):
        import onnx

        key = *((step._plan().pooled.digest, step.layer) for step in steps), side
        if key not in known:
            known[key] = export(steps, side).SerializeToString()
        return onnx.load_from_string(known[key])

    patch.setattr(networks, "export_networks", once)
    yield
    patch.undo()


def fitted(head, y=Y, **recipe):
    features = PretrainedCNNFeatures(**(RECIPE | recipe))
    return make_pipeline(features, StandardScaler(), head).fit(X, y)


def run(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def network_input(images, side=64):
    """Resized and cropped as the guide does it."""
    found = []
    for image in images:
        short = min(image.size)
        w, h = (int(side * length / short) for length in image.size)
        left, top = round((w - side) / 2), round((h - side) / 2)
        resized = image.resize((w, h), Image.BICUBIC)
        found.append(resized.crop((left, top, left + side, top + side)))
    return np.stack([np.asarray(one) for one in found])


@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
@pytest.mark.parametrize("y", [Y, TWO * 2.0], ids=["eight", "two"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_predict_as_in_scikit_learn(name, y):
    model = fitted(HEADS[name], y)
    found = run(to_onnx(model), images=network_input(X))
    likely = getattr(model, "predict_proba", None)
    if likely:
        np.testing.assert_allclose(found["probabilities"], likely(X), atol=1e-4)
    else:
        scores = model.decision_function(X)
        scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
        np.testing.assert_allclose(found["scores"], scores, atol=1e-3)
    sure = np.ones(len(X), bool)
    if likely:
        best = np.sort(likely(X), 1)[:, -2:]
        sure = best[:, 1] - best[:, 0] > 1e-6
    np.testing.assert_array_equal(found["label"][sure], model.predict(X)[sure])


@pytest.mark.parametrize("pooling", ["max", "gem"])
def test_autocast_around_an_export_changes_nothing(pooling):
    features = PretrainedCNNFeatures(**RECIPE, pooling=pooling).fit(X)
    with torch.autocast("cpu", torch.bfloat16):
        graph = to_onnx(features)
    rows = run(graph, images=network_input(X))["features"]
    np.testing.assert_allclose(rows, features.transform(X), rtol=1e-4, atol=1e-5)


def test_the_place_of_a_file_is_checked_first(tmp_path, monkeypatch):
    features = PretrainedCNNFeatures(**RECIPE).fit(X)
    with monkeypatch.context() as patch:  # counting would fix the number of images
        forwards = count_images(patch)
        with pytest.raises(FileNotFoundError, match=r"no folder .*absent.* Create"):
            to_onnx(features, tmp_path / "absent" / "model.onnx")
        with pytest.raises(ValueError, match="path of to_onnx must be on a disk"):
            to_onnx(features, "s3://bucket/model.onnx")
        assert forwards[0] == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    to_onnx(features, "~/model.onnx")
    assert [file.name for file in tmp_path.glob("*")] == ["model.onnx"]


def test_any_number_of_images_in_a_file(tmp_path):
    model = fitted(LogisticRegression())
    to_onnx(model, tmp_path / "model.onnx", X=X[:10])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 2, 5):
        label, likely = session.run(None, {"images": network_input(X[:n])})
        assert label.tolist() == model.predict(X[:n]).tolist()
        assert likely.shape == (n, 8)


def test_labels_that_are_times_are_refused():
    days = np.array(["2020-01-01", "2021-01-01"], "M8[D]")[TWO * 1]
    model = fitted(LogisticRegression(max_iter=1000), days)
    with pytest.raises(ValueError, match=r"LogisticRegression are datetime64\[D\]"):
        to_onnx(model)


def test_layers_and_sizes_may_be_integers_of_numpy():
    recipe = {"layer": (np.int64(1), "block2"), "image_size": np.int64(64)}
    model = to_onnx(fitted(LogisticRegression(max_iter=1000), **recipe))
    about = {one.key: one.value for one in model.metadata_props}
    assert json.loads(about["layer"]) == [1, "block2"]


def test_a_file_in_the_home_is_replaced_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = fitted(LogisticRegression(max_iter=1000))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space"),
    ):
        patch.setattr(Path, "write_bytes", full_disk)
        to_onnx(model, "~/model.onnx")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.onnx"]
    to_onnx(model, "~/model.onnx")
    onnxruntime.InferenceSession(path)


def full_disk(path, data):
    with path.open("wb") as file:
        file.write(data[:9])
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "path, said",
    [
        ("missing/model.onnx", "There is no folder 'missing'"),
        (".", "There is a folder at"),
        ("s3://bucket/model.onnx", "path of to_onnx .*Got the URL"),
        (TEXTURES.data, "'path' parameter must be a str or a path"),
    ],
)
def test_where_no_file_can_be_written_nothing_is_exported(path, said, monkeypatch):
    model = fitted(LogisticRegression(max_iter=1000))
    monkeypatch.setattr("skdeepfeat._onnx.exporting._of_photos", None)
    with pytest.raises((ValueError, OSError), match=said):
        to_onnx(model, path)


def test_numbers_features_outliers_and_clusters():
    images = network_input(X)
    both = np.stack([np.arange(len(X)), np.arange(len(X)) % 3], 1) * 1.0
    for y in (both, both[:, 0]):
        model = fitted(Ridge(), y)
        value = run(to_onnx(model), images=images)["value"]
        np.testing.assert_allclose(value, model.predict(X), rtol=1e-3, atol=1e-3)
    model = fitted(PCA(3))
    rows = run(to_onnx(model), images=images)["features"]
    np.testing.assert_allclose(rows, model.transform(X), atol=1e-3)
    features = PretrainedCNNFeatures(**(RECIPE | {"layer": ("block2", "stem")}))
    rows = run(to_onnx(features), images=images)["features"]
    np.testing.assert_allclose(rows, features.transform(X), atol=1e-4)
    model = fitted(IsolationForest(n_estimators=10, random_state=0))
    found = run(to_onnx(model), images=images)
    np.testing.assert_allclose(found["scores"], model.decision_function(X), atol=1e-4)
    np.testing.assert_array_equal(found["label"], model.predict(X))
    model = fitted(KMeans(3, random_state=0))
    found = run(to_onnx(model), images=images)
    assert list(found) == ["label"]
    np.testing.assert_array_equal(found["label"], model.predict(X))


def test_composites_around_pipelines():
    search = GridSearchCV(fitted(LogisticRegression()), {}, cv=2).fit(X, Y)
    found = run(to_onnx(search), images=network_input(X))
    np.testing.assert_allclose(
        found["probabilities"], search.predict_proba(X), atol=1e-4
    )
    two = StackingClassifier(
        [("a", fitted(GaussianNB())), ("b", fitted(GaussianNB(), layer="stem"))], cv=2
    ).fit(X, Y)
    found = run(to_onnx(two), images=network_input(X))
    np.testing.assert_allclose(found["probabilities"], two.predict_proba(X), atol=1e-4)


def test_fine_tuned_classifiers():
    for name, weights in (("tiny", "default"), ("smallcnn", None)):
        model = FineTunedClassifier(
            name, weights=weights, epochs=1, image_size=None, random_state=0
        )
        model.fit(X, Y)  # smallcnn has a head of several layers
        side = model.to_backbone().input.image_size
        graph, images = to_onnx(model), [x.resize((side, side)) for x in X]
        found = run(graph, images=np.stack([np.asarray(one) for one in images]))
        expected = model.predict_proba(images)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)


def test_the_graph_resizes_photos_itself():
    model = fitted(LogisticRegression(max_iter=1000))
    graph = to_onnx(model, resize=True)
    about = {entry.key: entry.value for entry in graph.metadata_props}
    assert about["resize_labels_changed"] == "0 of 48"
    assert float(about["resize_largest_difference"]) < 0.01
    rng = np.random.default_rng(0)
    for h, w in ((64, 64), (90, 200), (50, 40), (301, 97)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((w, h), Image.BICUBIC))
        found = run(graph, image=photo)
        expected = model.predict_proba([photo])
        np.testing.assert_allclose(found["probabilities"], expected, atol=0.02)


def test_the_file_says_what_it_is():
    model = fitted(RidgeClassifier())
    about = {entry.key: entry.value for entry in to_onnx(model).metadata_props}
    assert about["backbone"] == "mini" and about["licence"] == "Apache-2.0"
    assert about["weights_digest"] == model[0].weights_digest_
    assert about["recipe"].startswith("resize the short side to 64 pixels (bicubic)")
    assert json.loads(about["recipe_numbers"])["image_size"] == 64
    assert json.loads(about["classes"]) == np.unique(Y).tolist()
    names = json.loads(about["feature_names"])
    assert names == model[0].get_feature_names_out().tolist()


def test_the_graph_has_no_paths_of_this_machine():
    graph = to_onnx(fitted(RidgeClassifier())).SerializeToString()
    assert b".py" not in graph


REFUSED = {
    "HistGradientBoosting": (HistGradientBoostingClassifier(max_iter=3), "converted"),
    "Bagging": (BaggingClassifier(SVC(), 2, random_state=0), "predict_proba inside"),
    "CalibratedClassifierCV": (
        CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=3),
        "method='sigmoid'",
    ),
    "FixedThreshold": (FixedThresholdClassifier(GaussianNB()), "its threshold"),
    "FunctionTransformer": (FunctionTransformer(np.sign), "of scikit-learn"),
    "Stacking": (
        StackingClassifier([("a", SVC()), ("b", GaussianNB())], cv=2),
        "predict_proba inside",
    ),
    "KNeighbors": (KNeighborsClassifier(weights="distance"), "incorrectly"),
    "LinearDiscriminant": (LinearDiscriminantAnalysis(), "incorrectly"),
    "TunedThreshold": (TunedThresholdClassifierCV(LogisticRegression()), "threshold"),
    "Voting": (
        VotingClassifier([("a", GaussianNB()), ("b", GaussianNB())], voting="soft"),
        "flatten_transform=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_is_named_with_what_to_use_instead(name):
    head, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        to_onnx(fitted(head, TWO))
    with pytest.raises(ValueError, match=rf"Step .*{name}.*In place of {name}"):
        to_onnx(fitted(head, TWO))


def test_a_graph_that_onnxruntime_cannot_run_is_refused():
    head = StackingClassifier([("a", GaussianNB()), ("b", LinearSVC())], cv=2)
    with pytest.raises(ValueError, match=r"(cannot run it|incorrectly).*of LinearSVC"):
        to_onnx(fitted(head, TWO))


def test_a_part_of_a_step_that_fails_is_named():
    inner = [("a", GaussianNB()), ("b", HistGradientBoostingClassifier(max_iter=3))]
    head = StackingClassifier(inner, cv=2)
    with pytest.raises(
        ValueError, match=r"stackingclassifier.*In place of HistGradient"
    ):
        to_onnx(fitted(head, TWO))


def test_a_step_before_the_last_that_differs_is_named(monkeypatch):
    model = fitted(LogisticRegression())
    model.steps.insert(2, ("pca", PCA(5).fit(model[:2].transform(X))))
    model[3].fit(model[:3].transform(X), Y)
    from onnx import numpy_helper

    from skdeepfeat._onnx import heads

    convert = heads.convert_steps

    def wrong(head, slices):  # as a converter with a fault
        graph = convert(head, slices)
        for constant in graph.graph.initializer:
            if list(constant.dims) == [width, 5]:
                nothing = numpy_helper.from_array(np.zeros((width, 5), np.float32))
                nothing.name = constant.name
                constant.CopyFrom(nothing)
        return graph

    width = len(model[0].get_feature_names_out())
    monkeypatch.setattr(heads, "convert_steps", wrong)
    monkeypatch.setattr("skdeepfeat._onnx.checking.convert_steps", wrong)
    with pytest.raises(
        ValueError, match=r"Step 'pca' \(PCA\) is converted.*incorrectly"
    ):
        to_onnx(model)


def test_columns_beside_photos_are_refused():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"photo": X, "number": np.arange(len(X))})
    beside = make_column_transformer(
        (PretrainedCNNFeatures(**RECIPE), "photo"), (StandardScaler(), ["number"])
    )
    model = make_pipeline(beside, RidgeClassifier()).fit(frame, Y)
    with pytest.raises(
        ValueError, match=r"columntransformer.*export its PretrainedCNNFeatures alone"
    ):
        to_onnx(model)


def test_a_table_of_photos_alone_is_exported():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"photo": X, "number": np.arange(len(X))})
    steps = PretrainedCNNFeatures(**RECIPE), fitted("passthrough", layer="stem")
    alone = make_column_transformer(*((step, ["photo"]) for step in steps))
    model = make_pipeline(alone.set_output(transform="pandas"), StandardScaler(), SVC())
    model = GridSearchCV(model, {}, cv=2).fit(frame, Y)
    for some in (None, frame[:10]):
        label = run(to_onnx(model, X=some), images=network_input(X))["label"]
        np.testing.assert_array_equal(label, model.predict(frame))


def test_steps_that_are_words():
    for empty in ("passthrough", None):
        inner = Pipeline([("scale", StandardScaler()), ("none", empty)])
        union = FeatureUnion([("a", inner), ("b", "passthrough"), ("c", "drop")])
        model = fitted(LogisticRegression(max_iter=1000))
        model.steps[1:1] = [("empty", empty), ("union", union)]
        model.fit(X, Y)
        found = run(to_onnx(model), images=network_input(X))
        np.testing.assert_allclose(
            found["probabilities"], model.predict_proba(X), atol=1e-4
        )
    rows = run(to_onnx(fitted("passthrough")), images=network_input(X))["features"]
    np.testing.assert_allclose(rows, fitted("passthrough").transform(X), atol=1e-3)


def test_frozen_estimators():
    whole = FrozenEstimator(fitted(RidgeClassifier()))
    part = fitted(LogisticRegression(max_iter=1000))
    part.steps[-1] = ("frozen", FrozenEstimator(part[-1]))
    for model, name in ((whole, "scores"), (part, "probabilities")):
        found = run(to_onnx(model), images=network_input(X))
        assert list(found) == ["label", name]
        np.testing.assert_array_equal(found["label"], model.predict(X))


def test_networks_of_different_sizes_are_refused():
    several = [("a", fitted(GaussianNB())), ("b", fitted(GaussianNB(), image_size=96))]
    model = StackingClassifier(several, cv=2).fit(X, Y)
    with pytest.raises(ValueError, match=r"resize images differently"):
        to_onnx(model)


def test_images_of_more_bits_are_refused():
    model = fitted(RidgeClassifier())
    with pytest.raises(ValueError, match=r"takes 8-bit images"):
        to_onnx(model, X=np.zeros((2, 64, 64, 3), np.float32))


@pytest.mark.parametrize("resize", [False, True])
def test_other_black_and_white_are_refused(resize):
    for inputs in (None, X[:4], [np.asarray(x) // 2 for x in X[:4]]):
        model = fitted(RidgeClassifier(), value_range=(0, 128))
        with pytest.raises(ValueError, match=r"'value_range'.*Got \(0, 128\)"):
            to_onnx(model, X=inputs, resize=resize)
    assert to_onnx(fitted(RidgeClassifier(), value_range=(0, 255)))


def test_fast_decoding_is_refused_or_stated():
    model = fitted(RidgeClassifier(), decode="fast")
    with pytest.raises(ValueError, match=r"needs decode='exact'. Got decode='fast'"):
        to_onnx(model, resize=True)
    about = {entry.key: entry.value for entry in to_onnx(model).metadata_props}
    assert "1/2, 1/4 or 1/8 of their size" in about["recipe"]
    several = [("a", model), ("b", fitted(GaussianNB()))]
    model = StackingClassifier(several, cv=2).fit(X, Y)
    with pytest.raises(ValueError, match=r"Set image_size and decode"):
        to_onnx(model)


def test_margins_of_different_colours_are_refused():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    steps = []
    for mean in (0.1, 0.9):
        plain = Backbone.from_module(net, image_size=32, mean=(mean,) * 3)
        spec = replace(plain.input, resize=32, mode="border")
        steps.append((str(mean), PretrainedCNNFeatures(replace(plain, input=spec))))
    model = FeatureUnion(steps).fit(X)
    with pytest.raises(ValueError, match=r"resize images differently"):
        to_onnx(model)


ONE_CLASS = {  # for the first of these, onnxruntime would end the process
    "RandomForestClassifier": np.full(len(X), "ant"),
    "GaussianNB": np.zeros(len(X), int),
}


@pytest.mark.parametrize("name", ONE_CLASS)
def test_a_single_class_is_refused(name):
    heads = RandomForestClassifier(3), GaussianNB()
    head = next(head for head in heads if type(head).__name__ == name)
    y = ONE_CLASS[name]
    with pytest.raises(ValueError, match=rf"This {name} was fitted with one, '{y[0]}'"):
        to_onnx(fitted(head, y))


def test_several_labels_are_refused():
    both = np.stack([TWO, ~TWO], 1).astype(int)
    for head in (KNeighborsClassifier(), OneVsRestClassifier(GaussianNB())):
        kind = type(head).__name__
        with pytest.raises(ValueError, match=rf"{kind} predicts 2. Fit and export"):
            to_onnx(fitted(head, both))


def test_an_old_torch_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr("skdeepfeat._onnx.extra.version", lambda name: "2.8.0+cpu")
    with pytest.raises(ImportError, match=r"torch 2.9 or later.*2\.8\.0.*\[onnx\]"):
        to_onnx(PretrainedCNNFeatures())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime", "skl2onnx"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}.*skdeepfeat\[onnx\]"):
        to_onnx(PretrainedCNNFeatures())


@pytest.mark.slow
def test_validation_photos(shared_data):
    train, test = (
        load_image_folder(shared_data / "hymenoptera" / part)
        for part in ("train", "val")
    )
    model = make_pipeline(PretrainedCNNFeatures(), StandardScaler(), HEADS["logistic"])
    model.fit(train.data, train.target)
    graph = to_onnx(model, X=test.data, resize=True)
    about = {entry.key: entry.value for entry in graph.metadata_props}
    changed, n = about["resize_labels_changed"].split(" of ")
    assert int(changed) <= 0.01 * int(n) and n == "153"
    assert float(about["resize_largest_difference"]) < 0.02
