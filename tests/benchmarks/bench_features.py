"""Images per second and peak memory of `transform`, beside the bare torchvision loop.

    python tests/benchmarks/bench_features.py [--backbone resnet18] [--images 256]

Everything is printed in one run, so that ratios hold on a machine whose speed drifts.
The bare loop is what a user would write: batches of 32, the published preprocessing
of each image, the network in eval mode under inference_mode.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import models

from skdeepfeat import PretrainedCNNFeatures, clear_caches


def make_photos(n, side=256):
    """n smooth random images of shape (side, side, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(c).resize((side, side), Image.BICUBIC))
            for c in coarse
        ]
    )


def bare_loop(name, open_image, items):
    """Average-pooled last maps, as written by hand."""
    net = models.get_model(name, weights=None).eval()
    trunk = torch.nn.Sequential(*list(net.children())[:-1])
    recipe = models.get_model_weights(name).DEFAULT.transforms()
    rows = []
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(items), 32):
            batch = torch.stack(
                [recipe(open_image(i)) for i in items[start : start + 32]]
            )
            rows.append(trunk(batch).flatten(1).numpy())
    return len(items) / (time.perf_counter() - started)


def ours(name, items):
    """The same through the estimator, network already built, nothing stored."""
    features = PretrainedCNNFeatures(name, weights=None, cache=None)
    features.transform(items[:9])
    started = time.perf_counter()
    features.transform(items)
    return len(items) / (time.perf_counter() - started)


def speed(name, n):
    photos = make_photos(n)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, photo in enumerate(photos):
            paths.append(str(Path(folder) / f"{i}.jpg"))
            Image.fromarray(photo).save(paths[-1])
        cases = {
            "arrays": (Image.fromarray, photos),
            "paths": (lambda path: Image.open(path).convert("RGB"), paths),
        }
        print(f"{name}, {n} images      bare      ours     ratio")
        for case, (open_image, items) in cases.items():
            bare, own = bare_loop(name, open_image, items), ours(name, items)
            print(f"{case:20}{bare:8.1f}  {own:8.1f}  {own / bare:8.2f}", flush=True)
    clear_caches()


def peak_memory(n):
    """Peak memory of a process of its own that transforms n images, in MiB."""
    command = [sys.executable, __file__, "--measure-memory", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


class Repeated(list):
    """Many different images that take no memory: made when they are asked for."""

    def __init__(self, n):
        super().__init__([None] * n)

    def __getitem__(self, i):
        return np.full((256, 256, 3), i % 251, np.uint8) + np.uint8(i // 251)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--measure-memory", type=int)
    args = parser.parse_args()
    if args.measure_memory:
        PretrainedCNNFeatures(cache=None).transform(Repeated(args.measure_memory))
        # Not getrusage, whose peak counts what the parent held before the fork.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024)
        return
    for name in args.backbone:
        speed(name, args.images)
    for n in (1000, 4000):
        output = n * 576 * 4 / 2**20
        peak = peak_memory(n)
        print(f"{n} images: peak {peak:.0f} MiB, of which output {output:.1f} MiB")


if __name__ == "__main__":
    main()
