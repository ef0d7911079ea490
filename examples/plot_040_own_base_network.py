"""
Can a network of your own be reused?
====================================

A small convolutional network learns the digits 0 to 4 from scratch. Its
convolutions are then frozen and reused for the digits 5 to 9, where
only the dense layers learn. With 30 training images, this is more
accurate than learning these digits from scratch, and faster.
"""

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skdeepfeat import FineTunedClassifier

EPOCHS = [1, 2, 4, 8]
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 600))
X, y = load_digits(return_X_y=True)
digits = {"image_shape": (8, 8), "value_range": (0, 16)}
training = {"augment": "none", "head_epochs": 0, "random_state": 0}
options = digits | training

# %%
# Train the base network on the digits 0 to 4 and save its weights.
old, new = np.flatnonzero(y < 5)[:size], np.flatnonzero(y >= 5)
base = FineTunedClassifier(
    "smallcnn", weights=None, unfreeze="all", epochs=4, **options
)
base.fit(X[old], y[old])
file = f"{tempfile.mkdtemp()}/base.safetensors"
base.save_weights(file)

# %%
# Learn the digits 5 to 9 from 30 images, with the base network and from
# scratch.
train, test = train_test_split(
    new, train_size=30, test_size=size, stratify=y[new], random_state=0
)
settings = {
    "reused base": {"weights": file, "unfreeze": 0},
    "from scratch": {"weights": None, "unfreeze": "all"},
}
curves, seconds = {}, {}
for name, setting in settings.items():
    curves[name] = []
    for epochs in EPOCHS:
        clf = FineTunedClassifier(
            "smallcnn", epochs=epochs, **setting, **options
        )
        clf.fit(X[train], y[train])
        curves[name].append(clf.score(X[test], y[test]))
    seconds[name] = np.mean([one["seconds"] for one in clf.history_])
    shown = " ".join(f"{accuracy:.3f}" for accuracy in curves[name])
    print(f"{name:12} {shown}  ({seconds[name]:.3f} s per epoch)")

# %%
# Plot the accuracy on unseen digits by number of epochs.
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, curve in curves.items():
    label = f"{name}, {seconds[name]:.2f} s per epoch"
    axes.plot(EPOCHS, curve, marker="o", label=label)
axes.set(xlabel="epochs of training", ylabel="accuracy")
axes.set(xticks=EPOCHS, title="Unseen digits 5 to 9")
axes.legend(loc="lower right")
figure.savefig("own_base_network.png", dpi=150)
plt.show()
