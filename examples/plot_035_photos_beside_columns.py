"""
Photos beside tabular columns
=============================

A table often has a photo in one column and numbers in others. A
`ColumnTransformer` sends each to its own transformer. The numbers here are simulated: a
weight that tells some of the classes apart, but not all.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 240))
textures = load_textures()
rng = np.random.default_rng(0)
chosen = rng.permutation(len(textures.data))[:size]
y = textures.target[chosen]
table = pd.DataFrame(
    {
        "photo": list(textures.data[chosen]),
        "weight": y // 2 + rng.normal(scale=0.4, size=size),
        "length": rng.normal(size=size),  # tells nothing
    }
)
print(table[["weight", "length"]].describe().loc[["mean", "std"]].round(2))

# %%
# Photos go through the network and a scaler, numbers through a scaler alone.
photos = make_pipeline(PretrainedCNNFeatures(layer="block3"), StandardScaler())
numbers = ["weight", "length"]
columns = {
    "columns alone": make_column_transformer((StandardScaler(), numbers)),
    "photos alone": make_column_transformer((photos, "photo")),
    "both": make_column_transformer((photos, "photo"), (StandardScaler(), numbers)),
}
folds = StratifiedKFold(4, shuffle=True, random_state=0)
scores = {}
for name, transformer in columns.items():
    head = LogisticRegression(C=0.01 if "photos" in name else 1, max_iter=1000)
    scores[name] = cross_val_score(make_pipeline(transformer, head), table, y, cv=folds)
    print(f"{name:14} {scores[name].mean():.3f}")

# %%
# The figure: each knows something that the other does not.
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
means = [score.mean() for score in scores.values()]
deviations = [score.std() for score in scores.values()]
bars = axes.barh(list(scores), means, xerr=deviations, color="tab:blue")
axes.bar_label(bars, fmt="%.2f", padding=8)
axes.invert_yaxis()
axes.set(xlim=(0, 1.1), xlabel="accuracy, mean and deviation of 4 folds")
axes.set_title("What a photo adds to a table")
figure.savefig("photos_beside_columns.png", dpi=150)
plt.show()
