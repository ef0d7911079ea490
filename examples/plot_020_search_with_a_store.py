"""
What a store saves in a search
==============================

A grid search asks for the features of every image again in every fold and for every
candidate. The store answers from the second time on, and one in a folder still knows
them tomorrow, or in another process.
"""

import os
import tempfile
import time

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320)) // 2
textures = load_textures()
X, y = textures.data[:size], textures.target[:size]

# %%
# The same search of 2 depths x 2 values of C x 3 folds, with and without a store. The
# network is loaded beforehand, so that only the search is timed.
PretrainedCNNFeatures(cache=None).transform(X[:2])
store = FeatureStore(tempfile.mkdtemp())
runs = {"no store": None, "first time": store, "next time": store}
seconds = {}
for name, cache in runs.items():
    features = PretrainedCNNFeatures(cache=cache, prefetch_layers="all")
    grid = {
        "pretrainedcnnfeatures__layer": ["block3", "penultimate"],
        "svc__C": [1, 10],
    }
    started = time.perf_counter()
    search = GridSearchCV(make_pipeline(features, SVC()), grid, cv=3).fit(X, y)
    seconds[name] = time.perf_counter() - started
    print(f"{name:10} {seconds[name]:6.2f} s, accuracy {search.best_score_:.3f}")

# %%
# How often the network ran: once for each image.
info = store.info()
print(f"{len(X)} images, {info['misses']} computed, {info['hits']} found in the store")

# %%
# The figure: seconds of each search.
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = axes.barh(list(seconds), list(seconds.values()), color="tab:blue")
axes.bar_label(bars, fmt="%.2f s", padding=4)
axes.invert_yaxis()
axes.margins(x=0.12)
axes.set(xlabel="seconds", title=f"One search over {len(X)} images")
figure.savefig("search_with_a_store.png", dpi=150)
plt.show()
