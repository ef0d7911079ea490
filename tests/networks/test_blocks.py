"""The blocks of a network of the user's own: its parts before the classifier."""

import re

import pytest
from torch import nn

from skdeepfeat import Backbone, list_layers

SIDE = 16


class Net(nn.Module):
    def __init__(self, head=None, traceable=True):
        super().__init__()
        self.fc = nn.Linear(6, 4) if head is None else head
        self.conv, self.act = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.last, self.traceable = nn.Softmax(1), traceable

    def forward(self, x):
        x = self.act(self.conv(x)).mean((2, 3))
        return self.last(self.fc(x if self.traceable or x.sum() > -1e9 else -x))


class Around(nn.Module):
    """A network with parts that have no weights, as one of Lightning has."""

    def __init__(self, net):
        super().__init__()
        self.loss, self.model = nn.CrossEntropyLoss(), net

    def forward(self, x, y=None):
        scores = self.model(x)
        return scores if y is None else self.loss(scores, y)


def blocks_of(net):
    backbone = Backbone.from_module(net.eval(), image_size=SIDE)
    nodes = {layer.alias: layer.node for layer in list_layers(backbone)}
    return [node for alias, node in nodes.items() if alias.startswith("block")]


HEADS = {
    "layer": lambda: nn.Linear(6, 4),
    "layers": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_no_block_has_class_scores(make):
    assert blocks_of(Net(make())) == ["conv", "act"]


def test_without_a_graph_the_classifier_is_no_block():
    assert "fc" not in blocks_of(Net(traceable=False))


WRAPPERS = {
    "lightning": (Around, "model."),
    "parallel": (nn.DataParallel, "module."),
    "twice": (lambda net: Around(nn.DataParallel(net)), "model.module."),
}


@pytest.mark.parametrize(("wrap", "prefix"), WRAPPERS.values(), ids=WRAPPERS)
def test_blocks_are_those_of_a_wrapped_network(wrap, prefix):
    assert blocks_of(wrap(Net())) == [f"{prefix}conv", f"{prefix}act"]


def test_without_a_classifier_all_children_are_blocks():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert blocks_of(net) == ["0", "1", "2"]
    assert blocks_of(nn.Sequential(net)) == ["0.2"]


class Gated(nn.Module):
    """Its classifier is not clear."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.gate = nn.Linear(6, 1)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.gate(x).sigmoid() * self.fc(x)


def test_a_classifier_that_is_named_is_no_block():
    net = Gated().eval()
    assert "fc" in blocks_of(net)
    backbone = Backbone.from_module(net, image_size=SIDE, head="fc")
    aliases = {layer.alias: layer.node for layer in list_layers(backbone)}
    assert "fc" not in aliases.values()


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3)), 20),
        (nn.Sequential(nn.Conv2d(3, 4, 9)), 5),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(10, 3)), 20),
    ],
    ids=["grey", "too small", "another size"],
)
def test_a_network_of_other_images_says_what_it_is_given(net, side):
    backbone = Backbone.from_module(net, image_size=side)
    shape = re.escape(f"of shape (n, 3, {side}, {side})")
    with pytest.raises(ValueError, match=f"does not take a batch .* {shape}"):
        list_layers(backbone)
