"""Rows are pooled over their places, whichever axis these are on."""

import numpy as np
import pytest
import torch
from torch import nn

from skdeepfeat import Backbone, PretrainedCNNFeatures

SIDE, PLACES = 32, 16
WIDTHS = [PLACES, 12, 24]  # channels, in one case as many as places


class Rows(nn.Module):
    """Maps in one row: (channels, places); `steps` change them."""

    def __init__(self, width, steps, traceable=True):
        super().__init__()
        self.filters, self.traceable = nn.Conv2d(3, width, 8, 8), traceable
        self.steps, self.head = steps(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.steps(self.filters(x).flatten(2))
        return self.head(x.mean(2) if self.traceable or x.sum() > -1e9 else -x)


class Mixed(nn.Module):
    """Mixes places, then channels, and returns (channels, places) again."""

    def __init__(self, width):
        super().__init__()
        self.places, self.channels = nn.Linear(PLACES, PLACES), nn.Linear(width, width)

    def forward(self, x):
        return self.channels(self.places(x).relu().transpose(1, 2)).transpose(1, 2)


STEPS = {
    "conv1d": lambda d: nn.Sequential(nn.Conv1d(d, d, 3, padding=1), nn.ReLU()),
    "norm": lambda d: nn.BatchNorm1d(d),
    "activation": lambda d: nn.ReLU(),
    "linear": lambda d: nn.Sequential(nn.Linear(PLACES, PLACES), nn.GELU()),
    "mixer": Mixed,
}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def backbone_of(net):
    plain = {"image_size": SIDE, "mean": (0,) * 3, "std": (1,) * 3}
    return Backbone.from_module(net, **plain)


def check_average(net, X, layer="steps"):
    seen, net = [], net.eval()
    hook = net.get_submodule(layer).register_forward_hook(lambda *c: seen.append(c[-1]))
    with torch.no_grad():
        net(torch.from_numpy(X).permute(0, 3, 1, 2) / 255)
    hook.remove()
    est = PretrainedCNNFeatures(backbone_of(net), layer=layer, cache=None)
    expected = seen[0].mean(2).numpy()
    np.testing.assert_allclose(est.fit_transform(X), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_channels_in_front_of_places(steps, width, X):
    check_average(Rows(width, steps), X)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["conv1d", "norm", "activation"])
def test_channels_in_front_of_places_without_a_graph(name, width, X):
    check_average(Rows(width, STEPS[name], traceable=False), X)


class Depths(nn.Module):
    """Returns a map (h, w) of one value for each place."""

    def __init__(self, traceable=True):
        super().__init__()
        self.maps, self.out = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 1, 3, padding=1)
        self.traceable = traceable

    def forward(self, x):
        x = self.out(self.maps(x))
        x = nn.functional.interpolate(x, size=(64, 64)).squeeze(1)
        return x if self.traceable or x.sum() > -1e9 else -x


@pytest.mark.parametrize("traceable", [True, False])
def test_maps_without_channels_are_refused(traceable, X):
    backbone = backbone_of(Depths(traceable))
    with pytest.raises(ValueError, match=r"64 × 64 numbers.*a map without channels"):
        PretrainedCNNFeatures(backbone).fit_transform(X)
