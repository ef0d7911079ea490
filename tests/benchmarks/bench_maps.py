"""How often the strongest place of a map lies in the object that makes the class.

    python tests/benchmarks/bench_maps.py DATA [--network NAME] [--layer NAME]

DATA has `hymenoptera/{train,val}` and `weights/squeezenet1_0-imagenet.pth`. A disc of
rays or a chessboard is pasted at a random place of each photo, and is its class. For
six heads and three poolings, prints the accuracy, the share of test photos whose
strongest place overlaps the object, and the share that chance would give; then how fast
the probability of the class falls as the strongest places are covered with grey, beside
random places.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from skdeepfeat import PretrainedCNNFeatures, activation_maps, load_image_folder

SIDE = 224  # of the photos
OBJECT = 72  # side of the object
HEADS = {
    "logistic": LogisticRegression(C=0.1, max_iter=1000),
    "SVC": SVC(),
    "calibrated": CalibratedClassifierCV(LinearSVC(C=0.01), cv=3),
    "forest": RandomForestClassifier(300, random_state=0),
    "kNN": KNeighborsClassifier(15, weights="distance"),
    "boosting": GradientBoostingClassifier(
        n_estimators=60, subsample=0.5, max_features=0.1, random_state=0
    ),
}
POOLINGS = ("avg", "max", "gem")
LAYERS = {
    "mini": ("block4", "block5", "block6"),
    "squeezenet1_0": ("block4", "block7", "block8"),
}


def make_object(kind: int, rng) -> np.ndarray:
    """A disc of rays or a chessboard, light and dark: (side, side, 4)."""
    y, x = np.mgrid[:OBJECT, :OBJECT] - (OBJECT - 1) / 2
    if kind == 0:
        pattern = np.sin(8 * np.arctan2(y, x) + rng.uniform(0, 6)) > 0
        shape = x**2 + y**2 < (OBJECT / 2) ** 2
    else:
        pattern = (x // 8 + y // 8) % 2 == 0
        shape = np.ones_like(pattern)
    light, dark = rng.integers(200, 256, 3), rng.integers(0, 56, 3)
    pixels = np.where(pattern[..., None], light, dark)
    return np.concatenate([pixels, 255 * shape[..., None]], 2).astype(np.uint8)


def make_set(paths, rng):
    """Each photo with either object: (n, SIDE, SIDE, 3), classes, and its corners."""
    photos, corners = [], []
    paths, classes = np.repeat(paths, 2), np.arange(2 * len(paths)) % 2
    for path, kind in zip(paths, classes, strict=True):
        photo = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        corner = rng.integers(0, SIDE - OBJECT + 1, 2)  # x, y
        one = Image.fromarray(make_object(kind, rng), "RGBA")
        photo.paste(one, tuple(corner.tolist()), one)
        photos.append(np.asarray(photo))
        corners.append(corner)
    return np.stack(photos), classes, np.stack(corners)


def overlaps(n: int, corners) -> np.ndarray:
    """Which of n × n places overlap the object: (n_photos, n, n)."""
    first = np.arange(n) * SIDE / n
    inside = [
        (first + SIDE / n > c[:, None]) & (first < c[:, None] + OBJECT)
        for c in corners.T
    ]  # along x, along y
    return inside[1][:, :, None] & inside[0][:, None, :]


def hits(maps, corners) -> tuple[float, float]:
    """Share of maps whose strongest place is in the object, and of chance."""
    inside = overlaps(maps.shape[1], corners).reshape(len(maps), -1)
    strongest = maps.reshape(len(maps), -1).argmax(1)
    return inside[np.arange(len(maps)), strongest].mean(), inside.mean()


def deletion(model, photos, classes, order) -> np.ndarray:
    """Mean probability of the class as more places are covered with grey."""
    n = int(np.sqrt(order.shape[1]))
    step = SIDE // n
    found = []
    for k in range(0, n * n // 2 + 1, max(1, n * n // 12)):
        covered = photos.copy()
        for photo, places in zip(covered, order[:, :k], strict=True):
            for y, x in zip(*np.divmod(places, n), strict=True):
                photo[y * step : (y + 1) * step, x * step : (x + 1) * step] = 128
        likely = model.predict_proba(covered)
        found.append(likely[np.arange(len(photos)), classes].mean())
    return np.array(found)


def measure(name: str, data: Path, layers) -> None:
    """Print the hits of all heads, poolings and layers of a network."""
    weights = {"squeezenet1_0": str(data / "weights/squeezenet1_0-imagenet.pth")}
    rng = np.random.default_rng(0)
    train = make_set(load_image_folder(data / "hymenoptera/train").data, rng)
    test = make_set(load_image_folder(data / "hymenoptera/val").data[::4], rng)
    for layer in layers or LAYERS[name]:
        for pooling in POOLINGS:
            features = PretrainedCNNFeatures(
                name,
                weights=weights.get(name, "default"),
                layer=layer,
                pooling=pooling,
                image_size=None if name == "mini" else 224,
            )
            for head in HEADS:
                measure_head(head, features, train, test)


def measure_head(head: str, features, train, test) -> None:
    """Print the hits of one head on one layer."""
    model = make_pipeline(features, StandardScaler(), clone(HEADS[head]))
    model.fit(train[0], train[1])
    photos, classes, corners = test
    score = model.score(photos, classes)
    maps = activation_maps(model, photos, target=classes)
    hit, chance = hits(maps, corners)
    print(
        f"{features.backbone} {features.layer} {features.pooling} {head}: accuracy "
        f"{score:.3f}, in the object {hit:.3f} (chance {chance:.2f}), {maps.shape[1:]}",
        flush=True,
    )


def measure_deletion(data: Path) -> None:
    """Print deletion curves of the places of maps, and of random places."""
    rng = np.random.default_rng(0)
    train = make_set(load_image_folder(data / "hymenoptera/train").data, rng)
    photos, classes, _ = make_set(
        load_image_folder(data / "hymenoptera/val").data[::8], rng
    )
    head = LogisticRegression(C=0.1, max_iter=1000)
    model = make_pipeline(PretrainedCNNFeatures(layer="block5"), StandardScaler(), head)
    model.fit(train[0], train[1])
    maps = activation_maps(model, photos, target=classes).reshape(len(photos), -1)
    by_map = deletion(model, photos, classes, np.argsort(-maps, 1))
    by_chance = deletion(
        model, photos, classes, rng.permuted(np.argsort(maps, 1), axis=1)
    )
    print("deletion, strongest places first:", by_map.round(2).tolist())
    print("deletion, random places:", by_chance.round(2).tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", choices=LAYERS, default="mini")
    parser.add_argument("--layer", action="append", help="in place of several")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    measure(given.network, given.data, given.layer)
    if given.network == "mini":
        measure_deletion(given.data)
