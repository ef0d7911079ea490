"""
Which depth, and which classifier?
==================================

Early layers of a network respond to edges and colours, late ones to
objects. A grid search finds the depth that suits your images, together
with the classifier. Each image goes through the network once: the store
keeps the features of all depths, so the 120 fits below cost one pass.

    python plot_010_which_depth_which_head.py [FOLDER]

FOLDER has one subfolder of photos per class. Without it, the textures
that ship with the package are used.
"""

import os
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from skdeepfeat import (
    LayerDepthDisplay,
    PretrainedCNNFeatures,
    load_image_folder,
    load_textures,
)

LAYERS = ["penultimate", "block5", "block3", "block1"]  # deepest first
HEADS = {
    "SVM": SVC(),
    "logistic": LogisticRegression(C=0.01, max_iter=1000),
    "random forest": RandomForestClassifier(random_state=0),
    "nearest neighbours": KNeighborsClassifier(),
    "naive Bayes": GaussianNB(),
    "decision tree": DecisionTreeClassifier(random_state=0),
}

# %%
# Load paths or arrays. Both work.
folder = sys.argv[1:]
images = load_image_folder(*folder) if folder else load_textures()
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", len(images.data)))
X, y = images.data[:size], images.target[:size]
print(f"{len(X)} images of {len(images.target_names)} classes")

# %%
# Search. `warm` fills the store first and shows its progress.
features = PretrainedCNNFeatures(layer=LAYERS[0], verbose=1)
started = time.perf_counter()
features.warm(X).set_params(verbose=0)
steps = {"features": features, "scale": StandardScaler(), "head": SVC()}
grid = {"features__layer": LAYERS, "head": list(HEADS.values())}
folds = StratifiedKFold(5, shuffle=True, random_state=0)
search = GridSearchCV(Pipeline(list(steps.items())), grid, cv=folds)
search.fit(X, y)
seconds = time.perf_counter() - started
n_combinations = len(LAYERS) * len(HEADS)
print(f"{n_combinations} combinations, 5 folds: {seconds:.1f} seconds")

# %%
# Print the mean accuracy by depth (columns) and classifier (rows).
scores = search.cv_results_["mean_test_score"]
scores = scores.reshape(len(LAYERS), len(HEADS)).T
print(" " * 20 + "".join(f"{layer:>13}" for layer in LAYERS[::-1]))
for name, row in zip(HEADS, scores, strict=True):
    print(f"{name:20}" + "".join(f"{s:13.3f}" for s in row[::-1]))
best = search.best_params_
print(f"\nbest: {best['head']} on {best['features__layer']}")

# %%
# Intermediate features already separate the textures.
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
label_of = {id(head): name for name, head in HEADS.items()}
LayerDepthDisplay.from_search(
    search, names=lambda others: label_of[id(others["head"])], ax=axes
)
chance = np.bincount(y).max() / len(y)
axes.axhline(chance, color="grey", ls=":", label="largest class")
axes.set(ylabel="accuracy, mean of 5 folds")
axes.set_title("Accuracy by depth and classifier")
axes.legend(loc="center", bbox_to_anchor=(0.65, 0.35), fontsize="small")
figure.savefig("which_depth_which_head.png", dpi=150)
plt.show()
