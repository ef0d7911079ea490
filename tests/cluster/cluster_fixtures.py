"""Small files to spread, and a log of the images that workers compute."""

import os
import signal
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

N_FILES = 60


@pytest.fixture
def interrupted():
    """Makes a context that Ctrl-C must end as soon as a store has rows."""
    return _interrupted


@contextmanager
def _interrupted(store):

    def interrupt():
        while store.info()["rows"] == 0:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


@pytest.fixture
def files(tmp_path):
    """Paths of small PNG files, all different, that no process has seen before.

    Nor has another test: Dask computes again what a killed worker had, also results of
    an earlier call that failed.
    """
    rng = np.random.default_rng(zlib.crc32(str(tmp_path).encode()))
    paths = [str(tmp_path / f"{i}.png") for i in range(N_FILES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    return paths


class Log:
    """Which images the workers of a cluster have computed.

    Parameters
    ----------
    folder : Path
        Workers also look here for what they are to do before they compute.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self):
        """Forget what has been computed so far."""
        for path in self.folder.iterdir():
            path.unlink()
        return self

    def __exit__(self, *exception):
        for order in ("die", "sleep"):
            self.path(order).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def counts(self) -> Counter:
        """Digest of an image → how often it reached a first convolution."""
        lines = [path.read_text().split() for path in self.folder.glob("*.log")]
        return Counter(digest for line in lines for digest in line)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("log")


@pytest.fixture
def log(folder):
    with Log(folder) as log:
        yield log


@pytest.fixture
def features(tmp_path):
    store = FeatureStore(tmp_path / "store")
    return PretrainedCNNFeatures("tiny", cache=store, batch_size=4)


@pytest.fixture
def alone(files):
    """Features of the files, computed in this process, which has not seen them."""
    images = [Image.open(path) for path in files]
    with joblib.parallel_config(backend="loky"):
        return PretrainedCNNFeatures("tiny", cache=None).transform(images)
