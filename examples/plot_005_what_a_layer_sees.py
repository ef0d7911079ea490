"""
What does a layer see?
======================

Early layers respond to edges and colours, later ones to parts and
objects. With `pooling="flatten"`, the features of an image are the
maps themselves, which you can look at.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_sample_image

from skdeepfeat import PretrainedCNNFeatures, list_layers

flower = load_sample_image("flower.jpg")[:, 100:527]
shown = ["stem", "block2", "block3", "block5", "block7"]
layers = [one for one in list_layers("mini") if one.alias in shown]

# %%
# Each layer has many maps. The one with the largest variance is often
# the easiest to read. At twice the usual image size, maps are finer.
maps = {}
for layer in layers:
    features = PretrainedCNNFeatures(
        layer=layer.alias, pooling="flatten", image_size=224, cache=None
    )
    found = features.fit_transform([flower])
    side = int((found.size / layer.features) ** 0.5)
    found = found.reshape(layer.features, side, side)
    maps[layer.alias] = found[found.var(axis=(1, 2)).argmax()]
    print(f"{layer.alias:7} {found.shape}")

# %%
# Deeper maps are coarser: each of their values depends on a larger part
# of the photo.
figure, axes = plt.subplots(2, 3, figsize=(8, 6), layout="constrained")
axes.flat[0].imshow(flower)
axes.flat[0].set_title("photo")
for ax, (name, values) in zip(axes.flat[1:], maps.items(), strict=True):
    ax.imshow(values, cmap="magma")
    ax.set_title(f"{name}, {values.shape[0]} × {values.shape[1]}")
for ax in axes.flat:
    ax.axis("off")
figure.savefig("what_a_layer_sees.png", dpi=150)
plt.show()
