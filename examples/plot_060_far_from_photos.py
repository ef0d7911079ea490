"""
Few images that are no photos
=============================

The last layers of a network speak of the objects that it was trained on. Handwritten
digits are none of them, and with few examples of each, features from the middle of the
network do better than the last ones.
"""

import os

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import LayerDepthDisplay, PretrainedCNNFeatures, list_layers

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 600))
X, y = load_digits(return_X_y=True)
X, y = X[:size], y[:size]

# %%
# Ten digits of each kind to learn from in every split, the rest to test on.
features = PretrainedCNNFeatures(
    image_shape=(8, 8), value_range=(0, 16), prefetch_layers="all"
)
pipeline = Pipeline(
    [
        ("features", features),
        ("scale", StandardScaler()),
        ("head", LogisticRegression(max_iter=1000)),
    ]
)
layers = [layer.alias for layer in list_layers("mini")]
grid = {"features__layer": layers[::-1], "head__C": [0.001, 0.1]}
splits = StratifiedShuffleSplit(4, train_size=min(100, size // 2), random_state=0)
search = GridSearchCV(pipeline, grid, cv=splits).fit(X, y)
print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f}")

# %%
# The figure: accuracy rises, and falls again where features become those of objects.
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
LayerDepthDisplay.from_search(
    search, names=lambda others: f"C = {others['head__C']}", ax=axes
)
axes.set(ylabel="accuracy, mean of 4 splits", title="Digits, ten of each to learn from")
axes.tick_params(axis="x", rotation=30)
figure.savefig("far_from_photos.png", dpi=150)
plt.show()
