"""Speed of `transform` beside what one would write or install instead, in one run.

    pip install -e '.[bench]'
    python tests/benchmarks/bench_features.py [PART ...] [--networks resnet18 ...]

All networks have random weights, which does not change their speed. The bare loop is
what a user would write: batches of 32, the published preprocessing of each image, the
network in eval mode under inference_mode. Packages that are not installed are said to
be missing. Quote ratios, not rates: machines drift.
"""

import argparse
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import models

from skdeepfeat import PretrainedCNNFeatures, clear_caches, list_layers
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._engines.base import PooledLayers
from skdeepfeat._engines.running import Engine
from skdeepfeat._images.batches import read_batches
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.preparing import Preparation
from skdeepfeat._networks.layers import resolve_layer

ARCHITECTURE = {"mini": "mobilenet_v2"}  # of about the same cost at 224 pixels
PEERS = {"img2vec": "img2vec_pytorch", "embetter": "embetter", "timm": "timm"}
TIMM_NAMES = {"mobilenet_v3_large": "mobilenetv3_large_100"}


def make_photos(n, width=500, height=375):
    """n smooth random images as people take them, in small."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 24, 32, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize((width, height), Image.BICUBIC) for c in coarse]


def rate(function, items):
    """Items a second, after a first few that are not counted."""
    function(items[:9])
    started = time.perf_counter()
    function(items)
    return len(items) / (time.perf_counter() - started)


def median_ms(function, n=30):
    """Median milliseconds of a call."""
    function()
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


# Ours, and what else there is: network → a function of PIL images --------------------


def ours(name, **parameters):
    """The estimator, storing nothing."""
    weights = "default" if name == "mini" else None
    features = PretrainedCNNFeatures(name, weights=weights, cache=None, **parameters)
    return features.transform


def bare_network(name):
    """The trunk of torchvision's network, and its published preprocessing."""
    name = ARCHITECTURE.get(name, name)
    net = models.get_model(name, weights=None).eval()
    trunk = torch.nn.Sequential(*list(net.children())[:-1])
    return trunk, models.get_model_weights(name).DEFAULT.transforms()


def bare_loop(name):
    """Average-pooled last maps, as written by hand."""
    trunk, recipe = bare_network(name)

    @torch.inference_mode()
    def loop(photos):
        rows = []
        for start in range(0, len(photos), 32):
            batch = torch.stack([recipe(photo) for photo in photos[start : start + 32]])
            rows.append(trunk(batch).mean((2, 3)).numpy())
        return np.concatenate(rows)

    return loop


def img2vec(name):
    """img2vec_pytorch: one batch for each call, whatever its size."""
    from img2vec_pytorch import img_to_vec

    build = functools.partial(models.get_model, name)
    setattr(img_to_vec, name, lambda weights: build(weights=None))
    features = img_to_vec.Img2Vec(model=name)
    return lambda photos: [
        features.get_vec(photos[start : start + 32])
        for start in range(0, len(photos), 32)
    ]


def embetter(name):
    """embetter's TimmEncoder."""
    import timm
    from embetter.vision import TimmEncoder

    create = timm.create_model
    timm.create_model = lambda name, pretrained, **options: create(name, **options)
    try:
        return TimmEncoder(TIMM_NAMES.get(name, name)).transform
    finally:
        timm.create_model = create


def timm_loop(name):
    """timm's network and preprocessing, in batches of 32."""
    import timm
    from timm.data import create_transform, resolve_data_config

    net = timm.create_model(TIMM_NAMES.get(name, name), num_classes=0).eval()
    recipe = create_transform(**resolve_data_config({}, model=net))

    @torch.inference_mode()
    def loop(photos):
        return [
            net(torch.stack([recipe(photo) for photo in photos[start : start + 32]]))
            for start in range(0, len(photos), 32)
        ]

    return loop


LOOPS = {
    "bare loop": bare_loop,
    "img2vec": img2vec,
    "embetter": embetter,
    "timm": timm_loop,
    "ours, torch": functools.partial(ours, engine="torch"),
    "ours, openvino": functools.partial(ours, engine="openvino"),
}


def available(name):
    """Loops that run here for a network."""
    for label, make in LOOPS.items():
        package = PEERS.get(label, "openvino" if "openvino" in label else "torch")
        if importlib.util.find_spec(package) is None:
            print(f"{label}: not installed, left out")
            continue
        if label in PEERS and name == "mini":
            continue  # ours alone
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield label, make(name)
        except (KeyError, NotImplementedError) as error:
            print(f"{label}: does not know {name} ({error})")


# Parts of the report ------------------------------------------------------------------


def report_speed(name, photos, paths):
    """Images a second from PIL images and from JPEG files."""

    def opened(loop, some):
        return loop([Image.open(path).convert("RGB") for path in some])

    rates = {}
    for label, loop in available(name):
        from_paths = loop if "ours" in label else functools.partial(opened, loop)
        rates[label] = rate(loop, photos), rate(from_paths, paths)
    print(f"\n{name}, {len(photos)} images    images/s: images    files; bare = 1")
    for label, both in rates.items():
        ratios = np.divide(both, rates["bare loop"])
        print(
            f"  {label:20}{both[0]:10.1f}{both[1]:10.1f}"
            f"{ratios[0]:10.2f}{ratios[1]:8.2f}"
        )


def report_batches(name, photos, paths):
    """Images a second by the batch size asked for."""
    sizes = (1, 32, "auto", 100_000)
    rates = [rate(ours(name, batch_size=size), photos) for size in sizes]
    shown = ", ".join(f"{s}: {r:.1f}" for s, r in zip(sizes, rates, strict=True))
    print(f"\n{name}, images/s by batch_size   {shown}")


def report_latency(name, photos, paths):
    """One image at a time, beside the bare network with and without preprocessing."""
    trunk, recipe = bare_network(name)
    x = recipe(photos[0])[None]
    with torch.inference_mode():
        network = median_ms(lambda: trunk(x))
        both = median_ms(lambda: trunk(recipe(photos[0])[None]))
    own = {}
    for engine in engines():
        transform = ours(name, engine=engine)
        own[engine] = median_ms(lambda t=transform: t(photos[:1]))
    shown = ", ".join(f"ours with {e} {ms:.1f}" for e, ms in own.items())
    print(
        f"\n{name}, ms for one image   bare network {network:.1f}, with preprocessing "
        f"{both:.1f}, {shown}"
    )


def report_depth(name, photos, paths):
    """Cost of stopping early, as part of the whole pass."""
    seconds = {}
    for layer in list_layers(name):
        if layer.alias != "logits":
            transform = ours(
                name, layer=layer.alias, prefetch_layers=[], engine="torch"
            )
            seconds[layer.alias] = 1 / rate(transform, photos)
    whole = seconds["penultimate"]
    shown = ", ".join(f"{alias} {s / whole:.2f}" for alias, s in seconds.items())
    print(f"\n{name}, cost of a layer as part of the whole   {shown}")


def report_overlap(name, photos, paths):
    """Files to features, beside decoding alone and the network alone."""
    for kind in engines():
        alone = {}
        alone["decoding"], alone["network"] = rates_alone(name, kind, paths)
        together = rate(ours(name, engine=kind), paths)
        serial = 1 / sum(1 / r for r in alone.values())
        shown = ", ".join(f"{part} {r:.1f}" for part, r in alone.items())
        print(
            f"\n{name} with {kind}, images/s from files   {shown}, one after the other "
            f"{serial:.1f}, together {together:.1f}: "
            f"{together / min(alone.values()):.2f} of the slower"
        )


def rates_alone(name, kind, paths):
    """Images a second of decoding, and of the network on the same batch again."""
    source = resolve_source(name, "default" if name == "mini" else None, 0, None)
    layer = resolve_layer(source.backbone, "penultimate", source.input.image_size)
    pooled = PooledLayers(source, source.key(), ((layer, "avg"),))
    engine = Engine(pooled, ("cpu",), "float32", "auto", kind)
    n, runner = engine.batch_size, engine.runners[0]

    def decode(some):
        options = (Preparation(source.input), n, 2, True)
        return list(read_batches(read_images(some), range(len(some)), *options))

    def compute(some):
        started = deque()
        for _ in range(0, len(some), n):
            started.append(runner.start(runner.load(pixels)))
            if len(started) > runner.ahead:
                runner.finish(started.popleft())
        while started:
            runner.finish(started.popleft())

    pixels = decode(paths[:n])[0].pixels
    return rate(decode, paths), rate(compute, [None] * (8 * n))


def engines():
    """The engines that are installed."""
    found = importlib.util.find_spec("openvino")
    return ("torch", "openvino") if found else ("torch",)


def report_start(name, photos, paths):
    """Seconds of a new process, beside those of importing torch and torchvision."""
    first = (
        "from PIL import Image; from skdeepfeat import PretrainedCNNFeatures as P; "
        "P({!r}, weights={!r}, cache=None, engine={!r}).transform([Image.open({!r})])"
    )
    weights = "default" if name == "mini" else None
    codes = {"imports": "import torch, torchvision"}
    for engine in engines():
        codes[engine] = first.format(name, weights, engine, paths[0])
    seconds = {label: [] for label in codes}
    for _ in range(4):
        for label, code in codes.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[label].append(time.perf_counter() - started)
    medians = {label: float(np.median(s[1:])) for label, s in seconds.items()}
    shown = ", ".join(
        f"{label} {s:.2f} ({s / medians['imports']:.2f})"
        for label, s in medians.items()
    )
    print(f"\n{name}, seconds to the first result in a new process   {shown}")


def report_memory(name, photos, paths):
    """Peak memory of processes that transform many images."""
    for n in (1000, 4000):
        command = [sys.executable, __file__, "--measure-memory", str(n)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"\nmini, {n} images   peak {float(done.stdout):.0f} MiB")


class Repeated(list):
    """Many different images that take no memory: made when they are asked for."""

    def __init__(self, n):
        super().__init__([None] * n)

    def __getitem__(self, i):
        return np.full((256, 256, 3), i % 251, np.uint8) + np.uint8(i // 251)


def measure_memory(n):
    """Print the peak of this process in MiB.

    Not getrusage, whose peak counts what the parent held before the fork.
    """
    PretrainedCNNFeatures(cache=None).transform(Repeated(n))
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024)


PARTS = {
    "speed": report_speed,
    "batches": report_batches,
    "latency": report_latency,
    "depth": report_depth,
    "overlap": report_overlap,
    "start": report_start,
    "memory": report_memory,
}
ONCE = ("start", "memory")  # of "mini" alone


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    names = ["mini", "resnet18", "resnet50", "mobilenet_v3_large"]
    parser.add_argument("--networks", nargs="*", default=names)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--measure-memory", type=int)
    args = parser.parse_args()
    if args.measure_memory:
        return measure_memory(args.measure_memory)
    photos = make_photos(args.images)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.jpg") for i in range(len(photos))]
        for photo, path in zip(photos, paths, strict=True):
            photo.save(path, quality=90)
        for part in args.parts:
            for name in ["mini"] if part in ONCE else args.networks:
                PARTS[part](name, photos, paths)
                clear_caches()


if __name__ == "__main__":
    main()
