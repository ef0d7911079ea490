"""Two workers of one thread each, against one process with two threads.

Photos are read from files. Both have built their network before the clock starts, and
no row is stored before. Then the caller's peak memory, for a few and for many rows.

Usage: OMP_NUM_THREADS=2 python tests/benchmarks/bench_cluster.py speed|memory [rows]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from distributed import Client, LocalCluster
from PIL import Image

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

PHOTOS = {"mini": 3000, "resnet50": 500}
WEIGHTS = {"mini": "default", "resnet50": None}


def write_photos(folder, n, seed, side=240):
    """Paths of n JPEG files of smooth noise, all different."""
    rng, paths = np.random.default_rng(seed), []
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        paths.append(str(Path(folder) / f"{seed}-{i}.jpg"))
        coarse.resize((side, side), Image.BICUBIC).save(paths[-1], quality=90)
    return paths


def seconds_of(features, paths, backend):
    began = time.perf_counter()
    with joblib.parallel_config(backend=backend):
        features.warm(paths)
    return time.perf_counter() - began


def speed(folder):
    for name, n in PHOTOS.items():
        few, many = (write_photos(folder, k, seed) for seed, k in ((0, 64), (1, n)))
        found = {"loky": [], "dask": []}
        for turn in range(2):  # in turns, since the machine is not idle
            for backend in found:
                store = FeatureStore(Path(folder) / f"{name}-{backend}-{turn}")
                features = PretrainedCNNFeatures(
                    name, weights=WEIGHTS[name], cache=store
                )
                start_up = seconds_of(features, few, backend)
                rate = n / seconds_of(features, many, backend)
                found[backend].append(rate)
                print(f"{name} {backend}: {rate:.1f}/s, start-up {start_up:.1f} s")
        ratio = np.divide(found["dask"], found["loky"])
        print(f"{name}: cluster / process = {ratio.round(3)}", flush=True)


def memory(folder, n_rows):
    paths = write_photos(folder, n_rows, 2, side=64)
    features = PretrainedCNNFeatures(cache=FeatureStore(Path(folder) / "store"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = seconds_of(features, paths, "dask")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = features.cache.info()
    print(
        f"{n_rows} rows: {before / 1024:.0f} MB before, at most {after / 1024:.0f} MB, "
        f"{n_rows / seconds:.0f}/s, store of {info['bytes'] / n_rows:.0f} bytes a row",
        flush=True,
    )


def main(what, n_rows=2000):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(**options) as cluster,
        Client(cluster),
    ):
        speed(folder) if what == "speed" else memory(folder, int(n_rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
