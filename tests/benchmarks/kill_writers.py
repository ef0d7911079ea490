"""Kills writers of one store again and again, and looks at what they leave.

Two forked processes compute the same images at the same time and keep their rows in one
folder; each is killed 0.8 to 3 seconds after it has written its first row, and another
one takes its place. After each kill the rows of the latest images are asked for: none
may be wrong, and none may be waited for longer than 5 seconds. At the end, 4 processes
of 8 threads ask for the same images at once: each must be computed once.

Usage: python tests/benchmarks/kill_writers.py [number of kills, 300 by default]
"""

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time

import numpy as np

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

SIDE = 64
AT_ONCE = 48  # images of a call
LONGEST = 5.0  # seconds
N_PROCESSES, N_THREADS, N_SHARED = 4, 8, 400


def images(numbers):
    """The images of these numbers, which are the same in every process."""
    return np.stack(
        [
            np.random.default_rng(n).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            for n in numbers
        ]
    )


def latest():
    """The numbers of images that all writers compute now."""
    first = int(2 * time.time()) * AT_ONCE
    return list(range(first, first + AT_ONCE))


def features(folder):
    return PretrainedCNNFeatures(engine="torch", cache=folder, n_jobs=1)


def write(folder, pipe):
    """Compute for ever; a byte says when the first row is written."""
    est = features(folder)
    while True:
        numbers = latest()
        random.shuffle(numbers)
        est.transform(images(numbers))
        if pipe is not None:
            os.write(pipe, b".")
            pipe = None


class Writer:
    """A process that writes until it is killed."""

    def __init__(self, folder):
        self.pipe, sender = os.pipe()
        self.end = None  # when it is killed
        self.process = os.fork()
        if not self.process:
            try:
                write(folder, sender)
            finally:
                os._exit(1)
        os.close(sender)

    def look(self):
        """Whether its time has come."""
        if self.end is None and select.select([self.pipe], [], [], 0)[0]:
            assert os.read(self.pipe, 1), "a writer has ended by itself"
            self.end = time.monotonic() + random.uniform(0.8, 3)
        return self.end is not None and time.monotonic() > self.end

    def kill(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.pipe)


def check(folder):
    """(whether all rows are right, seconds) of rows that writers compute now."""
    X = images(latest()[::6])
    started = time.monotonic()
    rows = features(folder).transform(X)
    seconds = time.monotonic() - started
    expected = features(None).transform(X)
    return np.abs(rows - expected).max() <= 1e-6 * np.abs(expected).max(), seconds


def kill_writers(folder, n_kills):
    """How many rows were wrong, and the longest wait."""
    writers = [Writer(folder), Writer(folder)]
    wrong, longest = 0, 0.0
    for i in range(n_kills):
        while not any(ready := [writer.look() for writer in writers]):
            time.sleep(0.01)
        place = ready.index(True)
        writers[place].kill()
        right, seconds = check(folder)
        wrong, longest = wrong + (not right), max(longest, seconds)
        writers[place] = Writer(folder)
        if (i + 1) % 20 == 0:
            print(f"{i + 1} kills: {wrong} wrong, longest {longest:.2f} s", flush=True)
    for writer in writers:
        writer.kill()
    return wrong, longest


def share(folder):
    """How many images were computed by many who asked for the same ones."""
    numbers = list(range(N_SHARED))

    def ask(seed):
        order = random.Random(seed).sample(numbers, N_SHARED)
        features(folder).transform(images(order))

    children = []
    for process in range(N_PROCESSES):
        children.append(os.fork())
        if not children[-1]:
            threads = [
                threading.Thread(target=ask, args=(N_THREADS * process + i,))
                for i in range(N_THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os._exit(0)
    assert not any(os.waitpid(child, 0)[1] for child in children)
    return FeatureStore(folder).info()["misses"]


def main(n_kills):
    with tempfile.TemporaryDirectory() as folder:
        features(None).transform(images([0]))  # torch has run in the parent
        wrong, longest = kill_writers(os.path.join(folder, "killed"), n_kills)
        n_computed = share(os.path.join(folder, "shared"))
    print(f"{n_kills} kills: {wrong} wrong rows, longest wait {longest:.2f} s")
    print(
        f"{N_PROCESSES} processes of {N_THREADS} threads: {n_computed} passes for "
        f"{N_SHARED} images"
    )
    return wrong or longest > LONGEST or n_computed != N_SHARED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n_kills", type=int, nargs="?", default=300)
    sys.exit(main(**vars(parser.parse_args())))
