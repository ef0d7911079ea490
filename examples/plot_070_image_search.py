"""
Image search
============

Which images look like this one? The nearest neighbours of its features answer, without
labels and without training.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
order = np.random.default_rng(2).permutation(len(textures.data))[:size]
queries, known = order[:5], order[5:]

# %%
# Index the known images; look up those closest to each query, by angle.
describe = make_pipeline(PretrainedCNNFeatures(), StandardScaler())
index = NearestNeighbors(n_neighbors=6, metric="cosine")
index.fit(describe.fit_transform(textures.data[known]))
_, found = index.kneighbors(describe.transform(textures.data[queries]))
right = textures.target[known][found] == textures.target[queries][:, None]
print(f"{right.mean():.0%} of the neighbours are of the class of the query")

# %%
# The figure: queries on the left, each with its six neighbours; a green frame is the
# same class.
figure, axes = plt.subplots(5, 7, figsize=(8.5, 6.4), layout="constrained")
for row, query, neighbours, same in zip(axes, queries, found, right, strict=True):
    row[0].imshow(textures.data[query], cmap="gray")
    row[0].set_ylabel(textures.target_names[textures.target[query]])
    for ax, neighbour, is_same in zip(row[1:], neighbours, same, strict=True):
        ax.imshow(textures.data[known[neighbour]], cmap="gray")
        for spine in ax.spines.values():
            spine.set(color="tab:green" if is_same else "tab:red", linewidth=3)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_title("query", fontsize="medium")
axes[0, 1].set_title("nearest first", fontsize="medium")
figure.savefig("image_search.png", dpi=150)
plt.show()
