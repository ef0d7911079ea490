"""Maps without some places are pooled as networks pool what is left."""

import numpy as np
import pytest
import torch

from skdeepfeat._activation_maps import pooling
from skdeepfeat._activation_maps.masks import masks_over
from skdeepfeat._networks.pooling import POOLINGS, pool

MAPS = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(set(POOLINGS) - {"flatten"}))
def test_each_place_is_left_out_exactly(name):
    flat = MAPS.reshape(2, 5, 16).astype(float)
    kept = np.vstack([np.ones(16), masks_over(4, "places", True).kept(4)])
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
def test_squares_cover_the_same_area_everywhere(n_places):
    squares = masks_over(n_places, "auto", smooth=True)
    kept = squares.kept(n_places)
    assert kept.shape == (len(squares), n_places**2)
    assert kept.min() >= 0 and squares.n_sides <= 14
    side = max(1 / 7, 1 / n_places)
    np.testing.assert_allclose((1 - kept).sum(1) / n_places**2, side**2)


def test_squares_of_coarse_maps_are_their_places():
    kept = masks_over(4, "auto", smooth=True).kept(4)
    np.testing.assert_array_equal(1 - kept, np.eye(16))


@pytest.mark.parametrize("n_places", [2, 4, 7, 14, 27, 56])
def test_random_cells_keep_each_place_about_half_of_the_time(n_places):
    masks = masks_over(n_places, "auto", smooth=False)
    kept = masks.kept(n_places)
    assert kept.shape == (len(masks), n_places**2)
    assert set(kept.flat) == {0, 1} and kept.any(1).all()
    assert 0.35 < kept.mean(0).min() and kept.mean(0).max() < 0.65
    np.testing.assert_array_equal(kept, masks.kept(n_places))


def test_random_cells_are_the_same_on_fine_and_coarse_maps():
    masks = masks_over(14, "auto", smooth=False)
    fine = masks.kept(21).reshape(-1, 7, 3, 7, 3)[:, :, 1, :, 1]
    coarse = masks.kept(7).reshape(-1, 7, 7)
    np.testing.assert_array_equal(fine, coarse)


def test_random_cells_find_the_place_that_a_step_depends_on():
    masks = masks_over(7, "auto", smooth=False)
    without = 1 - masks.kept(7)
    for place in range(49):  # the score falls by 1 without this place
        found = masks.maps(without[None, :, place]).reshape(49)
        assert found.argmax() == place and found[place] == pytest.approx(1)
