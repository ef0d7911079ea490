"""Kills processes of two machines that keep one store on a disk which they share.

The folder must be on a network disk, or on a mount that looks like one, such as

    bindfs -o subtype=juicefs /tmp/real /tmp/shared

Two processes write rows to one store there; each has a host name of its own, if that is
allowed. One of them is killed again and again, after 0.1 to
0.5 seconds of writing, and started anew. After each kill all rows are read: none may be
wrong, and no file may be damaged. At the end the time of writing is compared with that
of a local disk.

Usage: python tests/benchmarks/kill_on_network.py FOLDER [kills, 100 by default]
"""

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import numpy as np

from skdeepfeat import FeatureStore
from skdeepfeat._store.base import ColumnRows, Label
from skdeepfeat._store.file_systems import mount_of
from skdeepfeat._store.waiting import new_call

NEW_NAMES = 0x04000000  # CLONE_NEWUTS
names = set()  # of hosts
COLUMN, WIDTH, AT_ONCE = Label(b"f" * 16, "layer"), 512, 64


def rows_of(numbers):
    """Keys and rows of these numbers, the same in every process."""
    keys = [n.to_bytes(16, "little") for n in numbers]
    rows = np.outer(numbers, np.arange(1, WIDTH + 1)) % 1009
    return keys, rows.astype(np.float32)


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


def write_for_ever(folder, host, seed, pipe):
    """Run by the processes: a byte says that the first rows are written."""
    with contextlib.suppress(OSError):  # only root may change the name of the host
        if ctypes.CDLL(None).unshare(NEW_NAMES) == 0:
            socket.sethostname(host)
    table, rng = FeatureStore(folder).open(), random.Random(seed)
    while True:
        start = rng.randrange(100_000) * AT_ONCE
        write(table, range(start, start + AT_ONCE))
        if pipe is not None:
            os.write(pipe, socket.gethostname().encode())
            os.close(pipe)
            pipe = None


def started(folder, host, seed):
    """The number of a process that writes, on a host of this name if possible."""
    receiver, sender = os.pipe()
    process = os.fork()
    if not process:
        write_for_ever(folder, host, seed, sender)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        names.add(pipe.read())
    return process


def check(folder):
    """Number of rows in the store; fails if one is wrong or a file damaged."""
    table, n_rows = FeatureStore(folder).open(), 0
    with table.snapshot() as stored:
        for some in stored.dump():
            numbers = [int.from_bytes(key, "little") for key in some.keys]
            np.testing.assert_array_equal(some.rows, rows_of(numbers)[1])
            n_rows += len(numbers)
    with table._database.lock:
        db = table._database.connect()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(Path(folder).glob("damaged*"))
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


def kill(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def main(folder, n_kills):
    print(f"{folder} is on {mount_of(Path(folder)).kind}")
    store = Path(folder) / f"store-{os.getpid()}"
    steady, victim = started(store, "first", 0), started(store, "second", 1)
    for number in range(n_kills):
        time.sleep(random.uniform(0.1, 0.5))
        kill(victim)
        if number % 10 == 9:
            print(f"{number + 1} kills, {check(store)} rows, none wrong")
        victim = started(store, "second", number + 2)
    assert os.waitpid(steady, os.WNOHANG) == (0, 0), "the other process has failed"
    for process in (steady, victim):
        kill(process)
    print(f"at the end {check(store)} rows, none wrong; hosts {sorted(names)}")
    local = tempfile.mkdtemp()
    for name, place in (("shared", Path(folder) / "speed"), ("local", Path(local))):
        print(f"10,000 rows on a {name} disk: {seconds_to_write(place):.2f} s")
        shutil.rmtree(place, ignore_errors=True)  # it is still open
    shutil.rmtree(store, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("n_kills", type=int, nargs="?", default=100)
    main(**vars(parser.parse_args()))
