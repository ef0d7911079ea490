"""What the store saves in a search, and what reading it costs.

    python tests/benchmarks/bench_store.py FOLDER [--layers ...] [--image-size 64]

FOLDER holds photos in one folder for each class. A search over three depths, six heads
and five folds is timed without a store, with `Pipeline(memory=...)`, and with the
store in memory, on disk, and on disk a second time. Then a warm store of 10,000 rows
of 2,048 float32 is read beside `numpy.load`, and pixels are hashed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import (
    FeatureStore,
    PretrainedCNNFeatures,
    clear_caches,
    load_image_folder,
)
from skdeepfeat._images.kinds import digest_array
from skdeepfeat._store.disk import DiskTable


class Column:
    fingerprint, label = b"benchmark", "benchmark"


def timed(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def best_of(n, work):
    return min(timed(work)[0] for _ in range(n))


def search(photos, args, memory=None, **parameters):
    """Mean test scores of all candidates."""
    features = PretrainedCNNFeatures(
        args.backbone, image_size=args.image_size, **parameters
    )
    head = KNeighborsClassifier()
    steps = [("features", features), ("scale", StandardScaler()), ("head", head)]
    grid = {
        "features__layer": args.layers,
        "head__n_neighbors": [1, 3, 5, 7, 9, 11],
    }
    searched = GridSearchCV(Pipeline(steps, memory=memory), grid)
    return searched.fit(photos.data, photos.target).cv_results_["mean_test_score"]


def compare_searches(args, folder):
    photos = load_image_folder(args.photos)
    store = FeatureStore(folder / "store")
    ours = {"prefetch_layers": "all"}
    settings = {
        "no store": {"cache": None},
        "Pipeline(memory=...)": {"cache": None, "memory": str(folder / "joblib")},
        "store in memory": ours,
        "store on disk": ours | {"cache": store},
        "store on disk, again": ours | {"cache": store},
    }
    PretrainedCNNFeatures(args.backbone, cache=None).transform(photos.data[:2])
    print(f"search over 3 layers x 6 heads x 5 folds, {len(photos.data)} photos")
    reference = None
    for name, parameters in settings.items():
        clear_caches()
        seconds, scores = timed(lambda p=parameters: search(photos, args, **p))
        reference = (seconds, scores) if reference is None else reference
        same = np.array_equal(scores, reference[1])
        ratio = reference[0] / seconds
        print(f"  {name:22} {seconds:7.1f} s  {ratio:6.1f}x  same scores: {same}")
    print(f"  images computed for the disk: {store.info()['misses']}")


def compare_reads(folder, n=10_000, width=2_048):
    rows = np.random.default_rng(0).standard_normal((n, width), np.float32)
    keys = [int(i).to_bytes(16, "big") for i in np.random.default_rng(1).permutation(n)]
    np.save(folder / "rows.npy", rows)
    table = DiskTable(folder / "rows", 10**10)
    column = Column()

    def write():
        for start in range(0, n, 64):
            part = slice(start, start + 64)
            table.write(b"c", b"s", keys[part], [(column, rows[part])])

    print(f"{n:,} x {width:,} float32, {rows.nbytes / 1e6:.0f} MB")
    print(f"  written in            {timed(write)[0]:.3f} s")
    out = np.empty_like(rows)
    places = range(n)
    read = best_of(3, lambda: table.read(column.fingerprint, keys, out, places))
    assert (out == rows).all()
    load = best_of(3, lambda: np.load(folder / "rows.npy"))
    print(f"  read in               {read:.3f} s")
    print(f"  numpy.load            {load:.3f} s, {read / load:.1f}x")
    print(f"  on disk               {table.info()['bytes'] / 1e6:.0f} MB")
    table.close()


def measure_hashing(n=500):
    photos = np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), np.uint8)
    seconds = best_of(3, lambda: [digest_array(photo) for photo in photos])
    print(f"arrays hashed at {photos.nbytes / seconds / 1e9:.1f} GB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--image-size", type=int)
    parser.add_argument(
        "--layers", nargs=3, default=["block3", "block5", "penultimate"]
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_searches(args, Path(folder))
        compare_reads(Path(folder))
    measure_hashing()


if __name__ == "__main__":
    main()
