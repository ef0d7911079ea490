"""What ends a network of the user's own: its classifier, or what it returns."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skdeepfeat import Backbone, PretrainedCNNFeatures, list_layers
from skdeepfeat._networks.structure import structure_of

SIDE = 16


class Net(nn.Module):
    """Maps, their average, and a linear layer; `finish` is what comes after it."""

    def __init__(self, classes=6, finish=None, traceable=True):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, classes)
        self.finish, self.traceable = finish, traceable

    def features(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return x if self.traceable or x.sum() > -1e9 else -x

    def forward(self, x):
        x = self.fc(self.features(x))
        return x if self.finish is None else self.finish(x)


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def backbone_of(net):
    return Backbone.from_module(
        net.eval(), image_size=SIDE, mean=(0,) * 3, std=(1,) * 3
    )


def rows(net, X, layer="penultimate"):
    est = PretrainedCNNFeatures(backbone_of(net), layer=layer, cache=None)
    return est.fit_transform(X)


def computed(function, X):
    with torch.no_grad():
        return function(torch.from_numpy(X).permute(0, 3, 1, 2) / 255).numpy()


def assert_reads(net, X, what=None):
    torch.testing.assert_close(
        rows(net, X), computed(what or net.features, X), rtol=1e-4, atol=1e-6
    )


Named = namedtuple("Named", ["scores"])


@dataclass
class Output:
    scores: object = None
    maps: object = None


KEEP_SCORES = {
    "squeeze(1)": (1, lambda x: x.squeeze(1)),
    "squeeze(-1)": (1, lambda x: x.squeeze(-1)),
    "flatten()": (1, torch.flatten),
    "view(-1)": (1, lambda x: x.view(-1)),
    "[:, 0]": (1, lambda x: x[:, 0]),
    "sigmoid, squeeze": (1, lambda x: x.sigmoid().squeeze(1)),
    "view(-1, 2, 3)": (6, lambda x: x.view(-1, 2, 3)),
    "reshape": (6, lambda x: x.reshape(x.shape[0], 3, 2)),
    "unflatten": (6, lambda x: x.unflatten(1, (2, 3))),
    "[:, :3]": (6, lambda x: x[:, :3]),
    "/ 0.07": (6, lambda x: x / 0.07),
    "argmax": (6, lambda x: x.argmax(1)),
    "named tuple": (6, Named),
    "data class": (6, Output),
    "dictionary": (6, lambda x: {"scores": x}),
    "list": (6, lambda x: [x]),
}


@pytest.mark.parametrize(("classes", "finish"), KEEP_SCORES.values(), ids=KEEP_SCORES)
def test_scores_may_be_shaped_scaled_and_named(classes, finish, X):
    net = Net(classes, finish)
    assert backbone_of(net).head == "fc"
    assert_reads(net, X)


@pytest.mark.parametrize("name", ["squeeze(1)", "[:, 0]", "view(-1)", "data class"])
def test_they_may_in_code_that_cannot_be_traced(name, X):
    net = Net(*KEEP_SCORES[name], traceable=False)
    assert not structure_of(backbone_of(net), SIDE).traceable
    assert_reads(net, X)


class Tempered(Net):
    """A parameter scales the scores."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return super().forward(x) * self.scale


def test_a_parameter_may_scale_the_scores(X):
    assert_reads(Tempered(), X)


class Trunk(Net):
    """Ends with maps that are averaged."""

    def forward(self, x):
        return self.features(x)


def test_averaged_maps_are_features(X):
    for traceable in (True, False):
        assert_reads(Trunk(traceable=traceable), X)


FEATURES = {
    "normalised": F.normalize,
    "activated": torch.tanh,
    "gated": lambda x: x * x.sigmoid(),
}


@pytest.mark.parametrize("finish", FEATURES.values(), ids=FEATURES)
def test_what_is_no_score_is_returned(finish, X):
    net = Net(5, finish)
    assert_reads(net, X, net)


@pytest.mark.parametrize("finish", [F.normalize, torch.tanh])
def test_what_is_no_score_is_returned_without_a_graph(finish, X):
    net = Net(5, finish, traceable=False)
    assert_reads(net, X, net)


PROJECTED = {
    "hash": lambda x: torch.tanh(x),
    "signs": lambda x: torch.tanh(x).sign(),
    "on a sphere": lambda x: 16 * F.normalize(x),
    "by its norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, (5,)),
    "gelu": lambda x: F.gelu(x) * 2,
}


@pytest.mark.parametrize("finish", PROJECTED.values(), ids=PROJECTED)
def test_embeddings_after_a_linear_layer_are_returned(finish, X):
    net = Net(5, finish)
    assert_reads(net, X, net)


class Product(Net):
    """Its scores come from a parameter, in no linear layer."""

    def __init__(self, traceable=True):
        super().__init__(traceable=traceable)
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.features(x) @ self.weight + self.bias


class Cosine(Product):
    def forward(self, x):
        weight = F.normalize(self.weight.T)
        return F.linear(F.normalize(self.features(x)), weight)


class AtEachPlace(Net):
    """Scores at each place, of which one is returned."""

    def forward(self, x):
        return self.fc(self.conv(x).flatten(2).transpose(1, 2))[:, 0]


class Filters(Net):
    """Scores of filters as large as the maps."""

    def __init__(self, traceable=True):
        super().__init__(traceable=traceable)
        self.fc = nn.Conv2d(6, 4, SIDE - 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x if self.traceable or x.sum() > -1e9 else -x).flatten(1)


class WithHead(Net):
    """`end` computes scores from a head and the features."""

    def __init__(self, fc, end, traceable=True):
        super().__init__(traceable=traceable)
        self.fc, self.end = fc, end

    def forward(self, x):
        return self.end(self.fc, self.features(x))


class OnMaps(Net):
    """Filters give scores at each place, which `end` joins."""

    def __init__(self, size, end, traceable=True):
        super().__init__(traceable=traceable)
        self.fc, self.end = nn.Conv2d(6, 4, size), end

    def forward(self, x):
        x = self.conv(x).relu()
        return self.end(self.fc(x if self.traceable or x.sum() > -1e9 else -x))


def half(x):
    return x.chunk(2, 1)[0]


class Weights(nn.Module):
    """A leaf that holds weights as any code may, and is called or not."""

    def __init__(self, kind="parameter"):
        super().__init__()
        weight = torch.randn(4, 6)
        if kind == "buffer":
            self.register_buffer("weight", weight)
        elif kind == "attribute":
            self.weight = weight
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


def product(fc, e):
    return e @ fc.weight.T


OWN_HEADS = {
    "cosine": (Weights, lambda fc, e: fc(e)),
    "buffer": (lambda: Weights("buffer"), product),
    "attribute": (lambda: Weights("attribute"), product),
    "list": (
        lambda: nn.ParameterList([nn.Parameter(torch.randn(6, 4))]),
        lambda fc, e: e @ fc[0],
    ),
    "weights of a layer": (lambda: nn.Linear(6, 4), product),
    "similarity": (
        Weights,
        lambda fc, e: F.cosine_similarity(e[:, None], fc.weight[None], dim=-1),
    ),
    "distance": (Weights, lambda fc, e: -torch.cdist(e, fc.weight)),
    "sum of products": (Weights, lambda fc, e: (e[:, None] * fc.weight).sum(2)),
    "sum of squares": (Weights, lambda fc, e: ((e[:, None] - fc.weight) ** 2).sum(2)),
}


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("case", OWN_HEADS.values(), ids=OWN_HEADS)
def test_heads_of_own_code_have_to_be_named(case, traceable, X):
    make, end = case
    net = WithHead(make(), end, traceable)
    assert structure_of(backbone_of(net), SIDE).traceable == traceable
    with pytest.raises(ValueError, match=r"Backbone.from_module\(..., penultimate="):
        rows(net, X)


UNCLEAR = {
    "product": Product,
    "cosine": Cosine,
    "one place": AtEachPlace,
    "filters": Filters,
    "untraced product": lambda: Product(traceable=False),
    "untraced filters": lambda: Filters(traceable=False),
    "bilinear": lambda: WithHead(nn.Bilinear(6, 6, 4), lambda fc, e: fc(e, e)),
    "untraced bilinear": lambda: WithHead(
        nn.Bilinear(6, 6, 4), lambda fc, e: fc(e, e), False
    ),
    "one axis": lambda: WithHead(
        nn.Conv1d(6, 4, 1), lambda fc, e: fc(e[:, :, None])[:, :, 0]
    ),
    "maps, logsumexp": lambda: OnMaps(1, lambda x: x.flatten(2).logsumexp(2)),
    "filters, mean": lambda: OnMaps(3, lambda x: x.mean((2, 3))),
    "untraced filters, mean": lambda: OnMaps(3, lambda x: x.mean((2, 3)), False),
    "clamp": lambda: Net(5, lambda x: x.clamp(-9, 9)),
    "soft cap": lambda: Net(5, lambda x: 30 * torch.tanh(x / 30)),
    "cumsum": lambda: Net(5, lambda x: x.sigmoid().cumsum(1)),
    "half": lambda: Net(6, half),
    "own softmax": lambda: Net(5, lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
    "untraced layer that is not called": lambda: WithHead(
        nn.Linear(6, 4), lambda fc, e: fc.forward(e), False
    ),
    "untraced and scaled": lambda: Net(5, lambda x: x / 0.07, traceable=False),
}


@pytest.mark.parametrize("make", UNCLEAR.values(), ids=UNCLEAR)
def test_what_may_be_scores_has_to_be_named(make, X):
    with pytest.raises(ValueError, match=r"Backbone.from_module\(..., penultimate="):
        rows(make(), X)


OTHER = {
    "object": lambda x: SimpleNamespace(scores=x),
    "two": lambda x: Output(x, x.exp()),
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("finish", OTHER.values(), ids=OTHER)
def test_networks_may_return_anything(finish, traceable, X):
    net = Net(5, finish, traceable)
    with pytest.raises(ValueError, match=r"Backbone.from_module\(..., penultimate="):
        rows(net, X)
    assert rows(net, X, "block1").shape == (3, 6)
    named = Backbone.from_module(net, image_size=SIDE, penultimate="fc.input")
    assert PretrainedCNNFeatures(named).fit_transform(X).shape == (3, 6)


@pytest.mark.parametrize("traceable", [True, False])
def test_a_number_is_no_feature(traceable, X):
    net = Net(5, torch.sum, traceable)
    with pytest.raises(ValueError, match=r"Choose another node|penultimate="):
        rows(net, X)
    assert rows(net, X, "block1").shape == (3, 6)


class Container(nn.Module):
    """A head that has a parameter besides its layer."""

    def __init__(self):
        super().__init__()
        self.fc, self.shift = nn.Linear(6, 5), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.fc(x + self.shift)


class WithParameter(Net):
    """The root has a parameter, as for a class token."""

    def __init__(self):
        super().__init__(5, traceable=False)
        self.position = nn.Parameter(torch.ones(3, 1, 1))

    def features(self, x):
        return super().features(x + self.position)


def test_a_module_around_the_head_may_own_a_parameter(X):
    assert_reads(WithParameter(), X)
    net = Net(5, traceable=False)
    net.fc = Container()
    assert backbone_of(net).head == "fc.fc"
    assert_reads(net, X, lambda x: net.features(x) + net.fc.shift)


class Twice(Net):
    def between(self, x):
        return self.fc(self.features(x)).relu()

    def forward(self, x):
        return self.fc(self.between(x))


@pytest.mark.parametrize("traceable", [True, False])
def test_each_use_of_a_layer_has_a_name(traceable, X):
    net = Twice(6, traceable=traceable)
    assert_reads(net, X, net.between)
    found = {layer.alias: layer.node for layer in list_layers(backbone_of(net))}
    assert found["penultimate"] == "fc_1.input" and found["logits"] == "fc_1"
    torch.testing.assert_close(rows(net, X, "fc_1"), computed(net, X))
    first = computed(lambda x: net.fc(net.features(x)), X)
    torch.testing.assert_close(rows(net, X, "fc"), first)


class ByKeyword(Net):
    def forward(self, x):
        return self.fc(input=self.features(x))


def test_a_layer_may_be_called_by_keyword(X):
    assert_reads(ByKeyword(5, traceable=False), X)


class Nested(nn.Module):
    """A child has the name that the package gives the network while it traces it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.net.add_module("net", nn.AdaptiveAvgPool2d(1))
        self.shift, self.head = nn.Parameter(torch.ones(6, 1, 1)), nn.Linear(6, 5)

    def features(self, x):
        return (self.net(x) + self.shift).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


def test_a_child_may_have_any_name(X):
    backbone = backbone_of(Nested())
    structure = structure_of(backbone, SIDE)
    assert structure.traceable and backbone.lasting
    assert {"net.0", "net.net", "shift", "head"} <= {*structure.nodes}
    net = Nested()
    assert_reads(net, X)


class Volumes(Net):
    """Filters over three axes, for which torch has another memory format."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))

    def features(self, x):
        return self.deep(self.conv(x)[:, None])[:, 0].mean((2, 3))


def test_filters_may_have_three_axes(X):
    assert backbone_of(Volumes()).lasting
    net = Volumes()
    assert_reads(net, X)


class Deep(Net):
    """A head of several layers behind the features."""

    def __init__(self, traceable=True):
        super().__init__(traceable=traceable)
        self.fc = nn.Sequential(
            nn.Dropout(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)
        )


@pytest.mark.parametrize("traceable", [True, False])
def test_a_named_head_is_what_penultimate_enters(traceable, X):
    net = Deep(traceable)
    assert rows(net, X).shape == (3, 5)
    backbone = Backbone.from_module(
        net.eval(), image_size=SIDE, mean=(0,) * 3, std=(1,) * 3, head="fc"
    )
    found = PretrainedCNNFeatures(backbone, cache=None).fit_transform(X)
    torch.testing.assert_close(found, computed(net.features, X), rtol=1e-4, atol=1e-6)


def test_a_head_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"head='fx' names no module.*mean 'fc'"):
        Backbone.from_module(Net(), image_size=SIDE, head="fx")


SEVERAL = {
    "two heads": lambda net, x: (net.fc(x), net.other(x).softmax(1)),
    "by name": lambda net, x: {"a": net.fc(x), "b": net.other(net.drop(x))},
    "and features": lambda net, x: (net.fc(x), x),
    "features first": lambda net, x: {"row": net.drop(x), "scores": net.fc(x)},
}


class Several(Net):
    def __init__(self, returns):
        super().__init__()
        self.fc, self.other, self.drop = nn.Linear(6, 4), nn.Linear(6, 2), nn.Dropout()
        self.returns = returns

    def forward(self, x):
        return self.returns(self, self.features(x))


@pytest.mark.parametrize("returns", SEVERAL.values(), ids=SEVERAL)
def test_penultimate_is_what_enters_all_heads(returns, X):
    net = Several(returns)
    assert_reads(net, X)
    nodes = [layer.node for layer in list_layers(backbone_of(net))]
    assert not {"fc", "other"}.intersection(nodes)


def test_heads_that_read_different_features_have_to_be_named(X):
    net = Several(lambda net, x: (net.fc(x), net.other(x.relu() + 1)))
    with pytest.raises(ValueError, match=r"Backbone.from_module\(..., penultimate="):
        rows(net, X)
