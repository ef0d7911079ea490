"""
How much time does a store save?
================================

A grid search needs the features of every image again in every fold and
for every candidate. With a store, they are computed once. A store in a
folder also serves other processes and later runs.
"""

import os
import tempfile
import time

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from skdeepfeat import (
    FeatureStore,
    PretrainedCNNFeatures,
    load_textures,
)

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320)) // 2
textures = load_textures()
X, y = textures.data[:size], textures.target[:size]

# %%
# Run the same search three times: 2 depths × 2 values of C × 3 folds.
# The network is loaded in advance, so that only the search is timed.
PretrainedCNNFeatures(cache=None).transform(X[:2])
store = FeatureStore(tempfile.mkdtemp())
runs = {"no store": None, "first run": store, "second run": store}
grid = {
    "pretrainedcnnfeatures__layer": ["block3", "penultimate"],
    "svc__C": [1, 10],
}
seconds = {}
for name, cache in runs.items():
    features = PretrainedCNNFeatures(cache=cache, prefetch_layers="all")
    search = GridSearchCV(make_pipeline(features, SVC()), grid, cv=3)
    started = time.perf_counter()
    search.fit(X, y)
    seconds[name] = time.perf_counter() - started
    print(f"{name:10} {seconds[name]:6.2f} s, {search.best_score_:.3f}")

# %%
# The network ran once for each image.
info = store.info()
print(f"{info['misses']} computed, {info['hits']} read from the store")

# %%
# With a store, the search takes little longer than the classifiers.
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = axes.barh(list(seconds), list(seconds.values()))
axes.bar_label(bars, fmt="%.2f s", padding=4)
axes.invert_yaxis()
axes.margins(x=0.12)
axes.set(xlabel="seconds", title=f"A search over {len(X)} images")
figure.savefig("search_with_a_store.png", dpi=150)
plt.show()
