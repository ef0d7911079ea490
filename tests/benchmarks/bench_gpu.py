"""Speed on a GPU beside what one would write, as tables for docs/performance.md.

    python tests/benchmarks/bench_gpu.py [--networks resnet50 ...] > tables.md
    python tests/benchmarks/bench_gpu.py --device cpu --images 64 --small

The bare loop is a careful user's: torchvision's network without its head, in eval mode
under inference_mode, compiled, channels last, fed by a DataLoader with one worker for
each core and pinned memory; its workers, and the processes that decode here, are there
before the clock starts. All networks but "mini" have random weights, which does not
change their speed. "float32" is never rounded to TF32, neither here nor in the bare
loop; torch by itself rounds in convolutions. The second line tries the code where there
is no GPU, with small images; its figures mean nothing. Quote ratios, not rates.
"""

import argparse
import contextlib
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_features import make_photos
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

import skdeepfeat
from skdeepfeat import PretrainedCNNFeatures, clear_caches
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._engines.base import PooledLayers
from skdeepfeat._engines.running import Engine
from skdeepfeat._images.batches import read_batches
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.crew import FEWEST, Crew, Helped, crew, may_start
from skdeepfeat._images.preparing import Preparation
from skdeepfeat._networks.building import build_network
from skdeepfeat._networks.layers import resolve_layer
from skdeepfeat._processes import wait_until

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}
N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
NO_GPU = (
    "Nothing is measured: torch sees no CUDA device here. To try the code on a CPU, "
    "type: python tests/benchmarks/bench_gpu.py --device cpu --images 64 --small"
)


@dataclass(frozen=True)
class Trial:
    """What is measured, and on what."""

    device: str
    networks: list[str]
    precisions: list[str]
    batch_sizes: tuple[int, int]
    sources: dict[str, list]  # of arrays, and of paths
    image_size: int | None  # None: the network's own
    passes: int
    compiler: str

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def wait(self) -> None:
        """Return when the device has done all that it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


# Measuring --------------------------------------------------------------------------


def items_per_second(run, n_items, passes, wait, clock=time.perf_counter):
    """The median of some passes, after one that is not counted."""
    seconds = []
    for _ in range(passes + 1):
        started = clock()
        run()
        wait()
        seconds.append(clock() - started)
    return n_items / float(np.median(seconds[1:]))


def measure(trial, run, n_images):
    """Images a second, and the peak of memory on the device in MiB."""
    if not trial.on_gpu:
        return items_per_second(run, n_images, trial.passes, trial.wait), None
    torch.cuda.reset_peak_memory_stats(trial.device)
    rate = items_per_second(run, n_images, trial.passes, trial.wait)
    return rate, torch.cuda.max_memory_allocated(trial.device) / 2**20


@contextlib.contextmanager
def rounding(precision):
    """A context in which torch rounds to TF32, or never."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


# What one would write ---------------------------------------------------------------


class Photos(Dataset):
    """Arrays or files, as a network wants them."""

    def __init__(self, items, recipe):
        self.items, self.recipe = items, recipe

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        item = self.items[i]
        if isinstance(item, str):
            return self.recipe(Image.open(item).convert("RGB"))
        return self.recipe(Image.fromarray(item))


def source_of(trial, name):
    """Weights and preprocessing of a network."""
    weights = "default" if name == "mini" else None
    return resolve_source(name, weights, 0, trial.image_size)


def recipe_of(spec):
    """torchvision's preprocessing with these figures."""
    return ImageClassification(
        crop_size=spec.image_size,
        resize_size=spec.resize,
        mean=spec.mean,
        std=spec.std,
        interpolation=InterpolationMode(spec.interpolation),
    )


def bare_network(trial, name, precision, memory_format=torch.channels_last):
    """A network without its head, on the device."""
    if name == "mini":
        trunk, _ = build_network(source_of(trial, name))
        net = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        net = models.get_model(name, weights=None)
        head = [child for child, _ in net.named_children()][-1]
        setattr(net, head, nn.Identity())
    net = net.eval().requires_grad_(False)
    return net.to(trial.device, DTYPES[precision], memory_format=memory_format)


def compiled(trial, network):
    """The network as torch compiles it, forgetting those before."""
    torch.compiler.reset()
    return torch.compile(network, dynamic=False, backend=trial.compiler)


def eager(trial, network):
    """The network as it is."""
    return network


def bare_loop(trial, network, recipe, items, precision, batch_size):
    """A function that makes features of all images."""
    loader = DataLoader(
        Photos(items, recipe),
        batch_size,
        num_workers=N_CORES,
        persistent_workers=True,
        pin_memory=trial.on_gpu,
    )

    @torch.inference_mode()
    def run():
        rows = []
        for batch in loader:
            batch = batch.to(trial.device, non_blocking=True)
            batch = batch.to(DTYPES[precision], memory_format=torch.channels_last)
            rows.append(network(batch))
        return torch.cat(rows).float().cpu().numpy()

    return run


# Tables -----------------------------------------------------------------------------


def shown(value):
    """A cell of a table: three digits, or what it says."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown_rows(head, rows):
    """The lines of a Markdown table, each as soon as its row is there."""
    for cells in itertools.chain([head, ["---"] * len(head)], rows):
        assert len(cells) == len(head)
        yield f"| {' | '.join(map(shown, cells))} |"


SPEED = [
    *("network", "precision", "from", "bare, {} at once", "bare, {} at once"),
    *("here, auto", "here, {} at once", "here / bare", "bare, MiB", "here, MiB"),
]


def speed_head(trial):
    """Titles of the first table."""
    first, second = trial.batch_sizes
    sizes = iter((first, second, second))
    return [title.format(next(sizes)) if "{}" in title else title for title in SPEED]


def speed_rows(trial):
    """Images a second of whole calls; the ratio is that of the best of each."""
    for name, precision in itertools.product(trial.networks, trial.precisions):
        here = here_speeds(trial, name, precision)
        clear_caches()  # what is measured next has the memory for itself
        bare = bare_speeds(trial, name, precision)
        for source in trial.sources:
            yield [name, precision, source, *speed_cells(bare[source], here[source])]


def bare_speeds(trial, name, precision):
    """What the bare loop reaches with each source, in batches of each size."""
    recipe = recipe_of(source_of(trial, name).input)
    network = compiled(trial, bare_network(trial, name, precision))

    def speed(items, size):
        loop = bare_loop(trial, network, recipe, items, precision, size)
        return measure(trial, loop, len(items))

    with rounding(precision):
        return {
            source: [speed(items, size) for size in trial.batch_sizes]
            for source, items in trial.sources.items()
        }


def here_speeds(trial, name, precision):
    """What is reached here with each source, in default batches and in large ones."""
    sizes = "auto", trial.batch_sizes[1]
    return {
        source: [
            measure(trial, ours(trial, name, precision, items, size), len(items))
            for size in sizes
        ]
        for source, items in trial.sources.items()
    }


def speed_cells(bare, here):
    """Rates, their ratio, and memory, of pairs (rate, MiB)."""
    rates = [rate for rate, _ in (*bare, *here)]
    ratio = max(rate for rate, _ in here) / max(rate for rate, _ in bare)
    return [*rates, ratio, bare[-1][1], here[-1][1]]


def ours(trial, name, precision, items, batch_size):
    """A function that makes features of all images, storing nothing."""
    features = PretrainedCNNFeatures(
        name,
        weights="default" if name == "mini" else None,
        image_size=trial.image_size,
        device=trial.device,
        precision=precision,
        batch_size=batch_size,
        engine="torch",
        cache=None,
    )
    clear_caches()
    if trial.on_gpu and N_CORES >= FEWEST and may_start():
        wait_for(crew, N_CORES)  # as the workers of a DataLoader
    return lambda: features.transform(items)


ALONE = [
    *("network", "precision", "here", "compiled, channels last"),
    *("eager, channels last", "eager, contiguous"),
]


def alone_rows(trial):
    """Images a second on one batch again and again; here with copies to and fro."""
    for name, precision in itertools.product(trial.networks, trial.precisions):
        here = engine_rate(trial, name, precision)
        clear_caches()
        yield [name, precision, here, *rates_alone(trial, name, precision)]


def rates_alone(trial, name, precision):
    """Images a second of the bare network: compiled, channels last, contiguous."""
    last, contiguous = torch.channels_last, torch.contiguous_format
    settings = [(compiled, last), (eager, last), (eager, contiguous)]
    with rounding(precision):
        return [
            network_rate(
                trial,
                prepare(trial, bare_network(trial, name, precision, layout)),
                precision,
                layout,
                source_of(trial, name).input.image_size,
            )
            for prepare, layout in settings
        ]


def network_rate(trial, network, precision, layout, size, n_batches=8):
    """Images a second of a network on a batch that is on the device."""
    n = trial.batch_sizes[0]
    batch = torch.rand(n, 3, size, size, device=trial.device)
    batch = batch.to(DTYPES[precision], memory_format=layout)

    @torch.inference_mode()
    def run():
        for _ in range(n_batches):
            network(batch)

    return items_per_second(run, n * n_batches, trial.passes, trial.wait)


def make_engine(trial, name, precision):
    """What runs a network here, with the batches of the first size."""
    source = source_of(trial, name)
    layer = resolve_layer(source.backbone, "penultimate", source.input.image_size)
    pooled = PooledLayers(source, source.key(), ((layer, "avg"),))
    return Engine(pooled, (trial.device,), precision, trial.batch_sizes[0])


def engine_rate(trial, name, precision, n_batches=8):
    """Images a second of our steps on the same pixels, with copies to and fro."""
    engine = make_engine(trial, name, precision)
    runner, size = engine.runners[0], engine.spec.image_size
    pixels = np.zeros((engine.batch_size, size, size, 3), np.uint8)

    def run():
        started = deque()
        for _ in range(n_batches):
            started.append(runner.start(runner.load(pixels)))
            if len(started) > runner.ahead:
                runner.finish(started.popleft())
        while started:
            runner.finish(started.popleft())

    n_images = engine.batch_size * n_batches
    return items_per_second(run, n_images, trial.passes, trial.wait)


DECODING = ["network", "from", "threads", "processes", "DataLoader"]


def decoding_rows(trial):
    """Images a second of decoding alone, all cores, here and by a DataLoader."""
    crew = wait_for(Crew(), N_CORES) if may_start() else None
    for name in trial.networks:
        spec = source_of(trial, name).input
        for source, items in trial.sources.items():
            windows = windows_of(items)
            runs = (
                lambda windows=windows, spec=spec: decode(windows, spec),
                lambda windows=windows, spec=spec: decode(windows, spec, crew),
                load_all(Photos(items, recipe_of(spec)), trial.batch_sizes[0]),
            )
            rates = [
                items_per_second(run, len(items), trial.passes, trial.wait)
                for run in runs
            ]
            yield [name, source, *rates]
    if crew:
        crew.end()


def wait_for(crew, n):
    """The crew, once so many of its processes are there."""
    crew.start(n - len(crew.free))
    wait_until(lambda: all(one.is_ready for one in [*crew.free]), lambda seconds: None)
    return crew


def windows_of(items):
    """All rows as beside a GPU, with digests of files that are known."""
    images = read_images(items)
    for _ in range(2):  # the first time, files are held that have to be read
        windows = list(images.windows_ahead(lambda names: None, N_CORES, False))
    return windows


def decode(windows, spec, crew=None):
    """Make all batches of a network, ahead of nothing."""
    how = Preparation(spec)
    options = (how, 64, N_CORES, True)
    for window in windows:
        helped = Helped(window, how, N_CORES, crew) if crew else None
        for _ in read_batches(window, list(window.keys), *options, helped):
            pass


def load_all(photos, batch_size):
    """A function that goes through a DataLoader."""
    loader = DataLoader(
        photos, batch_size, num_workers=N_CORES, persistent_workers=True
    )
    return lambda: deque(loader, maxlen=0)


# The report -------------------------------------------------------------------------


def machine(trial):
    """Where the figures come from, in one sentence."""
    parts = [platform.processor() or platform.machine(), f"{N_CORES} cores"]
    parts += [f"torch {torch.__version__}", f"skdeepfeat {skdeepfeat.__version__}"]
    if trial.on_gpu:
        about = torch.cuda.get_device_properties(trial.device)
        memory = f"{about.total_memory / 2**30:.0f} GiB"
        parts = [about.name, memory, f"driver {driver()}", *parts]
    return f"{', '.join(parts)}; {len(trial.sources['files'])} photos."


def driver():
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.split("\n")[0]


TABLES = {  # each with its title, the titles of its columns, and its rows
    "speed": ("Images a second", speed_head, speed_rows),
    "alone": ("The network alone", lambda trial: ALONE, alone_rows),
    "decoding": ("Decoding alone", lambda trial: DECODING, decoding_rows),
}


def report(trial, tables):
    """Print these tables, row by row."""
    print(machine(trial))
    for title, head, rows in map(TABLES.get, tables):
        print(f"\n### {title}\n")
        for line in markdown_rows(head(trial), rows(trial)):
            print(line, flush=True)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--precisions", nargs="*", choices=DTYPES)
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=[*TABLES])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="only try the code")
    return parser.parse_args(arguments)


def make_trial(args, folder):
    """The trial that was asked for, its photos written to a folder."""
    photos = make_photos(args.images)
    files = [str(Path(folder) / f"{i}.jpg") for i in range(len(photos))]
    for photo, path in zip(photos, files, strict=True):
        photo.save(path, quality=90)
    arrays = np.stack([np.asarray(photo.resize((256, 256))) for photo in photos])
    networks = ["resnet18", "mini"] if args.small else ["resnet50", "vit_b_16", "mini"]
    precisions = ["float32", "bfloat16"] if args.small else [*DTYPES]
    return Trial(
        device=args.device,
        networks=args.networks or networks,
        precisions=args.precisions or precisions,
        batch_sizes=(8, 16) if args.small else (64, 256),
        sources={"arrays": arrays, "files": files},
        image_size=64 if args.small else None,
        passes=1 if args.small else args.passes,
        compiler="eager" if args.small else "inductor",
    )


def main(arguments=None):
    args = parse(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        print(NO_GPU)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(make_trial(args, folder), args.tables)


if __name__ == "__main__":
    sys.exit(main())
