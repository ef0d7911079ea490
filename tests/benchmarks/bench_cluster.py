"""Two workers of one thread each, against one process with two threads.

Photos are read from files. Both have built their network before the clock starts, and
no row is stored before. Then the caller's peak memory, for a few and for many rows.

Usage: OMP_NUM_THREADS=2 python tests/benchmarks/bench_cluster.py speed|memory [rows]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from distributed import Client, LocalCluster
from PIL import Image

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

TURNS, PHOTOS = 3, {"mini": 2000, "resnet50": 160}
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


def processor_seconds(client):
    """Seconds of processor time that the caller and all workers have used."""
    return time.process_time() + sum(client.run(time.process_time).values())


def speed(folder, client):
    for name, n in PHOTOS.items():
        few, many = (write_photos(folder, k, seed) for seed, k in ((0, 64), (1, n)))
        rates = {"loky": [], "dask": []}
        for turn in range(TURNS):  # in turns, since the machine may not be idle
            for backend, found in rates.items():
                store = FeatureStore(Path(folder) / f"{name}-{backend}-{turn}")
                features = PretrainedCNNFeatures(
                    name, weights=WEIGHTS[name], cache=store
                )
                start_up = seconds_of(features, few, backend)
                before = processor_seconds(client)
                found.append(n / seconds_of(features, many, backend))
                used = (processor_seconds(client) - before) / n
                print(
                    f"{name} {backend}: {found[-1]:.1f}/s, {1000 * used:.2f} ms of "
                    f"processor time each, start-up {start_up:.1f} s",
                    flush=True,
                )
        ratios = np.divide(rates["dask"], rates["loky"])
        print(f"{name}: cluster / process = {ratios.round(3)}", flush=True)


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


def serve():
    """Run the scheduler and its workers, and print the address."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()  # until the caller ends


def main(what, n_rows):
    if what == "serve":
        return serve()
    program = [sys.executable, __file__, "serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(program, **pipes) as cluster,
        Client(cluster.stdout.readline().strip()) as client,
    ):
        speed(folder, client) if what == "speed" else memory(folder, n_rows)
        cluster.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory", "serve"))
    parser.add_argument("n_rows", type=int, nargs="?", default=2000)
    main(**vars(parser.parse_args()))
