"""Rows are spread over the workers of a real Ray cluster."""

import os

import joblib
import numpy as np
import pytest
from watching import watch

from skdeepfeat import ImageError, PretrainedCNNFeatures
from skdeepfeat._cluster.spreading import place_to_compute

ray = pytest.importorskip("ray")

pytest_plugins = ["cluster_fixtures"]
pytestmark = pytest.mark.slow  # each call starts its workers


@pytest.fixture(scope="module")
def cluster(folder):
    here, known = os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([here, known])

    def set_up():
        watch(str(folder))

    variables = {"PYTHONPATH": path}
    environment = {"env_vars": variables, "worker_process_setup_hook": set_up}
    options = {"include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=2, runtime_env=environment, **options)
    yield
    ray.shutdown()


@pytest.fixture
def on_ray(cluster):
    from ray.util.joblib import register_ray

    register_ray()
    with joblib.parallel_config(backend="ray"):
        yield


def test_rows_equal_those_of_one_process_in_order(on_ray, features, files, alone, log):
    log.path("sleep").touch()  # so that no worker does all of it
    np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    assert set(log.counts.values()) == {1} and len(log.counts) == len(files)
    assert len(list(log.folder.glob("*.log"))) == 2
    features.transform(files)
    assert features.stats_["n_computed"] == 0


def test_a_killed_worker_costs_a_round(on_ray, features, files, alone, log):
    log.path("die").touch()
    np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    assert not log.path("die").exists()
    assert len(log.counts) == len(files)


def test_an_unreadable_file_is_an_error_of_its_row(on_ray, features, files, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ImageError, match=r"row 9 .*damaged.jpg.*host"):
        features.transform([*files[:9], damaged, *files[9:]])


def test_an_interrupted_call_keeps_whole_rounds(
    on_ray, features, files, log, interrupted, monkeypatch
):
    monkeypatch.setattr("skdeepfeat._cluster.spreading.FIRST_ROWS", 0.2)
    log.path("sleep").touch()

    with interrupted(features.cache):
        features.transform(files)
    stored = features.cache.info()["misses"]
    assert 0 < stored < len(files)
    features.transform(files)
    assert features.stats_["n_computed"] == len(files) - stored


def test_nothing_is_spread_inside_a_task(on_ray):
    @ray.remote
    def inside():
        from ray.util.joblib import register_ray

        register_ray()
        with joblib.parallel_config(backend="ray"):
            features = PretrainedCNNFeatures("mini", cache=None)
            return type(place_to_compute(features._plan())).__name__

    assert ray.get(inside.remote()) == "Here"
