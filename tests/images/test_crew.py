"""Images that processes decode are those that threads decode, whatever happens."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from sklearn.base import clone

from skdeepfeat import PretrainedCNNFeatures
from skdeepfeat._exceptions import EngineWarning, ImageWarning
from skdeepfeat._images import crew as crews
from skdeepfeat._images.batches import read_batches
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.crew import Crew, Helped, may_start
from skdeepfeat._images.preparing import Preparation, decoded
from skdeepfeat._images.recipe import InputSpec
from skdeepfeat._processes import wait_until

SPEC = InputSpec(16, 20)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes decode on Linux only"
)


def started(n):
    """A crew of processes that are there."""
    crew = Crew()
    crew.start(n)
    wait_until(lambda: all(one.is_ready for one in crew.free), lambda seconds: None)
    return crew


@pytest.fixture(scope="module")
def crew():
    crew = started(2)
    yield crew
    crew.end()


class Counting(Helped):
    """Also counts the rows that processes prepare."""

    n_prepared = 0

    def prepare(self, rows, clock):
        found = super().prepare(rows, clock)
        self.n_prepared += len(found)
        return found


def window_of(X):
    (window,) = read_images(X).windows(lambda names: None, 2, False)
    return window


def read(X, crew=None, decode="exact", window=None, n=2):
    """Batches of all rows of X, and how many of them processes have prepared."""
    window = window or window_of(X)
    how = Preparation(SPEC, None, decode)
    helped = None if crew is None else Counting(window, how, n, crew)
    good = [row for row, key in window.keys.items() if isinstance(key, bytes)]
    settings = (how, 4, n, True, helped)
    batches = list(read_batches(window, good, *settings))
    return batches, helped.n_prepared if helped else 0


def described(batches):
    """All that batches hold, but how their time was spent."""
    return [
        {
            "rows": batch.rows,
            "pixels": (batch.pixels.dtype.str, batch.pixels.tobytes()),
            "errors": [(e.row, e.source, e.reason) for e in batch.errors],
            "in_range": batch.in_range,
            "sources": batch.sources,
        }
        for batch in batches
    ]


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 6, 8, 3), np.uint8)
    return [Image.fromarray(c).resize((48, 36), Image.BICUBIC) for c in coarse]


def as_files(pictures, folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right
    paths = [folder / f"{i}.jpg" for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path, exif=exif)
    return paths


def as_members(pictures, folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(f"{i}.png", encode(picture, "PNG"))
    archive = zipfile.ZipFile(folder / "all.zip")
    return [archive.open(name) for name in archive.namelist()]


def as_memmap(pictures, folder):
    np.save(folder / "all.npy", np.stack(pictures))
    return np.load(folder / "all.npy", mmap_mode="r")


# A kind of image → how pictures become X.
KINDS = {
    "files": as_files,
    "members of an archive": as_members,
    "memmap": as_memmap,
    "bytes": lambda pictures, folder: [encode(p) for p in pictures],
    "PIL": lambda pictures, folder: list(pictures),
    "PIL, transparent": lambda pictures, folder: [p.convert("LA") for p in pictures],
    "arrays": lambda pictures, folder: np.stack(pictures),
    "views": lambda pictures, folder: [np.asarray(p)[:, ::-2] for p in pictures],
    "grey": lambda pictures, folder: [np.asarray(p.convert("L")) for p in pictures],
    "floats": lambda pictures, folder: [np.asarray(p) / 200 for p in pictures],
    "16 bits": lambda pictures, folder: [
        np.asarray(p.convert("L")).astype(np.uint16) * 257 for p in pictures
    ],
    "tensors": lambda pictures, folder: [
        torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) for p in pictures
    ],
    "of several": lambda pictures, folder: [
        encode(p, "PNG") if i % 2 else np.asarray(p, np.float32)
        for i, p in enumerate(pictures)
    ],
}


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_processes_make_the_batches_of_threads(kind, decode, crew, pictures, tmp_path):
    X = KINDS[kind](pictures, tmp_path)
    window = window_of(X)
    found, n_prepared = read(X, crew, decode=decode, window=window)
    assert n_prepared == len(pictures)
    assert described(found) == described(read(X, decode=decode, window=window)[0])
    assert sum(found[0].shares.values()) == pytest.approx(1)


def test_processes_import_no_torch(crew, pictures, tmp_path):
    read(KINDS["tensors"](pictures, tmp_path), crew)
    for decoder in crew.free:
        with open(f"/proc/{decoder._process.pid}/maps") as file:
            libraries = file.read()
        assert "numpy" in libraries and "libtorch" not in libraries


def test_rows_that_cannot_be_read_have_the_errors_of_threads(crew, pictures, tmp_path):
    X = [encode(p) for p in pictures]
    X[2], X[5], X[7] = X[2][:300], b"no image at all", np.full((9, 9), np.nan)
    X[3] = str(tmp_path / "gone.png")
    pictures[3].save(X[3])
    window = window_of(X)
    os.remove(X[3])
    expected, _ = read(X, window=window)
    found, n_prepared = read(X, crew, window=window)
    assert described(found) == described(expected)
    assert [e.row for batch in found for e in batch.errors] == [2, 5, 7]
    assert n_prepared == len(X) - 3


def test_a_file_that_has_changed_is_an_error(crew, pictures, tmp_path):
    paths = as_files(pictures, tmp_path)
    window_of(paths)  # after this the files are known, and not held
    window = window_of(paths)
    pictures[0].save(paths[4])
    found, n_prepared = read(paths, crew, window=window)
    (error,) = [error for batch in found for error in batch.errors]
    assert error.row == 4 and "was changed while it was in use" in error.reason
    assert n_prepared == len(paths) - 1


def test_a_warning_reaches_the_caller(crew, pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 36)  # of 48 * 36
    X = [encode(p) for p in pictures]
    with pytest.warns(Image.DecompressionBombWarning):
        _, n_prepared = read(X, crew)
    assert n_prepared == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 36)
    assert read(X, crew)[1] == len(X)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found, _ = read(X, crew)
    reasons = {error.reason for batch in found for error in batch.errors}
    assert "decompression bomb" in reasons.pop() and not reasons


def test_where_pillow_is_set_otherwise_threads_decode(crew, pictures, monkeypatch):
    X = [encode(p)[:-40] for p in pictures]
    assert all(batch.errors for batch in read(X, crew)[0])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    found, n_prepared = read(X, crew)
    assert n_prepared == 0 and not any(batch.errors for batch in found)
    assert described(found) == described(read(X)[0])


def test_large_images_are_left_to_threads_which_share_a_budget(
    crew, pictures, monkeypatch
):
    X = [encode(p) for p in pictures] + [encode(Image.new("RGB", (200, 100)))]
    for most, n_expected in ((200 * 100, 10), (200 * 100 - 1, 9), (99, 0)):
        monkeypatch.setattr(decoded, "whole", 2 * most)
        monkeypatch.setattr(decoded, "_left", 2 * most)
        found, n_prepared = read(X, crew)
        assert n_prepared == n_expected
        assert described(found) == described(read(X)[0])


def test_what_does_not_fit_into_the_shared_memory_is_left_to_threads(
    crew, pictures, monkeypatch
):
    X = np.stack(pictures)
    monkeypatch.setattr("skdeepfeat._images.slots.SLOT_BYTES", 5_000)  # < 36 * 48 * 3
    found, n_prepared = read(X, crew)
    assert n_prepared == 0
    assert described(found) == described(read(X)[0])
    monkeypatch.undo()
    assert read(X, crew)[1] == len(X)


def test_batches_that_are_not_taken_disturb_no_later_ones(crew, pictures):
    window = window_of(np.stack(pictures * 9))
    how = Preparation(SPEC, None, "exact")
    rows = [row for row, _ in sorted(window.keys.items())]
    helped = Helped(window, how, 2, crew)
    batches = read_batches(window, rows, how, 4, 2, True, helped)
    next(batches)
    batches.close()
    X = [encode(p) for p in pictures]
    assert described(read(X, crew)[0]) == described(read(X)[0])


class Own(np.ndarray):
    """As a script may define it, which no other process can import."""


def test_arrays_of_a_class_of_the_script_are_left_to_threads(
    crew, pictures, monkeypatch
):
    monkeypatch.setattr(Own, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Own", Own, raising=False)
    X = [np.asarray(p).view(Own) for p in pictures]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, n_prepared = read(X, crew)
    assert n_prepared == 0 and len(crew.free) == 2
    assert described(found) == described(read(X)[0])


def test_threads_of_several_calls_share_the_processes(crew, pictures):
    X = [encode(p) for p in pictures * 9]
    expected = described(read(X)[0])
    calls = [joblib.delayed(read)(X, crew) for _ in range(4)]
    for found, _ in joblib.Parallel(n_jobs=4, backend="threading")(calls):
        assert described(found) == expected


# The life of the processes ------------------------------------------------------------


def test_killed_processes_cost_no_row_and_one_warning(pictures):
    crew = started(2)
    X = [encode(p) for p in pictures]
    expected = described(read(X)[0])
    for decoder in crew.free:
        os.kill(decoder._process.pid, signal.SIGKILL)
    with pytest.warns(EngineWarning, match="ended with status -9. Threads") as caught:
        found, n_prepared = read(X, crew)
    assert described(found) == expected and n_prepared == 0
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crew.note(10**6, 2)  # no more are started
        assert described(read(X, crew)[0]) == expected
    assert not crew.free


def test_a_process_that_is_killed_at_work_costs_no_row(pictures, monkeypatch):
    crew = started(1)
    (decoder,) = crew.free
    slow = encode(Image.effect_noise((3000, 3000), 90), "PNG")
    X = [slow] + [encode(p.rotate(i)) for i in range(9) for p in pictures]
    window = window_of(X)
    real = window.portable

    def portable(row):
        if row == 0:
            threading.Timer(0.05, decoder._process.kill).start()
        return real(row)

    monkeypatch.setattr(window, "portable", portable)
    with pytest.warns(EngineWarning, match="status -9"):
        found, _ = read(X, crew, window=window, n=1)
    assert described(found) == described(read(X)[0])


def test_a_process_that_does_not_answer_costs_no_row(pictures, monkeypatch):
    crew = started(1)
    monkeypatch.setattr(crews, "SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setattr(crews, "SECONDS_TO_END", 0.2)
    os.kill(crew.free[0]._process.pid, signal.SIGSTOP)
    X = [encode(p) for p in pictures]
    with pytest.warns(EngineWarning, match="has not answered for 0.2 seconds"):
        found, _ = read(X, crew)
    assert described(found) == described(read(X)[0])
    assert not crew.free


def test_the_end_waits_for_none(monkeypatch):
    crew = Crew()
    crew.start(2)
    for decoder in crew.free:  # as one that is still importing does not listen
        os.kill(decoder._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    crew.end()
    assert time.monotonic() - began < crews.SECONDS_TO_END


def test_a_forked_child_lets_go_of_processes_at_work():
    crew = started(1)
    decoder = crew.free.pop()
    crew.forget()  # in a child, where the thread that has borrowed it is missing
    assert decoder._process.wait(10) == 0


@pytest.mark.parametrize("entry", ["", ".", Path("/no/such"), b"/no/such", None])
def test_no_module_of_the_current_folder_is_imported(entry, tmp_path, monkeypatch):
    for name in ("json", "struct", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    crew = started(1)
    assert len(crew.free) == 1
    crew.end()


CLOSED = """
    import os, sys
    from skdeepfeat._images.crew import crew

    os.closerange(0, 3)  # as daemons do
    crew.start(2)
    while not all(one.is_ready for one in crew.free):
        pass
    os._exit(5 if len(crew.free) == 2 else 1)
"""


def test_standard_streams_may_be_closed():
    command = [sys.executable, "-c", textwrap.dedent(CLOSED)]
    assert subprocess.run(command, timeout=600).returncode == 5


def test_a_frozen_program_starts_none(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/apps/python-viewer")
    assert may_start()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not may_start()


def test_idle_processes_end_in_silence(pictures):
    crew = started(1)
    (decoder,) = crew.free
    decoder.leave()
    decoder._process.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X = [encode(p) for p in pictures]
        assert described(read(X, crew)[0]) == described(read(X)[0])
    assert not crew.free and crew._n == 0


def test_if_none_can_be_started_threads_decode(pictures, monkeypatch):
    crew = Crew()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    crew.start(2)
    X = [encode(p) for p in pictures]
    with pytest.warns(EngineWarning, match="cannot be started"):
        found, _ = read(X, crew)
    assert described(found) == described(read(X)[0])


def test_they_are_started_after_many_images(monkeypatch):
    crew, asked = Crew(), []
    monkeypatch.setattr(crew, "start", asked.append)
    for _ in range(10):
        crew.note(crews.START_AFTER // 10 - 1, 3)
    assert not asked
    crew.note(10, 3)
    assert asked == [3]


def test_single_images_start_none(monkeypatch):
    notes = []
    monkeypatch.setattr(Helped, "note", lambda self, n: notes.append(n))
    X = np.zeros((9, 4, 4, 3), np.uint8)
    window = window_of(X + np.arange(9, dtype=np.uint8)[:, None, None, None])
    how = Preparation(SPEC, None, "exact")
    helped = Helped(window, how, 2, Crew())
    for rows in ([0], range(4), range(9)):
        settings = (how, 4, 2, True, helped)
        list(read_batches(window, rows, *settings))
    assert notes == [4, 1]  # of the second batch of a call, and of the third


SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    from skdeepfeat._images.crew import crew

    crew.start(2)
    while not all(one.is_ready for one in crew.free):
        time.sleep(0.01)
    print("imported", *[one._process.pid for one in crew.free], flush=True)
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        os.killpg(0, signal.SIGINT)  # as a terminal does
        time.sleep(10)
    except KeyboardInterrupt:
        time.sleep(0.2)
        assert all(one.is_ready for one in crew.free)
    if "forked" in sys.argv and not os.fork():
        assert not crew.free
        os._exit(0)
"""


def is_there(pid):
    """Whether a process runs, and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("end", ["killed", "interrupted and forked"])
def test_none_outlives_the_process_that_started_it(end, tmp_path):
    script = tmp_path / "script.py"  # without if __name__ == "__main__"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "error", str(script), *end.split()]
    how = {"capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, start_new_session=True, **how)
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr
    assert not done.stderr
    word, *pids = done.stdout.split()
    assert word == "imported" and len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_there, pids))


def test_workers_start_none():
    assert may_start()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        assert not workers.submit(may_start).result()


# In an estimator ----------------------------------------------------------------------


@pytest.fixture
def beside_gpu(monkeypatch, crew):
    """Let estimators read as they do beside a GPU, with the processes of the module."""
    monkeypatch.setattr("skdeepfeat._features.resolve_class", lambda device: "cuda")
    monkeypatch.setattr("skdeepfeat._images.batches.FEWEST", 1)
    monkeypatch.setattr("skdeepfeat._images.windows.ROWS_AHEAD", (8, 16))
    answers = []

    def helped(*arguments):
        made = Counting(*arguments, crew)
        answers.append(made)
        return made

    monkeypatch.setattr("skdeepfeat._images.batches.Helped", helped)
    return answers


@pytest.mark.parametrize("is_stored", [False, True])
def test_an_estimator_computes_the_same_beside_a_gpu(
    is_stored, pictures, beside_gpu, monkeypatch, tmp_path
):
    X = [encode(p.rotate(90 * i)) for i in range(1, 4) for p in pictures]
    X += list(np.random.default_rng(0).integers(0, 256, (30, 20, 24, 3), np.uint8))
    X += as_files(pictures, tmp_path)
    X[11], X[40] = b"broken", X[3]
    cache = tmp_path / "store" if is_stored else None
    features = PretrainedCNNFeatures(
        "tiny", cache=cache, on_error="nan", batch_size=4, engine="torch"
    )
    with pytest.warns(ImageWarning, match="1 of 66 images"):
        rows = features.transform(X)
    assert sum(helped.n_prepared for helped in beside_gpu) == len(X) - 2
    assert len(beside_gpu) == 3  # windows, of 32 rows that are read at once
    errors = features.errors_
    with pytest.warns(ImageWarning, match="1 of 66 images"):
        np.testing.assert_array_equal(rows, features.transform(X))
    assert features.stats_["n_computed"] == (0 if is_stored else len(X) - 2)
    monkeypatch.undo()
    threaded = clone(features).set_params(cache=None)
    with pytest.warns(ImageWarning, match="1 of 66 images"):
        np.testing.assert_array_equal(rows, threaded.transform(X))
    assert threaded.errors_ == errors
