"""Arrays in files: their room is there, or an error says where it is not."""

import errno
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from skdeepfeat import FineTunedClassifier
from skdeepfeat._finetuning import scratch
from skdeepfeat._finetuning.scratch import scratch_array

SHM = "/dev/shm"
on_linux = pytest.mark.skipif(
    not Path("/proc/self/mounts").is_file(), reason="mounts are listed on Linux"
)


def test_an_array_outlives_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = scratch_array((3, 4), np.float32, "Four rows")
    assert not list(tmp_path.iterdir()) and (array == 0).all()
    array[:] = 7
    assert array.sum() == 84


def test_more_than_a_file_system_holds_is_an_error():
    with pytest.raises(OSError, match=r"The images take 1,152,921,504,606,846,976"):
        scratch_array((2**60,), np.uint8, "The images")


def test_a_full_disk_is_named_with_what_to_type(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch.os, "posix_fallocate", full, raising=False)
    X = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(OSError, match=r"4 images.*TMPDIR=") as caught:
        FineTunedClassifier("tiny").fit(X, [0, 1, 0, 1])
    assert caught.value.errno == errno.ENOSPC
    assert repr(str(tmp_path)) in str(caught.value)
    assert "768 bytes" in str(caught.value)


def test_no_folder_at_all_is_said(monkeypatch):
    def nowhere(*arguments):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(OSError, match=r"no folder for temporary files.*TMPDIR="):
        scratch_array((3,), np.uint8, "Three bytes")


@on_linux
@pytest.mark.skipif(
    not scratch.is_in_memory(SHM), reason="no folder is known to be in memory"
)
def test_a_folder_in_memory_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", SHM)
    with pytest.raises(OSError, match="'/dev/shm', which is in memory, cannot hold"):
        scratch_array((2**45,), np.uint8, "The images")


@on_linux
def test_folders_are_told_by_the_mount_they_are_in(monkeypatch, tmp_path):
    inner = tmp_path / "disk" / "inner"
    inner.mkdir(parents=True)
    mounts = f"none {tmp_path} tmpfs rw 0 0\n/dev/a {tmp_path}/disk ext4 rw 0 0\n"
    monkeypatch.setattr(scratch.Path, "read_text", lambda path: mounts)
    assert scratch.is_in_memory(str(tmp_path))
    assert not scratch.is_in_memory(str(inner))
    assert not scratch.is_in_memory("/")


@pytest.mark.slow
@on_linux
def test_memory_is_flat_in_the_number_of_images():
    """Ten times the images, of floats, and hardly more memory than is its own."""
    code = """
        import gc, threading, time
        import numpy as np
        from skdeepfeat import FineTunedClassifier

        class Photos:
            def __init__(self, n): self.n = n
            def __len__(self): return self.n
            def __getitem__(self, i):
                return np.random.default_rng(i).random((32, 32, 3), np.float32)

        def anonymous():
            with open("/proc/self/status") as file:
                line = next(line for line in file if line.startswith("RssAnon"))
            return int(line.split()[1]) / 1024

        def peak(n):
            clf = FineTunedClassifier(
                "mini", image_size=32, epochs=1, head_epochs=1, random_state=0,
                early_stopping=True, validation_fraction=0.3,
            )
            gc.collect()
            found, done = [anonymous()], threading.Event()
            def watch():
                while not done.wait(0.002):
                    found.append(anonymous())
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            clf.fit(Photos(n), np.arange(n) % 2)
            done.set()
            watcher.join()
            return max(found) - found[0]

        peak(300)
        few, many = peak(300), peak(3000)
        growth, pixels = many - few, 2700 * 36 * 36 * 3 * 4 / 2**20
        assert growth < 0.4 * pixels, (few, many, pixels)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, timeout=600)
