"""EfficientNet-Lite: its blocks, its padding, and the features of the package."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skdeepfeat import PretrainedCNNFeatures, list_backbones, list_layers
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._networks.building import build_network
from skdeepfeat._networks.efficientnet_lite import Halving

NAMES = tuple(f"efficientnet_lite{number}" for number in range(3))


def network(name):
    return build_network(resolve_source(name, "default", 0, None))[0]


@pytest.mark.parametrize("side", [4, 5, 8, 9])
@pytest.mark.parametrize("kernel", [3, 5])
def test_halving_pads_as_tensorflow_documents_it(kernel, side):
    """Output i of "same" reads from 2 i - total // 2; total follows from the sizes."""
    half = -(-side // 2)
    total = max((half - 1) * 2 + kernel - side, 0)
    x = torch.arange(float(side)).repeat(1, 1, side, 1) + 1
    row = np.zeros(side + 2 * kernel)
    row[kernel : kernel + side] = np.arange(side) + 1
    starts = kernel - total // 2 + 2 * np.arange(half)
    expected = [row[start : start + kernel].sum() for start in starts]
    weight = torch.zeros(1, 1, kernel, kernel)
    weight[0, 0, kernel // 2] = 1  # sums of the middle row
    found = F.conv2d(Halving(kernel)(x), weight, stride=2)
    assert found.shape[2:] == (half, half)
    assert found[0, 0, half // 2].tolist() == expected


def outputs(modules, net, x):
    """What the modules of a network return for a batch."""
    found = []
    for module in modules:
        module.register_forward_hook(lambda _, __, output: found.append(output))
    with torch.inference_mode():
        net(x)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [224, 97])
def test_every_block_equals_that_of_timm(name, side):
    """timm has the same entries in the same order, under other names."""
    timm = pytest.importorskip("timm")
    ours, theirs = network(name), timm.create_model(f"tf_{name}").eval()
    entries = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(entries))
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blocks = [block for stage in theirs.blocks for block in stage]
    expected = outputs([*blocks, theirs.classifier], theirs, x)
    found = outputs([*ours.blocks, ours.fc], ours, x)
    assert len(found) == len(expected) > 16
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_the_pip_weights_name_photos(shared_data):
    """40 photos of as many classes. Here 0.85."""
    photos = sorted((shared_data / "imagenet_samples").glob("*.jpg"))[::25]
    features = PretrainedCNNFeatures("efficientnet_lite0", layer="logits", cache=None)
    named = features.transform(photos).argmax(1)
    assert (named == np.arange(0, 1000, 25)).mean() > 0.75


@pytest.mark.parametrize("name", NAMES)
def test_the_aliases_are_the_stages(name):
    layers = list_layers(name)
    aliases = ["stem", *(f"block{i}" for i in range(1, 8)), "penultimate", "logits"]
    assert [layer.alias for layer in layers] == aliases
    assert [layer.stride for layer in layers[:8]] == [2, 2, 4, 8, 16, 16, 32, 32]
    assert [layer.features for layer in layers[-2:]] == [1280, 1000]
    assert name in list_backbones()
