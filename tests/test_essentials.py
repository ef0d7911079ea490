"""Essential results on every machine, from the weights and images that ship.

The forward pass and the preprocessing are written out here, in plain torch and Pillow,
so that nothing of the package is compared with itself.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdeepfeat
from skdeepfeat import PretrainedCNNFeatures, load_textures

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])
FIRES, POOLS = (3, 4, 5, 7, 8, 9, 10, 12), (2, 6, 11)  # their places in the network


@pytest.fixture(scope="module")
def photos():
    """scikit-learn's two sample photos in colour, one of them cut upright."""
    china, flower = load_sample_images().images
    return [china, flower[:, 100:400].copy()]


def shipped_weights():
    (file,) = Path(skdeepfeat.__file__).parent.rglob("mini.safetensors")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def preprocess(photo):
    """The shorter side becomes 110 pixels, and the 96 in the middle are normalised."""
    image = Image.fromarray(photo)
    size = [110 * side // min(image.size) for side in image.size]
    left, top = (round((side - 96) / 2) for side in size)
    image = image.resize(size, Image.BILINEAR).crop((left, top, left + 96, top + 96))
    pixels = torch.from_numpy(np.asarray(image).copy()).float() / 255
    return ((pixels - MEAN) / STD).permute(2, 0, 1)


def forward(x, weights):
    """Maps after every step of SqueezeNet's trunk, by the place of the step."""

    def convolve(x, name, **options):
        kernel, bias = (
            weights[f"features.{name}.{kind}"] for kind in ("weight", "bias")
        )
        return F.relu(F.conv2d(x, kernel, bias, **options))

    maps = {1: convolve(x, "0", stride=2)}
    for place in range(2, 13):
        x = maps[place - 1]
        if place in POOLS:
            maps[place] = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        else:
            x = convolve(x, f"{place}.squeeze")
            sides = ("expand1x1", 0), ("expand3x3", 1)
            maps[place] = torch.cat(
                [convolve(x, f"{place}.{side}", padding=pad) for side, pad in sides], 1
            )
    return maps


LAYERS = {"stem": 2, "block3": 5, "block7": 10, "penultimate": 12}


@pytest.mark.parametrize("layer", LAYERS)
def test_features_equal_a_plain_forward_pass_of_the_shipped_weights(layer, photos):
    batch = torch.stack([preprocess(photo) for photo in photos])
    with torch.inference_mode():
        maps = forward(batch, shipped_weights())[LAYERS[layer]]
    expected = maps.mean((2, 3)).numpy()
    found = PretrainedCNNFeatures(layer=layer, cache=None).transform(photos)
    assert relative(expected[:1], expected[1:]) > 0.1, "the photos look alike"
    assert relative(found, expected) < 1e-5


def relative(found, expected):
    """Largest distance of a row from the expected one, as part of its length."""
    distance = np.linalg.norm(found - expected, axis=1)
    return (distance / np.linalg.norm(expected, axis=1)).max()


# Here 0.83 and 0.88. Random weights reach 0.42, raw pixels 0.17, and images that come
# ten times too dark 0.69.
@pytest.mark.parametrize(("layer", "least"), [("penultimate", 0.79), ("block7", 0.83)])
def test_a_linear_head_names_the_shipped_textures(layer, least):
    textures = load_textures()
    model = make_pipeline(
        PretrainedCNNFeatures(layer=layer),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=1000),
    )
    assert cross_val_score(model, textures.data, textures.target).mean() > least
