"""The tables: what is written is read, within bounds, by threads and processes."""

import copy
import inspect
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeTable

from skdeepfeat import FeatureStore, StoreWarning
from skdeepfeat._store import database
from skdeepfeat._store.base import ROW_OVERHEAD, ColumnRows, Table
from skdeepfeat._store.database import FILE
from skdeepfeat._store.disk import DiskTable
from skdeepfeat._store.memory import MemoryTable
from skdeepfeat._store.stores import open_table


@dataclass(frozen=True)
class FakeColumn:
    fingerprint: bytes
    label: str = "a layer"


def keys(*numbers):
    return [number.to_bytes(16, "big") for number in numbers]


def rows_of(column, numbers, rows, in_range=None, requested=True):
    """Rows of a column, all of them in range if nothing else is said."""
    column = column if isinstance(column, FakeColumn) else FakeColumn(column)
    in_range = [True] * len(numbers) if in_range is None else in_range
    return ColumnRows(column, keys(*numbers), np.asarray(rows), in_range, requested)


def put(table, column, numbers, rows, **options):
    columns = [rows_of(column, numbers, rows, **options)]
    return table.write(b"call", b"scope", keys(*numbers), columns)


def get(table, column, numbers, width=3):
    """(rows, positions of the missing ones)."""
    out = np.zeros((len(numbers), width), "f4")
    found = table.read(column, keys(*numbers), out, range(len(numbers)))
    return out, found.missing


def in_new_process(code, *arguments, **options):
    """Start Python on some code; sees the test's own helpers."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(__file__),
        **options,
    )


def output_of(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out.strip()


TABLES = {
    "fake": lambda folder: FakeTable(),
    "memory": lambda folder: MemoryTable(1_000_000),
    "disk": lambda folder: DiskTable(folder, 10**9),
}


@pytest.fixture
def table(kind, tmp_path):
    """An empty table of a kind."""
    made = TABLES[kind](tmp_path / "store")
    yield made
    made.forget()


every_table = pytest.mark.parametrize("kind", TABLES)
real_tables = pytest.mark.parametrize("kind", ["memory", "disk"])


@pytest.fixture
def disk(tmp_path):
    made = DiskTable(tmp_path / "store", 10**9)
    yield made
    made.close()


# The protocol, which every table follows --------------------------------------------


@every_table
def test_rows_are_found_by_content_and_fingerprint(table):
    rows = np.arange(6, dtype="f4").reshape(2, 3)
    put(table, b"a", [1, 2], rows)
    out, missing = get(table, b"a", [2, 3, 1])
    assert missing == [1]
    np.testing.assert_array_equal(out, [rows[1], [0, 0, 0], rows[0]])
    assert get(table, b"b", [1])[1] == [0]
    assert table.read(b"a", keys(1, 5), None, [0, 1]).missing == [1]


@every_table
def test_rows_are_copies(table):
    rows = np.ones((1, 3), "f4")
    put(table, b"a", [1], rows)
    rows[:] = 7
    assert (get(table, b"a", [1])[0] == 1).all()


@every_table
def test_more_rows_than_one_statement_takes(table):
    rows = np.arange(1200, dtype="f4")[:, None]
    put(table, b"a", range(1200), rows)
    out, missing = get(table, b"a", range(1300), width=1)
    assert missing == list(range(1200, 1300))
    np.testing.assert_array_equal(out[:1200], rows)


@every_table
def test_columns_of_one_pass_are_written_together(table):
    a, b = FakeColumn(b"a", "first"), FakeColumn(b"b", "second")
    table.write(
        b"c",
        b"s",
        keys(1, 2),
        [
            rows_of(a, [1, 2], np.ones((2, 3), "f4")),
            rows_of(b, [1, 2], np.ones((2, 5))),
        ],
    )
    table.count_hits(7, [b"a"])
    info = table.info()
    assert info.pop("bytes") > 0
    layers = {"first": 2, "second": 2}
    assert info == {"rows": 4, "hits": 7, "misses": 2, "layers": layers}
    table.clear()
    info = table.info()
    assert info.pop("bytes") < 200_000
    assert info == {"rows": 0, "hits": 0, "misses": 0, "layers": {}}
    assert get(table, b"a", [1])[1] == [0]


@every_table
def test_a_claim_is_granted_once_until_written_or_released(table):
    assert table.claim(b"c", b"s", keys(1, 2, 3), [b"a"]) == [0, 1, 2]
    assert table.claim(b"c", b"s", keys(3, 4), [b"a"]) == [1]
    assert table.claim(b"c", b"other", keys(1), [b"a"]) == [0]
    table.write(b"c", b"s", keys(1), [rows_of(b"a", [1], np.ones((1, 3), "f4"))])
    assert table.claim(b"c", b"s", keys(1), [b"a"]) == []
    assert table.claim(b"c", b"s", keys(1), [b"a", b"b"]) == [0]
    assert table.claim(b"d", b"s", keys(8), [b"a"]) == [0]
    table.release(b"c")
    assert table.claim(b"c", b"s", keys(2, 3, 8), [b"a"]) == [0, 1]


@real_tables
def test_waiting_ends_when_the_claim_does(table):
    table.claim(b"c", b"s", keys(1), [b"a"])
    ended = []

    def wait():
        table.wait(b"s", keys(1))
        ended.append(get(table, b"a", [1])[0])

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    assert not ended
    put_claimed = [rows_of(b"a", [1], np.full((1, 3), 5, "f4"))]
    table.write(b"c", b"s", keys(1), put_claimed)
    thread.join(timeout=60)
    assert (ended[0] == 5).all()


@real_tables
def test_many_threads_write_and_read(table):
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 200, 100).tolist():
            put(table, b"a", [number], np.full((1, 10), number, "f4"))
            out, missing = get(table, b"a", [number], width=10)
            wrong.extend([1] if missing or not (out == number).all() else [])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@every_table
def test_a_table_has_every_method_of_the_protocol(table):
    names = {name for name in vars(Table) if not name.startswith("_")}
    assert names and all(callable(getattr(table, name)) for name in names)
    for name in names:
        expected = list(inspect.signature(getattr(Table, name)).parameters)[1:]
        assert list(inspect.signature(getattr(table, name)).parameters) == expected


@every_table
def test_whether_any_row_is_there(table):
    put(table, b"a", [1], np.ones((1, 3), "f4"))
    assert table.has_any([b"b", b"a"], keys(2, 1))
    assert not table.has_any([b"b"], keys(1)) and not table.has_any([b"a"], keys(2))
    assert not table.has_any([], keys(1)) and not table.has_any([b"a"], [])


@every_table
def test_rows_out_of_range_say_so_when_they_are_read(table):
    put(table, b"a", [1, 2], np.ones((2, 3), "f4"), in_range=[True, False])
    out = np.empty((1, 3), "f4")
    for found in (out, None):
        assert not table.read(b"a", keys(1), found, [0]).out_of_range
        assert table.read(b"a", keys(2), found, [0]).out_of_range
        assert not table.read(b"a", keys(3), found, [0]).out_of_range


@every_table
def test_what_nobody_computes_is_not_waited_for(table):
    table.claim(b"c", b"s", keys(1, 2), [b"a"])
    table.release(b"c")
    table.release(b"another")
    table.wait(b"s", keys(1, 2, 3), [7, 8, 9])
    assert table.claim(b"d", b"s", keys(1, 2), [b"a"]) == [0, 1]


@every_table
def test_a_call_takes_nothing_of_another_one_by_writing(table):
    """Rows that a call computed without a claim leave the claims of others alone."""
    table.claim(b"c", b"other", keys(1), [b"a"])
    table.write(b"d", b"s", keys(1), [rows_of(b"b", [1], np.ones((1, 3), "f4"))])
    assert table.claim(b"d", b"other", keys(1), [b"a"]) == []


@every_table
def test_nothing_is_left_after_clearing(table):
    put(table, b"a", [1], np.ones((1, 3), "f4"))
    table.clear()
    assert get(table, b"a", [1])[1] == [0] and table.info()["rows"] == 0
    assert table.claim(b"c", b"s", keys(1), [b"a"]) == [0]


# In memory --------------------------------------------------------------------------


def test_the_bound_holds_and_the_least_recently_used_rows_go():
    size = 400 + ROW_OVERHEAD
    table = MemoryTable(3 * size)
    put(table, b"a", [1, 2, 3], np.zeros((3, 100), "f4"))
    get(table, b"a", [1], width=100)
    put(table, b"a", [4], np.zeros((1, 100), "f4"))
    assert table.info()["bytes"] <= table.max_bytes and table.info()["rows"] == 3
    assert get(table, b"a", [2], width=100)[1] == [0]
    assert get(table, b"a", [1], width=100)[1] == []
    put(table, b"a", [5], np.zeros((1, 10_000), "f4"))
    assert table.info()["rows"] == 3


def test_a_store_is_a_value(tmp_path):
    for store in (FeatureStore(name="mine", max_bytes=5000), FeatureStore(tmp_path)):
        assert copy.deepcopy(store) is store
        assert pickle.loads(pickle.dumps(store)) == store
        assert len(pickle.dumps(store)) < 300
        assert pickle.loads(pickle.dumps(store)).open() is store.open()
    assert open_table("memory") is FeatureStore().open()
    assert open_table(str(tmp_path)) is open_table(tmp_path) is store.open()
    assert open_table(None) is not open_table(None)


@pytest.mark.parametrize("folder", [None, "store"])
def test_the_last_size_that_is_given_holds(folder, tmp_path):
    place = {"path": folder and tmp_path / folder, "name": f"sized {tmp_path}"}
    table = FeatureStore(**place).open()
    before = table.max_bytes
    assert FeatureStore(**place, max_bytes=np.int64(5000)).open() is table
    assert FeatureStore(**place).open().max_bytes == 5000 < before


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("photo.jpg", "pipe"):
        with pytest.raises(ValueError, match="must name a folder"):
            FeatureStore(tmp_path / name).open()


# On disk ----------------------------------------------------------------------------


def test_rows_survive_the_process(disk):
    code = """
        import sys
        from pathlib import Path
        from test_store import DiskTable, put
        table = DiskTable(Path(sys.argv[1]), 10**9)
        put(table, b"a", [1, 2], [[1, 2, 3], [4, 5, 6]])
        table.write_files([("/x.jpg", "state", b"d" * 16)])
    """
    output_of(in_new_process(code, disk.folder))
    out, missing = get(disk, b"a", [2, 1])
    assert missing == [] and out.tolist() == [[4, 5, 6], [1, 2, 3]]
    assert disk.read_files(["/x.jpg", "/y"]) == [("/x.jpg", "state", b"d" * 16)]
    assert disk.info()["misses"] == 2
    assert not list(disk.folder.glob("owners/*"))


def test_a_damaged_row_is_reported_and_computed_again(disk):
    put(disk, b"a", [1, 2], np.ones((2, 3), "f4"))
    db = sqlite3.connect(disk.folder / FILE)
    db.execute("UPDATE rows SET data = zeroblob(12) WHERE key = ?", keys(1))
    db.commit()
    db.close()
    with pytest.warns(StoreWarning, match="1 damaged rows"):
        assert get(disk, b"a", [1, 2])[1] == [0]
    assert disk.claim(b"c", b"s", keys(1, 2), [b"a"]) == [0]


def test_a_row_of_another_image_is_damaged(disk):
    put(disk, b"a", [1, 2], np.eye(2, 3, dtype="f4"))
    db = sqlite3.connect(disk.folder / FILE)
    (data,) = db.execute("SELECT data FROM rows WHERE key = ?", keys(2)).fetchone()
    db.execute("UPDATE rows SET data = ? WHERE key = ?", (data, *keys(1)))
    db.commit()
    db.close()
    with pytest.warns(StoreWarning, match="damaged"):
        assert get(disk, b"a", [1])[1] == [0]


@pytest.mark.parametrize("damage", ["all", "middle"])
def test_a_damaged_database_is_set_aside(disk, damage):
    put(disk, b"a", range(300), np.ones((300, 500), "f4"))
    disk.close()
    file = disk.folder / FILE
    content = bytearray(file.read_bytes())
    start = 0 if damage == "all" else 4096
    content[start:] = b"\xff" * (len(content) - start)
    file.write_bytes(content)
    with pytest.warns(StoreWarning, match=r"was damaged.*set aside"):
        assert get(disk, b"a", [1], width=500)[1] == [0]
        put(disk, b"a", [1], np.ones((1, 500), "f4"))
        put(disk, b"a", [1], np.ones((1, 500), "f4"))
    assert get(disk, b"a", [1], width=500)[1] == []
    (aside,) = disk.folder.glob("damaged-*.sqlite")
    assert aside.read_bytes()[start:] == content[start:]
    disk.clear()
    assert not aside.exists()


def test_files_of_the_user_with_names_like_those_of_the_store_stay(disk):
    disk.folder.mkdir(parents=True, exist_ok=True)
    names = ["setup.lock", "damaged.sqlite", "damaged-.sqlite", "a.lock"]
    for name in names:
        (disk.folder / name).write_text("mine")
    put(disk, b"a", [1], np.ones((1, 3), "f4"))
    with disk.use_gpus(lambda: ["a"]):
        pass
    disk.close()
    (disk.folder / FILE).write_bytes(b"\xff" * 10_000)
    with pytest.warns(StoreWarning, match=r"damaged-[0-9a-f]{8}\.sqlite"):
        put(disk, b"a", [1], np.ones((1, 3), "f4"))
    disk.clear()
    assert {(disk.folder / name).read_text() for name in names} == {"mine"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened_as_a_store(disk, make):
    disk.folder.mkdir(parents=True, exist_ok=True)
    make(disk.folder / FILE)
    rows = np.ones((1, 3), "f4")
    for use in (lambda: put(disk, b"a", [1], rows), disk.clear, disk.info):
        with pytest.raises(
            ValueError, match=r"is a folder, a pipe or a device.* remove"
        ):
            use()
    assert (disk.folder / FILE).exists()


@pytest.mark.parametrize("tables", ["mine (a)", "rows (a), files (b), columns (c)"])
def test_a_database_of_another_program_is_left_alone(disk, tables):
    disk.folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(disk.folder / FILE)
    for table in tables.split(", "):
        db.execute(f"CREATE TABLE {table}")
    db.close()
    before = (disk.folder / FILE).read_bytes()
    for use in (lambda: put(disk, b"a", [1], np.ones((1, 3), "f4")), disk.clear):
        with pytest.raises(ValueError, match="which another program wrote"):
            use()
    assert (disk.folder / FILE).read_bytes() == before


@pytest.mark.parametrize("mode", ["NORMAL", "EXCLUSIVE"])
def test_a_store_that_others_keep_locked_costs_one_long_wait(disk, monkeypatch, mode):
    monkeypatch.setattr(database, "BUSY_SECONDS", 2)
    monkeypatch.setattr(database, "IMPATIENT_SECONDS", 0)
    put(disk, b"a", [1], np.ones((1, 3), "f4"))
    disk.close()
    other = sqlite3.connect(disk.folder / FILE, isolation_level=None)
    other.execute(f"PRAGMA locking_mode = {mode}")  # which keeps readers out, too
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.warns(StoreWarning, match="was locked by another program"):
        for number in range(2, 12):
            put(disk, b"a", [number], np.ones((1, 3), "f4"))
    assert time.monotonic() - started < 10  # ten waits would take 20 seconds
    other.execute("ROLLBACK")
    other.close()
    put(disk, b"a", [7], np.ones((1, 3), "f4"))
    assert get(disk, b"a", range(1, 8))[1] == [1, 2, 3, 4, 5]
    wait = disk._database.connect().execute("PRAGMA busy_timeout").fetchone()
    assert wait == (2000,)  # long again


def test_eviction_drops_the_column_whose_use_is_longest_ago(tmp_path):
    table = DiskTable(tmp_path / "store", max_bytes=1_000_000)
    rows = np.zeros((50, 1000), "f4")  # 200 kB
    for i, column in enumerate((b"a", b"b", b"c")):
        put(table, column, range(50), rows)
        table._database.connect().execute(
            "UPDATE columns SET used = ? WHERE id = ?", (i, i + 1)
        )
    table.count_hits(1, [b"a"])
    for start in range(0, 150, 50):
        put(table, b"d", range(start, start + 50), rows)
    assert len(get(table, b"b", range(50), width=1000)[1]) > 0
    assert get(table, b"a", range(50), width=1000)[1] == []
    assert get(table, b"d", range(100, 150), width=1000)[1] == []
    assert table.info()["bytes"] < 1_000_000 + 16_777_216 + 100_000
    assert (table.folder / FILE).stat().st_size < 1_300_000
    table.close()


def test_a_full_disk_costs_a_warning(tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    code = """
        import resource, sys, warnings
        from pathlib import Path
        import numpy as np
        from test_store import DiskTable, get, rows_of, put
        table = DiskTable(Path(sys.argv[1]), 10**9)
        put(table, b"a", [1], np.ones((1, 1000), "f4"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 2**40))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for start in range(0, 500, 50):
                put(table, b"a", range(start, start + 50), np.ones((50, 1000), "f4"))
                assert table.claim(b"c", b"s", [b"x%d" % start], [b"a"]) == [0]
        print(len(seen), seen[0].category.__name__, seen[0].message, end=" ")
        assert not get(table, b"a", [1], 1000)[1]
        table.release(b"c")  # as every call does at its end, whatever went wrong
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, 2**40))
        print(table.claim(b"d", b"s", [b"x0"], [b"a"]))
    """
    said = output_of(in_new_process(code, tmp_path / "store"))
    assert "StoreWarning The feature store in" in said
    assert "are returned but not stored" in said and said.endswith("[0]")


def give_up_root():
    """Root may write everywhere, so it has to become somebody else."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_a_read_only_store_serves_what_it_has():
    code = """
        import sys, warnings
        from pathlib import Path
        from test_store import DiskTable, get, rows_of, give_up_root, put
        folder = Path(sys.argv[1])
        put(DiskTable(folder / "elsewhere", 10**9), b"a", [1], [[1, 1, 1]])
        (folder / "store").chmod(0o555)
        give_up_root()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            table = DiskTable(folder / "store", 10**9)
            out, missing = get(table, b"a", [1, 2])
            assert missing == [1] and (out[0] == 1).all() and not seen
            assert table.claim(b"c", b"s", [b"k"], [b"a"]) == [0]
            put(table, b"a", [2], [[1, 2, 3]])
            table.count_hits(1, [b"a"])
        print(len(seen), *(w.message for w in seen))
        rows = [rows_of(b"a", [2], [[1, 2, 3]])]
        for change in (table.clear, lambda: table.add(rows)):
            try:
                change()
            except OSError as error:
                print(error)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            table = DiskTable(folder / "store" / "new", 10**9)
            assert get(table, b"a", [1])[1] == [0]
        print(len(seen), *(w.message for w in seen))
    """
    with tempfile.TemporaryDirectory() as folder:  # which others may enter
        os.chmod(folder, 0o755)
        table = DiskTable(Path(folder) / "store", 10**9)
        put(table, b"a", [1], np.ones((1, 3), "f4"))
        table.close()
        said = output_of(in_new_process(code, folder)).splitlines()
        (table.folder).chmod(0o755)
    assert said[0].startswith("1 ") and "is not writable" in said[0]
    assert "is not writable; its rows could not be removed" in said[1]
    assert "is not writable; not all rows could be added" in said[2]
    assert said[3].startswith("1 ") and "is not writable" in said[3]


def test_a_new_database_is_not_set_aside(disk):
    """Who finds the damage later than others joins them."""
    other = DiskTable(disk.folder, 10**9)
    for table in (disk, other):
        put(table, b"a", [1], np.ones((1, 3), "f4"))
    other._database.set_aside()
    put(other, b"a", [2], np.ones((1, 3), "f4"))
    disk._database.set_aside()
    assert get(disk, b"a", [1, 2])[1] == [0]
    other.close()


def test_a_removed_store_is_begun_anew(disk):
    put(disk, b"a", [1], np.ones((1, 3), "f4"))
    shutil.rmtree(disk.folder)
    assert get(disk, b"a", [1])[1] == [0]
    put(disk, b"a", [1], np.ones((1, 3), "f4"))
    assert disk.info()["rows"] == 1 and (disk.folder / FILE).exists()


def test_an_interrupted_transaction_is_rolled_back(disk):
    class Interrupted(sqlite3.Connection):
        armed = False

        def execute(self, statement, *parameters):
            result = super().execute(statement, *parameters)
            if Interrupted.armed and statement.startswith("BEGIN"):
                raise KeyboardInterrupt
            return result

    put(disk, b"a", [1], np.ones((1, 3), "f4"))
    disk.close()
    disk._database._connection = sqlite3.connect(
        disk.folder / FILE, factory=Interrupted, isolation_level=None
    )
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        put(disk, b"a", [2], np.ones((1, 3), "f4"))
    Interrupted.armed = False
    put(disk, b"a", [3], np.ones((1, 3), "f4"))
    assert get(disk, b"a", [1, 2, 3])[1] == [1]


def test_a_path_means_the_same_place_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("here")
    assert store.path == str(tmp_path / "here")
    assert "~" not in FeatureStore("~/there").path
    with pytest.raises(ValueError, match="must not be empty"):
        FeatureStore("")


def test_files_are_known_to_every_store(tmp_path):
    """A second store of a process learns what the process knows already."""
    for name in ("one", "two"):
        table = DiskTable(tmp_path / name, 10**9)
        table.write_files([("/x", "state", b"d")])
        table.write_files([("/x", "state", b"d")])
        assert table.read_files(["/x"]) == []  # this process knows it
        table.forget()
        assert table.read_files(["/x", "/y"]) == [("/x", "state", b"d")]
        table.close()


def test_the_claims_of_a_killed_process_are_free(disk):
    code = """
        import sys, time
        from pathlib import Path
        from test_store import DiskTable, keys
        table = DiskTable(Path(sys.argv[1]), 10**9)
        print(table.claim(b"c", b"s", keys(1, 2), [b"a"]), flush=True)
        time.sleep(100)
    """
    process = in_new_process(code, disk.folder)
    assert process.stdout.readline() == "[0, 1]\n"
    assert disk.claim(b"c", b"s", keys(1, 2, 3), [b"a"]) == [2]
    process.kill()
    process.communicate()
    disk.wait(b"s", keys(1, 2))
    assert disk.claim(b"c", b"s", keys(1, 2, 3), [b"a"]) == [0, 1]


def test_claims_of_a_call_end_with_it_even_if_nothing_can_be_written(disk, monkeypatch):
    other = DiskTable(disk.folder, 10**9)
    assert disk.claim(b"c", b"s", keys(1), [b"a"]) == [0]
    assert other.claim(b"d", b"s", keys(1, 2), [b"a"]) == [1]
    disk._database._connection.execute("PRAGMA query_only = ON")
    disk.release(b"c")
    other.wait(b"s", keys(1))
    assert other.claim(b"d", b"s", keys(1, 2), [b"a"]) == [0]
    other.release(b"d")
    assert not list((disk.folder / "owners").iterdir())
    other.close()


def test_a_call_that_cannot_keep_its_rows_leaves_the_claims_of_others(disk):
    for call, number in ((b"c", 1), (b"d", 2)):
        assert disk.claim(call, b"s", keys(number), [b"a"]) == [0]
    disk._database._connection.execute("PRAGMA query_only = ON")
    with pytest.warns(StoreWarning, match="not writable"):
        disk.write(b"c", b"s", keys(1), [rows_of(b"a", [1], np.ones((1, 3), "f4"))])
    disk._database._connection.execute("PRAGMA query_only = OFF")
    assert disk.claim(b"e", b"s", keys(1, 2), [b"a"]) == [0]


def test_what_killed_processes_have_left_is_removed(disk):
    code = """
        import os, signal, sys
        from pathlib import Path
        from test_store import DiskTable, keys
        table = DiskTable(Path(sys.argv[1]), 10**9)
        table.claim(b"c", b"s", keys(1, 2), [b"a"])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    in_new_process(code, disk.folder).communicate()
    assert len(list((disk.folder / "owners").iterdir())) == 1
    assert disk.claim(b"d", b"s", keys(3), [b"a"]) == [0]
    assert len(list((disk.folder / "owners").iterdir())) == 1  # of this call
    claims = disk._database.connect().execute("SELECT id, call FROM claims").fetchall()
    assert [call for _, call in claims] == [b"d"]
    disk.release(b"d")
    assert not list((disk.folder / "owners").iterdir())


def test_files_of_the_user_in_the_folder_of_locks_are_left_alone(disk):
    theirs = disk.folder / "owners"
    theirs.mkdir(parents=True)
    names = {"1.png", "cat.jpg", "0123456789abcdef.png", "deadbeef", "f" * 16}
    for name in names:
        (theirs / name).write_text("mine")
    (theirs / "deep").mkdir()
    assert disk.claim(b"d", b"s", keys(3), [b"a"]) == [0]
    disk.release(b"d")
    assert {path.name for path in theirs.iterdir()} == names | {"deep"}
    assert {(theirs / name).read_text() for name in names} == {"mine"}


def test_a_forked_child_leaves_its_parent_alone(tmp_path):
    code = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from test_store import FeatureStore, MemoryTable, get, rows_of, keys, put
        store = FeatureStore(sys.argv[1]).open()
        memory = FeatureStore().open()
        put(store, b"a", [1], [[1, 2, 3]])
        put(memory, b"a", [1], [[1, 2, 3]])
        store.claim(b"c", b"s", keys(9), [b"a"])
        memory.claim(b"c", b"s", keys(9), [b"a"])
        child = os.fork()
        if not child:
            assert get(store, b"a", [1])[1] == [] == get(memory, b"a", [1])[1]
            assert store.claim(b"c", b"s", keys(9), [b"a"]) == []  # the parent lives
            assert memory.claim(b"c", b"s", keys(9), [b"a"]) == [0]  # another memory
            put(store, b"a", [2], [[4, 5, 6]])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert store.claim(b"c", b"s", keys(9), [b"a"]) == []
        print(get(store, b"a", [2])[0].tolist())
    """
    assert output_of(in_new_process(code, tmp_path / "s")) == "[[4.0, 5.0, 6.0]]"


def test_kills_while_two_processes_write(disk):
    """No damaged row is ever read, no lock stays, everything completes afterwards."""
    code = """
        import os, signal, sys, time, warnings
        from pathlib import Path
        import numpy as np
        from test_store import DiskTable, FakeColumn, get, rows_of, keys
        warnings.simplefilter("error")
        folder, numbers = Path(sys.argv[1]), list(range(400))
        expected = np.repeat(np.arange(400, dtype="f4")[:, None], 500, 1)

        def fill():
            table = DiskTable(folder, 10**9)
            for start in range(0, 400, 10):
                some = numbers[start : start + 10]
                granted = table.claim(b"c", b"s", keys(*some), [b"a"])
                granted = [some[i] for i in granted]
                rows = expected[granted]
                table.write(b"c", b"s", keys(*granted), [rows_of(b"a", granted, rows)])
                table.wait(b"s", keys(*(n for n in some if n not in granted)))
            assert not get(table, b"a", numbers, 500)[1]
            table.close()

        def start():
            child = os.fork()
            if not child:
                fill()
                os._exit(0)
            return child

        def check():
            table = DiskTable(folder, 10**9)
            out, missing = get(table, b"a", numbers, 500)
            here = np.setdiff1d(numbers, missing)
            assert (out[here] == expected[here]).all()
            table.close()
            return len(here)

        rng, found = np.random.default_rng(0), []
        for _ in range(100):
            children = [start(), start()]
            time.sleep(rng.uniform(0, 0.03))
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            found.append(check())
            if found[-1] == 400:
                table = DiskTable(folder, 10**9)
                table.clear()
                table.close()
        child = start()
        assert os.waitpid(child, 0)[1] == 0 and check() == 400
        print(len(set(found)))
    """
    assert int(output_of(in_new_process(code, disk.folder))) > 3  # kills in the midst
    assert get(disk, b"a", range(400), 500)[1] == []
    assert not disk._database.connect().execute("SELECT * FROM claims").fetchall()
    assert not list((disk.folder / "owners").iterdir())


def test_stores_that_begin_at_the_same_time_all_begin(tmp_path):
    """A change to a write-ahead log fails where another one is begun."""
    n = 4
    together = threading.Barrier(n)

    def begin(table):
        together.wait()
        table.count_hits(1, [b"layer"])  # a trouble is a warning, and so an error here

    for number in range(20):
        tables = [DiskTable(tmp_path / str(number), 1 << 30) for _ in range(n)]
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(begin, tables))
        for table in tables:
            table.close()


def test_a_folder_that_is_deleted_meanwhile_is_made_again(tmp_path):
    one, other = (DiskTable(tmp_path / "store", 10**9) for _ in range(2))
    assert one.claim(b"c", b"s", [b"x"], [b"a"]) == [0]
    one.release(b"c")
    shutil.rmtree(one.folder)
    assert one.claim(b"d", b"s", [b"x"], [b"a"]) == [0]  # a warning is an error here
    assert other.claim(b"e", b"s", [b"x"], [b"a"]) == []
    put(one, b"a", [1], np.ones((1, 3), "f4"))
    assert not get(other, b"a", [1])[1]
