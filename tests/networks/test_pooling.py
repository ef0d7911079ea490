"""Poolings against their formulas, on every layout."""

import numpy as np
import pytest
import torch

from skdeepfeat._networks.pooling import POOLINGS, pool, pooled_width

MAPS = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
FORMULAS = {
    "avg": lambda m: m.mean((2, 3)),
    "max": lambda m: m.max((2, 3)),
    "avgmax": lambda m: np.concatenate([m.mean((2, 3)), m.max((2, 3))], 1),
    "gem": lambda m: np.cbrt((np.maximum(m, 1e-6) ** 3).mean((2, 3))),
    "stochastic": lambda m: (
        (np.maximum(m, 0) ** 2).sum((2, 3)) / np.maximum(m, 0).sum((2, 3))
    ),
    "flatten": lambda m: m.reshape(len(m), -1),
}
EXAMPLES = {
    "chw": MAPS,
    "hwc": MAPS.permute(0, 2, 3, 1),
    "tokens": MAPS.flatten(2).transpose(1, 2),
    "cls+tokens": torch.cat([torch.full((2, 1, 5), 99.0), MAPS.flatten(2).mT], 1),
    "5+tokens": torch.cat([torch.full((2, 5, 5), 99.0), MAPS.flatten(2).mT], 1),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", EXAMPLES)
def test_formula_and_width(pooling, layout):
    activation = EXAMPLES[layout]
    rows = torch.cat(pool(activation, layout, pooling), 1)
    expected = FORMULAS[pooling](MAPS.numpy())
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert pooled_width(layout, activation.shape[1:], pooling) == rows.shape[1]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_pass_through(pooling):
    (rows,) = pool(MAPS[:, :, 0, 0], "vector", pooling)
    assert torch.equal(rows, MAPS[:, :, 0, 0])
    assert pooled_width("vector", (5,), pooling) == 5


def test_a_dead_channel_pools_to_zero():
    zeros = torch.zeros(1, 2, 3, 3)
    assert torch.equal(
        torch.cat(pool(zeros, "chw", "stochastic"), 1), zeros[:, :, 0, 0]
    )
