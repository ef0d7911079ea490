"""A default device of torch changes nothing: what is computed, nor the device."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    clear_caches,
    to_onnx,
)

Y = [0, 1] * 4


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def default_device(request):
    """Sets the default device, once the expected values are known."""
    request.addfinalizer(lambda: torch.set_default_device(None))
    return torch.set_default_device


def pretrained(X):
    return PretrainedCNNFeatures(engine="torch", cache=None).fit_transform(X)


def converted(X):
    return PretrainedCNNFeatures(engine="auto", cache=None).fit_transform(X)


def seeded(X):
    features = PretrainedCNNFeatures(
        "resnet18", weights=None, layer="layer1.0.bn1", image_size=64, cache=None
    )
    return features.fit_transform(X)


def own(X):
    with torch.device("cpu"), torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        backbone = Backbone.from_module(nn.Sequential(*layers), image_size=32)
    return PretrainedCNNFeatures(backbone, layer=-1, cache=None).fit_transform(X)


def tuned(X):
    classifier = FineTunedClassifier(
        epochs=1, head_epochs=1, batch_size=4, random_state=0, cache=None
    )
    return classifier.fit(X, Y).predict_proba(X)


def exported(X):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    features = PretrainedCNNFeatures(cache=None)
    pipeline = make_pipeline(features, LogisticRegression()).fit(X, Y)
    graph = onnxruntime.InferenceSession(to_onnx(pipeline, None).SerializeToString())
    side = graph.get_inputs()[0].shape[1]
    return graph.run(None, {"images": np.zeros((1, side, side, 3), np.uint8)})[1]


# No values can be read from this device, so that each tensor on it is noticed.
@pytest.mark.parametrize(
    "compute", [pretrained, converted, seeded, own, tuned, exported]
)
def test_a_default_device_changes_nothing(X, compute, default_device):
    expected = compute(X)
    clear_caches()
    default_device("meta")
    found = compute(X)
    assert torch.empty(0).device.type == "meta"
    default_device(None)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("device", ["meta", "cuda"])  # also where there is no GPU
def test_the_context_of_a_device_changes_nothing(X, device):
    expected = seeded(X)
    clear_caches()
    with torch.device(device):
        found = seeded(X)
    np.testing.assert_array_equal(found, expected)
