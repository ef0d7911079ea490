"""Cut networks: no more than asked, nothing overwritten, and without fx too."""

import threading

import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from torchvision import models
from torchvision.models.feature_extraction import get_graph_node_names
from torchvision.ops import Conv2dNormActivation

from skdeepfeat import Backbone, PretrainedCNNFeatures, list_layers
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import resolve_source, resolve_weights
from skdeepfeat._networks.activations import activations_of
from skdeepfeat._networks.building import build_network
from skdeepfeat._networks.hooks import HookedNetwork
from skdeepfeat._networks.sharing import SharedNetwork, get_network
from skdeepfeat._networks.structure import Structure, bind, structure_of
from skdeepfeat._networks.tracer import Tracer


def cut(name, nodes, size=64):
    source = resolve_source(name, None, 0, size)
    structure = structure_of(source.backbone, size)
    nodes = tuple(structure.canonical(node) for node in nodes)
    return activations_of(SharedNetwork(*build_network(source)), source, nodes), nodes


# Nodes whose value a later in-place step of torchvision's own code would change.
OVERWRITTEN = [
    ("resnet18", ["layer1.0.bn1", "layer1.0.bn2", "layer2.0.conv1", "layer4"]),
    ("densenet121", ["features.norm5", "features.denseblock1", "relu"]),
    ("squeezenet1_1", ["features.0", "features.3.squeeze", "features.12"]),
    ("googlenet", ["conv1.bn", "inception3a.branch1.bn", "inception5b"]),
    ("mobilenet_v2", ["features.0", "features.1.conv.1", "features.3"]),
    ("efficientnet_b0", ["features.0", "features.2.1", "features.3"]),
    ("vgg11", ["features.0", "features.20"]),
    ("shufflenet_v2_x0_5", ["conv1.1", "stage2"]),
]


@pytest.mark.parametrize(("name", "nodes"), OVERWRITTEN, ids=lambda v: str(v)[:12])
def test_together_equals_alone_bit_for_bit(name, nodes):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        run, full = cut(name, nodes)
        together = run(x)
        for asked, node in zip(nodes, full, strict=True):
            alone, _ = cut(name, [asked])
            assert torch.equal(alone(x)[node], together[node]), node


def test_only_what_nobody_reads_is_overwritten():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (torch.nn.Conv2d(c, 4, 1) for c in (3, 4))
            self.scale = torch.nn.Parameter(torch.rand(1, 4, 1, 1))
            self.relu = torch.nn.ReLU()

        def forward(self, x):
            x = self.one(x)
            y = self.relu(self.two(x)) + x  # of the same shape, and read twice
            y = torch.relu(self.two(y) + self.scale)  # of another shape
            y = self.two(self.scale + y) + self.two(y)
            flat = self.two(y).flatten(1)  # a view
            return torch.nn.functional.relu(flat) + flat + 1

    net = Net().eval()
    backbone = Backbone.from_module(net, image_size=8)
    source = resolve_weights(backbone, "default", 0)
    network = SharedNetwork(*build_network(source))
    nodes = structure_of(backbone, 8).nodes
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        together = activations_of(network, source, nodes)(x)
        assert torch.equal(together[nodes[-1]], net(x))
        for node in nodes:
            alone = activations_of(network, source, (node,))(x)[node]
            assert torch.equal(alone, together[node]), node
        targets = [
            n.target for n in activations_of(network, source, nodes[-1:]).graph.nodes
        ]
    assert torch.relu_ in targets and "own_relu" in targets


class Residual(Conv2dNormActivation):
    def forward(self, x):
        return x + super().forward(x)


class Colliding(torch.nn.Module):
    """Names of its own that are like those which rewriting gives."""

    def __init__(self):
        super().__init__()
        self.residual = Residual(3, 3, 1)
        self.a = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.a_0, self.a_1 = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
        self.act = torch.nn.ReLU()
        self.own_act = torch.nn.LeakyReLU()
        self.conv = torch.nn.Conv2d(4, 4, 1)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.residual(x)
        x = self.act(self.a(x)) - self.own_act(self.a_1(self.a_0(x)))
        x = x.shape[2] + 1 + self.conv(x)  # numbers are summed too
        x = x.reshape(x.shape[:1] + (x.shape[1:] + ()))  # noqa: RUF005
        x = x.mean((2, 3))
        return self.fc(x)


def test_rewriting_a_graph_changes_nothing_else():
    net = Colliding().eval()
    backbone = Backbone.from_module(net, image_size=8)
    source = resolve_weights(backbone, "default", 0)
    network = SharedNetwork(*build_network(source))
    for norm in (network.module.a[1], network.module.a_1, network.module.residual[1]):
        norm.running_mean.normal_()
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        found = activations_of(network, source, ("fc",))(x)["fc"]
        torch.testing.assert_close(found, network.module(x))


def test_nothing_beyond_the_last_layer_is_computed(monkeypatch):
    run, _ = cut("resnet18", ["layer1"])
    calls = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d,
        "forward",
        lambda self, x: (calls.append(1), forward(self, x))[1],
    )
    with torch.inference_mode():
        run(torch.zeros(1, 3, 64, 64))
    assert len(calls) == 5  # of 20
    assert not any(name.startswith("layer2") for name in run.state_dict())


class Checked(torch.nn.Module):
    """Checks the shape of what enters each convolution, as transformers do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)

    def forward(self, x):
        for layer in (self.a, self.b):
            torch._assert(x.dim() == 4, "a batch of maps is wanted")
            x = layer(x)
        torch._assert(x.dim() == 4, "a batch of maps is wanted")
        return x


def test_no_layer_is_computed_only_to_check_its_shape():
    backbone = Backbone.from_module(Checked(), image_size=8)
    structure = structure_of(backbone, 8)
    module = structure.real_network()
    assert set(bind(structure, module, ("a",)).state_dict()) == {"a.weight", "a.bias"}
    both = bind(structure, module, ("b", "a"))
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        found = both(x)
        torch.testing.assert_close(found["b"], module(x))
        torch.testing.assert_close(found["a"], module.a(x))
    with pytest.raises(AssertionError, match="batch of maps"):
        both(x[0])


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
)
def test_convolutions_take_in_the_batch_norms_after_them(name):
    source = resolve_source(name, None, 0, 64)
    backbone, network = source.backbone, SharedNetwork(*build_network(source))
    for norm in network.module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # or there is nothing to take in
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    node = backbone.layers[-2].node
    run = activations_of(network, source, (node,))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in run.modules())
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = run(x)[node]
        expected = bind(structure_of(backbone, 64), network.module, (node,))(x)[node]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "hooked",
    [
        lambda conv: conv.register_forward_hook(lambda module, args, out: out * 2),
        lambda conv: conv.register_forward_pre_hook(lambda module, args: args[0] / 2),
    ],
    ids=["after", "before"],
)
@pytest.mark.parametrize("normed", [True, False])
def test_convolutions_with_hooks_stay(hooked, normed):
    """A hook may give something else than the convolution."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 3))
    if normed:
        net.append(torch.nn.BatchNorm2d(4))
    hooked(net[1])
    backbone = Backbone.from_module(net.eval(), image_size=8)
    source = resolve_weights(backbone, "default", 0)
    network = get_network(source, source.key(), "cpu", "float32")
    node, x = str(len(net) - 1), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        found = activations_of(network, source, (node,))(x)[node]
        torch.testing.assert_close(found, network.module(x))


def test_truncated_names_stand_for_the_last_node_within():
    structure = structure_of(resolve_backbone("resnet18"), 224)
    assert structure.canonical("layer4") == "layer4.1.relu_1"
    assert structure.canonical("fc.input") == "fc.input"
    assert structure.canonical("layer4.input") == "layer4.0.conv1.input"
    assert structure.canonical("layer44") is None


@pytest.mark.parametrize("layer", ["layer44", "layer44.input"])
def test_unknown_nodes_are_refused_with_the_closest_name(photos, layer):
    est = PretrainedCNNFeatures("resnet18", weights=None, layer=layer)
    with pytest.raises(ValueError, match=r"Unknown layer .* Did you mean 'layer"):
        est.transform(photos)


def test_aliases_modules_and_indices_are_one_layer(photos):
    est = PretrainedCNNFeatures("resnet18", weights=None, cache=None)
    by = {
        layer: est.set_params(layer=layer).transform(photos[:1])
        for layer in ["block2", "layer2", "layer2.1.relu_1", 2, -5]
    }
    for found in by.values():
        np.testing.assert_array_equal(found, by["block2"])


class Branching(torch.nn.Module):
    """Depends on the values of its input, so fx cannot trace it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.act = torch.nn.ReLU(inplace=True)
        self.tail = torch.nn.Conv2d(4, 6, 3)
        self.fc = torch.nn.Linear(6, 2)

    def forward(self, x):
        x = self.conv(x)
        if x.is_meta or x.sum() > -1e9:
            x = self.act(x)
        return self.fc(self.tail(x).mean((2, 3)))


def test_networks_that_fx_cannot_trace(photos):
    net = Branching().eval()
    backbone = Backbone.from_module(net, image_size=16)
    assert not Structure(backbone, 16).traceable
    aliases = {layer.alias: layer.features for layer in list_layers(backbone)}
    assert aliases["block1"] == 4 and aliases["penultimate"] == 6
    names = ("conv", "act", "tail", "penultimate")
    est = PretrainedCNNFeatures(backbone, layer=names, cache=None)
    out = est.transform(photos)
    assert out.shape == (6, 4 + 4 + 6 + 6)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(est.transform(photos)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(r, out) for r in results)
    alone = PretrainedCNNFeatures(backbone, layer="conv", cache=None).transform(photos)
    np.testing.assert_array_equal(out[:, :4], alone)
    with pytest.raises(
        ValueError, match=r"'conv'.*cannot trace it: its code branches on"
    ):
        PretrainedCNNFeatures(backbone, layer="konv").transform(photos)


def test_hooked_networks_stop_after_the_last_layer():
    net = Branching().eval()
    calls = []
    net.tail.register_forward_hook(lambda *a: calls.append(1))
    HookedNetwork(net, ("conv",))(torch.zeros(1, 3, 16, 16))
    assert not calls


def test_dropout_before_the_head_is_left_out():
    layers = {layer.alias: layer for layer in list_layers(tiny_backbone())}
    assert layers["penultimate"].shape == (10,) and layers["logits"].features == 4


def test_tracing_leaves_other_threads_alone():
    """fx hooks every module of the process while it traces."""
    net = models.squeezenet1_1(weights=None).eval()
    x, stop, wrong = torch.zeros(1, 3, 64, 64), threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                net(x)
            except Exception as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(3):
        resolve_backbone("densenet121").memo.clear()
        Structure(resolve_backbone("densenet121"), 64)
    stop.set()
    thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "regnet_y_400mf",
        "swin_t",
        "mnasnet0_5",
        "densenet121",
        "convnext_tiny",
    ],
)
def test_nodes_have_the_names_that_torchvision_gives_them(name, monkeypatch):
    """So that what others have written about a network holds here."""
    monkeypatch.setattr(Tracer, "proxy_buffer_attributes", False)  # as torchvision's
    net = models.get_model(name, weights=None).eval()
    expected = get_graph_node_names(net, suppress_diff_warning=True)[1]
    tracer = Tracer(net)
    tracer.trace(net)
    assert list(tracer.name_of.values()) == expected


def test_modules_whose_names_end_in_a_number_keep_them():
    """As in networks that come from Caffe."""
    net = torch.nn.Sequential()
    for i, name in enumerate(["conv1_1", "conv1_2", "conv2_1"]):
        net.add_module(name, torch.nn.Conv2d(3 + i, 4 + i, 3))
    backbone = Backbone.from_module(net.eval(), image_size=16)
    features = PretrainedCNNFeatures(backbone, layer="conv1_1")
    x = np.zeros((1, 16, 16, 3), np.uint8)
    assert features.transform(x).shape == (1, 4)
    assert features.set_params(layer="penultimate").transform(x).shape == (1, 6)


class Repeating(torch.nn.Module):
    """Numbers of repeated steps may meet names of other modules."""

    def __init__(self):
        super().__init__()
        self.a, self.a_1 = torch.nn.Identity(), torch.nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.a_1(self.a(self.a(x)))


def test_every_step_has_a_name_of_its_own():
    net = Repeating()
    tracer = Tracer(net)
    tracer.trace(net)
    names = list(tracer.name_of.values())
    assert len(set(names)) == len(names) == 4
