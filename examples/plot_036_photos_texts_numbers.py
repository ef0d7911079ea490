"""
What does each column of a table add?
=====================================

A table has a photo, a short description and a number in each row. A
`ColumnTransformer` sends each column to its own transformer. The photos
are real textures. The descriptions and prices are simulated: each
mentions the material, which several classes share, or leaves it out.
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

from skdeepfeat import (
    PretrainedCNNFeatures,
    PretrainedTextFeatures,
    load_textures,
)

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 240))
textures = load_textures()
rng = np.random.default_rng(0)
order = rng.permutation(len(textures.data))[:size]
y = textures.target[order]
materials = ["woven cotton", "solid oak", "grey marble", "knitted wool"]
notes = ["soft and warm", "for the kitchen", "a bargain", "handmade"]


def describe(label):
    known = materials[label % 4] if rng.random() < 0.9 else "material?"
    return f"{known}, {rng.choice(notes)}"


table = pd.DataFrame(
    {
        "photo": list(textures.data[order]),
        "description": [describe(label) for label in y],
        "price": y // 2 + rng.normal(scale=0.5, size=size),
    }
)
print(table[["description", "price"]].head(4))

# %%
# Photos and descriptions go through their networks and a scaler, prices
# only through a scaler. Both kinds of features could share one store.
photos = PretrainedCNNFeatures(layer="block2")
texts = PretrainedTextFeatures("wordllama")
steps = {
    "price": (StandardScaler(), ["price"]),
    "text": (make_pipeline(texts, StandardScaler()), "description"),
    "photo": (make_pipeline(photos, StandardScaler()), "photo"),
}
chosen = [[name] for name in steps]
chosen += [["price", "text"], list(steps)]
folds = StratifiedKFold(4, shuffle=True, random_state=0)
scores = {}
for names in chosen:
    columns = make_column_transformer(*(steps[name] for name in names))
    head = LogisticRegression(C=0.01, max_iter=1000)
    model = make_pipeline(columns, head)
    score = cross_val_score(model, table, y, cv=folds)
    scores[" + ".join(names)] = score
    print(f"{' + '.join(names):22} {score.mean():.3f}")

# %%
# Each column knows something that the others do not.
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
means = [score.mean() for score in scores.values()]
deviations = [score.std() for score in scores.values()]
bars = axes.barh(list(scores), means, xerr=deviations)
axes.bar_label(bars, fmt="%.2f", padding=8)
axes.invert_yaxis()
axes.set(xlim=(0, 1.15), xlabel="accuracy, mean and std of 4 folds")
axes.set_title("What each column adds")
figure.savefig("photos_texts_numbers.png", dpi=150)
plt.show()
