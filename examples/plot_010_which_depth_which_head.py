"""
Which depth, and which head?
============================

Early layers of a network see edges and colours, late ones see objects. Which of them
suits your images is a question that a grid search answers, together with the choice
of classifier. Every image goes through the network once: the store keeps the features
of all depths, so the 120 fits below cost one pass.

    python plot_010_which_depth_which_head.py [FOLDER]

FOLDER has one subfolder of photos for each class; without it, the textures that ship
with the package are used.
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

LAYERS = ["penultimate", "block5", "block3", "block1"]  # the deepest one first
HEADS = {
    "SVM": SVC(),
    "logistic": LogisticRegression(C=0.01, max_iter=1000),
    "random forest": RandomForestClassifier(random_state=0),
    "nearest neighbours": KNeighborsClassifier(),
    "naive Bayes": GaussianNB(),
    "decision tree": DecisionTreeClassifier(random_state=0),
}

# %%
# The data: paths or arrays, it makes no difference to the estimator.
images = load_image_folder(sys.argv[1]) if len(sys.argv) > 1 else load_textures()
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", len(images.data)))
X, y = images.data[:size], images.target[:size]
print(f"{len(X)} images of {len(images.target_names)} classes")

# %%
# The search. A first `transform` fills the store and shows how far it is.
features = PretrainedCNNFeatures(layer=LAYERS[0], verbose=1)
started = time.perf_counter()
features.transform(X)
pipeline = Pipeline(
    [
        ("features", features.set_params(verbose=0)),
        ("scale", StandardScaler()),
        ("head", SVC()),
    ]
)
grid = {"features__layer": LAYERS, "head": list(HEADS.values())}
folds = StratifiedKFold(5, shuffle=True, random_state=0)
search = GridSearchCV(pipeline, grid, cv=folds).fit(X, y)
seconds = time.perf_counter() - started
print(f"{len(LAYERS) * len(HEADS)} combinations, 5 folds: {seconds:.1f} seconds")

# %%
# The table: mean accuracy by depth (columns) and head (rows).
scores = search.cv_results_["mean_test_score"].reshape(len(LAYERS), len(HEADS)).T
print(f"\n{'':20}" + "".join(f"{layer:>13}" for layer in LAYERS[::-1]))
for name, row in zip(HEADS, scores, strict=True):
    print(f"{name:20}" + "".join(f"{score:13.3f}" for score in row[::-1]))
best = search.best_params_
print(f"\nbest: {best['head']} on {best['features__layer']}, {search.best_score_:.3f}")

# %%
# The figure: features of the middle already tell textures apart.
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
label_of = {id(head): name for name, head in HEADS.items()}
LayerDepthDisplay.from_search(
    search, names=lambda others: label_of[id(others["head"])], ax=axes
)
chance = np.bincount(y).max() / len(y)
axes.axhline(chance, color="grey", linestyle=":", label="largest class")
axes.set(ylabel="accuracy, mean of 5 folds")
axes.set_title("Accuracy by depth of the features and by head")
axes.legend(loc="center", bbox_to_anchor=(0.65, 0.35), fontsize="small")
figure.savefig("which_depth_which_head.png", dpi=150)
print("figure saved as which_depth_which_head.png")
plt.show()
