"""The blocks of a network of the user's own: its parts before the classifier."""

import re
from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn

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
    assert blocks_of(Net(traceable=False)) == ["conv", "act"]


WRAPPERS = {
    "lightning": (Around, "model."),
    "parallel": (nn.DataParallel, "module."),
    "twice": (lambda net: Around(nn.DataParallel(net)), "model.module."),
}


@pytest.mark.parametrize(("wrap", "prefix"), WRAPPERS.values(), ids=WRAPPERS)
def test_blocks_are_those_of_a_wrapped_network(wrap, prefix):
    assert blocks_of(wrap(Net())) == [f"{prefix}conv", f"{prefix}act"]


def test_the_gpus_that_a_network_was_trained_on_do_not_matter():
    on_gpus, on_cpu = nn.DataParallel(Net()), nn.DataParallel(Net())
    on_gpus.dim, on_gpus.device_ids, on_gpus.output_device = 0, [0, 1], 0
    on_gpus.src_device_obj = torch.device("cuda:0")  # as torch sets them beside two
    on_cpu.device_ids = []
    for name in ("dim", "output_device", "src_device_obj"):
        vars(on_cpu).pop(name, None)
    on_cpu.load_state_dict(on_gpus.state_dict())
    assert blocks_of(on_gpus) == ["module.conv", "module.act"]
    assert on_gpus.device_ids == [0, 1]  # of the user's own network
    options = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    found = [Backbone.from_module(net, **options) for net in (on_gpus, on_cpu)]
    assert found[0] == found[1]


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


class InLists(nn.Module):
    """Its parts are in lists, which are no modules that are called."""

    def __init__(self, traceable=True):
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)])
        self.ends = nn.ModuleDict({"head": nn.Linear(6, 4)})
        self.traceable = traceable

    def forward(self, x):
        for step in self.steps:
            x = step(x).relu()
        x = x.mean((2, 3))
        return self.ends["head"](x if self.traceable or x.sum() > -1e9 else -x)


@pytest.mark.parametrize("traceable", [True, False])
def test_members_of_a_list_are_blocks(traceable):
    assert blocks_of(InLists(traceable)) == ["steps.0", "steps.1"]


class Dense(nn.ModuleDict):
    """A list of modules that is called, as a block of torchvision's DenseNet is."""

    def forward(self, x):
        for step in self.values():
            x = torch.cat([x, step(x)], 1)
        return x


@pytest.mark.parametrize("traceable", [True, False])
def test_a_list_that_is_called_is_a_block(traceable):
    net = Net(traceable=traceable)
    net.act = Dense({"a": nn.Conv2d(6, 3, 1), "b": nn.Conv2d(9, 3, 1)})
    net.fc = nn.Linear(12, 4)
    assert blocks_of(net) == ["conv", "act.cat_1" if traceable else "act"]


class TwoLists(nn.Module):
    """Uses the members of two lists in turn, each of which is a list of one."""

    def __init__(self):
        super().__init__()
        self.acts = nn.ModuleList([nn.ModuleList([nn.PReLU()]) for _ in range(2)])
        blocks = [nn.Sequential(nn.Conv2d(n, 6, 3), nn.Identity()) for n in (3, 6)]
        self.convs = nn.ModuleList([nn.ModuleList([block]) for block in blocks])

    def forward(self, x):
        for convs, acts in zip(self.convs, self.acts, strict=True):
            x = acts[0](convs[0](x))
        return x


def test_members_of_several_lists_are_in_order_of_depth():
    expected = ["convs.0.0.1", "acts.0.0", "convs.1.0.1", "acts.1.0"]
    assert blocks_of(TwoLists()) == expected


@dataclass
class Result:
    maps: torch.Tensor
    row: torch.Tensor


class Encoder(nn.Module):
    """Returns an object, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Conv2d(6, 6, 3), nn.Conv2d(3, 6, 3)

    def forward(self, x):
        x = self.second(self.first(x if x.sum() > -1e9 else -x))
        return Result(x, x.mean((2, 3)))


class Classified(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.encoder = nn.Linear(6, 4), Encoder()

    def forward(self, x):
        return self.fc(self.encoder(x).row)


def test_the_parts_of_what_returns_an_object_are_blocks_in_order_of_depth():
    assert blocks_of(Classified()) == ["encoder.first", "encoder.second"]


def test_the_parts_of_a_whole_network_before_a_classifier_are_blocks():
    trunk = Net(nn.Identity())
    trunk.last = nn.Linear(6, 6)
    net = nn.Sequential(trunk, nn.Linear(6, 4))
    assert blocks_of(net) == ["0.conv", "0.act", "0.fc", "0.last"]


class Step(nn.Module):
    """Returns its result in a tuple."""

    def __init__(self, n_in):
        super().__init__()
        self.conv = nn.Conv2d(n_in, 6, 3)

    def forward(self, x):
        return (self.conv(x if x.sum() > -1e9 else -x),)


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = Step(3), Step(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.second(self.first(x)[0])[0].mean((2, 3)))


def test_without_a_graph_a_tuple_of_one_value_is_a_block():
    assert blocks_of(Steps()) == ["first", "second"]


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.Identity()])
def test_the_stages_of_the_only_part_with_filters_are_blocks(pool):
    stages = [nn.Sequential(nn.Conv2d(n, 6, 3), nn.ReLU()) for n in (3, 6)]
    trunk, norm = nn.Sequential(*stages, pool), nn.BatchNorm2d(6)
    net = nn.Sequential(trunk, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    blocks = blocks_of(nn.Sequential(*net, nn.Linear(6, 4)))
    assert blocks == ["0.0.1", "0.1.1", "0.2", "1", "2", "3"]


def test_a_graph_module_has_the_blocks_of_its_network():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.MaxPool2d(2))
    graph = fx.symbolic_trace(net.eval())
    assert blocks_of(graph) == blocks_of(net) == ["0.1", "1"]
    assert Backbone.from_module(graph, image_size=SIDE).lasting


class Heads(nn.Module):
    """Returns the scores of heads, or also features, as `returns` says."""

    def __init__(self, returns):
        super().__init__()
        self.conv, self.age, self.sex = (
            nn.Conv2d(3, 6, 3),
            nn.Linear(6, 1),
            two_layers(),
        )
        self.fc, self.returns = nn.Linear(6, 4), returns

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.returns(self, x)


def two_layers():
    return nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))


UNCLEAR_HEADS = {
    "of two depths": lambda net, x: (net.fc(x), net.sex(x)),
    "best": lambda net, x: net.fc(x).topk(2),
    "clipped": lambda net, x: net.fc(x).clamp(-9, 9),
}


@pytest.mark.parametrize("returns", UNCLEAR_HEADS.values(), ids=UNCLEAR_HEADS)
def test_what_may_be_a_classifier_is_no_block(returns):
    assert blocks_of(Heads(returns)) == ["conv"]


def test_the_blocks_end_with_what_penultimate_names():
    net = Gated().eval()
    backbone = Backbone.from_module(net, image_size=SIDE, penultimate="fc.input")
    nodes = [layer.node for layer in list_layers(backbone)]
    assert nodes == ["conv", "fc.input"]


class OneSize(nn.Module):
    """Takes images of one size only."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.act(self.conv(x).view(x.shape[0], 6, 16)).mean(2))


def test_finding_the_blocks_prints_nothing(capfd):
    assert blocks_of(OneSize()) == ["conv", "act"]
    assert capfd.readouterr() == ("", "")


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
