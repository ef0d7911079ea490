"""Frozen blocks: computed once, and refused where they give no finite features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_fits import classifier, coloured_images, data_of, own_backbone, trunk

from skdeepfeat._backbones.weights import resolve_source, weights_key
from skdeepfeat._finetuning import frozen
from skdeepfeat._finetuning.parts import Head, Parts, find_tuned_part


@pytest.fixture(scope="module")
def images():
    return coloured_images()


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
