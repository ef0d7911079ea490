"""ONNX files of ten heads, three networks and three layers, against their pipelines.

Run it with the folder of the ants and bees:

    python tests/benchmarks/bench_onnx.py ../shared/data/hymenoptera

For each network and layer it prints, over the ten heads, the largest difference of
probabilities on the validation photos and the labels that differ without a tie. Then
it compares resizing in the graph with Pillow's, and pickle, skops and ONNX of one
pipeline: size, start-up in a new process, latency of one photo.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import skops.io
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from skdeepfeat import (
    PretrainedCNNFeatures,
    embed_weights,
    load_image_folder,
    to_onnx,
)
from skdeepfeat._composites import divide
from skdeepfeat._onnx.checking import difference, expected_outputs, run, runnable
from skdeepfeat._onnx.examples import examples_of
from skdeepfeat._onnx.exporting import _joined
from skdeepfeat._onnx.heads import convert_head
from skdeepfeat._onnx.networks import export_networks

HEADS = {
    "logistic": LogisticRegression(max_iter=1000),
    "ridge": RidgeClassifier(),
    "svc": SVC(probability=True, random_state=0),
    "calibrated": CalibratedClassifierCV(LinearSVC(), cv=3),
    "forest": RandomForestClassifier(random_state=0),
    "extra trees": ExtraTreesClassifier(random_state=0),
    "knn": KNeighborsClassifier(),
    "boosting": GradientBoostingClassifier(n_estimators=20, random_state=0),
    "bayes": GaussianNB(),
    "mlp": MLPClassifier((50,), max_iter=50, random_state=0),
}
NETWORKS = {  # name: (layers, weights)
    "mini": (("block3", "block6", "penultimate"), "default"),
    "resnet18": (("block2", "block3", "block4"), None),
    "efficientnet_lite0": (("block3", "block6", "penultimate"), "default"),
}


def measure_heads(train, test, networks=tuple(NETWORKS)) -> None:
    """Print the differences of all heads for each network and layer."""
    for name in networks:
        layers, weights = NETWORKS[name]
        for layer in layers:
            features = PretrainedCNNFeatures(name, weights=weights, layer=layer)
            measure_layer(name, features, train, test)


def measure_layer(name, features, train, test) -> None:
    """Print the differences of all heads on one layer."""
    graph, gaps = None, {}
    for head in HEADS.values():
        model = make_pipeline(features, StandardScaler(), head)
        model.fit(train.data, train.target)
        composite = divide(model)
        examples = examples_of(composite, test.data)
        if graph is None:
            graph = export_networks(composite.features, examples.recipe.image_size)
        expected = expected_outputs(model, test.data)
        whole = _joined(graph, convert_head(composite, expected), "features", "rows")
        found = run(whole, images=examples.pixels)
        gaps[type(head).__name__] = difference(found, expected)
    worst = max(gaps, key=lambda head: gaps[head].largest)
    labels = {head: gap.labels.sum() for head, gap in gaps.items() if gap.labels.any()}
    print(
        f"{name} {features.layer}: {len(gaps)} heads, largest difference "
        f"{gaps[worst].largest:.1e} ({worst}), labels that differ: {labels or 'none'}",
        flush=True,
    )


def measure_resize(train, test) -> None:
    """Print how resizing in the graph changes predictions."""
    for name in ("mini", "efficientnet_lite0"):
        for head in (LogisticRegression(max_iter=1000), RandomForestClassifier()):
            model = make_pipeline(PretrainedCNNFeatures(name), StandardScaler(), head)
            model.fit(train.data, train.target)
            predict = runnable(to_onnx(model, resize=True))
            photos = [np.asarray(Image.open(p).convert("RGB")) for p in test.data]
            found = [predict(image=photo) for photo in photos]
            likely = np.concatenate([one["probabilities"] for one in found])
            label = np.concatenate([one["label"] for one in found])
            gap = np.abs(likely - model.predict_proba(test.data)).max()
            changed = (label != model.predict(test.data)).sum()
            print(
                f"resize=True, {name}, {type(head).__name__}: largest difference of "
                f"probabilities {gap:.1e}, {changed} of {len(photos)} labels change",
                flush=True,
            )


START = {
    "pickle": "import pickle; m = pickle.load(open({path!r}, 'rb')).predict_proba; "
    "f = lambda: m([{photo!r}])",
    "skops": "import skops.io as s; m = s.load({path!r}, "
    "trusted=s.get_untrusted_types(file={path!r})).predict_proba; "
    "f = lambda: m([{photo!r}])",
    "ONNX": "import numpy as np, onnxruntime; from PIL import Image; "
    "s = onnxruntime.InferenceSession({path!r}); "
    "f = lambda: s.run(None, dict(image=np.asarray(Image.open({photo!r})"
    ".convert('RGB'))))",
}
LATENCY = (
    "; f(); import time; t = time.perf_counter(); [f() for _ in range(30)]; "
    "print((time.perf_counter() - t) / 30 * 1000)"
)


def compare_formats(train, test) -> None:
    """Print size, start-up and latency of one pipeline in three formats."""
    features = PretrainedCNNFeatures(cache=None)
    model = make_pipeline(features, StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train.data, train.target)
    with tempfile.TemporaryDirectory() as folder:
        save_formats(model, Path(folder))
        measure_formats(Path(folder), test)


def save_formats(model, folder: Path) -> None:
    """Write a pipeline in three formats, the weights inside."""
    embedded = embed_weights(model)
    (folder / "pickle").write_bytes(pickle.dumps(embedded))
    skops.io.dump(embedded, folder / "skops")
    to_onnx(model, folder / "ONNX", resize=True)


def measure_formats(folder: Path, test) -> None:
    """Print size, start-up and latency of the files."""
    for name, code in START.items():
        code = code.format(path=str(folder / name), photo=str(test.data[0]))
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code + "; f()"], check=True)
        start = time.perf_counter() - begin
        command = [sys.executable, "-c", code + LATENCY]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        size = (folder / name).stat().st_size
        print(
            f"{name}: {size:,} bytes, {start:.1f} s to the first prediction of a new "
            f"process, {float(done.stdout):.1f} ms for a photo",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("heads", "resize", "formats"))
    parser.add_argument("--network", choices=NETWORKS, help="of the heads")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    photos = [load_image_folder(given.folder / part) for part in ("train", "val")]
    networks = [given.network] if given.network else list(NETWORKS)
    parts = {
        "heads": partial(measure_heads, networks=networks),
        "resize": measure_resize,
        "formats": compare_formats,
    }
    for part, measure in parts.items():
        if given.only in (None, part):
            measure(*photos)
