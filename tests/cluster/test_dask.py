"""Rows are spread over the workers of a real Dask cluster."""

import os
import shutil
import socket
import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from watching import watch

from skdeepfeat import (
    Backbone,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    WorkerError,
)
from skdeepfeat._cluster.spreading import place_to_compute
from skdeepfeat._images.unread import UnreadWindow

distributed = pytest.importorskip("distributed")

pytest_plugins = ["cluster_fixtures"]
HOST = socket.gethostname()


class Watch(distributed.WorkerPlugin):
    """Watches each worker, also those that are started again."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):
        watch(self.folder)


@pytest.fixture(scope="module")
def client(folder):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(Watch(folder))
        yield client


@pytest.fixture
def on_dask(client):
    client.wait_for_workers(2, timeout=600)  # with one alone, joblib computes here
    with joblib.parallel_config(backend="dask"):
        yield client


def test_rows_equal_those_of_one_process_in_order(on_dask, features, files, alone, log):
    log.path("sleep").touch()  # so that no worker does all of it
    spread = features.transform(files)
    np.testing.assert_allclose(spread, alone, rtol=1e-6)
    assert set(log.counts.values()) == {1} and len(log.counts) == len(files)
    assert len(list(log.folder.glob("*.log"))) == 2  # both workers took part
    assert features.stats_["n_computed"] == len(files)
    assert features.cache.info()["misses"] == len(files)


def test_equal_images_of_a_chunk_are_computed_once(on_dask, features, files, log):
    rows = features.transform([*files[:4], *files[:4]])
    np.testing.assert_array_equal(rows[:4], rows[4:])
    assert set(log.counts.values()) == {1}
    assert features.cache.info()["misses"] == 4


def test_what_is_stored_is_not_sent(on_dask, features, files, log):
    features.warm(files[:30])
    features.transform(files)
    assert features.stats_["n_computed"] == len(files) - 30
    assert set(log.counts.values()) == {1}
    features.transform(files)
    assert features.stats_["n_computed"] == 0


def test_a_killed_worker_costs_a_chunk(on_dask, features, files, alone, log):
    log.path("die").touch()
    np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    assert not log.path("die").exists()
    assert set(log.counts.values()) == {1}


def test_an_unreadable_file_is_an_error_of_its_row(on_dask, features, files, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ImageError, match=r"row 9 .*damaged.jpg.*host") as caught:
        features.transform([*files[:9], str(damaged), *files[9:]])
    assert caught.value.row == 9 and HOST in caught.value.reason


def test_a_path_that_workers_cannot_see_names_their_host(
    on_dask, features, files, alone
):
    features.set_params(on_error="nan")
    with pytest.warns(ImageWarning, match="1 of 61 images could not be read"):
        rows = features.transform([*files, "absent.jpg"])
    ((row, source, reason),) = features.errors_
    assert (row, source) == (60, "absent.jpg")
    assert "no such file" in reason and HOST in reason
    np.testing.assert_allclose(rows[:-1], alone, rtol=1e-6)
    assert np.isnan(rows[-1]).all()


def test_another_file_at_a_path_is_an_error(
    on_dask, features, files, monkeypatch, tmp_path
):
    accept, path = UnreadWindow.accept, tmp_path / "changed.png"
    shutil.copy(files[0], path)

    def late(self, *arguments):
        os.utime(path, (1, 1))
        return accept(self, *arguments)

    monkeypatch.setattr(UnreadWindow, "accept", late)
    with pytest.raises(ImageError, match=rf"changed.png.*{HOST}.*a different file"):
        features.transform([path])
    assert features.cache.info()["rows"] == 0


def test_a_file_that_only_workers_see_is_not_remembered(
    on_dask, features, files, alone, monkeypatch
):
    monkeypatch.setattr("skdeepfeat._images.unread._state_here", lambda *args: None)
    np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    features.transform(files)  # which nobody here knows
    assert features.stats_["n_computed"] == len(files)


def test_an_interrupted_call_keeps_what_has_arrived(
    on_dask, features, files, log, interrupted
):
    log.path("sleep").touch()

    with interrupted(features.cache):
        features.transform([*files, *files_of(files)])
    stored = features.cache.info()["misses"]
    assert 0 < stored < 2 * len(files)
    log.path("sleep").unlink()
    features.transform([*files, *files_of(files)])
    assert features.stats_["n_computed"] == 2 * len(files) - stored


def files_of(files):
    """As many other images."""
    rng = np.random.default_rng(1)
    return list(rng.integers(0, 256, (len(files), 9, 9, 3), np.uint8))


def test_nothing_is_spread_inside_a_task(client, files):
    def inside(files):
        with joblib.parallel_config(backend="dask"):
            features = PretrainedCNNFeatures("mini", weights=None, cache=None)
            return type(place_to_compute(features._plan())).__name__

    assert client.submit(inside, files).result() == "Here"
    with joblib.parallel_config(backend="dask"):
        plan = PretrainedCNNFeatures("mini")._plan()
        assert type(place_to_compute(plan)).__name__ == "Cluster"


def test_a_worker_without_the_device_is_named(on_dask, features, files):
    features.set_params(device="cuda")
    with pytest.raises(WorkerError, match=f"{HOST}.*torch sees no CUDA device"):
        features.transform(files)


def test_a_worker_that_would_compute_something_else_is_refused(
    on_dask, features, files
):
    def other_version(dask_worker, schema):
        from skdeepfeat import _plan

        _plan.SCHEMA, schema = schema, _plan.SCHEMA
        return schema

    (schema, _) = on_dask.run(other_version, schema=-1).values()
    try:
        with pytest.raises(WorkerError, match=f"{HOST}.*its features would differ"):
            features.transform(files)
    finally:
        on_dask.run(other_version, schema=schema)
    assert features.cache.info()["rows"] == 0


def local_network():
    """A network whose code is defined in a function, which only its code identifies."""

    class Branching(torch.nn.Module):
        gain: float = 2.0

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def last(self, x):
            return x.relu().mean((2, 3))

        def forward(self, x):
            x = self.conv(x)
            return self.last(x * self.gain if x.mean() > -9 else x)

    return Branching().eval()


def test_a_network_that_only_its_code_identifies_travels(on_dask, features, files):
    backbone = Backbone.from_module(local_network(), image_size=32)
    features.set_params(backbone=backbone, cache=None)
    with joblib.parallel_config(backend="loky"):
        alone = features.transform([Image.open(path) for path in files[:9]])
    np.testing.assert_allclose(features.transform(files[:9]), alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [("Image", "MAX_IMAGE_PIXELS", 50), ("ImageFile", "LOAD_TRUNCATED_IMAGES", True)],
)
def test_a_setting_that_the_workers_do_not_have_is_named(
    on_dask, features, files, monkeypatch, module, name, value
):
    monkeypatch.setattr(f"PIL.{module}.{name}", value)
    with pytest.raises(WorkerError, match=f"PIL.{module}.{name} is .* {value} here"):
        features.transform(files)
    assert features.cache.info()["rows"] == 0


@pytest.fixture
def url(files):
    """Of a server of the folder of these files."""
    folder = os.path.dirname(files[0])
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_answers_404_is_an_error_of_its_row(on_dask, features, url):
    """The exception of its client cannot be pickled."""
    pytest.importorskip("aiohttp")
    features.set_params(on_error="nan", protocols=("http",))
    with pytest.warns(ImageWarning, match="1 of 2 images"):
        rows = features.transform([f"{url}/0.png", f"{url}/gone.png"])
    ((row, _, reason),) = features.errors_
    assert row == 1 and "answered 404" in reason and HOST in reason
    assert np.isnan(rows).any(1).tolist() == [False, True]


def test_the_engine_is_chosen_by_the_caller(on_dask, features, files, monkeypatch):
    pytest.importorskip("openvino")
    features.set_params(engine="auto").transform(files[:2])
    assert features.stats_["engine"] == "torch"  # the workers have OpenVINO
    assert features.stats_["n_computed"] == 2


def test_a_search_after_warm_runs_no_network_in_workers(client, features, files, log):
    y = np.arange(len(files)) % 2
    with joblib.parallel_config(backend="dask"):
        features.warm(files)
    n_computed = sum(log.counts.values())
    features = clone(features).set_params(backbone=tiny_backbone())
    search = GridSearchCV(
        make_pipeline(features, LogisticRegression()),
        {"logisticregression__C": [0.1, 1]},
        cv=2,
    )
    with joblib.parallel_config(backend="dask"):
        search.fit(files, y)
    assert sum(log.counts.values()) == n_computed == len(files)


def test_urls_are_read_and_remembered(on_dask, features, files, alone, log):
    pytest.importorskip("fsspec")
    urls = [f"local://{path}" for path in files]
    features.set_params(protocols=("local",))
    np.testing.assert_allclose(features.transform(urls), alone, rtol=1e-6)
    features.transform(urls)
    assert features.stats_["n_computed"] == 0
    assert set(log.counts.values()) == {1}


def test_files_in_the_memory_of_the_caller_are_named(on_dask, features, files):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/a.png", Path(files[0]).read_bytes())
    features.set_params(protocols=("memory",))
    with pytest.raises(ImageError, match=r"'memory://' names only exists in one"):
        features.transform(["memory://a.png"])


def test_rows_that_have_arrived_do_not_stay_in_memory(on_dask, features, monkeypatch):
    import gc

    from skdeepfeat._cluster.spreading import Cluster

    accept, arrays = Cluster._accept, []

    def accepted(self, *arguments):
        computed = accept(self, *arguments)
        arrays.extend(map(weakref.ref, computed.features.values()))
        return computed

    monkeypatch.setattr(Cluster, "_accept", accepted)
    gc.disable()
    try:
        features.transform(files_of(range(100)))
        assert len(arrays) > 20
        assert not any(array() is not None for array in arrays)
    finally:
        gc.enable()
