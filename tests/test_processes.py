"""Forked processes, locks between processes, and warnings of long waits."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
from threadpoolctl import ThreadpoolController

import skdeepfeat
from skdeepfeat import FeatureStore, PretrainedCNNFeatures
from skdeepfeat._engines.devices import names_of_gpus, resolve_device
from skdeepfeat._exceptions import StoreWarning
from skdeepfeat._processes import FileLock, one_blas_thread, resolve_threads
from skdeepfeat._store.disk import DiskTable
from skdeepfeat._store.waiting import new_call

HERE = Path(__file__).parent
PACKAGE = Path(skdeepfeat.__file__).parent
SECONDS = 90  # that anything here may take

START = """
import os, signal, sys, threading, time, warnings
signal.alarm({seconds})
warnings.simplefilter("error")
import numpy as np
from skdeepfeat import (
    FeatureStore, FineTunedClassifier, PretrainedCNNFeatures, load_textures
)
textures = load_textures()
X, y = textures.data[::25], textures.target[::25]

def in_child(function):
    "What a forked child finds, which the parent waits for."
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm({seconds})
        os.write(writer, repr(function()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        found = file.read()
    os.waitpid(child, 0)
    return eval(found)
"""


def start(*arguments, **options):
    """A new process that imports this package; its children end with it."""
    paths = [str(PACKAGE.parent), str(HERE)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


def output_of(process, seconds=SECONDS):
    """The output of a process; an error with its stderr if it fails or hangs."""
    try:
        out, errors = process.communicate(timeout=seconds)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        except ProcessLookupError:
            pass
    assert process.returncode == 0, errors
    return out.strip()


def run(code, *arguments):
    """The output of a script that can fork with `in_child`."""
    code = START.format(seconds=SECONDS) + textwrap.dedent(code)
    return output_of(start("-c", code, *arguments), SECONDS + 10)


# Fork -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "converted", "read", "tuned"])
def test_children_compute_the_same_as_their_parent_and_nothing_twice(kind, tmp_path):
    if kind == "read":
        output_of(start(HERE / "forks.py", "prepare", tmp_path / "before"), 300)
    found = json.loads(output_of(start(HERE / "forks.py", kind, tmp_path), 300))
    assert len(found) == 12
    engine = "torch" if kind in ("torch", "tuned") else "openvino"
    for case in found:
        assert case["error"] <= 1e-6, case
        assert case["engines"] == [engine], case  # under whose name rows are found
        assert case["known"] == [6 if case["cache"] == "none" else 0] * 2, case
        shared = case["cache"] == "folder"
        assert sum(case["new"]) == (6 if shared else 12), case
        assert case["torch"] == (kind != "read"), case


def test_a_child_converts_a_network_that_its_parent_ran_with_torch():
    found = run("""
        torch_, openvino = (
            PretrainedCNNFeatures(cache=None, engine=engine)
            for engine in ("torch", "openvino")
        )
        expected = torch_.transform(X)
        def child():
            error = np.abs(openvino.transform(X) - expected).max()
            return float(error / expected.max()), openvino.stats_["engine"]
        print(*in_child(child))
    """)
    error, engine = found.split()
    assert float(error) < 1e-4 and engine == "openvino"


def test_a_classifier_is_fitted_and_predicts_in_a_child_bit_for_bit():
    assert (
        run("""
        clf = FineTunedClassifier(
            epochs=1, head_epochs=1, random_state=0, early_stopping=True,
            validation_fraction=0.3,
        )
        y = y > 3
        expected = clf.fit(X, y).predict_proba(X).tobytes()
        def child():
            same = clf.predict_proba(X).tobytes() == expected
            return same, clf.fit(X, y).predict_proba(X).tobytes() == expected
        print(in_child(child))
    """)
        == "(True, True)"
    )


def test_steps_of_a_fit_are_the_same_bits_on_as_many_threads():
    assert (
        run("""
        import torch
        from skdeepfeat._processes import fork_safe
        torch.set_num_threads(2)

        @fork_safe
        def learn():
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                torch.nn.Linear(16 * 62 * 62, 4),
            )
            optimizer = torch.optim.AdamW(net.parameters())
            for _ in range(3):
                net(torch.rand(8, 3, 64, 64)).square().mean().backward()
                optimizer.step()
            weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
            return hash(weights), torch.get_num_threads(), threading.get_ident()

        *expected, _ = learn()
        *found, thread = in_child(learn)
        print(found == expected, expected[1], thread != threading.get_ident())
    """)
        == "True 2 True"
    )


@pytest.mark.slow
def test_a_thread_that_forked_and_children_of_children_compute():
    assert (
        run("""
        features = PretrainedCNNFeatures(cache=None, engine="torch")
        expected, found = features.transform(X), []
        def child():
            return bool((features.transform(X) == expected).all())
        def grandchild():
            return child(), in_child(child), child()
        def from_thread():
            features.transform(X)
            found.append(in_child(grandchild))
        thread = threading.Thread(target=from_thread)
        thread.start()
        thread.join()
        print(found)
    """)
        == "[(True, True, True)]"
    )


def test_threads_of_a_child_compute_concurrently():
    assert (
        run("""
        from concurrent.futures import ThreadPoolExecutor
        features = PretrainedCNNFeatures(cache=None, engine="torch")
        expected = features.transform(X)
        def child():
            with ThreadPoolExecutor(4) as pool:
                rows = [pool.submit(features.transform, X) for _ in range(4)]
                own = features.transform(X)
            found = [own, *(some.result() for some in rows)]
            return all(bool((some == expected).all()) for some in found)
        print(in_child(child))
    """)
        == "True"
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_child_that_ends_as_scripts_do_ends(engine, tmp_path):
    """Freeing objects with threads of the parent would wait for them forever."""
    code = """
        features = PretrainedCNNFeatures(engine=sys.argv[1], cache=sys.argv[2])
        features.transform(X)
        child = os.fork()
        features.transform(X[::-1].copy())
        features.set_params(cache=None).transform(X)
        if child:
            print(os.waitpid(child, 0)[1])
    """
    assert run(code, engine, tmp_path / "store") == "0"


@pytest.mark.slow
def test_no_lock_is_held_in_a_child():
    """Every lock of the package is held by another thread at the time of the fork."""
    assert run("""
        import tempfile
        from skdeepfeat import Backbone, clear_caches, register_backbone
        from skdeepfeat import _processes
        from skdeepfeat._store import database, memory
        database.FORK_SECONDS = memory.FORK_SECONDS = 0.1
        folder = tempfile.mkdtemp()
        stores = None, FeatureStore(), FeatureStore(folder)
        models = [
            PretrainedCNNFeatures(cache=cache, engine=engine)
            for cache in stores for engine in ("torch", "openvino")
        ]
        expected = [model.transform(X) for model in models]
        clf = FineTunedClassifier(epochs=1, head_epochs=1, random_state=0).fit(X, y)
        clf.to_backbone()
        held = threading.Event()
        def hold_all():
            for lock in list(_processes._locks):
                lock.acquire(blocking=False)  # some are held by the process itself
            held.set()
            time.sleep(100)
        threading.Thread(target=hold_all, daemon=True).start()
        held.wait()
        def child():
            for model, rows in zip(models, expected):
                for images in (X, X[::-1].copy(), X[:, ::-1].copy()):
                    model.transform(images)
                assert np.abs(model.transform(X) - rows).max() < 1e-5
            clf.fit(X, y).predict(X)
            register_backbone("other", clf.to_backbone())
            FeatureStore(folder).clear()
            clear_caches()
            return len(list(_processes._locks))
        print(in_child(child))
        os._exit(0)
    """).isdigit()


def blas_threads():
    """Number of threads of each BLAS that is loaded."""
    return [
        about["num_threads"]
        for about in ThreadpoolController().select(user_api="blas").info()
    ]


def test_the_threads_of_blas_are_restored_whatever_threads_overlap():
    before, inside = blas_threads(), []

    def work():
        for _ in range(5):
            with one_blas_thread():
                inside.append(blas_threads())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 20 and set().union(*inside) == {1}
    assert blas_threads() == before
    with pytest.raises(KeyboardInterrupt), one_blas_thread():
        raise KeyboardInterrupt
    assert blas_threads() == before


def test_no_child_keeps_the_limit_of_blas():
    code = START.format(seconds=SECONDS) + textwrap.dedent("""
        from skdeepfeat._processes import one_blas_thread
        from test_processes import blas_threads
        before, is_limited = blas_threads(), threading.Event()

        def limit():
            with one_blas_thread():
                is_limited.set()
                time.sleep(0.3)

        threading.Thread(target=limit).start()
        is_limited.wait()
        assert in_child(blas_threads) == before, before
    """)
    with start("-c", code) as process:
        assert process.wait() == 0


def test_a_fork_does_not_copy_an_open_database(tmp_path):
    """SQLite would take locks of the parent for those of the child."""
    assert (
        run(
            """
        features = PretrainedCNNFeatures(cache=sys.argv[1], engine="torch")
        features.transform(X)
        table = FeatureStore(sys.argv[1]).open()
        def child():
            files = os.listdir("/proc/self/fd")
            open_ = [os.path.realpath(f"/proc/self/fd/{file}") for file in files]
            return [name for name in open_ if "sqlite" in name]
        print(in_child(child), table._database._connection)
    """,
            tmp_path / "store",
        )
        == "[] None"
    )


# What crosses from one thread to another --------------------------------------------


def test_errors_and_warnings_of_a_child_are_those_of_any_process(tmp_path):
    """They point to the line of the user."""
    assert (
        run(
            """
        from skdeepfeat._exceptions import EngineWarning, WeightsError, warn_user
        from skdeepfeat._processes import fork_safe
        PretrainedCNNFeatures(cache=None, engine="torch").transform(X)
        with open(sys.argv[1], "wb") as file:
            file.write(b"damaged")
        @fork_safe
        def complain():
            warn_user("something", EngineWarning)
        def child():
            try:
                PretrainedCNNFeatures("alexnet", weights=sys.argv[1]).transform(X)
            except WeightsError as error:
                message = str(error)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                complain()
            return sys.argv[1] in message, seen[0].filename
        print(in_child(child))
    """,
            tmp_path / "weights.pth",
        )
        == "(True, '<string>')"
    )


def test_settings_of_the_thread_hold_where_it_lets_another_one_compute():
    assert (
        run("""
        import contextvars, joblib, sklearn, torch
        from skdeepfeat._processes import fork_safe
        variable = contextvars.ContextVar("variable")
        @fork_safe
        def look():
            return (
                joblib.effective_n_jobs(None),
                sklearn.get_config()["working_memory"],
                variable.get(None),
                torch.get_num_threads(),
            )
        torch.rand(100_000).exp()
        def child():
            first = look()
            variable.set("here")
            torch.set_num_threads(1)
            with joblib.parallel_config("threading", n_jobs=3):
                with sklearn.config_context(working_memory=77):
                    second = look()
            return first[:3], second, look()[:2] == first[:2]
        torch.set_num_threads(2)
        print(in_child(child))
    """)
        == "((1, 1024, None), (3, 77, 'here', 1), True)"
    )


@pytest.mark.slow
def test_a_child_leaves_the_random_numbers_of_its_caller_alone():
    assert (
        run("""
        import torch
        clf = FineTunedClassifier(epochs=1, head_epochs=1, random_state=0).fit(X, y)
        def child():
            torch.manual_seed(7)
            expected = torch.rand(3).tolist()
            torch.manual_seed(7)
            clf.fit(X, y)
            PretrainedCNNFeatures("smallcnn", weights=None, cache=None).transform(X)
            return torch.rand(3).tolist() == expected
        print(in_child(child))
    """)
        == "True"
    )


@pytest.mark.slow
def test_an_interrupt_ends_a_computation_in_a_child():
    """It reaches the training, which keeps what was learned, as in any process."""
    assert (
        run("""
        from sklearn.exceptions import ConvergenceWarning
        clf = FineTunedClassifier(
            epochs=1, head_epochs=1, augment="none", random_state=0
        ).fit(X, y)
        features = PretrainedCNNFeatures(cache=None, engine="torch", batch_size=1)
        features.transform(X)
        many = np.concatenate([X] * 400)
        def later():
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        def child():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            later()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                clf.set_params(epochs=10_000).fit(X, y)
            messages = [str(w.message) for w in seen]
            later()
            try:
                while True:
                    features.transform(many)
            except KeyboardInterrupt:
                pass
            rows = features.transform(X)
            return "interrupted" in messages[0], len(rows) == len(X)
        print(in_child(child))
    """)
        == "(True, True)"
    )


# One place for all ------------------------------------------------------------------

MADE_ELSEWHERE = re.compile(
    r"threading\.(Lock|RLock|Condition|Event|Semaphore)|register_at_fork|[fF]ilelock"
)


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_locks_come_from_one_module(module):
    if module.stem != "_processes":
        assert not MADE_ELSEWHERE.search(module.read_text())


# Claims -----------------------------------------------------------------------------

CLAIMS = """
    import ctypes
    from pathlib import Path
    from skdeepfeat._store.disk import DiskTable
    from skdeepfeat._store.waiting import new_call
    table = DiskTable(Path(sys.argv[1]), 10**9)
    assert table.claim(new_call(), b"s", [b"k"], [b"a"]) == [0]
    with table.use_gpus(lambda: ["gpu-0"]):
        fork = os.fork if sys.argv[2] == "python" else ctypes.CDLL(None).fork
        if not fork():
            time.sleep(20)
            os._exit(0)
        print("claimed", flush=True)
        time.sleep(20)
"""


@pytest.fixture
def disk(tmp_path):
    table = DiskTable(tmp_path / "store", 10**9)
    yield table
    table.close()


@pytest.mark.parametrize("fork", ["python", "libc"])
def test_children_of_a_killed_process_hold_nothing(fork, disk):
    code = START.format(seconds=SECONDS) + textwrap.dedent(CLAIMS)
    process = start("-c", code, disk.folder, fork)
    try:
        assert process.stdout.readline() == "claimed\n"
        assert disk.claim(new_call(), b"s", [b"k"], [b"a"]) == []
        os.kill(process.pid, signal.SIGKILL)
        started = time.monotonic()
        disk.wait(b"s", [b"k"])
        with disk.use_gpus(lambda: ["gpu-0"]):
            pass
        assert time.monotonic() - started < 10  # the child sleeps for 20 seconds
        assert disk.claim(new_call(), b"s", [b"k"], [b"a"]) == [0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_one_folder_under_two_names_is_one_to_a_process(disk, tmp_path):
    (tmp_path / "link").symlink_to(disk.folder)
    other = DiskTable(tmp_path / "link", 10**9)
    assert disk.claim(new_call(), b"s", [b"k"], [b"a"]) == [0]
    assert other.claim(new_call(), b"s", [b"k"], [b"a"]) == []
    assert disk.claim(new_call(), b"s", [b"k"], [b"a"]) == []
    other.close()


def test_a_file_lock_keeps_threads_and_processes_apart(tmp_path):
    code = """
        from skdeepfeat._processes import FileLock
        lock = FileLock(sys.argv[1])
        print(lock.try_acquire(), lock.is_free(), lock.holder)
    """
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    assert first.is_free() and first.try_acquire()
    assert not second.try_acquire() and not second.is_free()
    assert second.holder == "another thread of this process"
    assert run(code, path).startswith(f"False False process {os.getpid()} on ")
    first.release()
    assert run(code, path).startswith("True False another thread")
    assert second.is_free()


# Waiting ----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("skdeepfeat._store.waiting.PATIENCE", 0.2)


def warnings_of(wait, finish):
    """The warnings of a wait that goes on until `finish` is called."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(2.5)
        assert thread.is_alive()
        finish()
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert {warning.category for warning in seen} == {StoreWarning}
    return [str(warning.message) for warning in seen]


NOW = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_a_long_wait_warns_once_about_what_it_waits_for(place, impatient, tmp_path):
    path = tmp_path / "store" if place == "folder" else None
    table = FeatureStore(path, name="waits").open()
    call = new_call()
    table.claim(call, b"s", [b"k", b"l"], [b"a"])
    (message,) = warnings_of(
        lambda: table.wait(b"s", [b"j", b"k", b"l"], [5, 7, 9]),
        lambda: table.release(call),
    )
    assert re.search(
        "2 rows of X, the first of which is row 7, which another thread of this "
        f"process has been computing since {NOW}",
        message,
    )


def test_a_long_wait_names_the_process_and_the_rows(impatient, tmp_path, photo_files):
    features = PretrainedCNNFeatures("tiny", cache=tmp_path / "store", engine="torch")
    code = """
        from conftest import tiny_backbone
        from skdeepfeat._engines.running import Engine
        def run(self, *arguments):
            print("computing", flush=True)
            time.sleep(100)
        Engine.run = run
        features = PretrainedCNNFeatures("tiny", cache=sys.argv[1], engine="torch")
        for _ in features._walk(sys.argv[2:]):
            pass
    """
    code = START.format(seconds=SECONDS) + textwrap.dedent(code)
    process = start("-c", code, tmp_path / "store", *photo_files[2:])
    assert process.stdout.readline() == "computing\n"
    (message,) = warnings_of(
        lambda: features.transform(photo_files),
        lambda: os.killpg(process.pid, signal.SIGKILL),
    )
    process.communicate()
    assert re.search(
        f"4 rows of X, the first of which is row 2, which process {process.pid} on "
        f"'.*' has been computing since {NOW}",
        message,
    )


def test_a_long_wait_for_a_gpu_names_the_process_that_uses_it(impatient, disk):
    turn = disk.use_gpus(lambda: ["gpu-0"])
    turn.__enter__()

    def wait():
        with disk.use_gpus(lambda: ["gpu-0"]):
            pass

    (message,) = warnings_of(wait, lambda: turn.__exit__(None, None, None))
    assert re.search(
        "the GPU 'gpu-0', which another thread of this process has been using since "
        + NOW,
        message,
    )


# GPUs -------------------------------------------------------------------------------


def test_workers_on_different_gpus_do_not_wait_for_each_other(disk):
    other = DiskTable(disk.folder, 10**9)
    entered = []

    def use(table, *gpus):
        with table.use_gpus(lambda: gpus):
            entered.append(gpus)

    with disk.use_gpus(lambda: ["gpu-0"]):
        threads = [
            threading.Thread(target=use, args=(other, *gpus))
            for gpus in (("gpu-1",), ("gpu-1", "gpu-0"))
        ]
        for thread in threads:
            thread.start()
            thread.join(1)
        assert entered == [("gpu-1",)]
    threads[1].join(SECONDS)
    assert entered[1:] == [("gpu-1", "gpu-0")]


def test_workers_on_the_same_gpus_in_another_order_do_not_block_each_other(disk):
    def use(*gpus):
        for _ in range(30):
            with disk.use_gpus(lambda: gpus):
                time.sleep(0.001)

    threads = [
        threading.Thread(target=use, args=gpus)
        for gpus in (("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_gpu_is_identified_by_its_uuid_and_not_by_its_number(monkeypatch):
    """Processes may see different GPUs under the same number."""
    monkeypatch.setattr(
        "torch.cuda.get_device_properties",
        lambda device: type("Properties", (), {"uuid": f"uuid of {device}"}),
    )
    assert names_of_gpus(("cpu",)) == []
    names = names_of_gpus(("cuda:0", "cuda:1"))
    assert sorted(names) == ["uuid of cuda:0", "uuid of cuda:1"]


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


def test_a_gpu_has_one_name(two_gpus):
    assert resolve_device("cuda") == resolve_device("cuda:0") == "cuda:0"
    assert resolve_device("cuda:01") == "cuda:1"


def test_a_missing_gpu_is_refused(two_gpus):
    with pytest.raises(ValueError, match=r"'cuda:9' .* sees 2 CUDA devices"):
        resolve_device("cuda:9")


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_in_a_forked_process_is_refused_with_a_remedy(
    device, two_gpus, monkeypatch
):
    monkeypatch.setattr("skdeepfeat._engines.devices._has_driver", lambda: True)
    assert resolve_device(device) == "cuda:0"
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match="spawn"):
        resolve_device(device)


def test_a_forked_process_works_without_a_gpu_like_its_parent(monkeypatch):
    """A driver is not a GPU, and torch does not look for GPUs after a fork."""
    monkeypatch.setattr("skdeepfeat._engines.devices._has_driver", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")


# Threads ----------------------------------------------------------------------------


def test_workers_without_processes_of_their_own_have_threads():
    """joblib warns in such workers, and returns 1."""
    assert (
        run("""
        import multiprocessing
        from skdeepfeat._processes import resolve_threads
        fork = multiprocessing.get_context("fork")
        queue = fork.SimpleQueue()
        worker = fork.Process(
            target=lambda: queue.put(resolve_threads(None)), daemon=True
        )
        worker.start()
        print(queue.get() == resolve_threads(None))
    """)
        == "True"
    )


def test_the_number_of_threads_follows_joblib():
    import joblib

    assert resolve_threads(3) == 3
    with joblib.parallel_config("sequential"):
        assert resolve_threads(None) == 1
