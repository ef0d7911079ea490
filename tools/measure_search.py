"""Measure the results on the landing page of the docs, on the package's textures.

    python tools/measure_search.py

It runs a search over depths and heads, then the same search with and without a store,
and writes docs/pictures/search.json, which tools/draw_pictures.py draws.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import cpu_count
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skdeepfeat import FeatureStore, PretrainedCNNFeatures, list_layers, load_textures

OUTPUT = Path(__file__).parents[1] / "docs" / "pictures" / "search.json"
HEADS = {
    "SVM": SVC(),
    "logistic regression": LogisticRegression(C=0.01, max_iter=1000),
    "random forest": RandomForestClassifier(random_state=0),
    "nearest neighbours": KNeighborsClassifier(),
    "naive Bayes": GaussianNB(),
}
DEPTHS = ["block2", "block4", "block6", "penultimate"]
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


def search(X, y, layers, heads, cache):
    """A fitted grid search over layers and heads, and its duration in seconds."""
    features = PretrainedCNNFeatures(cache=cache, prefetch_layers="all")
    steps = [("features", features), ("scale", StandardScaler()), ("head", SVC())]
    grid = {"features__layer": layers, "head": list(heads.values())}
    started = time.perf_counter()
    found = GridSearchCV(Pipeline(steps), grid, cv=FOLDS, refit=False).fit(X, y)
    return found, time.perf_counter() - started


def main():
    textures = load_textures()
    X, y = textures.data, textures.target
    layers = [layer.alias for layer in list_layers("mini")]
    found, _ = search(X, y, layers, HEADS, FeatureStore(name="accuracy"))
    scores = found.cv_results_["mean_test_score"].reshape(len(layers), len(HEADS))
    PretrainedCNNFeatures(cache=None).transform(X[:64])  # builds the network
    two = {"C=1": SVC(), "C=10": SVC(C=10)}
    with tempfile.TemporaryDirectory() as folder:
        stores = {"without a store": None, "with a store": folder, "again": folder}
        timed = {name: search(X, y, DEPTHS, two, s)[1] for name, s in stores.items()}
    result = {
        "images": len(X),
        "classes": len(np.unique(y)),
        "cores": cpu_count(),
        "layers": layers,
        "accuracy": dict(zip(HEADS, scores.T.round(4).tolist(), strict=True)),
        "fits": len(DEPTHS) * len(two) * FOLDS.n_splits,
        "seconds": {name: round(value, 2) for name, value in timed.items()},
    }
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
