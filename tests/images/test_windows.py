"""Rows are read and hashed in windows; beside a GPU, the next ones meanwhile."""

import threading
import time

import numpy as np
import pytest

from skdeepfeat._images import windows as windowing
from skdeepfeat._images.containers import lazily, read_images

ROWS = 100


class Recorder(list):
    """A list that knows which threads have asked for rows, and how many."""

    def __init__(self, rows):
        super().__init__(rows)
        self.threads, self.n_asked = set(), 0

    def __getitem__(self, row):
        self.threads.add(threading.get_ident())
        self.n_asked += 1
        return super().__getitem__(row)


class Lazy:
    """The same rows, made when they are needed."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, row):
        return self._rows[row]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (ROWS, 4, 4, 3), np.uint8))


def ahead(X):
    return read_images(lazily(X)).windows_ahead(lambda names: None, 2, False)


def usual(X):
    return read_images(lazily(X)).windows(lambda names: None, 2, False)


def sizes(windows):
    return [len(window.keys) for window in windows]


def test_windows_ahead_have_the_rows_and_keys_of_others(arrays, monkeypatch):
    monkeypatch.setattr(windowing, "ROWS_AHEAD", (32, 64))
    (expected,) = usual(arrays)
    found = list(ahead(arrays))
    assert sizes(found) == [32, 64, 4]
    assert {r: k for window in found for r, k in window.keys.items()} == expected.keys
    assert not list(ahead([]))


def test_the_next_window_is_hashed_while_one_is_used(arrays, monkeypatch):
    monkeypatch.setattr(windowing, "ROWS_AHEAD", (32,))
    rows = Recorder(arrays)
    windows = ahead(rows)
    next(windows)
    deadline = time.monotonic() + 10
    while rows.n_asked < 65 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (
        rows.n_asked == 65
    )  # two windows, and the first row once more to see its kind
    assert len(rows.threads) == 2
    windows.close()


def test_rows_that_are_made_when_needed_are_made_by_the_thread_that_calls(arrays):
    rows = Recorder(arrays)
    assert sizes(ahead(Lazy(rows))) == sizes(usual(Lazy(rows)))
    assert rows.threads == {threading.get_ident()}


def test_a_call_that_ends_early_waits_for_no_whole_window(arrays, monkeypatch):
    monkeypatch.setattr(windowing, "ROWS_AHEAD", (32, 10**6))
    rows, begun, real = Recorder(arrays * 9), threading.Event(), windowing.Window._hash

    def slowly(window, cell):
        if rows.n_asked > 33:
            begun.set()
            time.sleep(0.002)
        return real(window, cell)

    monkeypatch.setattr(windowing.Window, "_hash", slowly)
    windows = ahead(rows)
    next(windows)
    assert begun.wait(10)
    windows.close()
    assert rows.n_asked < 200
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("skdeepfeat-hash") for name in names)


def test_an_error_of_reading_ahead_reaches_the_caller(arrays, monkeypatch):
    monkeypatch.setattr(windowing, "ROWS_AHEAD", (32,))

    class Short(Recorder):
        def __getitem__(self, row):
            if row == 40:
                raise MemoryError("row 40")
            return super().__getitem__(row)

    windows = ahead(Short(arrays))
    assert len(next(windows).keys) == 32
    with pytest.raises(MemoryError, match="row 40"):
        next(windows)


def test_what_x_holds_in_memory_makes_no_window_smaller(arrays, monkeypatch, tmp_path):
    monkeypatch.setattr(windowing, "BYTES_HELD", 1000)
    files = [tmp_path / f"{i}.bmp" for i in range(ROWS)]
    for i, file in enumerate(files):
        file.write_bytes(b"x" * (i + 1))
    assert sizes(usual(arrays)) == sizes(usual(np.stack(arrays))) == [ROWS]
    assert sizes(usual([bytes(64)] * ROWS)) == [ROWS]
    assert len(sizes(usual(Lazy(arrays)))) > 1
    assert len(sizes(usual([memoryview(bytes(64))] * ROWS))) > 1  # are copied
    assert len(sizes(usual(files))) > 1  # are read
