"""Models saved by earlier versions load and still predict the same."""

import gzip
import pickle
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.fixes import parse_version

from skdeepfeat import (
    Backbone,
    FeatureWarning,
    PretrainedCNNFeatures,
    StoreWarning,
    WeightsError,
    load_textures,
)
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.saved import saved_digest
from skdeepfeat._backbones.weights import PublishedWeights
from skdeepfeat._images.recipe import InputSpec

GOLDEN = Path(__file__).parent / "golden"
# The version of scikit-learn that wrote each set of pickles.
SKLEARN = {"0.1.0.dev0": "1.9.1", "0.1.0.dev0-flat": "1.9.1", "0.2.0.dev0": "1.9.1"}
# Sets that need weights of "mini" which this version does not have.
FORMER = ("0.1.0.dev0", "0.1.0.dev0-flat")
REFUSED = [GOLDEN / version / "head.pkl.gz" for version in FORMER]
FILES = sorted({*GOLDEN.glob("*/*.pkl.gz")} - {*REFUSED})


def load(file):
    """The model of a file, and its predictions for eight images."""
    written_by = parse_version(SKLEARN[file.parent.name])
    if parse_version(sklearn.__version__) < written_by:
        pytest.skip("scikit-learn does not read pickles of later versions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        model = pickle.loads(gzip.decompress(file.read_bytes()))
    with np.load(file.parent / "expected.npz") as expected:
        return model, expected[file.name.removesuffix(".pkl.gz")]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name} {f.name}")
@pytest.mark.filterwarnings("ignore:This FineTunedClassifier was saved by another")
def test_saved_models_predict_what_they_did(file):
    model, expected = load(file)
    X = load_textures().data[:8]
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=0, atol=1e-5)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict_proba(X), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", REFUSED, ids=lambda f: f.parent.name)
def test_models_of_former_weights_are_refused(file):
    model, _ = load(file)
    with pytest.raises(WeightsError, match=r"'MINI_V1'.*Install skdeepfeat 0\.1\.0"):
        model.predict(load_textures().data[:2])
    with pytest.raises(WeightsError, match=r"Install skdeepfeat 0\.1\.0"):
        model.as_features().transform(load_textures().data[:2])


@pytest.mark.parametrize("layer", ["penultimate", "block8"])  # which it has no more
def test_features_of_former_weights_have_no_names(layer):
    est = PretrainedCNNFeatures(layer=layer)
    est.weights_digest_ = saved_digest(former_source("mini"))
    for call in (est.get_feature_names_out, partial(est.transform, [])):
        with pytest.raises(WeightsError, match=r"'MINI_V1'.*Install skdeepfeat 0\.1"):
            call()


def former_source(name):
    backbone = resolve_backbone(name)
    return PublishedWeights(backbone, backbone.retired[0].input, backbone.retired[0])


@pytest.mark.parametrize("version", FORMER)
def test_rows_of_former_weights_are_other_rows(version, tmp_path):
    store = shutil.copytree(GOLDEN / version / "store", tmp_path / "store")
    X = load_textures().data[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)  # of a schema left alone
        features = PretrainedCNNFeatures(engine="torch", cache=store)
        found = features.transform(X)
    assert features.stats_["n_computed"] == 4
    expected = features.set_params(cache=None).transform(X)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", ["_networks.smallnets:mini", "_smallnets:mini"])
def test_networks_with_a_removed_builder_are_refused(build):
    arrays = {"features.0.weight": np.zeros((1, 3, 1, 1), np.float32)}
    spec = InputSpec(8, None)
    tuned = Backbone("tuned mini", f"skdeepfeat.{build}", spec, arrays=arrays)
    with pytest.raises(WeightsError, match=r"'tuned mini'.*skdeepfeat 0\.1\.0"):
        PretrainedCNNFeatures(tuned).transform(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("version", sorted({*SKLEARN} - {*FORMER}))
def test_stores_of_earlier_versions_give_the_same_rows(version, tmp_path):
    store = shutil.copytree(GOLDEN / version / "store", tmp_path / "store")
    features = PretrainedCNNFeatures(engine="torch", cache=store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)  # of a schema left alone
        found = features.transform(load_textures().data[:4])
    with np.load(GOLDEN / version / "expected.npz") as expected:
        np.testing.assert_allclose(found, expected["store"], rtol=0, atol=1e-5)


def test_the_store_of_this_version_serves_its_rows(tmp_path):
    store = shutil.copytree(GOLDEN / "0.2.0.dev0" / "store", tmp_path / "store")
    features = PretrainedCNNFeatures(engine="torch", cache=store)
    features.transform(load_textures().data[:4])
    assert features.stats_["n_computed"] == 0


def test_a_missing_digest_warns_once_and_is_checked_from_then_on():
    model, _ = load(GOLDEN / "0.1.0.dev0" / "own.pkl.gz")
    X = load_textures().data[:2]
    with pytest.warns(FeatureWarning, match=r"another version.*save it again"):
        model.predict(X)
    again = pickle.loads(pickle.dumps(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(X)
        again.predict(X)
    with pytest.raises(ValueError, match="image_size"):
        again.set_params(image_size=64).predict(X)
