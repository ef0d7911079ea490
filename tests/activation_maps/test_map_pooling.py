"""Maps without some places are pooled as networks pool what is left."""

import numpy as np
import pytest
import torch

from skdeepfeat._activation_maps import pooling
from skdeepfeat._activation_maps.squares import Squares
from skdeepfeat._networks.pooling import POOLINGS, pool

MAPS = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(set(POOLINGS) - {"flatten"}))
def test_each_place_is_left_out_exactly(name):
    flat = MAPS.reshape(2, 5, 16).astype(float)
    kept = Squares.over(4, "places", False).kept(4)
    found = np.concatenate([f(flat, kept) for f in pooling.POOLINGS[name]], 2)
    for row, places in enumerate(
        [range(16), *(set(range(16)) - {p} for p in range(16))]
    ):
        left = torch.from_numpy(MAPS.reshape(2, 5, 16)[:, :, sorted(places)])
        expected = torch.cat(pool(left[:, :, None], "chw", name), 1)
        np.testing.assert_allclose(found[:, row], expected, rtol=1e-5, atol=1e-6)


def test_poolings_are_those_of_networks():
    assert pooling.POOLINGS.keys() == POOLINGS.keys() - {"flatten"}


@pytest.mark.parametrize("n_places", [2, 4, 7, 14, 27, 56])
@pytest.mark.parametrize("in_steps", [False, True])
def test_squares_cover_the_same_area_everywhere(n_places, in_steps):
    squares = Squares.over(n_places, "auto", in_steps)
    kept = squares.kept(n_places)
    assert kept.shape == (1 + len(squares), n_places**2)
    assert (kept[0] == 1).all() and kept.min() >= 0 and squares.n_sides <= 14
    areas = (1 - kept[1:]).sum(1).reshape(len(squares.sizes), -1) / n_places**2
    expected = np.square(squares.sizes)[:, None]
    np.testing.assert_allclose(areas, np.broadcast_to(expected, areas.shape))
    assert squares.sizes[0] == max(1 / 7, 1 / n_places)


def test_squares_of_coarse_maps_are_their_places():
    kept = Squares.over(4, "auto", False).kept(4)
    np.testing.assert_array_equal(1 - kept[1:], np.eye(16))
