"""What a call shows of its progress."""

import os
import sys

import numpy as np
import pytest

from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures


class Closed:
    """A stream whose file the process has closed."""

    def write(self, text=""):
        raise OSError(9, os.strerror(9))

    flush = write


def shut(path):
    """A stream that was closed in Python."""
    stream = path.open("w")
    stream.close()
    return stream


STREAMS = {"missing": lambda path: None, "closed": shut, "bad": lambda path: Closed()}


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)


# tqdm 4.66 leaves a bar behind that it cannot close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", STREAMS)
def test_work_goes_on_without_standard_streams(kind, X, monkeypatch, tmp_path):
    features = PretrainedCNNFeatures(layer="block2", cache=None)
    expected = features.fit_transform(X)
    verbose = FineTunedClassifier(epochs=1, head_epochs=1, batch_size=4, verbose=1)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[kind](tmp_path / name))
    found = features.set_params(verbose=1).fit_transform(X)
    verbose.fit(X, [0, 1] * 4)
    monkeypatch.undo()
    np.testing.assert_array_equal(found, expected)
    assert len(verbose.history_) == 2
