"""
How much of the network should learn?
=====================================

Fine-tuning has five steps: start from a trained network, freeze it,
train a new head, unfreeze the top, and train both together.
`FineTunedClassifier` does all of them. How much of the network to
unfreeze is a parameter.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from skdeepfeat import (
    FineTunedClassifier,
    TrainingHistoryDisplay,
    load_textures,
)

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], textures.target[order]
train_X, test_X, train_y, test_y = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)

# %%
# Train with nothing, one block and three blocks unfrozen.
classifiers = {}
for unfreeze in (0, 1, 3):
    clf = FineTunedClassifier(
        unfreeze=unfreeze,
        head_epochs=10,
        epochs=10,
        augment="light",
        random_state=0,
    )
    classifiers[unfreeze] = clf.fit(train_X, train_y)
    accuracy = clf.score(test_X, test_y)
    seconds = sum(entry["seconds"] for entry in clf.history_)
    print(f"unfreeze={unfreeze}: {accuracy:.3f} in {seconds:.1f} s")

# %%
# Only the head and the unfrozen blocks are new. A pickle contains just
# these.
for unfreeze, clf in classifiers.items():
    arrays = clf.weights_["tail"] | clf.weights_["head"]
    kilobytes = sum(array.nbytes for array in arrays.values()) / 1000
    print(f"unfreeze={unfreeze}: {kilobytes:.0f} kB of new weights")

# %%
# First the head learns alone, then together with the top block.
display = TrainingHistoryDisplay.from_estimator(classifiers[1])
title = "Accuracy on the training images\n"
display.ax_.set_title(title, fontsize="medium")
display.figure_.savefig("fine_tuning_in_five_steps.png", dpi=150)
plt.show()
