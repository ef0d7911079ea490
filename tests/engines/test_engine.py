"""The engine: device, computed shape, and what it does when memory runs out."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from skdeepfeat import PretrainedCNNFeatures, clear_caches
from skdeepfeat._clock import Clock
from skdeepfeat._engines.base import Runner
from skdeepfeat._engines.devices import (
    ENGINES,
    Ability,
    resolve_batch_size,
    resolve_device,
)
from skdeepfeat._engines.running import RUNNERS, Engine
from skdeepfeat._engines.torch import TorchRunner
from skdeepfeat._images.batches import ImageReading
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.recipe import InputSpec


@pytest.mark.parametrize("place", ENGINES, ids="-".join)
def test_batch_size(place):
    ability = ENGINES[place]

    def batch_size(requested, side):
        return resolve_batch_size(requested, *place, InputSpec(side, None))

    assert batch_size("auto", 224) == ability.batch_size
    assert batch_size("auto", 112) == 4 * ability.batch_size
    assert batch_size("auto", 5000) == 1
    assert batch_size(3, 224) == 3
    assert batch_size(100_000, 224) == ability.largest
    assert batch_size(100_000, 8) == ability.most_images


def test_device():
    assert resolve_device("cpu") == resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="sees no CUDA device"):
        resolve_device("cuda")


# The driving of devices, with a runner that needs no network -------------------------


class FakeRunner(Runner):
    """Rows are the mean pixel of each image; notes what it is told to do."""

    ahead = 1
    out_of_memory = MemoryError
    capacity: ClassVar[dict[str, int]] = {}  # images at once, by device; 1000 if absent
    events: ClassVar[list[tuple]] = []

    def __init__(self, pooled, device, precision, batch_size):
        self.device = device

    def load(self, pixels):
        assert pixels.dtype == np.uint8
        return pixels

    def start(self, loaded):
        self.events.append(("start", self.device, len(loaded)))
        if len(loaded) > self.capacity.get(self.device, 1000):
            raise MemoryError
        return loaded

    def finish(self, started):
        self.events.append(("finish", self.device, len(started)))
        means = started.mean((1, 2), dtype=np.float32)  # (n, 3)
        return [means, means[:, :1]]


class Waiting(FakeRunner):
    """As on a CPU: nothing is started ahead."""

    ahead = 0


class FullWhenLoading(FakeRunner):
    """Memory runs out for the pixels already."""

    def load(self, pixels):
        if len(pixels) > 2:
            raise MemoryError
        return pixels


class Broken(FakeRunner):
    """An error that smaller batches do not help with."""

    def start(self, loaded):
        raise RuntimeError("the device is lost")


IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)


@pytest.fixture
def make_engine(monkeypatch):
    """Makes an engine of fake runners, one for each device."""

    def make(devices=("fake:0",), batch_size=4, runner=FakeRunner, name="fake"):
        monkeypatch.setitem(
            RUNNERS, ("fake", "pixels"), f"{__name__}:{runner.__name__}"
        )
        spec = InputSpec(8, None)
        pooled = SimpleNamespace(
            source=SimpleNamespace(input=spec),
            layers=("means", "firsts"),
            digest=name.encode(),
        )
        return Engine(pooled, devices, "float32", batch_size, "fake")

    monkeypatch.setitem(ENGINES, ("fake", "fake"), Ability(("float32",), 4, 64, 64))
    monkeypatch.setattr(FakeRunner, "capacity", {})
    monkeypatch.setattr(FakeRunner, "events", [])
    return make


def run(engine, X=IMAGES):
    """All that an engine computes."""
    images = read_images(X)
    rows = range(len(images))
    return list(engine.run(images, rows, ImageReading(None, "exact", 1), Clock()))


def check_rows(computed, unreadable=()):
    """Every row once, in order, with its own features."""
    rows = [row for batch in computed for row in batch.rows]
    assert rows == [row for row in range(len(IMAGES)) if row not in unreadable]
    means = np.concatenate([batch.features["means"] for batch in computed])
    firsts = np.concatenate([batch.features["firsts"] for batch in computed])
    expected = IMAGES[rows].mean((1, 2), dtype=np.float32)
    np.testing.assert_array_equal(means, expected)
    np.testing.assert_array_equal(firsts, expected[:, :1])


@pytest.mark.parametrize("runner", [FakeRunner, Waiting])
@pytest.mark.parametrize("devices", [("fake:0",), ("fake:0", "fake:1")])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_rows_come_in_order(runner, devices, batch_size, make_engine):
    check_rows(run(make_engine(devices, batch_size, runner)))
    shapes = {n for event, _, n in FakeRunner.events if event == "start"}
    assert shapes == {batch_size}  # the last batch is padded


def test_devices_take_turns_and_start_ahead(make_engine):
    check_rows(run(make_engine(("fake:0", "fake:1"), 2)))
    started = [device for event, device, _ in FakeRunner.events if event == "start"]
    finished = [device for event, device, _ in FakeRunner.events if event == "finish"]
    assert started == finished == ["fake:0", "fake:1"] * 2 + ["fake:0"]
    # One batch for each device is under way when the first one is finished.
    assert [event for event, *_ in FakeRunner.events[:4]] == ["start"] * 3 + ["finish"]


def test_nothing_is_started_ahead_of_a_runner_that_waits(make_engine):
    run(make_engine(batch_size=2, runner=Waiting))
    assert [event for event, *_ in FakeRunner.events] == ["start", "finish"] * 5


def test_out_of_memory_halves_the_batch_and_keeps_what_is_computed(make_engine):
    FakeRunner.capacity["fake:0"] = 3
    check_rows(run(make_engine(batch_size=8)))
    started = [n for event, _, n in FakeRunner.events if event == "start"]
    assert started == [8, 4] + [2] * 8  # two batches of 8, the second padded
    assert [n for event, _, n in FakeRunner.events if event == "finish"] == [2] * 8


def test_out_of_memory_while_loading_halves_the_batch_too(make_engine):
    check_rows(run(make_engine(batch_size=8, runner=FullWhenLoading)))
    assert {n for event, _, n in FakeRunner.events if event == "start"} == {2}


def test_out_of_memory_on_one_of_two_devices_loses_nothing(make_engine):
    FakeRunner.capacity["fake:1"] = 3
    check_rows(run(make_engine(("fake:0", "fake:1"), 4)))


def test_out_of_memory_for_a_single_image_is_an_error(make_engine):
    FakeRunner.capacity["fake:0"] = 0
    with pytest.raises(MemoryError):
        run(make_engine())


def test_other_errors_of_a_runner_reach_the_user(make_engine):
    with pytest.raises(RuntimeError, match="the device is lost"):
        run(make_engine(runner=Broken))
    assert not FakeRunner.events


def test_each_device_remembers_the_sizes_it_refused(make_engine):
    FakeRunner.capacity["fake:1"] = 3
    run(make_engine(("fake:0", "fake:1"), 8))
    assert make_engine(("fake:0",), 8).batch_size == 8
    assert make_engine(("fake:1",), 8).batch_size == 2
    assert make_engine(("fake:0", "fake:1"), 8).batch_size == 2
    assert make_engine(("fake:1",), 8, name="another computation").batch_size == 8
    clear_caches()
    assert make_engine(("fake:1",), 8).batch_size == 8


@pytest.mark.parametrize("devices", [("fake:0",), ("fake:0", "fake:1")])
def test_unreadable_images_are_reported_and_the_others_computed(devices, make_engine):
    X = list(IMAGES)
    X[0] = X[5] = "missing.png"
    computed = run(make_engine(devices, 2), X)
    check_rows(computed, unreadable=(0, 5))
    assert [error.row for batch in computed for error in batch.errors] == [0, 5]


# Parameters and the engines of the package -------------------------------------------


@pytest.fixture
def small_memory(monkeypatch):
    """A device with memory for three images at once; the batch sizes it computed."""
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


def test_the_next_call_starts_with_the_sizes_that_fit(small_memory, photos):
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
def test_the_sizes_that_fit_say_nothing_of_other_computations(
    change, small_memory, photos
):
    parameters = {"backbone": "resnet18", "weights": None, "cache": None}
    parameters |= {"batch_size": 16, "layer": "stem", "image_size": 32}
    PretrainedCNNFeatures(**parameters).transform(photos)
    small_memory.clear()
    PretrainedCNNFeatures(**(parameters | change)).transform(photos)
    assert small_memory == [2] * 8


def test_clear_caches_forgets_the_sizes_that_fit(small_memory, photos):
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=16)
    est.transform(photos)
    clear_caches()
    small_memory.clear()
    est.transform(photos)
    assert small_memory == [2] * 8


def test_threads_share_the_sizes_that_fit(small_memory, photos):
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


def test_a_list_of_gpus_gives_the_rows_of_one_device(photos, monkeypatch):
    class OnTheCPU(TorchRunner):
        def __init__(self, pooled, device, precision, batch_size):
            super().__init__(pooled, "cpu", precision, batch_size)
            self.ahead = 1

    monkeypatch.setattr("skdeepfeat._engines.devices._n_gpus", lambda: 2)
    monkeypatch.setattr("skdeepfeat._engines.torch.TorchRunner", OnTheCPU)
    est = PretrainedCNNFeatures("tiny", cache=None, batch_size=4)
    expected = est.transform(photos)
    est.set_params(device=["cuda:0", "cuda:1"])
    np.testing.assert_array_equal(est.transform(photos), expected)
    assert est.stats_["device"] == "cuda"


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
