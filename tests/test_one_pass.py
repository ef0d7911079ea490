"""Each image passes through the network once, even in a search."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import count_images, tiny_backbone
from PIL import Image
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import skdeepfeat._networks.activations
import skdeepfeat._networks.building
import skdeepfeat._plan
import skdeepfeat._walk
from skdeepfeat import (
    Backbone,
    FeatureStore,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    StoreWarning,
    clear_caches,
    list_layers,
    load_image_folder,
)

N = 40
DEEPEST_FIRST = ["logits", "block5", "block2"]
HEADS = [KNeighborsClassifier(k) for k in (1, 3, 5, 7, 9)] + [GaussianNB()]


@pytest.fixture
def forwards(monkeypatch):
    """Number of images that reached a first convolution, in a list of one."""
    return count_images(monkeypatch)


@pytest.fixture
def files(tmp_path):
    """N small photos in two classes, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 2
    paths = []
    for row, label in enumerate(y):
        pixels = rng.integers(0, 200, (12, 12, 3)) + 40 * label
        paths.append(str(tmp_path / f"{row}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths, y


def search(layers=DEEPEST_FIRST, n_jobs=None, heads=HEADS, **parameters):
    """3 depths x 6 heads x 5 folds, refit, train scores, two scorers."""
    features = PretrainedCNNFeatures(
        **{"backbone": tiny_backbone(), "batch_size": 1, **parameters}
    )
    steps = [("features", features), ("scale", StandardScaler()), ("head", heads[0])]
    return GridSearchCV(
        Pipeline(steps),
        {"features__layer": layers, "head": heads},
        scoring=["accuracy", "neg_log_loss"],
        refit="accuracy",
        return_train_score=True,
        n_jobs=n_jobs,
    )


def scores_of(fitted):
    """All scores of all folds, by layer and head."""
    results = fitted.cv_results_
    names = sorted(name for name in results if name.startswith("split"))
    by_layer = np.argsort(results["param_features__layer"].astype(str), kind="stable")
    return np.array([results[name][by_layer] for name in names])


def in_new_process(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    folder = os.path.dirname(__file__)
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def run(code, *arguments):
    process = in_new_process(code, *arguments)
    process.communicate()
    assert process.returncode == 0


# Searches ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_computes_each_image_once(files, forwards, tmp_path):
    uncached = search(cache=None).fit(*files)
    assert forwards[0] > 100 * N
    settings = {
        "all": {"prefetch_layers": "all", "layers": DEEPEST_FIRST[::-1]},
        "deepest first": {},
        "disk": {"cache": tmp_path / "store"},
    }
    for parameters in settings.values():
        clear_caches()
        forwards[0] = 0
        fitted = search(**parameters).fit(*files)
        assert forwards[0] == N
        np.testing.assert_array_equal(scores_of(fitted), scores_of(uncached))


@pytest.mark.parametrize("kind", ["memory", "disk", "threads"])
def test_a_search_over_heads_with_layer_auto_computes_each_image_once(
    kind, files, forwards, tmp_path
):
    cache = tmp_path / "store" if kind == "disk" else "memory"
    n_jobs = 2 if kind == "threads" else None
    with joblib.parallel_config(backend="threading"):
        search(["auto"], n_jobs, cache=cache).fit(*files)
    assert forwards[0] == N


def test_worker_processes_that_choose_a_layer_compute_each_image_once(files, tmp_path):
    store = FeatureStore(tmp_path / "store")
    parallel = search(["auto"], 2, HEADS[:2], cache=store).fit(*files)
    assert store.info()["misses"] == N
    single = search(["auto"], None, HEADS[:2], cache=None).fit(*files)
    np.testing.assert_allclose(scores_of(parallel), scores_of(single), rtol=1e-6)
    chosen = [found.best_estimator_[0].layer_ for found in (parallel, single)]
    assert chosen[0] == chosen[1]


def test_threads_compute_each_image_once(files, forwards):
    with joblib.parallel_config(backend="threading"):
        threaded = search(n_jobs=2, prefetch_layers="all").fit(*files)
    assert forwards[0] == N
    single = search(prefetch_layers="all").fit(*files)
    assert forwards[0] == N
    np.testing.assert_array_equal(scores_of(threaded), scores_of(single))


@pytest.mark.slow
def test_worker_processes_compute_each_image_once(files, forwards, tmp_path):
    store = FeatureStore(tmp_path / "store")
    parallel = search(n_jobs=2, prefetch_layers="all", cache=store).fit(*files)
    assert store.info()["misses"] == N
    single = search(prefetch_layers="all", cache=None, heads=HEADS[:2]).fit(*files)
    n_heads, both = len(HEADS), [0, 1]
    columns = [n_heads * layer + head for layer in range(3) for head in both]
    np.testing.assert_allclose(
        scores_of(parallel)[:, columns], scores_of(single), rtol=1e-6
    )


@pytest.mark.slow
def test_a_second_run_in_a_new_process_computes_nothing(files, tmp_path):
    code = """
        import sys
        from test_one_pass import HEADS, search
        store, *paths = sys.argv[1:]
        y = [i % 2 for i in range(len(paths))]
        search(cache=store, prefetch_layers="all", heads=HEADS[:1]).fit(paths, y)
    """
    store = FeatureStore(tmp_path / "store")
    for _ in range(2):
        run(code, store.path, *files[0])
        assert store.info()["misses"] == N


@pytest.mark.slow
def test_only_new_content_is_computed(files, forwards, tmp_path):
    paths, y = files
    fit = search(prefetch_layers="all").fit
    fit(paths[:30], y[:30])
    assert forwards[0] == 30
    fit(paths, y)
    assert forwards[0] == N
    shuffled = np.random.default_rng(0).permutation(N)
    fit([paths[i] for i in shuffled], y[shuffled])
    fit(paths * 2, np.tile(y, 2))
    fit(paths, 1 - y)
    search(prefetch_layers="all", heads=[GaussianNB(var_smoothing=0.1)]).fit(paths, y)
    copied = tmp_path / "another name.png"
    copied.write_bytes(Path(paths[0]).read_bytes())
    PretrainedCNNFeatures(tiny_backbone(), layer="block2").transform(
        [copied, copied.read_bytes()]
    )
    assert forwards[0] == N


@pytest.mark.slow
def test_hymenoptera(shared_data, forwards, tmp_path):
    photos = load_image_folder(shared_data / "hymenoptera" / "train")
    n = len(photos.data)
    parameters = {
        "backbone": "mini",
        "prefetch_layers": "all",
        "layers": ["block3", "block5", "penultimate"],
        "image_size": 64,
    }
    searched = search(**parameters).fit(photos.data, photos.target)
    assert forwards[0] == n
    auto = parameters | {"prefetch_layers": "auto", "cache": tmp_path / "store"}
    auto["layers"] = auto["layers"][::-1]
    again = search(**auto).fit(photos.data, photos.target)
    assert forwards[0] == 2 * n
    assert again.best_score_ == searched.best_score_


# Single flight ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_simultaneous_threads_share_the_work(kind, files, forwards, tmp_path):
    cache = FeatureStore(tmp_path / "store") if kind == "disk" else "memory"
    expected = PretrainedCNNFeatures(tiny_backbone(), cache=None, batch_size=1)
    expected = expected.transform(files[0])
    forwards[0] = 0
    results = []

    def work():
        features = PretrainedCNNFeatures(tiny_backbone(), cache=cache, batch_size=1)
        results.append(features.transform(files[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert forwards[0] == N and len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_errors_release_claims(kind, files, tmp_path):
    cache = FeatureStore(tmp_path / "store") if kind == "disk" else "memory"
    paths = [*files[0][:20], "no photo.png", *files[0][20:]]
    broken = [*files[0][:20], __file__, *files[0][20:]]
    features = PretrainedCNNFeatures(tiny_backbone(), cache=cache, batch_size=4)
    for wrong in (paths, broken):
        with pytest.raises(ImageError, match="row 20"):
            features.transform(wrong)
    assert len(features.transform(files[0])) == N  # would wait forever
    features.set_params(on_error="nan")
    with pytest.warns(ImageWarning):
        rows = features.transform(broken)
    assert np.isnan(rows[20]).all() and np.isfinite(rows[[19, 21]]).all()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_bad_rows_do_not_make_workers_wait_for_each_other(kind, files, tmp_path):
    cache = FeatureStore(tmp_path / "store") if kind == "disk" else "memory"
    rng = np.random.default_rng(0)
    blobs = [Path(path).read_bytes() for path in files[0]] + [b"bad one"]
    blobs += [rng.bytes(50) for _ in range(30)] + [b"bad two"]
    results, barrier = [], threading.Barrier(2)

    def work(rows):
        features = PretrainedCNNFeatures(
            tiny_backbone(), cache=cache, on_error="nan", batch_size=2
        )
        barrier.wait()
        with warnings.catch_warnings():
            results.append(np.isnan(features.transform(rows)[:, 0]).sum())

    orders = (blobs, blobs[::-1])
    threads = [threading.Thread(target=work, args=(o,), daemon=True) for o in orders]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == [32, 32]


def test_an_interrupted_claim_is_released(files, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path / "store")
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store)
    table = store.open()
    real = type(table).claim

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(table), "claim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features.transform(files[0])
    monkeypatch.undo()
    assert features.transform(files[0]).shape == (N, 10)


def test_a_store_that_neither_has_nor_grants_rows_is_left_alone(files, monkeypatch):
    store = FeatureStore(name="useless")
    table = store.open()
    monkeypatch.setattr(table, "claim", lambda *arguments: [])
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store)
    assert features.transform(files[0]).shape == (N, 10)


def test_a_gpu_is_used_without_a_store_that_can_be_written(files, monkeypatch):
    monkeypatch.setattr(
        skdeepfeat._computing, "names_of_gpus", lambda devices: ["gpu-0"]
    )
    features = PretrainedCNNFeatures(tiny_backbone(), cache="/proc/no such/store")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert features.transform(files[0]).shape == (N, 10)
    assert any("share a GPU" in str(warning.message) for warning in seen)


def test_a_killed_worker_is_replaced(files, tmp_path):
    """A process that waits for it takes over its rows."""
    code = """
        import sys, time
        import skdeepfeat._engines.torch as engine
        from conftest import count_images, tiny_backbone
        from skdeepfeat import PretrainedCNNFeatures

        def stuck(self, pixels):
            print("computing", flush=True)
            time.sleep(100)

        engine.TorchRunner.start = stuck
        PretrainedCNNFeatures(tiny_backbone(), cache=sys.argv[1]).transform(
            sys.argv[2:]
        )
    """
    worker = in_new_process(code, tmp_path / "store", *files[0])
    assert worker.stdout.readline() == "computing\n"
    features = PretrainedCNNFeatures(tiny_backbone(), cache=str(tmp_path / "store"))
    results = []
    waiting = threading.Thread(
        target=lambda: results.append(features.transform(files[0]))
    )
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    worker.kill()
    worker.communicate()
    waiting.join(30)
    assert results[0].shape == (N, 10)


def test_one_process_at_a_time_uses_a_gpu(tmp_path, monkeypatch, files):
    """A process that waits for the GPU finds the rows stored, and never uses it."""
    monkeypatch.setattr(
        skdeepfeat._computing, "names_of_gpus", lambda devices: ["gpu-0"]
    )
    store = FeatureStore(tmp_path / "store")
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store)
    table = store.open()
    with table.use_gpus(lambda: ["gpu-0"]):
        results = []
        waiting = threading.Thread(
            target=lambda: results.append(features.transform(files[0]))
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and store.info()["misses"] == 0
        with monkeypatch.context() as patched:
            patched.setattr(type(table), "use_gpus", lambda *_: threading.Lock())
            features.transform(files[0])
        patch_network(monkeypatch)
    waiting.join(30)
    assert results[0].shape == (N, 10)
    assert store.info()["misses"] == N


# A warm store -----------------------------------------------------------------------


def patch_network(monkeypatch):
    """Fail if a network is built from now on."""

    def refuse(*arguments, **keywords):
        raise AssertionError("a network was built")

    monkeypatch.setattr("skdeepfeat._engines.torch.get_network", refuse)


@pytest.mark.parametrize("cache", [None, 0, "folder"])
def test_what_keeps_nothing_cannot_be_warmed(cache, files, tmp_path):
    if cache is not None:
        folder = tmp_path / cache if cache else None
        cache = FeatureStore(folder, name="of no bytes", max_bytes=0)
    features = PretrainedCNNFeatures(tiny_backbone(), cache=cache)
    with pytest.raises(ValueError, match="warm stores features, and the 'cache' para"):
        features.warm(files[0])
    assert not (tmp_path / "folder").exists()
    with pytest.raises(ValueError, match=r"'cache' parameter of Pretrained.* must be"):
        features.set_params(cache=3).warm(files[0])


def test_a_warm_store_needs_no_decoding_and_no_torch(files, tmp_path):
    paths, _ = files
    store = tmp_path / "store"
    features = PretrainedCNNFeatures(
        layer="block2", image_size=32, cache=store, engine="torch"
    )
    assert features.warm(paths) is features
    assert FeatureStore(store).info()["misses"] == N
    expected = features.transform(paths)
    code = """
        import builtins, sys
        from skdeepfeat import PretrainedCNNFeatures
        store, out, *paths = sys.argv[1:]
        features = PretrainedCNNFeatures(
            layer="block2", image_size=32, cache=store, engine="torch"
        )
        opened, real = [], builtins.open
        builtins.open = lambda file, *a, **k: opened.append(file) or real(file, *a, **k)
        rows = features.transform(paths)
        builtins.open = real
        assert not set(opened) & set(paths), "photos were opened"
        assert "torch" not in sys.modules
        import numpy; numpy.save(out, rows)
    """
    run(code, store, tmp_path / "rows.npy", *paths)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)


def test_a_changed_file_is_hashed_again(files, tmp_path):
    paths, _ = files
    features = PretrainedCNNFeatures(tiny_backbone(), cache=tmp_path / "store")
    before = features.transform(paths[:2])
    os.replace(paths[1], paths[0])
    Image.new("RGB", (12, 12), "red").save(paths[1])
    clear_caches()
    after = features.transform(paths[:2])
    np.testing.assert_array_equal(after[0], before[1])
    assert not np.isclose(after[1], before[1]).all()


def test_a_file_that_changes_while_it_is_read_is_an_error(files, monkeypatch):
    import skdeepfeat._images.windows as images

    PretrainedCNNFeatures(tiny_backbone(), cache=None).transform(files[0])  # hashed
    real, path = images.Window.read, files[0][5]
    Image.new("RGB", (12, 12), "red").save(path + ".new", "png")

    def late(self, row):
        with contextlib.suppress(FileNotFoundError):  # another thread was first
            os.replace(path + ".new", path)
        return real(self, row)

    monkeypatch.setattr(images.Window, "read", late)
    features = PretrainedCNNFeatures(tiny_backbone())
    with pytest.raises(ImageError, match=r"row 5 .* was changed while"):
        features.transform(files[0])


def test_a_value_range_distinguishes_arrays_from_pil_images(files):
    pixels = np.asarray(Image.open(files[0][0]))
    for value_range, same in ((None, True), ((0, 255), True), ((0, 128), False)):
        features = PretrainedCNNFeatures(tiny_backbone(), value_range=value_range)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            image, array = features.transform([Image.fromarray(pixels), pixels])
        assert np.array_equal(image, array) == same


def test_relative_paths_are_hashed_once(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [os.path.basename(path) for path in files[0]]
    features = PretrainedCNNFeatures(tiny_backbone(), cache="store")
    features.transform(names)
    known = FeatureStore("store").open()
    known.forget()
    assert len(known.read_files([str(tmp_path / name) for name in names])) == N


def test_a_store_without_permissions_warns_and_features_are_computed(files):
    features = PretrainedCNNFeatures(tiny_backbone(), cache="/proc/no such/store")
    with pytest.warns(StoreWarning, match="cannot be used|is not writable"):
        rows = features.transform(files[0])
    expected = PretrainedCNNFeatures(tiny_backbone(), cache=None).transform(files[0])
    np.testing.assert_array_equal(rows, expected)


def test_features_from_a_gpu_are_not_used_on_a_cpu(files, monkeypatch, forwards):
    features = PretrainedCNNFeatures(tiny_backbone(), batch_size=1)
    features.transform(files[0])
    features.set_params(device="cpu").transform(files[0])
    assert forwards[0] == N  # "auto" is the CPU here
    monkeypatch.setattr(skdeepfeat._plan, "resolve_class", lambda device: "cuda")
    features.transform(files[0])
    assert forwards[0] == 2 * N


@pytest.mark.slow
def test_memory_stays_flat(files):
    searching = search(prefetch_layers="all", heads=HEADS[:1])
    page = os.sysconf("SC_PAGE_SIZE")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    for _ in range(5):
        searching.fit(*files)
    before, stored = resident(), FeatureStore().info()
    for _ in range(20):
        searching.fit(*files)
    assert resident() - before < 10_000_000
    assert FeatureStore().info()["bytes"] == stored["bytes"]


def test_the_memory_store_stays_within_its_limit_during_a_search(files):
    store = FeatureStore(name="small in a search", max_bytes=20_000)
    searching = search(prefetch_layers="all", heads=HEADS[:1], cache=store)
    with pytest.warns(StoreWarning, match="limit of 20,000 bytes") as caught:
        searching.fit(*files)
    assert len(caught) == 1
    assert 0 < store.info()["bytes"] <= 20_000


# Streaming --------------------------------------------------------------------------


def test_transform_to_a_file(files, tmp_path):
    paths = [*files[0], files[0][3]]
    features = PretrainedCNNFeatures(tiny_backbone(), layer=("block1", "logits"))
    expected = features.transform(paths)
    rows = features.transform_to(tmp_path / "rows.npy", paths)
    assert isinstance(rows, np.memmap) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
    with pytest.raises(ImageError):
        features.transform_to(tmp_path / "rows.npy", [*paths, "missing.png"])
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
    assert [p.name for p in tmp_path.glob("rows*")] == ["rows.npy"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows", "rows.npy.gz"])
def test_transform_to_refuses_names_of_other_formats(name, files, tmp_path):
    features = PretrainedCNNFeatures(tiny_backbone(), cache=None)
    with pytest.raises(ValueError, match=r"must end in \.npy\. Got .*" + name):
        features.transform_to(tmp_path / name, files[0][:1])
    assert not list(tmp_path.glob("rows*"))


def test_transform_to_continues_after_a_kill(files, tmp_path):
    code = """
        import sys, time
        import skdeepfeat._engines.torch as engine
        from conftest import count_images, tiny_backbone
        from skdeepfeat import PretrainedCNNFeatures
        forward, n = engine.TorchRunner.start, [0]

        def slow(self, pixels):
            n[0] += 1
            if n[0] == 5:
                print("half way", flush=True)
                time.sleep(100)
            return forward(self, pixels)

        engine.TorchRunner.start = slow
        store, out, *paths = sys.argv[1:]
        features = PretrainedCNNFeatures(tiny_backbone(), cache=store, batch_size=4)
        features.transform_to(out, paths)
    """
    out = tmp_path / "rows.npy"
    worker = in_new_process(code, tmp_path / "store", out, *files[0])
    assert worker.stdout.readline() == "half way\n"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert not out.exists()
    store = FeatureStore(tmp_path / "store")
    assert store.info()["misses"] == 16
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store, batch_size=4)
    rows = features.transform_to(out, files[0])
    assert store.info()["misses"] == N
    expected = PretrainedCNNFeatures(tiny_backbone(), cache=None, batch_size=4)
    np.testing.assert_array_equal(rows, expected.transform(files[0]))


# One name or another for the same features --------------------------------------------


def test_an_average_and_its_map_are_computed_and_stored_once(files):
    store = FeatureStore(name="twins")
    features = PretrainedCNNFeatures(
        tiny_backbone(), cache=store, batch_size=1, prefetch_layers=[], layer="block5"
    )
    maps = features.transform(files[0])
    vectors = features.set_params(layer="penultimate").transform(files[0])
    np.testing.assert_array_equal(vectors, maps)
    info = store.info()
    assert info["misses"] == info["rows"] == N
    assert info["layers"] == {"Sequential block5 avg": N}


def test_a_vector_is_stored_once_for_all_poolings(files):
    store = FeatureStore(name="poolings")
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store, batch_size=1)
    expected = features.set_params(prefetch_layers=[]).transform(files[0])
    for pooling in ("max", "avgmax", "gem", "stochastic", "flatten"):
        rows = features.set_params(pooling=pooling).transform(files[0])
        np.testing.assert_array_equal(rows, expected)
    assert store.info()["misses"] == store.info()["rows"] == N


def test_columns_follow_the_requested_order(files):
    store = FeatureStore(name="order")
    features = PretrainedCNNFeatures(tiny_backbone(), cache=store, prefetch_layers=[])
    names = ("penultimate", "block2", "block5", "0", "penultimate")
    alone = [
        features.set_params(layer=n, cache=None).transform(files[0]) for n in names
    ]
    for _ in range(2):  # computed, and read
        together = features.set_params(layer=names, cache=store).transform(files[0])
        np.testing.assert_array_equal(together, np.hstack(alone))
    assert store.info()["rows"] == 3 * N  # block1 is node "0", block5 the penultimate


def test_the_requested_order_does_not_change_the_network(files, monkeypatch):
    cuts, bind = [], skdeepfeat._networks.activations.bind

    def counted(structure, network, nodes):
        if not next(network.parameters()).is_meta:
            cuts.append(nodes)
        return bind(structure, network, nodes)

    monkeypatch.setattr("skdeepfeat._networks.activations.bind", counted)
    backbone = tiny_backbone()
    for layer in (("penultimate", "block2"), ("block2", "penultimate"), (1, 4)):
        features = PretrainedCNNFeatures(backbone, layer=layer, cache=None)
        features.set_params(prefetch_layers=[]).transform(files[0][:2])
    assert cuts == [("1", "4")]


def test_a_module_may_be_called_as_the_alias_of_another(files):
    net = torch.nn.Sequential()
    for name, width in {"stem": 4, "block1": 5, "block2": 6}.items():
        net.add_module(name, torch.nn.LazyConv2d(width, 3))
    net(torch.zeros(1, 3, 12, 12))
    backbone = Backbone.from_module(net, image_size=12)
    store = FeatureStore(name="names")
    features = PretrainedCNNFeatures(backbone, layer=1, cache=store, prefetch_layers=[])
    assert features.transform(files[0]).shape == (N, 5)
    assert store.info()["layers"] == {"Sequential block2 avg": N}


def test_a_record_may_leave_out_the_map_that_a_layer_is_the_average_of(files):
    backbone = tiny_backbone()
    whole = PretrainedCNNFeatures(backbone, cache=None).transform(files[0][:3])
    layers = tuple(la for la in list_layers(backbone) if la.alias == "penultimate")
    part = PretrainedCNNFeatures(replace(backbone, layers=layers), cache=None)
    np.testing.assert_allclose(part.transform(files[0][:3]), whole, rtol=1e-6)
