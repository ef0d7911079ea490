"""Embedded weights go with an estimator, through every format."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import coloured_images, tiny_backbone, tiny_network
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    WeightsError,
    activation_maps,
    clear_caches,
    embed_weights,
    list_layers,
    register_backbone,
)

X, y = coloured_images(12, 40)
STEPS = {
    "early layer": {"layer": "block2"},
    "penultimate": {},
    "several layers": {"layer": ("block3", 1, -3), "prefetch_layers": ["block6"]},
    "another size": {"image_size": 64, "layer": "block4"},
    "random weights": {"backbone": "resnet18", "weights": None, "random_state": 3},
    "other options": {"backbone": "googlenet", "weights": None, "layer": "block1"},
    "registered": {"backbone": "tiny"},
}


def fitted(**parameters):
    return PretrainedCNNFeatures(cache=None, **parameters).fit(X)


@pytest.mark.parametrize("name", STEPS)
def test_rows_are_the_same_bit_for_bit(name):
    features = fitted(**STEPS[name])
    expected = features.transform(X)
    embedded = embed_weights(features)
    loaded = pickle.loads(pickle.dumps(embedded))
    assert features.backbone == STEPS[name].get("backbone", "mini")  # left alone
    clear_caches()
    np.testing.assert_array_equal(loaded.transform(X), expected)
    again = embed_weights(loaded)
    np.testing.assert_array_equal(again.transform(X), expected)


def test_the_same_engine_computes(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    features = fitted(layer="block2")
    embedded = embed_weights(features)
    expected = features.transform(X)
    np.testing.assert_array_equal(embedded.transform(X), expected)
    assert embedded.stats_["engine"] == features.stats_["engine"] == "openvino"
    own = PretrainedCNNFeatures(tiny_backbone(), cache=None).fit(X)
    assert not embed_weights(own).backbone.embedded  # converted on request only


def test_only_what_the_layers_need_is_kept():
    embedded = embed_weights(fitted(layer="block3"))
    assert [x.alias for x in list_layers(embedded.backbone)] == [
        *("stem", "block1", "block2", "block3")
    ]
    assert len(pickle.dumps(embedded)) < 300_000  # of 13 MB
    whole = embedded.set_params(layer="block1").fit(X)
    assert whole.transform(X).shape == (12, 16)
    for layer in ("block6", "penultimate", 5):
        with pytest.raises(ValueError, match=r"Unknown layer.*cut.*'block3'") as error:
            embedded.set_params(layer=layer).fit(X)
        assert "one classifier" not in str(error.value)
    with pytest.raises(ValueError, match=r"Unknown layer 'blokc3'") as error:
        embedded.set_params(layer="blokc3").fit(X)
    assert "cut this copy" not in str(error.value)
    without_classes = embed_weights(fitted(backbone="resnet18", weights=None))
    with pytest.raises(ValueError, match=r"Unknown layer 'logits'.*cut.*'penultimate'"):
        without_classes.set_params(layer="logits").fit(X)
    with pytest.raises(ValueError, match=r"Unknown layer 'blok6'") as error:
        fitted(layer="blok6")
    assert "embed_weights" not in str(error.value)
    with pytest.raises(WeightsError, match=r"some layers only: stem, block1"):
        embedded.set_params(layer="blocks.14.add").transform(X)


def test_half_precision_takes_half_the_space():
    features = fitted(backbone="resnet18", weights=None, layer="block2")
    expected = features.transform(X)
    single, half = (embed_weights(features, dtype=d) for d in ("float32", "float16"))
    assert len(pickle.dumps(half)) < 0.55 * len(pickle.dumps(single))
    found = half.transform(X)
    assert 0 < np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    exact = embed_weights(fitted(layer="block2"), dtype="float16")  # as published
    np.testing.assert_array_equal(
        exact.transform(X), fitted(layer="block2").transform(X)
    )
    with pytest.raises(ValueError, match=r"'float32' or 'float16'. Got 'int8'"):
        embed_weights(features, dtype="int8")


def test_a_composite_keeps_its_other_steps():
    model = make_pipeline(PretrainedCNNFeatures(layer="block2"), LogisticRegression())
    model = CalibratedClassifierCV(model, cv=2).fit(X, y)
    embedded = embed_weights(model)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(embedded.predict_proba(X), expected)
    inner = embedded.calibrated_classifiers_[0].estimator[0]
    assert inner.backbone.embedded and inner.weights == "default"


class EarlyFeatures(PretrainedCNNFeatures):
    """A subclass with few of the parameters."""

    def __init__(self, layer="block2"):
        super().__init__(layer=layer)


class QuickClassifier(FineTunedClassifier):
    """A subclass with few of the parameters."""

    def __init__(self, unfreeze=1):
        super().__init__(unfreeze=unfreeze, epochs=1, random_state=0)


@pytest.mark.parametrize(
    "model",
    [make_pipeline(EarlyFeatures(), LogisticRegression()), QuickClassifier()],
    ids=["features", "classifier"],
)
def test_subclasses_with_other_parameters(model):
    expected = model.fit(X, y).predict_proba(X)
    embedded = pickle.loads(pickle.dumps(embed_weights(model)))
    np.testing.assert_array_equal(embedded.predict_proba(X), expected)
    assert len(activation_maps(model, X)) == len(X)


@pytest.mark.parametrize("name, weights", [("tiny", "default"), ("smallcnn", None)])
def test_fine_tuned_classifiers(name, weights):
    model = FineTunedClassifier(name, weights=weights, epochs=1, random_state=0)
    model.fit(X, y)
    loaded = pickle.loads(pickle.dumps(embed_weights(model)))
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_changed_weights_are_refused():
    embedded = embed_weights(fitted(layer="block2"))
    arrays = dict(embedded.backbone.arrays)
    name = next(name for name in arrays if name.endswith("weight"))
    arrays[name] = arrays[name] * 1.01
    state = pickle.loads(pickle.dumps(embedded))
    object.__setattr__(state.backbone, "arrays", arrays)
    with pytest.raises(WeightsError, match=r"changed since"):
        state.transform(X)


@pytest.mark.parametrize("kind", ["embedded", "own"])
def test_a_damaged_file_is_refused_where_nothing_was_fitted(kind):
    backbone = tiny_backbone() if kind == "own" else embed_weights(fitted()).backbone
    name = next(name for name in backbone.arrays if name.endswith("weight"))
    data = pickle.dumps(backbone)
    place = data.index(backbone.arrays[name].tobytes()[:64]) + 3
    damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    loaded, kept = pickle.loads(damaged), pickle.loads(data)
    with pytest.raises(WeightsError, match=r"arrays of backbone.*file is damaged"):
        PretrainedCNNFeatures(loaded).transform(X)
    with pytest.raises(WeightsError, match=r"file is damaged"):
        FineTunedClassifier(loaded).fit(X, y)
    assert len(PretrainedCNNFeatures(kept).transform(X)) == 12


def test_skops_needs_to_trust_nothing_but_this_package(tmp_path):
    skops = pytest.importorskip("skops.io")
    model = make_pipeline(PretrainedCNNFeatures(layer="block2"), LogisticRegression())
    model.fit(X, y)
    skops.dump(embed_weights(model), tmp_path / "model.skops")
    unknown = skops.get_untrusted_types(file=tmp_path / "model.skops")
    assert {name.partition(".")[0] for name in unknown} == {"skdeepfeat"}
    loaded = skops.load(tmp_path / "model.skops", trusted=unknown)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def make_network():
    return tiny_network(5)


def test_skops_lists_the_functions_that_a_backbone_calls(tmp_path):
    skops = pytest.importorskip("skops.io")
    spec = tiny_backbone(5).input
    ours = Backbone("ours", f"{__name__}:make_network", spec, convert="os:system")
    skops.dump(PretrainedCNNFeatures(ours), tmp_path / "model.skops")
    unknown = skops.get_untrusted_types(file=tmp_path / "model.skops")
    assert {f"{__name__}.make_network", "posix.system"} <= set(unknown)
    loaded = skops.load(tmp_path / "model.skops", trusted=unknown)
    assert loaded.backbone.build is make_network
    assert loaded.backbone == ours


@pytest.mark.parametrize("field", ["build", "convert"])
def test_files_cannot_name_functions_to_call(field, tmp_path, monkeypatch):
    skops = pytest.importorskip("skops.io")
    backbone = dataclasses.replace(tiny_backbone(5), **{field: "os:system"})
    monkeypatch.setattr(
        Backbone, "__getstate__", lambda self: {**vars(self), "memo": None}
    )
    features = PretrainedCNNFeatures(backbone)
    skops.dump(features, tmp_path / "model.skops")
    unknown = skops.get_untrusted_types(file=tmp_path / "model.skops")
    refused = pytest.raises(WeightsError, match=r"names the function 'os:system'")
    with refused:
        skops.load(tmp_path / "model.skops", trusted=unknown)
    with refused:
        pickle.loads(pickle.dumps(features))


ALONE = """
import pickle, socket, sys
import numpy as np

def refuse(*args, **options):
    raise OSError("no network here")

socket.socket.connect = refuse
import skdeepfeat._backbones.files as files
files.read_published = files.read_weights_file = refuse
models = pickle.load(open(sys.argv[1], "rb"))
np.savez(sys.argv[2], *(m.transform(np.load(sys.argv[3])) for m in models))
"""


def test_a_process_without_files_network_or_registry(tmp_path):
    register_backbone("only here", tiny_backbone(5), overwrite=True)
    both = [fitted(layer="block2", engine="torch"), fitted(backbone="only here")]
    embedded = [embed_weights(features) for features in both]
    (tmp_path / "models").write_bytes(pickle.dumps(embedded))
    np.save(tmp_path / "X.npy", X)
    names = [tmp_path / name for name in ("models", "rows.npz", "X.npy")]
    command = [sys.executable, "-c", ALONE, *map(str, names)]
    subprocess.run(command, check=True)
    rows = np.load(tmp_path / "rows.npz").values()
    for found, features in zip(rows, both, strict=True):
        np.testing.assert_array_equal(found, features.transform(X))
