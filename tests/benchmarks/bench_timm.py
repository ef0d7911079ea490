"""Milliseconds an image for networks of timm, beside timm itself.

    python tests/benchmarks/bench_timm.py            # one thread, batches of 8

Weights are random. "loop" reads photos with Pillow and timm's transform, one after the
other, and runs the network in batches; the other columns read the same files.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import timm
import torch
from PIL import Image

from skdeepfeat import PretrainedCNNFeatures

torch.set_num_threads(1)
NAMES = """
efficientnet_b0 tf_efficientnet_b0 regnety_016 resnet50 convnext_atto
vit_tiny_patch16_224 mobileone_s0 repvgg_a0
""".split()
N, BATCH = 32, 8


def photos(folder):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(N):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        paths.append(str(folder / f"{i}.jpg"))
        coarse.resize((640, 480)).save(paths[-1], quality=90)
    return paths


def seconds(function):
    """The shorter of two runs, after one that prepares."""
    function()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def timm_loop(net, transform, paths):
    rows = []
    for start in range(0, N, BATCH):
        some = [Image.open(p).convert("RGB") for p in paths[start : start + BATCH]]
        rows.append(net(torch.stack([transform(image) for image in some])))
    return torch.cat(rows)


@torch.inference_mode()
def measure(name, paths):
    net = timm.create_model(name, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(net)
    transform = timm.data.create_transform(**config)
    x = torch.randn(BATCH, *config["input_size"])
    found = {"network alone": seconds(lambda: net(x)) / BATCH}
    found["loop"] = seconds(lambda: timm_loop(net, transform, paths)) / N
    for engine in ("torch", "openvino"):
        features = PretrainedCNNFeatures(
            f"timm/{name}",
            weights=None,
            cache=None,
            engine=engine,
            batch_size=BATCH,
            n_jobs=1,
        )
        found[engine] = seconds(lambda f=features: f.transform(paths)) / N
    return found


def main(names):
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder))
        for name in names:
            found = measure(name, paths)
            cells = [f"{what} {1000 * s:.1f}" for what, s in found.items()]
            print(f"{name:24}", ", ".join(cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    main(parser.parse_args().names)
