"""
What does a photo add to a table?
=================================

A table often has photos in one column and numbers in others. A
`ColumnTransformer` sends each column to its own transformer. The
numbers in this example are simulated: a weight that separates some of
the classes, but not all of them.
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
order = rng.permutation(len(textures.data))[:size]
y = textures.target[order]
table = pd.DataFrame(
    {
        "photo": list(textures.data[order]),
        "weight": y // 2 + rng.normal(scale=0.4, size=size),
        "length": rng.normal(size=size),  # independent of the class
    }
)
print(table[["weight", "length"]].describe().round(2))

# %%
# The photos go through the network and a scaler, the numbers only
# through a scaler.
photos = make_pipeline(
    PretrainedCNNFeatures(layer="block3"), StandardScaler()
)
photos = (photos, "photo")
numbers = (StandardScaler(), ["weight", "length"])
columns = {
    "numbers only": make_column_transformer(numbers),
    "photos only": make_column_transformer(photos),
    "both": make_column_transformer(photos, numbers),
}
folds = StratifiedKFold(4, shuffle=True, random_state=0)
scores = {}
for name, transformer in columns.items():
    C = 1 if name == "numbers only" else 0.01
    head = LogisticRegression(C=C, max_iter=1000)
    model = make_pipeline(transformer, head)
    scores[name] = cross_val_score(model, table, y, cv=folds)
    print(f"{name:14} {scores[name].mean():.3f}")

# %%
# Photos and numbers complement each other.
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
means = [score.mean() for score in scores.values()]
deviations = [score.std() for score in scores.values()]
bars = axes.barh(list(scores), means, xerr=deviations)
axes.bar_label(bars, fmt="%.2f", padding=8)
axes.invert_yaxis()
axes.set(xlim=(0, 1.1), xlabel="accuracy, mean and std of 4 folds")
axes.set_title("What photos add to a table")
figure.savefig("photos_beside_columns.png", dpi=150)
plt.show()
