"""The graph resizes and crops as Pillow does."""

import numpy as np
import pytest
from PIL import Image

from skdeepfeat._images.decoding import Pixels
from skdeepfeat._images.recipe import InputSpec, prepare

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

RECIPES = {
    "crop": InputSpec(48, 56),
    "whole": InputSpec(48, 48, "bicubic"),
    "margins": InputSpec(64, 48),
    "squash": InputSpec(48, 56, mode="squash"),
    "border": InputSpec(48, 48, "bicubic", mode="border"),
    "fixed": InputSpec(48, None),
}
SIZES = [(48, 48), (90, 61), (61, 90), (200, 100), (97, 301), (20, 30)]  # h, w


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_differ_by_rounding_only(name):
    from skdeepfeat._onnx.resizing import resize_graph

    graph = resize_graph(RECIPES[name]).SerializeToString()
    session = onnxruntime.InferenceSession(graph)
    rng = np.random.default_rng(0)
    for h, w in SIZES:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        photo = coarse.resize((w, h), Image.BICUBIC)
        expected = prepare(Pixels(photo, True), RECIPES[name])
        (found,) = session.run(None, {"image": np.asarray(photo)})[0]
        apart = np.abs(found.astype(int) - expected)
        assert found.shape == expected.shape and found.dtype == np.uint8
        # More often for enlarged images, where values lie between two integers.
        assert apart.max() <= 2 and (apart > 1).mean() < 0.001
        assert (apart > 0).mean() < 0.1


def test_other_filters_are_refused():
    from skdeepfeat._onnx.resizing import resize_graph

    with pytest.raises(ValueError, match=r"bilinear and bicubic.*needs 'nearest'"):
        resize_graph(InputSpec(48, 56, "nearest"))
