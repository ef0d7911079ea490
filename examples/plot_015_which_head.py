"""
Which head?
===========

Deep features are rows of numbers, so any classifier of scikit-learn can follow. Six of
them on the same features: how well they do, and how long they take. The network runs
once for each image, whatever comes after it.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from skdeepfeat import PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
chosen = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[chosen], textures.target[chosen]

HEADS = {
    "logistic regression": LogisticRegression(C=0.01, max_iter=1000),
    "support vectors": SVC(),
    "nearest neighbours": KNeighborsClassifier(),
    "random forest": RandomForestClassifier(random_state=0),
    "naive Bayes": GaussianNB(),
    "decision tree": DecisionTreeClassifier(random_state=0),
}

# %%
# One pipeline for each head; the features come from the store after the first fold.
PretrainedCNNFeatures().warm(X)
folds = StratifiedKFold(4, shuffle=True, random_state=0)
accuracy, seconds = {}, {}
for name, head in HEADS.items():
    pipeline = make_pipeline(PretrainedCNNFeatures(), StandardScaler(), head)
    result = cross_validate(pipeline, X, y, cv=folds)
    accuracy[name] = result["test_score"]
    seconds[name] = result["fit_time"].mean()
    print(f"{name:20} {accuracy[name].mean():.3f}, {seconds[name]:.2f} s a fit")

# %%
# The figure: a linear head, a forest and support vectors suit these features; a single
# tree, and naive Bayes, which takes features as independent, do not.
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
order = sorted(HEADS, key=lambda name: accuracy[name].mean())
bars = axes.barh(
    order,
    [accuracy[name].mean() for name in order],
    xerr=[accuracy[name].std() for name in order],
    color="tab:blue",
)
axes.bar_label(bars, [f"{seconds[name]:.2f} s" for name in order], padding=6)
axes.set(xlim=(0, 1.15), xlabel="accuracy, mean and deviation of 4 folds")
axes.set_title("Six heads on the same features, with seconds of a fit")
figure.savefig("which_head.png", dpi=150)
plt.show()
