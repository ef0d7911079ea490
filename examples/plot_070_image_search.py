"""
Which images look like this one?
================================

The nearest neighbours of its features answer this, without labels and
without training. The images are patches of photos from scikit-image.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures

PHOTOS = ["astronaut", "chelsea", "coffee", "retina", "rocket"]
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 200)) // 5
patches = [
    extract_patches_2d(
        getattr(data, name)(),
        (96, 96),
        max_patches=size,
        random_state=1,
    )
    for name in PHOTOS
]
queries = np.stack([one[0] for one in patches])
known = np.concatenate([one[1:] for one in patches])
photo_of = np.repeat(np.arange(5), size - 1)

# %%
# Index the known images. Then find the closest ones to each query, by
# angle.
describe = make_pipeline(PretrainedCNNFeatures(), StandardScaler())
index = NearestNeighbors(n_neighbors=6, metric="cosine")
index.fit(describe.fit_transform(known))
_, found = index.kneighbors(describe.transform(queries))
right = photo_of[found] == np.arange(5)[:, None]
print(f"{right.mean():.0%} of the neighbours are from the same photo")

# %%
# Queries are on the left, with their six nearest neighbours. A green
# frame marks a patch of the same photo.
figure, axes = plt.subplots(5, 7, figsize=(8, 6), layout="constrained")
for row, query, name in zip(axes, queries, PHOTOS, strict=True):
    row[0].imshow(query)
    row[0].set_ylabel(name)
for row, neighbours, same in zip(axes, found, right, strict=True):
    for ax, i, is_same in zip(row[1:], neighbours, same, strict=True):
        ax.imshow(known[i])
        colour = "tab:green" if is_same else "tab:red"
        for spine in ax.spines.values():
            spine.set(color=colour, linewidth=3)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_title("query", fontsize="medium")
axes[0, 1].set_title("nearest first", fontsize="medium")
figure.savefig("image_search.png", dpi=150)
plt.show()
