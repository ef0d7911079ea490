"""The table: what is written is read, within its bound, by many threads."""

import copy
import pickle
import threading

import numpy as np

from skdeepfeat import FeatureStore
from skdeepfeat._store import ROW_OVERHEAD, MemoryTable, open_table


def keys(*numbers):
    return [number.to_bytes(16, "big") for number in numbers]


def test_rows_are_found_by_content_and_fingerprint():
    table, rows = MemoryTable(10_000), np.arange(6, dtype="f4").reshape(2, 3)
    table.write(b"a", keys(1, 2), rows)
    out = np.zeros((3, 3), "f4")
    assert table.read(b"a", keys(2, 3, 1), out, [0, 1, 2]) == [1]
    np.testing.assert_array_equal(out, [rows[1], [0, 0, 0], rows[0]])
    assert table.read(b"b", keys(1), out, [0]) == [0]


def test_rows_are_copies():
    table, rows = MemoryTable(10_000), np.ones((1, 3), "f4")
    table.write(b"a", keys(1), rows)
    rows[:] = 7
    out = np.zeros((1, 3), "f4")
    table.read(b"a", keys(1), out, [0])
    assert (out == 1).all()


def test_the_bound_holds_and_the_least_recently_used_rows_go():
    size = 400 + ROW_OVERHEAD
    table = MemoryTable(3 * size)
    table.write(b"a", keys(1, 2, 3), np.zeros((3, 100), "f4"))
    out = np.zeros((1, 100), "f4")
    table.read(b"a", keys(1), out, [0])
    table.write(b"a", keys(4), np.zeros((1, 100), "f4"))
    assert table.n_bytes <= table.max_bytes and len(table) == 3
    assert table.read(b"a", keys(2), out, [0]) == [0]
    assert table.read(b"a", keys(1), out, [0]) == []
    table.write(b"a", keys(5), np.zeros((1, 10_000), "f4"))
    assert len(table) == 3


def test_a_store_is_a_value(tmp_path):
    store = FeatureStore("mine", max_bytes=5000)
    assert copy.deepcopy(store) is store
    assert pickle.loads(pickle.dumps(store)) == store
    assert len(pickle.dumps(store)) < 200
    assert pickle.loads(pickle.dumps(store)).open() is store.open()
    assert open_table("memory") is FeatureStore().open()
    assert open_table(None) is not open_table(None)


def test_many_threads_write_and_read():
    table = MemoryTable(50 * (40 + ROW_OVERHEAD))
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 200, 300):
            row = np.full((1, 10), number, "f4")
            table.write(b"a", keys(int(number)), row)
            out = row.copy()
            table.read(b"a", keys(int(number)), out, [0])
            wrong.extend([1] if not (out == number).all() else [])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and table.n_bytes <= table.max_bytes
