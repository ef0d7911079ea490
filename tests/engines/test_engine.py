"""The engine: device, computed shape, and what it does when memory runs out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skdeepfeat import ImageWarning, PretrainedCNNFeatures, clear_caches
from skdeepfeat._engines.devices import ENGINES, resolve_batch_size, resolve_device
from skdeepfeat._engines.torch import TorchRunner


@pytest.mark.parametrize("place", ENGINES, ids="-".join)
def test_batch_size(place):
    ability = ENGINES[place]
    assert resolve_batch_size("auto", *place, 224) == ability.batch_size
    assert resolve_batch_size("auto", *place, 112) == 4 * ability.batch_size
    assert resolve_batch_size("auto", *place, 5000) == 1
    assert resolve_batch_size(3, *place, 224) == 3
    assert resolve_batch_size(100_000, *place, 224) == ability.bearable
    assert resolve_batch_size(100_000, *place, 8) == ability.most_images


def test_device():
    assert resolve_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
        with pytest.raises(ValueError, match="sees no CUDA device"):
            resolve_device("cuda")


@pytest.fixture
def small_memory(monkeypatch):
    """A device that bears three images at once; remembers the shapes it computed."""
    start, shapes = TorchRunner.start, []

    def limited(self, pixels):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shapes.append(len(pixels))
        return start(self, pixels)

    monkeypatch.setattr(TorchRunner, "start", limited)
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

    monkeypatch.setattr(TorchRunner, "start", full)
    with pytest.raises(torch.OutOfMemoryError):
        PretrainedCNNFeatures("tiny", cache=None).transform(photos)


def test_the_next_call_begins_with_what_memory_bore(small_memory, photos):
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=16)
    first = est.transform(photos)
    assert small_memory == [2] * 8  # one batch of 16, most of it padding
    small_memory.clear()
    again = PretrainedCNNFeatures("tiny", cache=None, batch_size=32).transform(photos)
    assert small_memory == [2] * 3
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "block1"},
        {"image_size": 64},
        {"precision": "bfloat16"},
        {"backbone": "resnet34"},  # whose stem is called the same
        {"random_state": 1},
    ],
    ids=str,
)
def test_what_memory_bore_says_nothing_of_other_computations(
    change, small_memory, photos
):
    parameters = {"backbone": "resnet18", "weights": None, "cache": None}
    parameters |= {"batch_size": 16, "layer": "stem", "image_size": 32}
    PretrainedCNNFeatures(**parameters).transform(photos)
    small_memory.clear()
    PretrainedCNNFeatures(**(parameters | change)).transform(photos)
    assert small_memory == [2] * 8


def test_clear_caches_forgets_what_memory_bore(small_memory, photos):
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=16)
    est.transform(photos)
    clear_caches()
    small_memory.clear()
    est.transform(photos)
    assert small_memory == [2] * 8


def test_threads_share_what_memory_bore(small_memory, photos):
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=16)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: est.transform(photos), range(8)))
    small_memory.clear()
    alone = est.transform(photos)
    assert small_memory == [2] * 3
    for rows in together:
        np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_points_the_same_way(precision, photos):
    parameters = {"layer": "block4", "cache": None}
    full = PretrainedCNNFeatures("tiny", **parameters).transform(photos)
    low = PretrainedCNNFeatures("tiny", precision=precision, **parameters)
    reduced = low.transform(photos)
    assert reduced.dtype == np.float32 and not np.array_equal(reduced, full)
    cosine = (full * reduced).sum(1) / np.linalg.norm(full, axis=1)
    assert (cosine / np.linalg.norm(reduced, axis=1) > 0.999).all()


# Several devices, and batches started ahead -------------------------------------------


class FakeRunner:
    """A device that starts at once and ends when it is asked for the rows."""

    ahead = 1
    out_of_memory = torch.OutOfMemoryError
    bears = 1000

    def __init__(self, pooled, device, precision, batch_size):
        self.device, self.events = device, EVENTS
        self.network = TorchRunner(pooled, "cpu", precision, batch_size)

    def load(self, pixels):
        return self.network.load(pixels)

    def start(self, pixels):
        if len(pixels) > self.bears:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.events.append(("start", self.device))
        return pixels

    def finish(self, pixels):
        self.events.append(("finish", self.device))
        return self.network.finish(self.network.start(pixels))


EVENTS = []


@pytest.fixture
def two_gpus(monkeypatch):
    """Two devices that compute as the CPU does; what they did when."""
    EVENTS.clear()
    devices = ("cuda:0", "cuda:1")
    monkeypatch.setattr("skdeepfeat._engines.devices._n_gpus", lambda: 2)
    monkeypatch.setattr("skdeepfeat._engines.torch.TorchRunner", FakeRunner)
    return list(devices)


def test_devices_take_turns_and_keep_the_order(two_gpus, photos):
    X = np.concatenate([photos, photos[:, ::-1], photos[:, :, ::-1]])
    options = {"cache": None, "batch_size": 4}
    expected = PretrainedCNNFeatures("tiny", device="cpu", **options)
    est = PretrainedCNNFeatures("tiny", device=two_gpus, **options)
    rows = est.transform(X)
    started = [device for event, device in EVENTS if event == "start"]
    finished = [device for event, device in EVENTS if event == "finish"]
    assert started == finished == ["cuda:0", "cuda:1"] * 2 + ["cuda:0"]
    # Two batches are in flight before the first one is asked for its rows.
    assert [event for event, _ in EVENTS[:4]] == ["start"] * 3 + ["finish"]
    EVENTS.clear()
    np.testing.assert_array_equal(rows, expected.transform(X))
    assert est.stats_["device"] == "cuda"


def test_memory_that_runs_out_ahead_loses_nothing(two_gpus, photos, monkeypatch):
    monkeypatch.setattr(FakeRunner, "bears", 3)
    X = np.concatenate([photos, photos[:, ::-1]])
    est = PretrainedCNNFeatures("tiny", device=two_gpus, cache=None, batch_size=8)
    rows = est.transform(X)
    monkeypatch.setattr(FakeRunner, "bears", 1000)
    expected = est.set_params(batch_size=2).transform(X)
    np.testing.assert_array_equal(rows, expected)


def test_each_device_is_known_for_what_it_bore(two_gpus, photos, monkeypatch):
    first, second = two_gpus
    start = FakeRunner.start

    def limited(self, pixels):
        if self.device == second and len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(self, pixels)

    monkeypatch.setattr(FakeRunner, "start", limited)
    X = np.concatenate([photos, photos[:, ::-1]])

    def n_started(device):
        EVENTS.clear()
        est = PretrainedCNNFeatures("tiny", device=device, cache=None, batch_size=8)
        est.transform(X)
        return sum(event == "start" for event, _ in EVENTS)

    assert n_started(two_gpus) == 1 + 4  # 8 on the first, 4 times 2 on the second
    assert n_started(first) == 2
    assert n_started(second) == n_started(two_gpus) == 6


def test_errors_on_several_devices_name_their_row(two_gpus, photo_files):
    X = [*photo_files[:3], "missing.png", *photo_files[3:]]
    options = {"cache": None, "batch_size": 2, "on_error": "nan"}
    est = PretrainedCNNFeatures("tiny", device=two_gpus, **options)
    with pytest.warns(ImageWarning):
        rows = est.transform(X)
    assert np.isnan(rows[3]).all() and np.isfinite(np.delete(rows, 3, 0)).all()


@pytest.mark.parametrize("device", [[], ["cpu", "cuda:0"], ["gpu"], 3])
def test_devices_that_do_not_go_together(device, photos, monkeypatch):
    monkeypatch.setattr("skdeepfeat._engines.devices._n_gpus", lambda: 2)
    with pytest.raises(ValueError, match="'device' parameter"):
        PretrainedCNNFeatures("tiny", device=device).transform(photos)


def test_tf32_on_a_cpu_is_float32(photos):
    full, tf32 = (
        PretrainedCNNFeatures("tiny", precision=p).transform(photos)
        for p in ("float32", "tf32")
    )
    np.testing.assert_array_equal(full, tf32)
