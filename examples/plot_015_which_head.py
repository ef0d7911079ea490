"""
Which classifier?
=================

Deep features are rows of numbers, so you can use any classifier of
scikit-learn. This example compares the accuracy and the fit time of six
of them. The network runs only once for each image.
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
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], textures.target[order]

HEADS = {
    "logistic regression": LogisticRegression(C=0.01, max_iter=1000),
    "support vectors": SVC(),
    "nearest neighbours": KNeighborsClassifier(),
    "random forest": RandomForestClassifier(random_state=0),
    "naive Bayes": GaussianNB(),
    "decision tree": DecisionTreeClassifier(random_state=0),
}

# %%
# Make one pipeline for each classifier. They all read the features from
# the store.
PretrainedCNNFeatures().warm(X)
folds = StratifiedKFold(4, shuffle=True, random_state=0)
accuracy, seconds = {}, {}
for name, head in HEADS.items():
    model = make_pipeline(
        PretrainedCNNFeatures(), StandardScaler(), head
    )
    result = cross_validate(model, X, y, cv=folds)
    accuracy[name] = result["test_score"]
    seconds[name] = result["fit_time"].mean()
    print(f"{name:20} {accuracy[name].mean():.3f}")

# %%
# A linear model, support vectors and a forest suit these features. A
# single tree does not, and neither does naive Bayes, which assumes
# independent features.
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
order = sorted(HEADS, key=lambda name: accuracy[name].mean())
bars = axes.barh(
    order,
    [accuracy[name].mean() for name in order],
    xerr=[accuracy[name].std() for name in order],
    color="tab:blue",
)
labels = [f"{seconds[name]:.2f} s" for name in order]
axes.bar_label(bars, labels, padding=6)
axes.set(xlim=(0, 1.15), xlabel="accuracy, mean and std of 4 folds")
axes.set_title("Six classifiers on the same features, with fit times")
figure.savefig("which_head.png", dpi=150)
plt.show()
