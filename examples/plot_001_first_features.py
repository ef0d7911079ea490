"""
First features
==============

Do the features of similar images resemble each other? Here are two
crops of each of two photos from scikit-learn, and the similarity of
their features.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.metrics.pairwise import cosine_similarity

from skdeepfeat import PretrainedCNNFeatures

temple, flower = load_sample_images().images
images = [
    temple[100:, :300],
    temple[100:, 300:600],
    flower[50:350, 100:400],
    flower[50:350, 250:550],
]

# %%
# There is nothing to train. `fit_transform` returns one row of
# features for each image.
features = PretrainedCNNFeatures()
rows = features.fit_transform(images)
print(f"{len(rows)} images, {rows.shape[1]} features, {rows.dtype}")
print("first names:", *features.get_feature_names_out()[:2])

# %%
# Features of crops of the same photo are more similar than those of
# different photos.
similarity = cosine_similarity(rows)
figure, grid = plt.subplots(5, 5, figsize=(6, 6), layout="constrained")
for ax in grid.flat:
    ax.axis("off")
for i, image in enumerate(images):
    grid[0, i + 1].imshow(image)
    grid[i + 1, 0].imshow(image)
colours = plt.colormaps["YlGn"]
least = similarity.min()
for (i, j), value in np.ndenumerate(similarity):
    ax = grid[i + 1, j + 1]
    shade = 0.8 * (value - least) / (1 - least)
    ax.add_patch(plt.Rectangle((0, 0), 1, 1, color=colours(shade)))
    ax.text(0.5, 0.5, f"{value:.2f}", ha="center", va="center")
figure.suptitle("Cosine similarity of the features")
figure.savefig("first_features.png", dpi=150)
plt.show()
