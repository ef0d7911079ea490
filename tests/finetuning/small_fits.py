"""Classifiers that are fitted in a moment, and images to fit them on."""

import numpy as np
import torch

from skdeepfeat import Backbone, FineTunedClassifier
from skdeepfeat._finetuning.data import Data, FitImages


def classifier(backbone="tiny", **parameters):
    defaults = {
        "augment": "none",
        "epochs": 2,
        "random_state": 0,
        "learning_rate": 0.01,
        "batch_size": 8,
    }
    return FineTunedClassifier(backbone, **(defaults | parameters))


def coloured_images():
    """40 images of three classes that differ in colour, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = rng.integers(0, 120, (40, 10, 10, 3))
    X[np.arange(40), :, :, y] += 80
    return X.astype(np.uint8), np.array(["ant", "bee", "cat"])[y]


def with_unreadable(images):
    """The images with a missing cell in row 3 and a missing file in row 7."""
    X, y = images
    return [*X[:3], None, *X[4:7], "missing.png", *X[8:]], y


def data_of(pixels, targets):
    """Images in range, each of weight 1."""
    n = len(pixels)
    sources = [f"image {i}" for i in range(n)]
    images = FitImages(pixels, np.arange(n), sources, np.ones(n, bool), [])
    return Data.of(images, np.arange(n), targets, np.ones(n))


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
