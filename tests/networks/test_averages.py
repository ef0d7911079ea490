"""Vectors that are the average of a map, found from the graph of a network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skdeepfeat import Backbone, list_backbones, list_layers
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import resolve_weights
from skdeepfeat._networks.activations import activations_of
from skdeepfeat._networks.averages import with_averages
from skdeepfeat._networks.sharing import get_network
from skdeepfeat._networks.structure import structure_of

# Networks whose penultimate layer is the average of their last block, and others, whose
# penultimate layer is a dense layer, a norm, a token or a map.
AVERAGES = "resne|densenet|efficientnet|googlenet|inception|mnasnet|mobilenet_v2|regnet"
AVERAGES = (*AVERAGES.split("|"), "shufflenet")


def recorded():
    names = [name for name in list_backbones() if resolve_backbone(name).weights]
    return [*names, "smallcnn", "lenet5"]


@pytest.mark.parametrize("name", recorded())
def test_records_say_what_the_graph_says(name):
    backbone = resolve_backbone(name)
    structure = structure_of(backbone, backbone.input.image_size)
    found = with_averages(backbone.layers, structure.step, structure.skeleton)
    assert found == backbone.layers
    averages = {layer.alias: layer.average_of for layer in found if layer.average_of}
    last_block = [layer for layer in found if layer.alias.startswith("block")][-1]
    # The last maps of EfficientNet-Lite have no alias.
    has_one = any(family in name for family in AVERAGES) and "lite" not in name
    assert averages == ({"penultimate": last_block.node} if has_one else {})


@pytest.mark.parametrize(
    "name",
    "resnet18 densenet121 efficientnet_b0 regnet_y_400mf googlenet shufflenet_v2_x0_5 "
    "mnasnet0_5 mobilenet_v2".split(),
)
def test_the_average_is_the_vector_bit_for_bit(name):
    source = resolve_weights(resolve_backbone(name), None, 0)
    (vector,) = [layer for layer in list_layers(name) if layer.average_of]
    network = get_network(source, source.key(), "cpu", "float32")
    cut = activations_of(network, source, (vector.node, vector.average_of))
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        values = cut(images)
    assert values[vector.node].std(0).max() > 0
    assert torch.equal(values[vector.node], values[vector.average_of].mean((2, 3)))


class Ending(nn.Module):
    """Maps, then what a function makes of them, then a classifier."""

    def __init__(self, function, *parts):
        super().__init__()
        self.maps, self.function = nn.Conv2d(3, 5, 3), function
        self.parts = nn.ModuleList(parts)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.function(self.maps(x), *self.parts))


def hooked_pool():
    pool = nn.AdaptiveAvgPool2d(1)
    pool.register_forward_hook(lambda module, args, output: output * 2)
    return pool


def squared_pool():
    class Squared(nn.AdaptiveAvgPool2d):
        def forward(self, x):
            return super().forward(x * x)

    return Squared(1)


SAME = {
    "pool, flatten": (lambda x, p: torch.flatten(p(x), 1), nn.AdaptiveAvgPool2d(1)),
    "pool of a pair": (lambda x, p: p(x).flatten(1), nn.AdaptiveAvgPool2d((1, 1))),
    "function": (lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),),
    "keyword": (
        lambda x: F.adaptive_avg_pool2d(x, output_size=(1, 1)).view(x.size(0), -1),
    ),
    "mean": (lambda x: x.mean([2, 3]),),
    "mean of negative axes": (lambda x: torch.mean(x, dim=(-1, -2)),),
    "mean that keeps axes": (lambda x: x.mean((2, 3), keepdim=True).reshape(-1, 5),),
    "dropout": (
        lambda x, p, d: d(p(d(x)).flatten(1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Dropout(),
    ),
    "function of dropout": (lambda x: F.dropout(x.mean((2, 3)), 0.2, False),),
}
OTHER = {
    "activation": (lambda x: F.relu(x).mean((2, 3)),),
    "activation afterwards": (lambda x: F.relu(x.mean((2, 3))),),
    "norm": (lambda x, n: n(x).mean((2, 3)), nn.BatchNorm2d(5)),
    "norm afterwards": (lambda x, n: n(x.mean((2, 3))), nn.LayerNorm(5)),
    "maximum": (lambda x, p: p(x).flatten(1), nn.AdaptiveMaxPool2d(1)),
    "pool of a fixed size": (lambda x: F.avg_pool2d(x, 6).flatten(1),),
    "part": (lambda x: x[:, :, 1:].mean((2, 3)),),
    "one axis": (lambda x: x.mean(3).amax(2),),
    "channels": (lambda x: x.mean((1, 2))[:, :5],),
    "dropout that is on": (lambda x: F.dropout(x.mean((2, 3)), 0.0, True),),
    "scaled": (lambda x: x.mean((2, 3)) * 2,),
    "hook": (lambda x, p: p(x).flatten(1), hooked_pool()),
    "subclass": (lambda x, p: p(x).flatten(1), squared_pool()),
}


def average_at_the_end(function, *parts):
    net = Ending(function, *parts).eval()
    layers = list_layers(Backbone.from_module(net, image_size=8))
    (penultimate,) = [layer for layer in layers if layer.alias == "penultimate"]
    assert penultimate.layout == "vector"
    return penultimate.average_of


@pytest.mark.parametrize("case", SAME.values(), ids=SAME)
def test_an_average_is_recognised(case):
    same = ("maps", "parts.1")  # or a dropout of the maps, which is a block itself
    assert average_at_the_end(*case) in same


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER)
def test_what_is_more_than_an_average_is_not(case):
    assert average_at_the_end(*case) != "maps"  # though it may be that of a later map


def test_tokens_are_averaged_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(self.norm(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    layers = list_layers(Backbone.from_module(Tokens(), image_size=8))
    found = {layer.alias: (layer.layout, layer.average_of) for layer in layers}
    assert found["block2"] == ("tokens", None)
    assert found["penultimate"] == ("vector", "norm")


def test_a_network_that_cannot_be_traced_has_none():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > -1e9 else -x)

    net = Untraceable(
        nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    )
    layers = list_layers(Backbone.from_module(net, image_size=8))
    assert layers and not any(layer.average_of for layer in layers)
