"""
Which images does the network find similar?
===========================================

Reduce the features to two dimensions, and draw each image at its place.
The images are patches of photos from scikit-image. No labels are used.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from skimage import data
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures

PHOTOS = ["astronaut", "chelsea", "coffee", "retina", "rocket"]
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 150)) // 5
patches = [
    extract_patches_2d(
        getattr(data, name)(),
        (96, 96),
        max_patches=size,
        random_state=0,
    )
    for name in PHOTOS
]
X, y = np.concatenate(patches), np.repeat(np.arange(5), size)

# %%
# Two pipelines lead from images to two dimensions. PCA preserves
# distances, t-SNE preserves neighbours.
features = PretrainedCNNFeatures()
maps = {
    "PCA": make_pipeline(
        features, StandardScaler(), PCA(2, random_state=0)
    ),
    "t-SNE": make_pipeline(
        features,
        StandardScaler(),
        PCA(30, random_state=0),
        TSNE(2, perplexity=15, random_state=0),
    ),
}

# %%
# The colour of the frame shows which photo a patch is from. Patches of
# the same photo end up near each other.
figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
colours = plt.colormaps["tab10"]
for ax, (name, model) in zip(axes, maps.items(), strict=True):
    places = model.fit_transform(X)
    ax.scatter(*places.T, s=1)
    for place, image, label in zip(places, X, y, strict=True):
        frame = {"edgecolor": colours(label), "linewidth": 2}
        small = OffsetImage(image[::3, ::3], zoom=0.7)
        box = AnnotationBbox(small, place, bboxprops=frame, pad=0.1)
        ax.add_artist(box)
    ax.set(title=name, xticks=[], yticks=[])
handles = [
    plt.Line2D([], [], marker="s", ls="", color=colours(i), label=name)
    for i, name in enumerate(PHOTOS)
]
figure.legend(handles=handles, loc="outside lower center", ncols=5)
figure.savefig("features_on_a_map.png", dpi=150)
plt.show()
