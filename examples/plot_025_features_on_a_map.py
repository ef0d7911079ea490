"""
Features on a map
=================

What does the network find alike? Two dimensions of the features, with the images
themselves as points, show it without any label.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 160))
textures = load_textures()
chosen = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[chosen], textures.target[chosen]

# %%
# Two pipelines from images to two dimensions: PCA keeps distances, t-SNE neighbours.
features = PretrainedCNNFeatures()
maps = {
    "PCA": make_pipeline(features, StandardScaler(), PCA(2, random_state=0)),
    "t-SNE": make_pipeline(
        features,
        StandardScaler(),
        PCA(30, random_state=0),
        TSNE(2, perplexity=15, random_state=0),
    ),
}

# %%
# The figure: the frame of an image has the colour of its class. Classes come apart,
# though nothing here has seen a label.
figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
colours = plt.colormaps["tab10"]
for ax, (name, pipeline) in zip(axes, maps.items(), strict=True):
    places = pipeline.fit_transform(X)
    ax.scatter(*places.T, s=1)
    for place, image, label in zip(places, X, y, strict=True):
        frame = {"edgecolor": colours(label), "linewidth": 2}
        thumbnail = OffsetImage(image, zoom=22 / image.shape[0], cmap="gray")
        ax.add_artist(AnnotationBbox(thumbnail, place, bboxprops=frame, pad=0.1))
    ax.set(title=name, xticks=[], yticks=[])
handles = [
    plt.Line2D([], [], marker="s", linestyle="", color=colours(label), label=title)
    for label, title in enumerate(textures.target_names)
]
figure.legend(handles=handles, loc="outside lower center", ncols=8)
figure.savefig("features_on_a_map.png", dpi=150)
plt.show()
