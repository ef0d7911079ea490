"""Tokens that belong to no place in an image are found by structure, not by name."""

import numpy as np
import pytest
import torch
from torch import nn

from skdeepfeat import Backbone, PretrainedCNNFeatures, list_layers

SIDE, PLACES = 32, 16


class Tokens(nn.Module):
    """A network of 16 tokens and those of a parameter; `join` puts them together."""

    def __init__(self, name="token", n=1, join=None, traceable=True):
        super().__init__()
        self.own, self.join, self.traceable = name, join, traceable
        setattr(self, name, nn.Parameter(torch.randn(1, n, 8)))
        self.patches, self.mix = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        if not self.traceable and x.sum() < -1e9:
            x = -x
        own = getattr(self, self.own).expand(x.shape[0], -1, -1)
        x = self.join(own, x) if self.join else torch.cat([own, x], 1)
        return self.head(self.mix(x)[:, 0])


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def backbone_of(net):
    plain = {"image_size": SIDE, "mean": (0,) * 3, "std": (1,) * 3}
    return Backbone.from_module(net.eval(), **plain)


def rows(net, X):
    est = PretrainedCNNFeatures(backbone_of(net), layer="block2", cache=None)
    return est.fit_transform(X)


def average_of_places(net, X, where=slice(-PLACES, None)):
    seen = []
    hook = net.mix.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        net(torch.from_numpy(X).permute(0, 3, 1, 2) / 255)
    hook.remove()
    return seen[0][:, where].mean(1).numpy()


JOINED_IN_FRONT = {
    "cls": ("cls", 1, None),
    "class_embedding": ("class_embedding", 1, None),
    "cls_token_0": ("cls_token_0", 1, None),
    "four": ("registers", 4, None),
    "nine": ("registers", 9, None),  # 16 + 9 is a square
    "axis by name": ("token", 1, lambda own, x: torch.cat(tensors=[own, x], dim=-2)),
    "average": (
        "unused",
        1,
        lambda _, x: torch.cat([2 * x.mean(1, keepdim=True), x], 1),
    ),
    "twice": ("token", 1, lambda own, x: torch.cat([own, torch.cat([own, x], 1)], 1)),
}


def joined_again(own, x):
    """Own tokens are cut off for a step, and joined again."""
    x = torch.cat([own, x], 1)
    return torch.cat([x[:, : own.shape[1]], x[:, own.shape[1] :].relu()], 1)


JOINED_IN_FRONT["cut off, 1"] = ("token", 1, joined_again)
JOINED_IN_FRONT["cut off, 4"] = ("token", 4, joined_again)


@pytest.mark.parametrize("case", JOINED_IN_FRONT.values(), ids=JOINED_IN_FRONT)
def test_tokens_joined_in_front_are_not_pooled(case, X):
    net = Tokens(*case)
    np.testing.assert_allclose(
        rows(net, X), average_of_places(net, X), rtol=1e-4, atol=1e-6
    )


def assigned(own, x):
    joined = x.new_zeros(x.shape[0], own.shape[1] + PLACES, 8)
    joined[:, : own.shape[1]], joined[:, own.shape[1] :] = own, x
    return joined


WITHOUT_A_GRAPH = {
    "cls": {"name": "cls"},
    "registers": {"name": "cls_token", "n": 5},
    "a square in all": {"n": 9},
    "assigned": {"n": 9, "join": assigned},
}


@pytest.mark.parametrize("case", WITHOUT_A_GRAPH.values(), ids=WITHOUT_A_GRAPH)
def test_without_a_graph_constant_tokens_are_not_pooled(case, X):
    net = Tokens(**case, traceable=False)
    np.testing.assert_allclose(
        rows(net, X), average_of_places(net, X), rtol=1e-4, atol=1e-6
    )


def of_halves(_, x):
    """All tokens are those of places, joined from two images."""
    return torch.cat([x[:, :8], x[:, 8:]], 1)


def test_parts_of_an_image_that_are_joined_are_all_pooled(X):
    net = Tokens("cls_token", join=of_halves)
    everything = average_of_places(net, X, slice(None))
    np.testing.assert_allclose(rows(net, X), everything, rtol=1e-4, atol=1e-6)


UNCLEAR = {
    "behind": {"join": lambda own, x: torch.cat([x, own], 1)},
    "around": {"n": 2, "join": lambda o, x: torch.cat([o[:, :1], x, o[:, 1:]], 1)},
    "padded": {"join": lambda own, x: nn.functional.pad(x, (0, 0, 1, 0))},
    "untraced, behind": {
        "name": "cls_token",
        "join": lambda own, x: torch.cat([x, own], 1),
        "traceable": False,
    },
    "untraced, around": {
        "n": 2,
        "join": lambda o, x: torch.cat([o[:, :1], x, o[:, 1:]], 1),
        "traceable": False,
    },
    "many": {"n": 40},
    "many, untraced": {"n": 40, "traceable": False},
    "two sizes": {"join": lambda own, x: torch.cat([x[:, 12:], x], 1)},
}


@pytest.mark.parametrize("case", UNCLEAR.values(), ids=UNCLEAR)
def test_tokens_that_are_not_clear_are_refused(case, X):
    net = Tokens(**case)
    assert "block2" not in [layer.alias for layer in list_layers(backbone_of(net))]
    with pytest.raises(ValueError, match=r"gives \d+ tokens.*num_prefix_tokens"):
        rows(net, X)


def early_mix(own, x):
    """No module sees the tokens before they are mixed."""
    x = torch.cat([own, x], 1)
    return x + x.mean(1, keepdim=True)


@pytest.mark.parametrize("n", [1, 3, np.int64(3)])
def test_a_network_may_state_their_number(n, X):
    net = Tokens("cls", n, early_mix, traceable=False)
    net.num_prefix_tokens = n
    np.testing.assert_allclose(
        rows(net, X), average_of_places(net, X), rtol=1e-4, atol=1e-6
    )


def test_the_end_of_a_network_is_refused_alike(X):
    net = Tokens("cls", join=early_mix, traceable=False)
    net.head = nn.Identity()
    backbone = Backbone.from_module(net.eval(), image_size=SIDE, penultimate="mix")
    with pytest.raises(ValueError, match="Layer 'mix' of backbone 'Tokens' gives 17"):
        PretrainedCNNFeatures(backbone).fit_transform(X)


class Places(nn.Module):
    """All tokens are those of places, of filters or of patches of pixels."""

    def __init__(self, by_filters):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8) if by_filters else nn.Linear(192, 8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        if isinstance(self.embed, nn.Linear):
            x = self.embed(nn.functional.unfold(x, 8, stride=8).transpose(1, 2))
        else:
            x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(x if x.sum() > -1e9 else -x).mean(1))


@pytest.mark.parametrize("by_filters", [True, False])
def test_tokens_of_places_alone_are_pooled_without_a_graph(by_filters, X):
    net = Places(by_filters)
    everything = average_of_places(net, X, slice(None))
    np.testing.assert_allclose(rows(net, X), everything, rtol=1e-4, atol=1e-6)


@pytest.fixture
def double_precision():
    """The default dtype of torch, as other code may set it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_dtype_changes_nothing(X, request):
    net = Places(by_filters=True)
    expected = rows(net, X)
    request.getfixturevalue("double_precision")
    np.testing.assert_array_equal(rows(net, X), expected)


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, token, x):
        return self.fc(torch.cat([token, x], 1))


class Entered(Tokens):
    """A module that is given a parameter before it is given the image."""

    def __init__(self):
        super().__init__()
        self.mix = First()

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(self.token.expand(x.shape[0], -1, -1), x)[:, 0])


def test_what_enters_a_module_comes_from_the_image(X):
    est = PretrainedCNNFeatures(
        backbone_of(Entered()), layer="mix.input", cache=None
    ).fit(X)
    assert np.ptp(est.transform(X), axis=0).max() > 1e-3
