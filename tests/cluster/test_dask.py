"""Rows are spread over the workers of a real Dask cluster."""

import joblib
import numpy as np
import pytest

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(count_images)
        yield client


def count_images():
    """Run by workers: count the images that reach a first convolution."""
    import torch

    forward, seen = torch.nn.Conv2d.forward, []

    def counted(self, x):
        if self.in_channels == 3 and not x.is_meta and x.shape[-1] == 8:
            seen.append(len(x))
        return forward(self, x)

    torch.nn.Conv2d.forward, torch.n_seen = counted, seen


@pytest.fixture
def features(tmp_path):
    return PretrainedCNNFeatures("tiny", cache=FeatureStore(tmp_path / "store"))


def test_rows_equal_those_of_one_process_in_order(client, features, photo_files):
    alone = PretrainedCNNFeatures("tiny", cache=None).transform(photo_files)
    with joblib.parallel_config(backend="dask"):
        spread = features.transform(photo_files)
    np.testing.assert_allclose(spread, alone, rtol=1e-6)
    assert features.stats_["n_computed"] == len(photo_files)
    assert features.cache.info()["misses"] == len(photo_files)
