"""timm's networks: the values that timm computes, at the depth that timm states."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    list_layers,
)
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._engines.base import PooledLayers
from skdeepfeat._networks import trial
from skdeepfeat._networks.layers import aliased_layers
from skdeepfeat._networks.simplifying import can_simplify, simplified
from skdeepfeat._networks.structure import structure_of

timm = pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
check_timm = pytest.importorskip("check_timm")

# Each stands for a family: a Conv2d as classifier, no classifier, two heads, tokens
# beside those of places, channels last, parallel branches, standardised weights, ...
FAMILIES = """
resnet18 resnetv2_50x1_bit mobilenetv3_small_100 tf_efficientnet_lite0 repvgg_a0
levit_128s vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 pit_ti_224 lcnet_050
""".split()


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_have_the_values_that_timm_computes(name):
    """Those of the table, which a network without a record gives as well."""
    shipped = resolve_backbone(f"timm/{name}").layers
    found = check_timm.compare(name)
    assert check_timm.is_good(found), found
    alone = check_timm.compare(name, layers=shipped)
    assert shipped is not None and check_timm.is_good(alone), alone


@pytest.mark.parametrize("name", ["nasnetalarge", "xception41"])
def test_networks_of_tutorials_are_known_by_name(name, photos):
    layers = {layer.alias: layer for layer in list_layers(f"timm/{name}")}
    width = {"nasnetalarge": 4032, "xception41": 2048}[name]
    assert layers["penultimate"].features == width and "block4" in layers
    est = PretrainedCNNFeatures(f"timm/{name}", weights=None, layer="block1")
    rows = est.set_params(image_size=96).fit_transform(photos[:2])
    assert rows.shape == (2, layers["block1"].features)
    assert np.isfinite(rows).all()


def test_tokens_that_belong_to_no_place_are_not_pooled():
    """DINOv3 has five of them, and buffers that no file holds."""
    name = "timm/vit_small_patch16_dinov3"
    structure = structure_of(resolve_backbone(name), 256)
    assert structure.traceable
    layers = {layer.alias: layer for layer in list_layers(name)}
    assert layers["block1"].layout == "5+tokens"
    assert layers["block1"].stride == 16 and "logits" not in layers


def test_maps_with_channels_last_are_recognised():
    layers = {a.alias: a for a in list_layers("timm/swin_tiny_patch4_window7_224")}
    own = replace_layers("timm/swin_tiny_patch4_window7_224")
    for found in (layers, {layer.alias: layer for layer in own}):
        assert found["block1"].layout == "hwc" and found["block1"].features == 96
        assert found["block4"].stride == 32


def replace_layers(name):
    """The layers of a network as they are found without a record."""
    from dataclasses import replace

    return aliased_layers(replace(resolve_backbone(name), layers=None))


STAGES = [  # (name, tokens of each stage, of which one is the class token)
    ("mvitv2_small_cls", [3137, 785, 197, 50]),
    ("coat_lite_tiny", [3137, 785, 197, 50]),
    ("crossvit_tiny_240", [401, 197, 401, 197, 401, 197]),
]


@pytest.mark.parametrize(("name", "sizes"), STAGES)
def test_stages_are_found_where_timm_names_none(name, sizes):
    layers = [a for a in replace_layers(f"timm/{name}") if a.alias.startswith("block")]
    assert {layer.layout for layer in layers} == {"cls+tokens"}
    assert [layer.shape[0] for layer in layers] == sizes


def test_such_stages_have_the_values_of_timm():
    found = check_timm.compare("coat_lite_tiny")
    assert check_timm.is_good(found), found


def test_the_stem_of_a_pit_is_no_constant(photos):
    layers = {a.alias: a for a in list_layers("timm/pit_ti_224")}
    alone = {a.alias: a for a in replace_layers("timm/pit_ti_224")}
    assert layers["stem"].node == alone["stem"].node
    assert layers["stem"].shape == (64, 27, 27)
    est = PretrainedCNNFeatures("timm/pit_ti_224", weights=None, layer="stem")
    assert np.ptp(est.fit_transform(photos), axis=0).max() > 1e-3


def test_networks_are_traced_the_same_in_inference_mode():
    with torch.inference_mode():
        structure = structure_of(resolve_backbone("timm/vit_tiny_patch16_224"), 64)
    assert structure.traceable


def test_many_blocks_are_thinned_and_keep_their_numbers():
    aliases = [layer.alias for layer in list_layers("timm/cait_xxs24_224")]
    blocks = [alias for alias in aliases if alias.startswith("block")]
    assert blocks == [f"block{i}" for i in range(2, 25, 2)]


# Networks of the user's own -----------------------------------------------------------


def own(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("resnetv2_50", {}, "head.fc"),
        ("mobilenetv3_small_050", {}, "classifier"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, None),
        ("deit_tiny_distilled_patch16_224", {}, None),
    ],
)
def test_own_networks_of_timm_have_the_penultimate_of_timm(name, options, head, photos):
    net = own(name, **options)
    backbone = Backbone.from_module(net, image_size=224)
    est = PretrainedCNNFeatures(backbone, cache=None, pooling="avg")
    X = np.repeat(np.repeat(photos[:2], 8, 1)[:, :, :28], 8, 2)[:, :, :224]
    X = np.pad(X, ((0, 0), (0, 224 - X.shape[1]), (0, 0), (0, 0)), mode="edge")
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (backbone.input.mean, backbone.input.std)
    )
    x = (torch.from_numpy(X).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(x), pre_logits=True).numpy()
    rows = est.fit_transform(X)
    assert backbone.head == head and backbone.lasting
    np.testing.assert_allclose(rows, expected, atol=1e-5 * np.abs(expected).max())


class TwoHeads(nn.Module):
    """The average of two classifiers."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        x = self.trunk(x)
        return (self.first(x) + self.second(x)) / 2


class LooksAtValues(TwoHeads):
    """The same, and torch.fx cannot trace it."""

    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.mark.parametrize("kind", [TwoHeads, LooksAtValues])
def test_an_end_that_is_not_clear_has_to_be_named(kind, photos):
    torch.manual_seed(0)
    net = kind().eval()
    unclear = Backbone.from_module(net, image_size=16)
    with pytest.raises(ValueError, match=r"Backbone.from_module\(..., penultimate="):
        PretrainedCNNFeatures(unclear).fit(photos)
    named = Backbone.from_module(net, image_size=16, penultimate="trunk")
    rows = PretrainedCNNFeatures(named).fit_transform(photos)
    assert rows.shape == (6, 6)
    assert named != unclear
    with pytest.raises(ValueError, match="penultimate='trunck' is neither"):
        Backbone.from_module(net, image_size=16, penultimate="trunck")


class Doubled(nn.Module):
    """A head in the style of timm, in a network that does not call it as timm does."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward_features(self, x):
        return self.conv(x)

    def forward_head(self, x, pre_logits: bool = False):
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(2 * self.forward_features(x))


def test_a_head_that_the_network_uses_otherwise_is_not_believed(photos):
    torch.manual_seed(0)
    net = Doubled().eval()
    backbone = Backbone.from_module(net, image_size=16, mean=(0,) * 3, std=(1,) * 3)
    est = PretrainedCNNFeatures(backbone, cache=None)
    X = photos[:, :16, :16]
    with torch.no_grad():
        maps = net.forward_features(torch.from_numpy(X).permute(0, 3, 1, 2) / 255)
    expected = 2 * maps.mean((2, 3)).numpy()
    np.testing.assert_allclose(est.fit_transform(X), expected, atol=1e-5)


class OverwritingHead(Doubled):
    """Its head overwrites the maps that it is given, and is called once."""

    def forward_head(self, x, pre_logits: bool = False):
        x = x.add_(1).mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_a_head_may_overwrite_its_maps(photos):
    torch.manual_seed(0)
    net = OverwritingHead().eval()
    backbone = Backbone.from_module(net, image_size=16, mean=(0,) * 3, std=(1,) * 3)
    X = photos[:, :16, :16]
    x = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        before = net.forward_features(x).mean((2, 3)).numpy()
        scores = net(x).numpy()
    est = PretrainedCNNFeatures(backbone, cache=None)
    np.testing.assert_allclose(est.fit_transform(X), before + 1, atol=1e-5)
    est.set_params(layer="logits")
    np.testing.assert_allclose(est.fit_transform(X), scores, atol=1e-5)
    structure = structure_of(backbone, 16)
    assert len([n for n in structure.nodes if n.startswith("add")]) == 1
    assert structure.classified is not None


class UntracedDoubled(Doubled):
    """The same, and torch.fx cannot trace it."""

    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


class Untraced(OverwritingHead):
    """Says what enters its classifier, and torch.fx cannot trace it."""

    def forward_features(self, x):
        return super().forward_features(x if x.sum() > -1e9 else -x)


@pytest.mark.parametrize(
    ("kind", "factor", "shift", "node"),
    [(UntracedDoubled, 2, 0, "fc.input"), (Untraced, 1, 1, "enters_classifier")],
)
def test_a_network_that_is_run_says_what_enters_its_classifier(
    kind, factor, shift, node, photos
):
    torch.manual_seed(0)
    net = kind().eval()
    backbone = Backbone.from_module(net, image_size=16, mean=(0,) * 3, std=(1,) * 3)
    assert not structure_of(backbone, 16).traceable
    X = photos[:, :16, :16]
    x = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        maps, scores = net.conv(x).mean((2, 3)).numpy(), net(x).numpy()
    est = PretrainedCNNFeatures(backbone, cache=None)
    rows = est.fit_transform(X)
    np.testing.assert_allclose(rows, factor * maps + shift, atol=1e-5)
    assert list_layers(backbone)[-2].node == node
    blocks = [a.node for a in list_layers(backbone) if a.alias.startswith("block")]
    assert blocks == ["conv"]  # without the classifier
    est.set_params(layer="logits")
    np.testing.assert_allclose(est.fit_transform(X), scores, atol=1e-5)


class Masked(nn.Module):
    """Has an optional argument."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x, mask=None):
        x = self.conv(x)
        if mask is not None:
            x = x * mask
        return self.fc(x.mean((2, 3)))


def test_optional_arguments_keep_their_defaults():
    backbone = Backbone.from_module(Masked().eval(), image_size=16)
    structure = structure_of(backbone, 16)
    assert structure.traceable and backbone.lasting and backbone.head == "fc"


class Overwriting(nn.Module):
    """A function of its own overwrites a value that another step reads."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 6, 3), function

    def forward(self, x):
        x = self.conv(x)
        return (self.function(x) + x).mean((2, 3))


@torch.fx.wrap
def add_in_place(x):
    return x.add_(1)


def test_a_function_that_overwrites_its_input_works_on_a_copy(photos):
    torch.manual_seed(0)
    net, scale = Overwriting(add_in_place).eval(), {"mean": (0,) * 3, "std": (1,) * 3}
    # Averages of filters alone may be class scores.
    backbone = Backbone.from_module(net, image_size=16, penultimate="mean", **scale)
    assert structure_of(backbone, 16).traceable
    X = photos[:, :16, :16]
    with torch.no_grad():
        expected = net(torch.from_numpy(X).permute(0, 3, 1, 2) / 255).numpy()
    rows = PretrainedCNNFeatures(backbone, cache=None).fit_transform(X)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    before = PretrainedCNNFeatures(backbone, layer="conv", cache=None).fit_transform(X)
    np.testing.assert_allclose(2 * (before + 1), rows, atol=1e-4)


# Speed --------------------------------------------------------------------------------


def test_parallel_branches_and_standardised_weights_become_plain():
    for name, part in [("repvgg_a0", "stages.0.0"), ("nf_resnet50", "stem.conv")]:
        module = own(name).get_submodule(part)
        assert can_simplify(module)
        made = simplified(module)
        x = torch.randn(2, next(module.parameters()).shape[1], 32, 32)
        with torch.no_grad():
            expected = module(x)
            assert torch.allclose(made(x), expected, atol=1e-5 * expected.abs().max())
        counts = [sum(p.numel() for p in m.parameters()) for m in (made, module)]
        assert counts[0] <= counts[1]
    module.register_forward_hook(lambda *_: None)
    assert not can_simplify(module)


def test_norms_with_activations_are_folded():
    from skdeepfeat._backbones.weights import RandomWeights
    from skdeepfeat._networks.activations import activations_of
    from skdeepfeat._networks.building import build_network
    from skdeepfeat._networks.sharing import SharedNetwork

    backbone = resolve_backbone("timm/tf_efficientnet_lite0")
    source = RandomWeights(backbone, backbone.input, 0)
    network = SharedNetwork(build_network(source)[0])
    net = activations_of(network, source, ("global_pool.flatten",))
    left = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left


# Engines and training -----------------------------------------------------------------


def test_openvino_converts_what_only_torch_can_trace(monkeypatch):
    pytest.importorskip("openvino")
    from skdeepfeat._backbones.weights import RandomWeights
    from skdeepfeat._engines.openvino_conversion import convert

    def refuse(*_):
        raise trial.NotTraceable("for the test")

    monkeypatch.setattr(trial, "trace", refuse)
    backbone = resolve_backbone("timm/lcnet_050")
    source = RandomWeights(backbone, backbone.input.scaled(64), 0)
    layers = replace_layers("timm/lcnet_050")
    assert not structure_of(backbone, 64).traceable
    assert {"penultimate", "logits"} <= {layer.alias for layer in layers}
    last = next(layer for layer in layers if layer.alias == "penultimate")
    _, expected = convert(PooledLayers.of(source, b"", [(last, "avg")]))
    net = trial.trial_network  # the same values as timm's own
    assert expected[0].shape == (2, 1280) and net


@pytest.mark.filterwarnings("ignore:The loss of the last epoch")
def test_fine_tuning_changes_what_is_not_frozen():
    X = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8)
    y = np.arange(8) % 2
    est = FineTunedClassifier(
        "timm/lcnet_050",
        weights=None,
        unfreeze=1,
        epochs=1,
        image_size=48,
        random_state=0,
    ).fit(X, y)
    tuned = est.to_backbone()
    assert [a.alias for a in list_layers(tuned)][-1] == "penultimate"
    before = PretrainedCNNFeatures(
        "timm/lcnet_050", weights=None, random_state=est.seed_, image_size=48
    )
    after = PretrainedCNNFeatures(tuned, image_size=48)
    for layer, changes in [("block4", False), ("penultimate", True)]:
        rows = [e.set_params(layer=layer).fit_transform(X) for e in (before, after)]
        assert np.allclose(*rows, atol=1e-5) is not changes
