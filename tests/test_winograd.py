"""Convolutions with fewer multiplications compute what convolutions compute."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from skdeepfeat import Backbone, _torch_winograd, _winograd
from skdeepfeat._activations import activations_of, bind, structure_of
from skdeepfeat._backbones import resolve_weights
from skdeepfeat._inputs import resolve_source
from skdeepfeat._networks import build_network, get_network
from skdeepfeat._plan import weights_key
from skdeepfeat._torch_winograd import WinogradConv2d, suits

SHAPES = [(128, 128, 28, 28), (128, 192, 7, 7), (160, 128, 13, 10), (256, 512, 1, 3)]


def conv(c=128, k=128, **options):
    torch.manual_seed(0)
    made = nn.Conv2d(c, k, **{"kernel_size": 3, "padding": 1, **options})
    return made.requires_grad_(False).to(memory_format=torch.channels_last)


def maps(n, c, h, w):
    made = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(1)).relu()
    return made.to(memory_format=torch.channels_last)


def error(found, x, like):
    """Of the largest result, beside the exact ones."""
    weights, bias = like.weight.double(), like.bias
    exact = nn.functional.conv2d(
        x.double(), weights, None if bias is None else bias.double(), padding=1
    )
    return float((torch.as_tensor(found) - exact).abs().max() / exact.abs().max())


@pytest.fixture
def always(monkeypatch):
    """However little there is to do."""
    monkeypatch.setattr(_winograd, "MIN_GAIN", 0)
    monkeypatch.setattr(_winograd, "MIN_PRODUCTS", 0)


@pytest.mark.parametrize(
    ("n", "c", "k", "h", "w", "expected"),
    [
        (8, 128, 128, 28, 28, True),
        (8, 512, 512, 7, 7, True),  # although its tiles cover 8 x 8
        (8, 512, 512, 5, 5, False),
        (1, 128, 128, 28, 28, False),
        (1, 512, 512, 28, 28, True),
        (8, 64, 256, 28, 28, False),
        (8, 256, 64, 28, 28, False),
    ],
)
def test_it_is_used_where_it_pays(n, c, k, h, w, expected):
    assert _winograd.pays(n, c, h, w, k) == expected


# With torch ---------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "k", "h", "w"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_the_convolution(always, c, k, h, w, bias, monkeypatch):
    like, x = conv(c, k, bias=bias), maps(3, c, h, w)
    direct = like(x)
    made = WinogradConv2d(like)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # it is not asked
    found = made(x)
    assert found.shape == direct.shape and found.dtype == torch.float32
    assert error(found, x, like) < 4e-6  # as that of sums in single precision
    assert torch.equal(made(x.contiguous()), found)


def test_neighbours_change_no_bit_and_parts_next_to_nothing(always, monkeypatch):
    x, made = maps(8, 128, 14, 14), WinogradConv2d(conv())
    found = made(x)
    order = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
    shuffled = x[order].contiguous(memory_format=torch.channels_last)
    assert torch.equal(made(shuffled), found[order])
    alone = torch.zeros_like(x)
    alone[2] = x[2]
    assert torch.equal(made(alone)[2], found[2])
    parts = []
    convolve = WinogradConv2d._convolve
    monkeypatch.setattr(
        WinogradConv2d,
        "_convolve",
        lambda self, some, out: (parts.append(len(some)), convolve(self, some, out)),
    )
    monkeypatch.setattr(_torch_winograd, "MAX_BYTES", 900_000)
    torch.testing.assert_close(made(x), found, rtol=0, atol=1e-5)
    assert parts == [3, 3, 2]


@pytest.mark.parametrize(("n", "asked"), [(8, False), (1, True)])
def test_little_work_is_left_to_the_convolution(n, asked, monkeypatch):
    x, made = maps(n, 128, 28, 28), WinogradConv2d(conv())
    calls = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda self, x: (calls.append(1), forward(self, x))[1]
    )
    made(x)
    assert bool(calls) == asked


OTHERS = [
    {"kernel_size": 1},
    {"kernel_size": 5},
    {"kernel_size": (1, 3)},
    {"stride": 2},
    {"padding": 0},
    {"padding": 2},
    {"dilation": 2, "padding": 2},
    {"groups": 2},
    {"c": 64},
    {"k": 64},
]


@pytest.mark.parametrize(
    "options", [*OTHERS, {"padding": "same"}, {"padding_mode": "circular"}], ids=str
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
    assert not has_winograd(handed_over)  # to an engine that has its own way


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


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = conv(), conv()
        self.relu, self.fc = nn.ReLU(), nn.Linear(128, 128)

    def forward(self, x):
        x = self.relu(self.one(x.repeat(1, 43, 1, 1)[:, :128]))
        x = self.relu(self.two(x) + x)
        x = self.two(x)  # once more
        x = self.relu(x)
        return self.fc(x.view(x.size(0), 128, -1).mean(2))  # of one block of memory


@pytest.fixture
def residual(always):
    backbone = Backbone.from_module(Residual().eval(), image_size=14)
    source = resolve_weights(backbone, "default", 0)
    return source, get_network(source, weights_key(source), "cpu", "float32")


def test_layers_together_are_those_alone_bit_for_bit(residual):
    source, network = residual
    nodes = structure_of(source.backbone, 14).nodes
    x = maps(2, 3, 14, 14)  # tiles cover 16 x 16
    with torch.inference_mode():
        run = activations_of(network, source, nodes)
        assert has_winograd(run)
        together = run(x)
        for node in nodes:
            alone = activations_of(network, source, (node,))(x)[node]
            if isinstance(alone, torch.Tensor):
                assert torch.equal(alone, together[node]), node
        expected = network.module(x)
    torch.testing.assert_close(together[nodes[-1]], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "hooked",
    [
        lambda conv: conv.register_forward_hook(lambda module, args, out: out * 2),
        lambda conv: conv.register_forward_pre_hook(lambda module, args: args[0] / 2),
    ],
    ids=["after", "before"],
)
@pytest.mark.parametrize("normed", [True, False])
def test_convolutions_with_hooks_stay(always, hooked, normed):
    """Which may have other weights, or give something else."""
    net = nn.Sequential(nn.Conv2d(3, 128, 1), conv())
    if normed:
        net.append(nn.BatchNorm2d(128))
    hooked(net[1])
    backbone = Backbone.from_module(net.eval(), image_size=8)
    source = resolve_weights(backbone, "default", 0)
    network = get_network(source, weights_key(source), "cpu", "float32")
    node, x = str(len(net) - 1), maps(2, 3, 8, 8)
    with torch.inference_mode():
        found = activations_of(network, source, (node,))(x)[node]
        torch.testing.assert_close(found, network.module(x))


# With OpenVINO ------------------------------------------------------------------------


def converted(like, x):
    """A network of one convolution in terms of OpenVINO, before the function and after.

    Also whether a convolution is left.
    """
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from skdeepfeat import _openvino_engine

    with warnings.catch_warnings(action="ignore"):  # of the tracer
        model = _openvino_engine.translate(like, x)
    model.reshape(list(x.shape))
    before = _openvino_engine.compile_for_cpu(model.clone(), "f32")
    _openvino_engine.multiply_less(model)
    after = _openvino_engine.compile_for_cpu(model, "f32")
    left = any("Convolution" in s.get_type_name() for s in model.get_ordered_ops())
    return before, after, left


@pytest.mark.parametrize(("c", "k", "h", "w"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_openvino_gives_the_same(always, c, k, h, w, bias):
    like, x = conv(c, k, bias=bias), maps(3, c, h, w)
    before, after, left = converted(like, x)
    assert not left
    found = after(x.numpy())[0]
    assert found.shape == before(x.numpy())[0].shape
    assert error(found, x, like) < 8e-6
    order = [2, 0, 1]
    np.testing.assert_array_equal(after(x.numpy()[order])[0], found[order])


class InOneDimension(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_channels = 128
        self.conv = nn.Conv1d(128, 128, 3, padding=1)

    def forward(self, x):
        return self.conv(x.mean(3))


def test_openvino_keeps_convolutions_along_one_axis(always):
    x = maps(2, 128, 8, 8)
    before, after, left = converted(InOneDimension().eval(), x)
    assert left
    np.testing.assert_array_equal(after(x.numpy())[0], before(x.numpy())[0])


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_openvino_keeps_other_convolutions(always, options):
    like = conv(**options)
    x = maps(2, like.in_channels, 8, 8)
    before, after, left = converted(like, x)
    assert left
    np.testing.assert_array_equal(after(x.numpy())[0], before(x.numpy())[0])
