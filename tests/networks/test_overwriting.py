"""Which graphs overwrite nothing, as their steps say and as a run shows."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from skdeepfeat._networks.efficientnet_lite import mini
from skdeepfeat._networks.overwriting import Watcher, overwrites_nothing


class Applying(nn.Module):
    """A convolution, and a function of its result."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.plain, self.function = nn.ReLU6(), function

    def forward(self, x):
        return self.function(self, self.conv(x))


def fresh(self, x):
    return F.pad(self.plain(x) + x, (0, x.shape[-1] % 4))


IN_PLACE = {
    "a module": lambda self, x: self.relu(x),
    "an operator": lambda self, x: x.__iadd__(1),
    "a method": lambda self, x: x.mul_(2),
    "a function": lambda self, x: torch.relu_(x),
    "an argument": lambda self, x: F.relu(x, inplace=True),
    "a positional argument": lambda self, x: F.relu(x, True),
    "a place for the result": lambda self, x: torch.exp(x, out=x),
}


def both(net):
    """What the steps say, and the steps that a run shows."""
    graph = fx.symbolic_trace(net.eval())
    watcher = Watcher(graph)
    with torch.no_grad():
        watcher.run(torch.rand(2, 3, 64, 64))
    return overwrites_nothing(graph.graph, net), watcher.overwritten


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_steps_that_work_in_place_are_run(function):
    said, overwritten = both(Applying(function))
    assert overwritten and not said


@pytest.mark.parametrize("make", [mini, lambda: Applying(fresh)])
def test_steps_that_only_make_new_values_need_no_run(make):
    assert both(make()) == (True, {})


def test_an_unknown_function_is_run():
    assert not both(Applying(lambda self, x: torch.cumsum(x, 1)))[0]
