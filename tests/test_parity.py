"""Features equal those of torchvision's preprocessing and network, to 1e-5."""

import io
import json
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import models

from skdeepfeat import PretrainedCNNFeatures, list_layers

# Name → module whose input is the penultimate layer, and one block with its module.
CLASSIC = {
    "alexnet": ("classifier.6", "block2", "features.5"),
    "vgg16": ("classifier.6", "block3", "features.16"),
    "vgg19": ("classifier.6", "block5", "features.36"),
    "googlenet": ("fc", "block3", "inception4a"),
    "inception_v3": ("fc", "block9", "Mixed_7a"),
    "resnet18": ("fc", "block2", "layer2"),
    "resnet50": ("fc", "block3", "layer3"),
    "densenet161": ("classifier", "block1", "features.denseblock1"),
    "densenet201": ("classifier", "block3", "features.denseblock3"),
    "mobilenet_v2": ("classifier.1", "block8", "features.18"),
    "mobilenet_v3_small": ("classifier.3", "block3", "features.6"),
    "mobilenet_v3_large": ("classifier.3", "block7", "features.16"),
    "squeezenet1_0": ("classifier.1", "block8", "features.12"),
    "efficientnet_b0": ("classifier.1", "block4", "features.4"),
    "efficientnet_b7": ("classifier.1", "block2", "features.2"),
    "convnext_tiny": ("classifier.2", "block2", "features.3"),
    "vit_b_16": ("heads.head", "block5", "encoder.layers.encoder_layer_4"),
    "swin_t": ("head", "block3", "features.5"),
}
CHANNELS_LAST = ("swin_t",)
LARGE = ("vgg16", "vgg19", "densenet161", "densenet201", "efficientnet_b7")


@pytest.fixture(scope="module")
def two_photos():
    """scikit-learn's two sample photos, one of them cut upright."""
    china, flower = load_sample_images().images
    return [Image.fromarray(china), Image.fromarray(flower[:, 100:400].copy())]


def build(name, photos, recipe):
    """A random network whose features differ clearly from photo to photo."""
    torch.manual_seed(0)
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = models.get_model(name, weights=None, **options)
    if hasattr(net, "transform_input"):
        net.transform_input = True  # as the published weights want it
    batch = torch.stack([recipe(photo) for photo in photos])
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    net.eval()
    for module in norms:
        module.momentum = None
        module.reset_running_stats()
        module.train()
    with torch.no_grad():
        net(batch)
        for module in norms:  # a channel that hardly varies would blow up rounding
            module.running_var.clamp_(min=module.running_var.mean().item())
    return net.eval()


def record(net, head, block, batch):
    """Input of the head, and output of the block, of a plain forward pass."""
    seen = {}
    net.get_submodule(head).register_forward_pre_hook(
        lambda module, args: seen.__setitem__("penultimate", args[0].clone())
    )
    net.get_submodule(block).register_forward_hook(
        lambda module, args, out: seen.__setitem__("block", out.clone())
    )
    with torch.inference_mode():
        net(batch)
    return seen


def averaged(name, maps):
    if name.startswith("vit") and maps.ndim == 3:
        return maps[:, 1:].mean(1)
    if name in CHANNELS_LAST and maps.ndim == 4:
        return maps.mean((1, 2))
    return maps.mean((2, 3)) if maps.ndim == 4 else maps


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in CLASSIC
    ],
)
def test_features_of_a_local_file_equal_torchvision(name, two_photos, tmp_path):
    head, alias, module = CLASSIC[name]
    version = models.get_model_weights(name).DEFAULT
    recipe = version.transforms()
    net = build(name, two_photos, recipe)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    two_photos[0].save(tmp_path / "0.png")
    X = [
        str(tmp_path / "0.png"),
        encoded(two_photos[1]),
        two_photos[0],
        np.asarray(two_photos[1]),
    ]
    features = PretrainedCNNFeatures(
        name,
        weights=(version.name, tmp_path / "net.pth"),
        layer=(alias, "penultimate"),
        cache=None,
        batch_size=4,
    ).transform(X)
    batch = torch.stack([recipe(photo) for photo in two_photos])
    seen = record(net, head, module, batch)
    expected = torch.cat(
        [averaged(name, seen["block"]), averaged(name, seen["penultimate"])], 1
    ).numpy()
    assert relative(expected[:1], expected[1:]) > 0.01, "a blind test"
    assert relative(features[:2], expected) < 1e-5
    assert relative(features[2:], expected) < 1e-5


def relative(found, expected):
    """Largest distance of a row from the expected one, as part of its length."""
    distance = np.linalg.norm(found - expected, axis=1)
    return (distance / np.linalg.norm(expected, axis=1)).max()


def test_registry_knows_every_weights_version_and_its_recipe():
    text = (
        resources.files("skdeepfeat")
        .joinpath("_backbones/torchvision.json")
        .read_text()
    )
    known = json.loads(text)
    for name in models.list_models(module=models):
        for version in models.get_model_weights(name):
            recipe, said = version.transforms(), known[name]["weights"][version.name]
            assert said["url"] == version.url
            assert said["resize"] == recipe.resize_size[0]
            assert said["crop"] == recipe.crop_size[0]
            assert said["interpolation"] == recipe.interpolation.value
            assert (said["mean"], said["std"]) == (list(recipe.mean), list(recipe.std))
    assert len(known) >= 80


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "swin_t", "vit_b_16"])
def test_layers_in_the_registry_are_what_the_network_has(name):
    from skdeepfeat._backbones.registry import resolve_backbone
    from skdeepfeat._networks.structure import structure_of

    backbone = resolve_backbone(name)
    structure = structure_of(backbone, backbone.input.image_size)
    layers = list_layers(name)
    shapes = structure.shapes(tuple({layer.node for layer in layers}))
    assert {layer.alias: layer.shape for layer in layers} == {
        layer.alias: shapes[layer.node] for layer in layers
    }
