"""How a network is divided into a trunk, a tail and a head."""

import numpy as np
import pytest
import torch
from small_fits import classifier, coloured_images, own_backbone, trunk
from torch.nn.utils.parametrizations import weight_norm

from skdeepfeat import Backbone, PretrainedCNNFeatures
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._finetuning.data import read_pixels
from skdeepfeat._finetuning.fitted import Fitted
from skdeepfeat._finetuning.new_head import Head
from skdeepfeat._finetuning.parts import Parts
from skdeepfeat._finetuning.tuned_part import TunedPart, find_tuned_part
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.recipe import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from skdeepfeat._networks.generators import Draws


@pytest.fixture(scope="module")
def images():
    return coloured_images()


def test_lower_blocks_learn_slower():
    source = resolve_source("resnet18", None, 0, None)
    part = find_tuned_part(source, 2)
    head = Head(part.width, 3, 0.0)
    parts = Parts(source, source.key(), part, head, Draws(0, torch.device("cpu")))
    rates = {}
    for group in parts.groups(1.0, 0.5, 0.01):
        rates |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    named = dict(parts.tail.named_parameters())
    assert rates[id(named["layer4.0.conv1.weight"])] == (0.5, 0.01)
    assert rates[id(named["layer4.1.bn2.weight"])] == (0.5, 0.0)
    assert rates[id(named["layer3.0.conv1.weight"])] == (0.25, 0.01)
    assert rates[id(head.last.weight)] == (1.0, 0.01)
    assert not any(name.startswith("layer2") for name in named)


FAMILIES = [
    ("resnet18", 2, ["layer3", "layer4"]),
    ("squeezenet1_1", 1, ["features"]),
    ("vgg11", 1, ["features", "classifier"]),
    ("mobilenet_v3_small", "block6", ["features", "classifier"]),
    ("densenet121", 1, ["features"]),
    ("efficientnet_b0", 1, ["features"]),
    ("convnext_tiny", 1, ["features", "classifier"]),
    ("swin_t", 1, ["features", "norm"]),
    ("vit_b_16", 1, ["encoder"]),
    ("vit_b_16", 3, ["encoder"]),
    ("googlenet", 1, ["inception5b"]),
    ("shufflenet_v2_x0_5", 1, ["conv5"]),
    ("regnet_y_400mf", 1, ["trunk_output"]),
    ("mini", 1, ["blocks", "conv_head", "bn1"]),
    ("smallcnn", 1, ["features"]),
    ("lenet5", "all", ["features"]),
]


@pytest.mark.parametrize(("name", "unfreeze", "tops"), FAMILIES, ids=lambda v: str(v))
def test_every_family_can_be_divided(name, unfreeze, tops):
    """Trunk, tail and head together compute what the whole network does."""
    source = resolve_source(name, "default" if name == "mini" else None, 0, None)
    part, key = find_tuned_part(source, unfreeze), source.key()
    parts = Parts(
        source,
        key,
        part,
        Head(part.width, 2, 0.0, part.inner),
        Draws(0, torch.device("cpu")),
    )
    tuned = {p.split(".")[0] for p, _ in parts.tail.named_parameters()}
    assert tuned == set(tops)
    size = source.input.image_size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    parts.tail.eval()
    with torch.no_grad():
        whole = Parts(source, key, find_tuned_part(source, 0), parts.head, parts.draws)
        expected = whole.pooled(whole.frozen(x)[part.end.node])
        left = parts.tail(parts.below(x))
        left = left[part.end.node] if isinstance(left, dict) else left
    torch.testing.assert_close(parts.pooled(left), expected, rtol=1e-5, atol=1e-5)


def test_unfreeze_by_name_and_number_agree():
    source = resolve_source("resnet18", None, 0, None)
    assert find_tuned_part(source, "block3") == find_tuned_part(source, 2)
    everything = find_tuned_part(source, "all")
    assert everything == find_tuned_part(source, 5) == find_tuned_part(source, "stem")
    assert everything.start is None
    assert isinstance(everything, TunedPart)


def test_a_small_network_is_transferred(images, tmp_path):
    X, y = images
    base = classifier("smallcnn", weights=None, unfreeze="all", head_epochs=0)
    base.fit(X, y).save_weights(tmp_path / "base.safetensors")
    weights = tmp_path / "base.safetensors"
    clf = classifier("smallcnn", weights=weights, unfreeze=0).fit(X, y)
    assert set(clf.weights_["head"]) == {
        *("inner.0.weight", "inner.0.bias", "last.weight", "last.bias")
    }
    before, after = base.to_backbone().arrays, clf.to_backbone().arrays
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("features")
    assert clf.as_features().transform(X).shape == (40, 128)


def test_too_deep(images):
    with pytest.raises(ValueError, match=r"unfreeze=9 is deeper.*3 blocks"):
        classifier(unfreeze=9).fit(*images)
    with pytest.raises(ValueError, match="'block77'"):
        classifier(unfreeze="block77").fit(*images)
    with pytest.raises(ValueError, match="is not a block of backbone"):
        classifier(unfreeze="penultimate").fit(*images)


def test_a_network_without_blocks_says_so(images):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    clf = classifier(Backbone.from_module(net, image_size=8))
    with pytest.raises(ValueError, match=r"no blocks with weights .* Set unfreeze=0"):
        clf.fit(*images)
    assert clf.set_params(unfreeze=0).fit(*images).weights_["tail"] == {}


def test_a_head_for_images_of_another_size_is_said(images):
    with pytest.raises(ValueError, match=r"12544 features.* image_size=40 .*20736"):
        classifier("smallcnn", weights=None, image_size=40).fit(*images)


def test_networks_that_cannot_be_traced_are_refused(images):
    class Crooked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(x.mean((2, 3)) if x.sum() > -1e9 else x.amax((2, 3)))

    backbone = Backbone.from_module(Crooked(), image_size=8)
    with pytest.raises(ValueError, match="cannot be traced"):
        classifier(backbone).fit(*images)


def as_trained(clf, X):
    """Scores of the tuned tail and head as they were left by training."""
    source, key = clf._frozen_source()
    part = find_tuned_part(source, clf.unfreeze)
    head = Head(part.width, len(clf.classes_), 0.0, part.inner)
    parts = Parts(source, key, part, head, Draws(0, torch.device("cpu")))
    parts.load(Fitted(**clf.weights_))
    parts.tail.eval()
    parts.head.eval()
    pixels = read_pixels(read_images(X), range(len(X)), source.input, None, 1).pixels
    with torch.no_grad():
        return parts.above(parts.below(parts.prepare(pixels))).numpy()


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d, torch.nn.LayerNorm])
def test_heads_with_norms(images, norm):
    X, y = images
    head = torch.nn.Sequential(
        norm(8),
        torch.nn.Linear(8, 16),
        norm(16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    )
    net = torch.nn.Sequential(*trunk(), head)
    clf = classifier(own_backbone(net, head="4"), epochs=10).fit(X, y)
    assert clf.score(X, y) > 0.8
    assert "inner.1.weight" in clf.weights_["head"]
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )


class Widen(torch.nn.Module):
    """A layer with weights that is no dense layer of torch."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(*shape))

    def forward(self, x):
        return x @ self.weight


def dense(*widths, **options):
    return torch.nn.Linear(*widths, **options)


def in_turn(*layers):
    return torch.nn.Sequential(*layers)


RELU = torch.nn.ReLU()
HEADS = {  # → the layers that are new
    "one layer": (lambda: in_turn(torch.nn.Dropout(0.5), dense(8, 4)), {"last"}),
    "hidden inside": (
        lambda: in_turn(in_turn(dense(8, 9), RELU), dense(9, 4)),
        {"last"},
    ),
    "last inside": (lambda: in_turn(dense(8, 9), RELU, in_turn(dense(9, 4))), {"last"}),
    "own hidden": (lambda: in_turn(Widen(8, 9), RELU, dense(9, 4)), {"last"}),
    "own width": (
        lambda: in_turn(dense(8, 9), Widen(9, 5), RELU, dense(5, 4)),
        {"inner.0", "inner.1", "last"},
    ),
    "without bias": (
        lambda: in_turn(dense(8, 9, bias=False), RELU, dense(9, 4, bias=False)),
        {"inner.0", "last"},
    ),
    "parametrized": (
        lambda: in_turn(weight_norm(dense(8, 9)), RELU, dense(9, 4)),
        {"last"},
    ),
    "filters": (
        lambda: in_turn(torch.nn.Unflatten(1, (8, 1, 1)), torch.nn.Conv2d(8, 4, 1)),
        {"last"},
    ),
}


@pytest.mark.parametrize("unfreeze", [0, 1])
@pytest.mark.parametrize("name", HEADS)
def test_a_stated_head_may_have_any_layers(images, name, unfreeze):
    X, y = images
    make, new = HEADS[name]
    backbone = own_backbone(in_turn(*trunk(), make()), head="4")
    clf = classifier(backbone, unfreeze=unfreeze).fit(X, y)
    assert {key.rpartition(".")[0] for key in clf.weights_["head"]} == new
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )


def test_a_tuned_network_keeps_the_layers_of_a_head_below_the_new_ones(images):
    X, y = images
    head = in_turn(torch.nn.BatchNorm1d(8), dense(8, 9), RELU, dense(9, 4))
    head[0].running_mean += 3
    backbone = own_backbone(in_turn(*trunk(), head), head="4")
    before = PretrainedCNNFeatures(backbone, layer="4.0").transform(X)
    features = classifier(backbone, unfreeze=0).fit(X, y).as_features("4.0")
    np.testing.assert_array_equal(features.transform(X), before)


class Scale(torch.nn.Module):
    """A module that sets its values only when it is created."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((16,), 2.0))
        self.register_buffer("shift", torch.full((16,), 0.5))

    def forward(self, x):
        return x * self.factor + self.shift


def test_heads_start_from_known_values(images, nan_memory):
    X, y = images
    layers = torch.nn.Linear(8, 16), Scale(), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    net = torch.nn.Sequential(*trunk(), torch.nn.Sequential(*layers))
    backbone = own_backbone(net, head="4")
    clf = classifier(backbone, unfreeze=0, learning_rate=1e-9).fit(X, y)
    for name in ("1.factor", "1.shift"):
        start, trained = backbone.arrays[f"4.{name}"], clf.weights_["head"]
        np.testing.assert_allclose(trained[f"inner.{name}"], start, atol=1e-3)


class Shared(torch.nn.Module):
    """One convolution under two names."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(3, 8, 3)
        self.b = torch.nn.Conv2d(8, 8, 3)
        self.c = torch.nn.Sequential(self.b, torch.nn.ReLU())
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.c(torch.relu(self.a(x))).mean((2, 3)))


class Twice(Shared):
    """One convolution used below and above."""

    def __init__(self):
        super().__init__()
        self.d = torch.nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = torch.relu(self.d(self.b(self.a(x))))
        return self.fc(self.b(x).mean((2, 3)))


class Constant(Shared):
    """A constant in the code."""

    def forward(self, x):
        return self.fc((self.b(self.a(x)) * torch.tensor(0.5)).mean((2, 3)))


class Tied(Shared):
    """Two convolutions with the same weight."""

    def __init__(self):
        super().__init__()
        self.c = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())
        self.c[0].weight = self.b.weight

    def forward(self, x):
        return self.fc(self.c(torch.relu(self.b(self.a(x)))).mean((2, 3)))


def by_builder(kind):
    """The same network as a backbone that builds it anew, with random weights."""
    return Backbone("built", kind, InputSpec(8, None), head="fc")


@pytest.mark.parametrize("make", [lambda kind: own_backbone(kind()), by_builder])
def test_tied_weights_learn_together_or_not_at_all(images, make):
    X, y = images
    weights = None if make is by_builder else "default"
    clf = classifier(make(Tied), weights=weights, unfreeze="all").fit(X, y)
    tail = clf.weights_["tail"]
    np.testing.assert_array_equal(tail["b.weight"], tail["c.0.weight"])
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ValueError, match="weight' in both frozen and tuned"):
        clf.set_params(unfreeze=1).fit(X, y)


@pytest.mark.parametrize("kind", [Shared, Constant])
def test_predictions_are_those_of_the_trained_network(images, kind):
    X, y = images
    clf = classifier(own_backbone(kind()), unfreeze="all").fit(X, y)
    np.testing.assert_allclose(
        clf.decision_function(X), as_trained(clf, X), rtol=1e-3, atol=1e-3
    )


def test_a_module_that_trunk_and_tail_share_is_refused(images):
    with pytest.raises(ValueError, match="in both frozen and tuned blocks"):
        classifier(own_backbone(Twice()), unfreeze=1).fit(*images)


def test_one_norm_after_two_convolutions():
    class OneNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.b(torch.relu(self.norm(self.a(x)))))

    net = OneNorm().eval()
    backbone = own_backbone(net)
    X = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    with torch.no_grad():
        expected = net((x - mean) / std).mean((2, 3))
    rows = PretrainedCNNFeatures(backbone, layer="norm_1", cache=None).transform(X)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_unfreezing_more_and_more(images):
    X, y = images
    clf = classifier(warm_start=True, unfreeze=1).fit(X, y)
    clf.set_params(unfreeze=2).fit(X, y)
    assert {"1.weight", "3.weight"} <= set(clf.weights_["tail"])
    with pytest.raises(ValueError, match="would be lost"):
        clf.set_params(unfreeze=0).fit(X, y)
