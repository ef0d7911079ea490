"""How rows go out and come back, with threads of this process in place of a cluster."""

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from PIL import Image

from skdeepfeat import (
    Backbone,
    EngineWarning,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    WorkerError,
    rank_layers,
)
from skdeepfeat._cluster import spreading
from skdeepfeat._cluster.backends import BACKENDS, Backend
from skdeepfeat._cluster.working import Order, carry_out
from skdeepfeat._exceptions import ConversionError
from skdeepfeat._images.cells import Cell

pytest_plugins = ["cluster_fixtures"]


@pytest.fixture(params=["list", "generator_unordered"])
def threads(request, monkeypatch):
    """Threads as a cluster, which returns results in one of the two ways."""
    backend = Backend(request.param, 20, lambda: False)
    monkeypatch.setitem(BACKENDS, "ThreadingBackend", backend)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        yield


@pytest.fixture
def sizes(monkeypatch):
    """How many rows each chunk has."""
    seen = []

    def counted(order, columns, cells):
        seen.append(len(cells))
        return carry_out(order, columns, cells)

    monkeypatch.setattr(spreading, "carry_out", counted)
    return seen


def failing(monkeypatch, n_times, error):
    """Let some chunks raise an error, as clusters do whose workers die."""
    left = iter(range(n_times))

    def carried_out(*arguments):
        if next(left, None) is not None:
            raise error
        return carry_out(*arguments)

    monkeypatch.setattr(spreading, "carry_out", carried_out)


KINDS = {
    "arrays": list,
    "encoded": lambda X: [_encoded(image) for image in X],
    "tensors": lambda X: [torch.from_numpy(image).permute(2, 0, 1) for image in X],
    "PIL": lambda X: [Image.fromarray(image) for image in X],
    "palettes": lambda X: [Image.fromarray(image).quantize(9) for image in X],
    "deep": lambda X: [
        Image.fromarray(image[..., 0].astype(np.uint16) * 257) for image in X
    ],
    "rotated": lambda X: [_rotated(image) for image in X],
}


def _encoded(image):
    import io

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _rotated(image):
    image = Image.fromarray(image)
    image.getexif()[0x0112] = 6
    image.info["exif"] = image.getexif().tobytes()
    return image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value_range", [None, (0, 65535)])
def test_images_in_memory_have_the_features_of_one_process(
    threads, kind, value_range, photos
):
    X = KINDS[kind](photos)
    features = PretrainedCNNFeatures("tiny", value_range=value_range, cache=None)
    with joblib.parallel_config(backend="loky"):
        alone = features.transform(X)
    sent = [pickle.loads(pickle.dumps(x)) for x in X] if kind != "rotated" else X
    np.testing.assert_array_equal(features.transform(sent), alone)


def test_a_pickled_row_is_the_same_row(photos, tmp_path, monkeypatch):
    """Which threads do not show: what is sent survives a pickle."""
    from skdeepfeat._images.cells import Cell

    Image.fromarray(photos[0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    deep = KINDS["deep"](photos)[0]
    for value in ("a.png", photos[0], Image.fromarray(photos[0]), deep):
        cell = Cell.of(3, value, ())
        key = cell.hashed().key
        sent = pickle.loads(pickle.dumps(cell.sent()))
        monkeypatch.chdir("/")
        assert sent.hashed().key == key
        assert (sent.row, sent.source) == (3, cell.source)
        monkeypatch.chdir(tmp_path)


def test_a_pil_image_that_has_lost_bits_is_refused(threads, tmp_path, photos):
    import imagecodecs

    deep = imagecodecs.png_encode(photos[0].astype(np.uint16) * 257)
    (tmp_path / "deep.png").write_bytes(deep)
    with pytest.raises(ImageError, match=r"row 0 .*pass the path of the file"):
        PretrainedCNNFeatures("tiny", cache=None).transform(
            [Image.open(tmp_path / "deep.png")]
        )


def test_chunks_shrink_towards_the_end(threads, sizes, features, files):
    features.transform(files * 2)
    assert sizes == [16, 16, 16, 12]
    cluster = spreading.Cluster(features._plan(), BACKENDS["ThreadingBackend"], 2)
    cluster._n_workers, cluster._row_seconds = 2, 0.001
    chunks = [len(chunk) for chunk in cluster._chunks([None] * 4000)]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] == 1000 and chunks[-1] <= 16 and sum(chunks) == 4000


def test_windows_grow_with_the_speed_of_workers_within_bounds(threads, features):
    cluster = spreading.Cluster(features._plan(), BACKENDS["ThreadingBackend"], 2)
    first = cluster._rows_of_window()
    cluster._n_workers, cluster._row_seconds = 2, 0.01
    assert first < cluster._rows_of_window() == 2 * 20 * 100
    cluster._row_seconds = 1e-9
    assert cluster._rows_of_window() <= spreading.WINDOW_ROWS


def test_a_failed_round_is_sent_again(threads, features, files, alone, monkeypatch):
    failing(monkeypatch, 3, OSError("a worker died"))
    np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    assert features.cache.info()["misses"] == len(files)


def test_a_cluster_that_always_fails_is_an_error(threads, features, files, monkeypatch):
    failing(monkeypatch, 1000, OSError("a worker died"))
    with pytest.raises(WorkerError, match=r"4 times in a row.*OSError: a worker died"):
        features.transform(files)
    assert features.cache.info()["rows"] == 0


def test_an_error_in_a_worker_names_its_host_and_is_not_repeated(
    threads, features, files, sizes, monkeypatch
):
    def fail(plan):
        raise TypeError("no such thing")

    order = spreading.Order.of
    monkeypatch.setattr("skdeepfeat._cluster.working.computation_here", fail)
    monkeypatch.setattr(
        spreading.Order, "of", lambda plan: Order(plan, b"other", b"", {}, {})
    )
    with pytest.raises(WorkerError, match=r"host '.*' cannot compute this: TypeError"):
        features.transform(files)
    assert order and len(sizes) <= 4  # those that were in flight


class Unpicklable(OSError):
    """As those of servers: its arguments do not make it again."""

    def __init__(self, status, history):
        super().__init__(f"{status}")


def test_returned_errors_leave_behind_what_caused_them(
    threads, features, files, monkeypatch
):
    def read(reference):
        raise Unpicklable(404, ()) from FileNotFoundError()

    def convert(*arguments):
        raise ConversionError("some step") from Unpicklable(1, ())

    def returned(path):
        return carry_out(order, plan.columns, [Cell.of(0, path, ())])

    plan = features._plan()
    order = Order.of(plan)
    monkeypatch.setattr("skdeepfeat._cluster.working.run", convert)
    converted = returned(files[0])
    monkeypatch.setattr("skdeepfeat._images.references.File.read", read)
    (unread,) = returned(files[1]).computed.errors
    for error, words in (converted, "some step"), (unread, "404"):
        assert words in str(error)
        assert not (error.__cause__ or error.__context__ or error.__traceback__)


def test_a_difference_of_versions_is_named(threads, features, files, monkeypatch):
    versions, settings = {"torch": "1.0"}, {"PIL.ImageFile.LOAD_TRUNCATED_IMAGES": "1"}
    about = (b"another", b"other features", versions, settings)
    other = Order(features._plan(), *about)
    monkeypatch.setattr(spreading.Order, "of", lambda plan: other)
    with pytest.raises(WorkerError, match=r"torch is .* there and 1\.0 here") as error:
        features.transform(files)
    assert "LOAD_TRUNCATED_IMAGES is as usual there and 1 here" in str(error.value)


def test_an_order_that_cannot_be_made_is_no_fault_of_the_workers(
    threads, features, files, monkeypatch
):
    def fail(plan):
        raise LookupError("of the caller")

    monkeypatch.setattr(spreading.Order, "of", fail)
    with pytest.raises(LookupError, match="of the caller"):
        features.transform(files)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"openvino": "2026.4"}, "openvino is absent there and 2026.4 here; install"),
        ({}, "install there what is installed here"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    versions, words, threads, features, files, monkeypatch
):
    def fail(plan):
        raise ModuleNotFoundError("No module named 'openvino'")

    other = Order(features._plan(), repr(versions).encode(), b"", versions, {})
    monkeypatch.setattr("skdeepfeat._cluster.working.computation_here", fail)
    monkeypatch.setattr("skdeepfeat._cluster.working._versions", dict)
    monkeypatch.setattr(spreading.Order, "of", lambda plan: other)
    with pytest.raises(WorkerError, match=f"No module named 'openvino'; {words}"):
        features.transform(files)


def test_another_code_of_a_network_is_named(threads, features, files, monkeypatch):
    class Branching(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.mean() > -9 else x

    backbone = Backbone.from_module(Branching(3, 4, 3), image_size=32)
    plan = features.set_params(backbone=backbone, layer=-1)._plan()
    other = replace(Order.of(plan), token=b"other code", computation=b"other")
    monkeypatch.setattr(spreading.Order, "of", lambda plan: other)
    with pytest.raises(
        WorkerError, match=r"only its code identifies it \(torch\.fx cannot"
    ):
        features.set_params(cache=None).transform(files)


def test_a_network_that_no_worker_can_convert_runs_on_torch(
    threads, features, files, alone, monkeypatch
):
    def convert(plan, *arguments):
        if plan.engine == "openvino":
            raise ConversionError("some step")
        return run(plan, *arguments)

    from skdeepfeat._cluster import working

    run = working.run
    monkeypatch.setattr(working, "run", convert)
    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    features.set_params(engine="openvino")
    with pytest.warns(EngineWarning, match="some step"):
        np.testing.assert_allclose(features.transform(files), alone, rtol=1e-6)
    assert features.stats_["engine"] == "torch"


def test_much_in_memory_warns_once(threads, features, photos, monkeypatch):
    monkeypatch.setattr(spreading, "MUCH", photos[:2].nbytes)
    with pytest.warns(ImageWarning, match="Pass paths or URLs") as caught:
        features.transform(photos)
    assert len(caught) == 1


def test_errors_and_missing_cells_are_rows_of_nan(threads, features, files):
    features.set_params(on_error="nan")
    with pytest.warns(ImageWarning, match="3 of 63"):
        rows = features.transform([None, *files, "absent.png", b"no image"])
    assert [row for row, *_ in features.errors_] == [0, 61, 62]
    assert "on host" in features.errors_[1][2]
    assert "on host" not in features.errors_[2][2]  # it was not read there
    assert np.isnan(rows).any(1).sum() == 3


def test_files_that_were_hashed_meanwhile_are_read_from_the_store(
    threads, features, files, alone, monkeypatch
):
    """While one call computes, another one waits and then reads."""
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        started.set()
        go_on.wait(10)
        return carry_out(*arguments)

    monkeypatch.setattr(spreading, "carry_out", slow)
    # The memory of real workers is not that of the caller.
    monkeypatch.setattr("skdeepfeat._images.cells.learn_digest", lambda *file: None)
    n_computed = []

    def call():
        with joblib.parallel_config(backend="threading", n_jobs=2):
            features.transform(files)
            n_computed.append(features.stats_["n_computed"])

    first, second = threading.Thread(target=call), threading.Thread(target=call)
    first.start()
    started.wait(10)
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert sorted(n_computed) == [0, len(files)]


def test_transform_to_and_fit_transform_are_spread(
    threads, sizes, features, files, alone, tmp_path
):
    rows = features.transform_to(tmp_path / "rows.npy", files[:30])
    np.testing.assert_allclose(rows, alone[:30], rtol=1e-6)
    assert sum(sizes) == 30
    np.testing.assert_allclose(features.fit_transform(files), alone, rtol=1e-6)
    assert sum(sizes) == len(files)


def test_a_ranking_tells_how_long_the_workers_take(threads, sizes, files):
    ranking = rank_layers(files, [0, 1] * 30, backbone="tiny", cache=None)
    assert sum(sizes) == len(files)
    assert min(row.ms for row in ranking) > 0


def test_other_backends_compute_here(features, files, sizes):
    for backend in ("threading", "loky"):
        with joblib.parallel_config(backend=backend, n_jobs=2):
            features.transform(files)
    assert sizes == []


def test_rows_of_a_gpu_are_read_without_one(features, files, monkeypatch):
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        features.set_params(device="cuda").transform(files[:1])
    plan = features._plan()
    rows = np.ones((1, plan.columns.width), np.float32)
    from skdeepfeat._digests import digest_bytes
    from skdeepfeat._store.base import ColumnRows

    key = digest_bytes(Path(files[0]).read_bytes())
    stored = [ColumnRows(c, [key], rows, [True], True) for c in plan.columns.requested]
    features.cache.open().write(b"call", plan.columns.scope, [key], stored)
    np.testing.assert_array_equal(features.transform(files[:1]), rows)
