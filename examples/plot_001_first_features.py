"""
First features
==============

One step turns images into rows of numbers that tell them apart. Four images, and how
alike the network finds each pair.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from skdeepfeat import PretrainedCNNFeatures, load_textures

textures = load_textures()
by_class = np.argsort(textures.target, kind="stable")
chosen = by_class[[120, 121, 240, 241]]  # two images of each of two classes
images = [textures.data[row] for row in chosen]
names = [textures.target_names[textures.target[row]] for row in chosen]

# %%
# Nothing is trained: `fit_transform` gives one row of features for each image.
features = PretrainedCNNFeatures()
rows = features.fit_transform(images)
print(f"{rows.shape[0]} images, {rows.shape[1]} features each, {rows.dtype}")
print("the first are called", *features.get_feature_names_out()[:2])

# %%
# The figure: images of one class are more alike than images of two.
alike = cosine_similarity(rows)
figure, axes = plt.subplots(figsize=(6, 5.2), layout="constrained")
shown = axes.imshow(alike, vmin=alike.min(), vmax=1, cmap="Blues")
labels = [f"{name} {i % 2 + 1}" for i, name in enumerate(names)]
axes.set_xticks(range(4), labels, rotation=20)
axes.set_yticks(range(4), labels)
for (i, j), value in np.ndenumerate(alike):
    colour = "white" if value > (alike.min() + 1) / 2 else "black"
    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
figure.colorbar(shown, label="cosine similarity of the features")
axes.set_title("How alike the network finds four images")
figure.savefig("first_features.png", dpi=150)
plt.show()
