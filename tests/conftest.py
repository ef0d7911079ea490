"""Fixtures of all tests: a registered tiny network, and images."""

import os

# Read once, when scipy is first imported: the array API checks need it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Read once, when torch is: threads that spin while they wait take the cores of others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skdeepfeat import Backbone, clear_caches, register_backbone
from skdeepfeat._networks import trial

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def tiny_network(seed=0):
    """Two convolutions with batch norm, an in-place step, and a head."""
    generator = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(6, 10, 3, stride=2, padding=1),
        torch.nn.ReLU(inplace=True),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(10, 4),
    )
    with torch.no_grad():
        for tensor in [*net.parameters(), net[1].running_mean]:
            tensor.normal_(generator=generator)
    return net.eval()


def tiny_backbone(seed=0):
    return Backbone.from_module(
        tiny_network(seed), image_size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )


def coloured_images(n, side):
    """Images (n, side, side, 3) of three colours, and their classes."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    X = rng.integers(0, 150, (n, side, side, 3), dtype=np.uint8)
    X[np.arange(n), :, :, y] += 100
    return X, y


def count_images(monkeypatch):
    """Number of images that reach a first convolution, from now on, in a list of one.

    Shapes are found without images, and graphs are compared with images of noise.
    """
    forward, seen, lock = torch.nn.Conv2d.forward, [0], threading.Lock()
    try_out, comparing = trial._try_out, threading.local()

    def counted(self, x):
        if self.in_channels == 3 and not x.is_meta and not vars(comparing):
            with lock:
                seen[0] += len(x)
        return forward(self, x)

    def uncounted(*args):
        comparing.now = True
        try:
            return try_out(*args)
        finally:
            del comparing.now

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    monkeypatch.setattr(trial, "_try_out", uncounted)
    return seen


def pytest_configure(config):
    """Hide the GPUs of this machine from all tests but those marked gpu."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_make_parametrize_id(val, argname):
    """Name bytes by their argument: processes may compress or pickle differently."""
    return argname if isinstance(val, bytes) else None


register_backbone("tiny", tiny_backbone())


@pytest.fixture(autouse=True)
def empty_caches():
    """Every test starts without networks and without stored features."""
    clear_caches()


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch, tmp_path):
    """Use torch as in a plain installation; keep the files of engines in `tmp_path`."""
    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared_data():
    """The folder with ImageNet weights and photos, which only some machines have."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data (real weights and photos) are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def squeezenet_weights(shared_data):
    return shared_data / "weights" / "squeezenet1_0-imagenet.pth"


@pytest.fixture
def nan_memory():
    """New memory of torch contains NaN, and not whatever was there before."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def photos():
    """Six smooth colour images as (6, 24, 32, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    large = [Image.fromarray(c).resize((32, 24), Image.BICUBIC) for c in coarse]
    return np.stack([np.asarray(image) for image in large])


@pytest.fixture
def photo_files(photos, tmp_path):
    """The same images as PNG files, with a space and an umlaut in their names."""
    paths = []
    for i, photo in enumerate(photos):
        paths.append(str(tmp_path / f"photo ä {i}.png"))
        Image.fromarray(photo).save(paths[-1])
    return paths
