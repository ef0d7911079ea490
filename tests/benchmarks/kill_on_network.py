"""Kills processes of two machines that keep one store on a disk which they share.

The folder must be on a network disk, or on a mount that looks like one, such as

    bindfs -o subtype=juicefs /tmp/real /tmp/shared

Two processes write rows to one store there; each has a host name of its own, through
"unshare --uts", if that is allowed. One of them is killed again and again, after 0.1 to
0.5 seconds of writing, and started anew. After each kill all rows are read: none may be
wrong, and no file may be damaged. At the end the time of writing is compared with that
of a local disk.

Usage: python tests/benchmarks/kill_on_network.py FOLDER [kills, 100 by default]
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from skdeepfeat import FeatureStore
from skdeepfeat._store.base import ColumnRows, Label
from skdeepfeat._store.file_systems import mount_of
from skdeepfeat._store.waiting import new_call

COLUMN, WIDTH, AT_ONCE = Label(b"f" * 16, "layer"), 512, 64


def rows_of(numbers):
    """Keys and rows of these numbers, the same in every process."""
    keys = [n.to_bytes(16, "little") for n in numbers]
    rows = [np.random.default_rng(n).random(WIDTH, np.float32) for n in numbers]
    return keys, np.stack(rows)


def write(table, numbers):
    """Claim and write rows, as calls do."""
    keys, rows = rows_of(numbers)
    call = new_call()
    granted = table.claim(call, b"scope", keys, [COLUMN.fingerprint])
    if granted:
        some = [keys[i] for i in granted]
        fits = [True] * len(granted)
        stored = ColumnRows(COLUMN, some, rows[granted], fits, True)
        table.write(call, b"scope", some, [stored])
    table.release(call)


def write_for_ever(folder, seed):
    """Run by the processes: a line says that the first rows are written."""
    table, rng = FeatureStore(folder).open(), random.Random(int(seed))
    while True:
        start = rng.randrange(100_000) * AT_ONCE
        write(table, range(start, start + AT_ONCE))
        print("written", flush=True)


def started(folder, host, seed):
    """A process that writes, on a host of this name if possible."""
    program = f"{sys.executable} {__file__} write {folder} {seed}"
    shell = f"hostname {host} && exec {program}"
    can = (
        subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode
        == 0
    )
    command = ["unshare", "--uts", "sh", "-c", shell] if can else program.split()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    return process


def check(folder):
    """Number of rows in the store; fails if one is wrong or a file damaged."""
    table, n_rows = FeatureStore(folder).open(), 0
    for some in table.dump():
        numbers = [int.from_bytes(key, "little") for key in some.keys]
        np.testing.assert_array_equal(some.rows, rows_of(numbers)[1])
        n_rows += len(numbers)
    with table._database.lock:
        db = table._database.connect()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not (Path(folder) / "damaged.sqlite").exists()
    return n_rows


def seconds_to_write(folder):
    """Seconds for 10,000 rows in an empty store, 64 at a time."""
    table = FeatureStore(folder).open()
    blocks = [range(i, i + AT_ONCE) for i in range(0, 10_000, AT_ONCE)]
    prepared = [(*rows_of(block), list(block)) for block in blocks]
    began = time.perf_counter()
    for keys, rows, numbers in prepared:
        stored = ColumnRows(COLUMN, keys, rows, [True] * len(numbers), True)
        table.write(new_call(), b"scope", keys, [stored])
    return time.perf_counter() - began


def main(folder, n_kills=100):
    print(f"{folder} is on {mount_of(Path(folder)).kind}")
    store = Path(folder) / f"store-{os.getpid()}"
    steady, victim = started(store, "first", 0), started(store, "second", 1)
    for number in range(int(n_kills)):
        time.sleep(random.uniform(0.1, 0.5))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        if number % 10 == 9:
            print(f"{number + 1} kills, {check(store)} rows, none wrong")
        victim = started(store, "second", number + 2)
    assert steady.poll() is None, "the process that was not killed has failed"
    for process in (steady, victim):
        process.kill()
    print(f"at the end {check(store)} rows, none wrong")
    local = tempfile.mkdtemp()
    for name, place in (("shared", Path(folder) / "speed"), ("local", Path(local))):
        print(f"10,000 rows on a {name} disk: {seconds_to_write(place):.2f} s")
        shutil.rmtree(place)
    shutil.rmtree(store)


if __name__ == "__main__":
    is_writer = sys.argv[1] == "write"
    (write_for_ever if is_writer else main)(*sys.argv[1 + is_writer :])
