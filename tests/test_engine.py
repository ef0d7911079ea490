"""The engine: device, computed shape, and what it does when memory runs out."""

import numpy as np
import pytest
import torch

from skdeepfeat import PretrainedCNNFeatures
from skdeepfeat._device import (
    BATCH_SIZES,
    BEARABLE,
    MOST_IMAGES,
    resolve_batch_size,
    resolve_device,
)
from skdeepfeat._engine import Engine


def test_device_and_batch_size():
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_batch_size("auto", cpu, 224) == BATCH_SIZES["cpu"]
    assert resolve_batch_size("auto", cpu, 112) == 4 * BATCH_SIZES["cpu"]
    assert resolve_batch_size("auto", cpu, 1000) == 1
    assert resolve_batch_size(3, cpu, 224) == 3
    assert resolve_batch_size(100_000, cpu, 224) == BEARABLE["cpu"]
    assert resolve_batch_size(100_000, cpu, 8) == MOST_IMAGES["cpu"]
    if not torch.cuda.is_available():
        assert resolve_device("auto") == cpu
        with pytest.raises(ValueError, match="sees no CUDA device"):
            resolve_device("cuda")


@pytest.fixture
def small_memory(monkeypatch):
    """A device that bears three images at once; remembers the shapes it computed."""
    forward, shapes = Engine._forward, []

    def limited(self, pixels):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shapes.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(Engine, "_forward", limited)
    return shapes


def test_out_of_memory_halves_the_batch_and_keeps_finished_rows(small_memory, photos):
    X = np.concatenate([photos, photos[:, ::-1], photos[:, :, ::-1]])
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=16)
    out = est.transform(X)
    assert set(small_memory) == {2}
    assert sum(small_memory) == 32  # nothing twice
    small_memory.clear()
    expected = PretrainedCNNFeatures("tiny", cache=None, batch_size=2).transform(X)
    np.testing.assert_array_equal(out, expected)


def test_out_of_memory_for_a_single_image_is_an_error(monkeypatch, photos):
    def full(self, pixels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        PretrainedCNNFeatures("tiny", cache=None).transform(photos)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_points_the_same_way(precision, photos):
    parameters = {"layer": "block4", "cache": None}
    full = PretrainedCNNFeatures("tiny", **parameters).transform(photos)
    low = PretrainedCNNFeatures("tiny", precision=precision, **parameters)
    reduced = low.transform(photos)
    assert reduced.dtype == np.float32 and not np.array_equal(reduced, full)
    cosine = (full * reduced).sum(1) / np.linalg.norm(full, axis=1)
    assert (cosine / np.linalg.norm(reduced, axis=1) > 0.999).all()
