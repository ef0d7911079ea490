"""Convolutions with fewer multiplications compute what convolutions compute."""

import pytest
import torch
from torch import nn

from skdeepfeat import _winograd
from skdeepfeat._activations import activations_of, bind, structure_of
from skdeepfeat._inputs import resolve_source
from skdeepfeat._networks import build_network, get_network
from skdeepfeat._plan import weights_key
from skdeepfeat._winograd import WinogradConv2d, suits


def conv(c=128, k=128, **options):
    torch.manual_seed(0)
    made = nn.Conv2d(c, k, 3, **{"padding": 1, **options})
    return made.requires_grad_(False).to(memory_format=torch.channels_last)


def maps(n, c, h, w):
    made = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(1)).relu()
    return made.to(memory_format=torch.channels_last)


def error(found, x, like):
    """Of the largest result, beside the exact ones."""
    weight, bias = like.weight.double(), like.bias
    exact = nn.functional.conv2d(
        x.double(), weight, None if bias is None else bias.double(), padding=1
    )
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.fixture
def always(monkeypatch):
    """However small the maps are."""
    monkeypatch.setattr(_winograd, "MIN_GAIN", 0)
    monkeypatch.setattr(_winograd, "MIN_PRODUCTS", 0)


@pytest.mark.parametrize(
    ("c", "k", "h", "w"),
    [(128, 128, 28, 28), (128, 192, 7, 7), (160, 128, 13, 10), (256, 512, 1, 3)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_the_convolution(always, c, k, h, w, bias, monkeypatch):
    like, x = conv(c, k, bias=bias), maps(3, c, h, w)
    direct = like(x)
    made = WinogradConv2d(like)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # it is not asked
    found = made(x)
    assert found.shape == direct.shape and found.dtype == torch.float32
    # As exact as a sum of products in single precision.
    assert error(found, x, like) < 4e-6
    planar = made(x.contiguous())
    assert torch.equal(planar, found)


def test_neighbours_and_parts_change_no_bit(always, monkeypatch):
    x, made = maps(8, 128, 14, 14), WinogradConv2d(conv())
    found = made(x)
    order = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
    shuffled = x[order].contiguous(memory_format=torch.channels_last)
    assert torch.equal(made(shuffled), found[order])
    alone = torch.zeros_like(x)
    alone[2] = x[2]
    assert torch.equal(made(alone)[2], found[2])
    monkeypatch.setattr(_winograd, "MAX_BYTES", 900_000)  # three at once, then two
    parts = []
    whole = WinogradConv2d._convolve
    monkeypatch.setattr(
        WinogradConv2d,
        "_convolve",
        lambda self, some, out: (parts.append(len(some)), whole(self, some, out)),
    )
    in_parts = made(x)
    assert parts == [3, 3, 2]
    torch.testing.assert_close(in_parts, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "side", "asked"), [(8, 28, False), (1, 28, True), (64, 5, True)]
)
def test_little_work_is_left_to_the_convolution(n, side, asked, monkeypatch):
    x, made = maps(n, 128, side, side), WinogradConv2d(conv())
    calls = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda self, x: (calls.append(1), forward(self, x))[1]
    )
    made(x)
    assert bool(calls) == asked


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 0},
        {"padding": "same"},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
        {"c": 64},
        {"k": 64},
    ],
    ids=str,
)
def test_other_convolutions_stay(options):
    assert suits(conv())
    assert not suits(conv(**options))


def has_winograd(module):
    return any(isinstance(m, WinogradConv2d) for m in module.modules())


def test_only_torch_on_a_cpu_in_single_precision_multiplies_less():
    source = resolve_source("resnet18", None, 0, 64)
    key, nodes = weights_key(source), ("layer4.1.relu_1",)
    for precision, expected in (("float32", True), ("bfloat16", False)):
        network = get_network(source, key, "cpu", precision)
        assert has_winograd(activations_of(network, source, nodes)) == expected
        assert not has_winograd(network.module)  # which others share
    handed_over = activations_of(build_network(source), source, nodes)
    assert not has_winograd(handed_over)  # to engines with convolutions of their own


@pytest.mark.parametrize(
    ("name", "node"), [("resnet18", "flatten"), ("vgg11", "features.20")]
)
def test_networks_give_what_bare_ones_give(name, node):
    """Both where batch norms were folded and where there are none."""
    source = resolve_source(name, None, 0, 224)
    shared = get_network(source, weights_key(source), "cpu", "float32")
    x = maps(8, 3, 224, 224)
    with torch.inference_mode():
        expected = bind(structure_of(source.backbone, 224), shared.module, (node,))(x)
        found = activations_of(shared, source, (node,))(x)
    difference = (found[node] - expected[node]).abs().max()
    assert 0 < difference <= 1e-5 * expected[node].abs().max()
