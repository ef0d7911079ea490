"""What fine-tuning brings, and how fast it is.

    python tests/benchmarks/bench_finetune.py accuracy DATA [--seeds 3]
    python tests/benchmarks/bench_finetune.py transfer DATA [--epochs 8]
    python tests/benchmarks/bench_finetune.py speed
    python tests/benchmarks/bench_finetune.py augmentation
    python tests/benchmarks/bench_finetune.py memory
    python tests/benchmarks/bench_finetune.py latency

DATA is a folder with `hymenoptera/{train,val}`, `weights/squeezenet1_0-imagenet.pth`
and `cifar10_subset.npz`. "accuracy" compares frozen features, a trained head, tuned
blocks and training from scratch; "transfer" trains a small network on five classes and
reuses it for five others; "speed" times the head phase and the joint phase beside
plain loops; "augmentation" times the joint phase with each kind; "memory" prints the
peak of anonymous memory for more and more images; "latency" times the prediction of
one image.
"""

import argparse
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import models

from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures, load_image_folder


def compare_accuracy(data, seeds):
    train, val = (load_image_folder(data / "hymenoptera" / s) for s in ("train", "val"))
    weights = data / "weights" / "squeezenet1_0-imagenet.pth"
    frozen = make_pipeline(
        PretrainedCNNFeatures("squeezenet1_0", weights=weights),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=1000),
    ).fit(train.data, train.target)
    print(f"frozen features, logistic: {frozen.score(val.data, val.target):.3f}")
    settings = {
        "head only": {"unfreeze": 0, "weights": weights},
        "fine-tuned, 1 block": {"unfreeze": 1, "weights": weights},
        "fine-tuned, 2 blocks": {"unfreeze": 2, "weights": weights},
        "from scratch": {"unfreeze": "all", "weights": None},
    }
    for name, parameters in settings.items():
        scores, started = [], time.perf_counter()
        for seed in range(seeds):
            clf = FineTunedClassifier("squeezenet1_0", random_state=seed, **parameters)
            clf.fit(train.data, train.target)
            scores.append(clf.score(val.data, val.target))
        seconds = (time.perf_counter() - started) / seeds
        shown = " ".join(f"{score:.3f}" for score in scores)
        print(f"{name:25}: {np.mean(scores):.3f} ({shown}), {seconds:.0f} s a fit")


def compare_transfer(data, epochs, n=1000):
    cifar = np.load(data / "cifar10_subset.npz")
    X, y = cifar["X_train"], cifar["y_train"]
    test_X, test_y = cifar["X_test"], cifar["y_test"]
    old, new = y < 5, y >= 5
    test = test_y >= 5
    common = {"augment": "none", "random_state": 0, "head_epochs": 0}
    base = FineTunedClassifier(
        "smallcnn", weights=None, unfreeze="all", epochs=2 * epochs, **common
    ).fit(X[old], y[old])
    base.save_weights("smallcnn-0-4.safetensors")
    print(f"base on classes 0-4: {base.score(test_X[~test], test_y[~test]):.3f}")
    settings = {
        "transfer": {"weights": "smallcnn-0-4.safetensors", "unfreeze": 0},
        "scratch": {"weights": None, "unfreeze": "all"},
    }
    figure, axes = plt.subplots(layout="constrained")
    for name, parameters in settings.items():
        scores = []
        for k in range(1, epochs + 1):  # the same schedule, cut short
            clf = FineTunedClassifier("smallcnn", epochs=k, **parameters, **common)
            clf.fit(X[new][:n], y[new][:n])
            scores.append(clf.score(test_X[test], test_y[test]))
        seconds = np.mean([entry["seconds"] for entry in clf.history_])
        shown = " ".join(f"{score:.3f}" for score in scores)
        axes.plot(range(1, epochs + 1), scores, "o-", label=f"{name}, {seconds:.2f} s")
        print(f"{name:9}: after 1, 2, ... epochs {shown}; {seconds:.2f} s an epoch")
    axes.set(xlabel="epochs", ylabel="accuracy on unseen images of classes 5-9")
    axes.legend(title="time of an epoch")
    figure.savefig("transfer.png", dpi=150)


def compare_speed(n=128):
    photos = np.random.default_rng(0).integers(0, 256, (n, 232, 232, 3), np.uint8)
    y = np.arange(n) % 2
    clf = FineTunedClassifier(
        "resnet18", weights=None, unfreeze=2, augment="none", epochs=2, head_epochs=2
    )
    clf.set_params(unfreeze=0).fit(photos, y)
    head = np.mean([entry["seconds"] for entry in clf.history_])
    features = PretrainedCNNFeatures("resnet18", weights=None, cache=None)
    features.transform(photos[:8])
    started = time.perf_counter()
    features.transform(photos)
    trunk = time.perf_counter() - started
    print(f"an epoch of the head: {head:.4f} s; the trunk forward {trunk:.2f} s")
    print(f"  ratio {trunk / head:.0f}")
    clf.set_params(unfreeze="all", augment="none", head_epochs=0).fit(photos, y)
    ours = n / min(entry["seconds"] for entry in clf.history_)
    plain = plain_loop(photos, y)
    print(f"joint, all blocks: {ours:.1f} images/s; plain loop {plain:.1f}")


def plain_loop(photos, y, epochs=2):
    """Images per second of the loop that a user would write."""
    net = models.resnet18(weights=None, num_classes=2)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485,) * 3, (0.229,) * 3))
    X = torch.from_numpy(photos).permute(0, 3, 1, 2)[:, :, 4:228, 4:228].contiguous()
    targets, best = torch.from_numpy(y), 0.0
    net.train()
    for _ in range(epochs):
        started = time.perf_counter()
        for rows in torch.randperm(len(X)).split(32):
            batch = (X[rows].float() / 255 - mean) / std
            loss = torch.nn.functional.cross_entropy(net(batch), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max(best, len(X) / (time.perf_counter() - started))
    return best


def compare_augmentations(n=256, rounds=3):
    """Images per second of the joint phase, all kinds in turn, best of the rounds."""
    photos, y = made_photos(n, 110), np.arange(n) % 2
    best = dict.fromkeys(["none", "light", "standard", "strong"], 0.0)
    for _ in range(rounds):
        for augment in best:
            clf = FineTunedClassifier(
                augment=augment, epochs=2, head_epochs=0, random_state=0
            ).fit(photos, y)
            seconds = min(entry["seconds"] for entry in clf.history_)
            best[augment] = max(best[augment], n / seconds)
    for augment, speed in best.items():
        print(f"joint phase of 'mini', augment={augment!r}: {speed:.0f} images/s")


def made_photos(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)


class Photos:
    """Images that are made when they are asked for."""

    def __init__(self, n, side):
        self.n, self.side = n, side

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return rng.integers(0, 256, (self.side, self.side, 3), np.uint8)


def measure_memory():
    for n, size in ((1000, 96), (4000, 96), (250, 224), (1000, 224)):
        clf = FineTunedClassifier(
            image_size=size, head_epochs=1, epochs=1, random_state=0
        )
        clf.fit(Photos(40, size), np.arange(40) % 2)
        peaks, done = [anonymous_memory()], threading.Event()
        watcher = threading.Thread(target=watch_memory, args=(peaks, done))
        watcher.start()
        clf.fit(Photos(n, size + size // 7), np.arange(n) % 2)
        done.set()
        watcher.join()
        print(
            f"{n} images of {size} pixels: {peaks[0]:.0f} MB idle, {max(peaks):.0f} MB"
        )


def watch_memory(peaks, done):
    while not done.wait(0.005):
        peaks.append(anonymous_memory())


def anonymous_memory():
    """Megabytes of this process that are in no file; Linux says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("RssAnon"))


def measure_latency(n=40):
    photos, y = made_photos(n, 110), np.arange(n) % 2
    for unfreeze in (0, 1):
        clf = FineTunedClassifier(unfreeze=unfreeze, epochs=1, cache=None)
        clf.fit(photos, y).predict(photos[:1])
        times = []
        for i in range(n):
            started = time.perf_counter()
            clf.predict(photos[i : i + 1])
            times.append(time.perf_counter() - started)
        print(f"unfreeze={unfreeze}: one image in {1000 * np.median(times):.1f} ms")


WITHOUT_DATA = {
    "speed": compare_speed,
    "augmentation": compare_augmentations,
    "memory": measure_memory,
    "latency": measure_latency,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "transfer", *WITHOUT_DATA])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    if args.what == "accuracy":
        compare_accuracy(args.data, args.seeds)
    elif args.what == "transfer":
        compare_transfer(args.data, args.epochs)
    else:
        WITHOUT_DATA[args.what]()


if __name__ == "__main__":
    main()
