"""Networks of the user's own are copied in evaluation mode, and as they are written."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.feature_extraction import create_feature_extractor

from skdeepfeat import Backbone, PretrainedCNNFeatures
from skdeepfeat._networks.structure import structure_of

SIDE = 16
PLAIN = {"image_size": SIDE, "mean": (0,) * 3, "std": (1,) * 3}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.norm.running_mean += 0.3
        self.fc = nn.Linear(6, 4)

    def features(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def rows(net, X):
    est = PretrainedCNNFeatures(Backbone.from_module(net, **PLAIN), cache=None)
    return est.fit_transform(X)


def computed(function, X):
    with torch.no_grad():
        return function(torch.from_numpy(X).permute(0, 3, 1, 2) / 255).numpy()


def assert_reads(net, what, X):
    torch.testing.assert_close(rows(net, X), computed(what, X), rtol=1e-4, atol=1e-6)


class Around(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Branching(Around):
    """Cannot be traced."""

    def forward(self, x):
        return self.net(x if x.sum() > -1e9 else -x)


def test_a_network_that_trains_again_when_it_is_copied_is_evaluated(X):
    net = create_feature_extractor(Net().eval(), ["relu"])
    assert copy.deepcopy(net).training
    for outer, traceable in ((Around, True), (Branching, False)):
        backbone = Backbone.from_module(outer(net), **PLAIN)
        assert structure_of(backbone, SIDE).traceable == traceable
        found = PretrainedCNNFeatures(backbone, cache=None).fit_transform(X)
        expected = computed(lambda x: net.eval()(x)["relu"].mean((2, 3)), X)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class Forgets(Net):
    """Its copies lack something that its results depend on."""

    shift = 0.0

    def __deepcopy__(self, memo):
        copied = Net.__new__(type(self))
        copied.__dict__ = copy.deepcopy(vars(self), memo)
        copied.shift = self.shift + 1
        return copied

    def features(self, x):
        x = super().features(x) + self.shift
        return x if x.sum() > -1e9 else -x


def test_the_copy_that_runs_is_compared_with_the_network():
    with pytest.raises(ValueError, match="a copy of its network computes something"):
        rows(Forgets().eval(), np.zeros((1, SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize("outer", [lambda net: net, Around])
def test_compiled_networks_are_those_that_were_compiled(outer, X):
    net = Net().eval()
    compiled = outer(torch.compile(net, backend="eager"))
    backbone = Backbone.from_module(compiled, **PLAIN)
    assert backbone == Backbone.from_module(outer(net), **PLAIN)
    assert_reads(compiled, net.features, X)


class ReturnsNothing(Net):
    def train(self, mode=True):
        super().train(mode)


def test_train_may_return_nothing(X):
    net = ReturnsNothing()
    net.eval()
    assert_reads(net, net.features, X)


class CopiesValues(Net):
    def __deepcopy__(self, memo):
        copied = type(self)()
        copied.load_state_dict(self.state_dict())
        return copied


def lazy():
    net = Net()
    net.fc = nn.LazyLinear(4)
    return net


def with_norms():
    net = Net()
    nn.utils.spectral_norm(net.conv)
    net.fc = nn.utils.weight_norm(net.fc)
    return net


def pruned():
    net = Net()
    prune.l1_unstructured(net.conv, "weight", 0.5)
    return net


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [with_norms, pruned])
def test_weights_that_are_computed_from_others_are_copied(make, X):
    net = make()
    net(torch.ones(2, 3, SIDE, SIDE))  # keeps what it computes, with its gradient
    net.eval()
    before = net.conv.weight
    assert_reads(net, net.features, X)
    assert net.conv.weight is not None and before.grad_fn is not None


class ExtraState(Net):
    """Keeps a plain value with its weights."""

    scale = 3.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def features(self, x):
        return super().features(x) * self.scale


def test_extra_state_is_part_of_the_network(X):
    net = ExtraState().eval()
    net.scale = 5.0
    assert_reads(net, net.features, X)
    usual = ExtraState()
    usual.load_state_dict(net.state_dict() | {"_extra_state": {"scale": 3.0}})
    assert Backbone.from_module(usual, **PLAIN) != Backbone.from_module(net, **PLAIN)


def on_no_device():
    with torch.device("meta"):
        return Net()


def quantised():
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


REFUSED = {
    "script": (
        lambda: Around(torch.jit.script(Net())),
        (TypeError, "module 'net' is compiled by TorchScript"),
    ),
    "own copy": (CopiesValues, (TypeError, "must also copy a network on the device")),
    "lazy": (lazy, (ValueError, "'fc.weight' of the network has no shape yet")),
    "no values": (on_no_device, (ValueError, "'conv.weight'.* has no values.*meta")),
    "quantised": (quantised, (TypeError, "module 'fc' of the network is quantised")),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("make", "error"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_copied_says_why(make, error):
    with pytest.raises(error[0], match=error[1]):
        Backbone.from_module(make(), **PLAIN)


def test_what_torch_cannot_pickle_says_what_to_do():
    net = torch.nn.Sequential(weight_norm(torch.nn.Conv2d(3, 4, 3)), torch.nn.ReLU())
    backbone = Backbone.from_module(net, image_size=8)
    with pytest.raises(TypeError, match=r"'0' of the network is parametrized"):
        pickle.dumps(backbone)
