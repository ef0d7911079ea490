"""What a recipe of preprocessing may be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skdeepfeat import Backbone, PretrainedCNNFeatures
from skdeepfeat._images.recipe import InputSpec

SMALL_INTS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64]


@pytest.mark.parametrize("dtype", SMALL_INTS)
def test_numpy_integers_are_the_same_size_as_ints(dtype):
    spec = InputSpec(112, 128)
    assert spec.scaled(dtype(120)) == spec.scaled(120)
    assert type(spec.scaled(dtype(120)).image_size) is int
    assert type(InputSpec(dtype(120), None).image_size) is int


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("dtype", SMALL_INTS)
def test_features_at_a_size_of_numpy_are_those_at_an_int(dtype, decode, photos):
    numpys, ints = (
        PretrainedCNNFeatures(image_size=size, decode=decode, cache=None)
        for size in (dtype(48), 48)
    )
    assert np.array_equal(numpys.transform(photos), ints.transform(photos))


@pytest.mark.parametrize("size", [0, -3, 20.0, "20", None, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="'image_size' parameter must be an int of at"):
        InputSpec(size, None)


NOT_OF_CHANNELS = {
    "mean": [(123.0, 117.0, 104.0), 0.5, (0.5, 0.5), (np.nan, 0, 0), (2, 0, 0), None],
    "std": [(58.4, 57.1, 57.4), (0, 1, 1), (-1, 1, 1), (255,) * 3, 1.0],
}
NOT_OF_CHANNELS["mean"] += [(value, 0, 0) for value in (True, np.True_, "0", None)]
WRONG = [(name, values) for name, found in NOT_OF_CHANNELS.items() for values in found]


@pytest.mark.parametrize(("name", "values"), WRONG)
def test_a_scale_that_is_not_of_channels_from_0_to_1_is_refused(name, values):
    net = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match=f"The '{name}' parameter must be three numb"):
        Backbone.from_module(net, image_size=20, **{name: values})


def test_arrays_and_tensors_are_scales():
    net = torch.nn.Conv2d(3, 4, 3)
    given = Backbone.from_module(
        net, image_size=20, mean=np.array([0.1, 0.2, 0.3]), std=torch.full((3,), 0.5)
    )
    assert given.input == replace(
        InputSpec(20, None), mean=(0.1, 0.2, 0.3), std=(0.5,) * 3
    )
