"""What "mini" is worth, beside its teacher: linear probes, accuracy by depth, speed.

    python tests/benchmarks/bench_mini.py DATA

DATA has `cifar10_subset.npz`, `hymenoptera/{train,val}` and
`weights/squeezenet1_0-imagenet.pth`. The probe is average pooling, StandardScaler and
LogisticRegression(C=0.01); it was never trained on these images.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from bench_features import engines
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, list_layers, load_image_folder


def load_sets(folder):
    """{name: (train X, train y, test X, test y)}."""
    cifar = np.load(folder / "cifar10_subset.npz")
    train, test = (
        load_image_folder(folder / "hymenoptera" / s) for s in ("train", "val")
    )
    return {
        "CIFAR-10": (
            cifar["X_train"][:2000],
            cifar["y_train"][:2000],
            cifar["X_test"][:1000],
            cifar["y_test"][:1000],
        ),
        "hymenoptera": (train.data, train.target, test.data, test.target),
    }


def probe(features, train_x, train_y, test_x, test_y):
    """Accuracy of a linear classifier on these features."""
    head = LogisticRegression(C=0.01, max_iter=1000)
    pipeline = make_pipeline(features, StandardScaler(), head)
    return pipeline.fit(train_x, train_y).score(test_x, test_y)


def throughput(features, photos):
    """Images per second from arrays, nothing stored: the median after a first pass."""
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        features.transform(photos)
        seconds.append(time.perf_counter() - started)
    return len(photos) / float(np.median(seconds[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data
    sets = load_sets(folder)
    mini = PretrainedCNNFeatures(prefetch_layers="all")
    teacher = PretrainedCNNFeatures(
        "squeezenet1_0", weights=folder / "weights" / "squeezenet1_0-imagenet.pth"
    )
    print(f"{'linear probe':14}" + "".join(f"{name:>14}" for name in sets))
    for name, features in {"mini": mini, "teacher": teacher}.items():
        scores = [probe(features, *data) for data in sets.values()]
        print(f"{name:14}" + "".join(f"{s:14.3f}" for s in scores), flush=True)
    print("\nmini by depth")
    for layer in list_layers("mini"):
        features = mini.set_params(layer=layer.alias)
        scores = [probe(features, *data) for data in sets.values()]
        print(f"{layer.alias:14}" + "".join(f"{s:14.3f}" for s in scores), flush=True)

    for engine in engines():
        report_speed(engine, teacher)


def report_speed(engine, teacher):
    """Images a second with an engine, beside the teacher and ResNet-50."""
    photos = np.random.default_rng(0).integers(0, 256, (768, 256, 256, 3), np.uint8)
    options = {"cache": None, "engine": engine}
    resnet = PretrainedCNNFeatures("resnet50", weights=None)
    networks = {
        "mini": (PretrainedCNNFeatures(), len(photos)),
        "teacher": (teacher, 192),
        "resnet50": (resnet, 64),
    }
    speed = {
        name: throughput(features.set_params(**options), photos[:n])
        for name, (features, n) in networks.items()
    }
    print(f"\nimages per second with {engine}, and how often mini is as fast")
    for name, rate in speed.items():
        print(f"{name:14}{rate:14.1f}{speed['mini'] / rate:14.1f}", flush=True)


if __name__ == "__main__":
    main()
