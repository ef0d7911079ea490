"""
Which depth suits my images, without a search?
==============================================

With ``layer="auto"``, `fit` chooses the depth by how well each layer
predicts images that are left out one at a time. This example compares
its choice with that of a search, which cross-validates a classifier on
every layer.

    python plot_012_chosen_depth.py [FOLDER]

FOLDER has one subfolder of images per class, such as faces of people.
Without it, textures and digits are shown.
"""

import os
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skdeepfeat import (
    LayerDepthDisplay,
    PretrainedCNNFeatures,
    load_image_folder,
    load_textures,
)

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
digits = load_digits()
pixels = (digits.images * 255 / 16).astype(np.uint8)
textures = load_textures()
data = {
    "textures": (textures.data, textures.target),
    "digits": (pixels, digits.target),
}
for folder in sys.argv[1:]:
    images = load_image_folder(folder)
    data[os.path.basename(folder)] = (images.data, images.target)


# %%
# Both use the same features, which are stored by one pass.
def compare(X, y):
    """The fitted features, a fitted search, and the time of each."""
    features = PretrainedCNNFeatures(layer="auto").warm(X)
    started = time.perf_counter()
    features.fit(X, y)
    chosen = time.perf_counter()
    steps = [
        ("features", features),
        ("scale", StandardScaler()),
        ("head", SVC()),
    ]
    grid = {"features__layer": list(features.layer_scores_)}
    search = GridSearchCV(Pipeline(steps), grid, cv=5).fit(X, y)
    searched = time.perf_counter()
    return features, search, chosen - started, searched - chosen


# %%
# Draw what both measured at each depth. A circle marks the choice of
# ``"auto"``.
figure, axes = plt.subplots(
    1, len(data), figsize=(5 * len(data), 4), layout="constrained"
)
for ax, (name, (X, y)) in zip(axes, data.items(), strict=True):
    rows = np.arange(len(y))
    if len(y) > size:
        rows = train_test_split(
            rows, train_size=size, stratify=y, random_state=0
        )[0]
    X, y = [X[row] for row in rows], np.asarray(y)[rows]
    features, search, seconds, search_seconds = compare(X, y)
    auto = f"mean R² of images left out ({seconds:.1f} s)"
    both = features.layer_scores_, features.layer_neighbor_scores_
    scores = {
        auto: np.mean([list(found.values()) for found in both], axis=0),
        f"accuracy in 5 folds ({search_seconds:.1f} s)": (
            search.cv_results_["mean_test_score"]
        ),
    }
    LayerDepthDisplay(
        list(features.layer_scores_),
        scores,
        chosen=(auto, features.layer_),
    ).plot(ax=ax)
    best = search.best_params_["features__layer"]
    ax.set(title=f"{name}: auto {features.layer_}, search {best}")
    ax.tick_params(axis="x", rotation=45)
figure.savefig("chosen_depth.png", dpi=150)
plt.show()
