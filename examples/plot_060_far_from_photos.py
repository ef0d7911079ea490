"""
Which depth suits images that are not photos?
=============================================

The last layers of a network respond to the objects it was trained on.
Close-ups of bricks, gravel or stained tissue show no such objects. With
few examples of each class, features from the middle of the network are
then more accurate than the last ones.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import (
    LayerDepthDisplay,
    PretrainedCNNFeatures,
    list_layers,
    load_textures,
)

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], textures.target[order]

# %%
# Each split has ten training images per class, and tests on the rest.
features = PretrainedCNNFeatures(prefetch_layers="all")
pipeline = Pipeline(
    [
        ("features", features),
        ("scale", StandardScaler()),
        ("head", LogisticRegression(max_iter=1000)),
    ]
)
layers = [layer.alias for layer in list_layers("mini")]
grid = {
    "features__layer": layers[::-1],
    "head__C": [0.001, 0.01, 0.1],
}
splits = StratifiedShuffleSplit(
    10, train_size=min(80, size // 2), random_state=0
)
search = GridSearchCV(pipeline, grid, cv=splits).fit(X, y)
print(search.best_params_, f"accuracy {search.best_score_:.3f}")

# %%
# The accuracy rises with depth, and falls again where the features
# become those of objects.
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
LayerDepthDisplay.from_search(
    search, names=lambda others: f"C = {others['head__C']}", ax=axes
)
axes.set(ylabel="accuracy, mean of 10 splits")
axes.set_title("Textures, ten training images per class")
axes.tick_params(axis="x", rotation=30)
figure.savefig("far_from_photos.png", dpi=150)
plt.show()
