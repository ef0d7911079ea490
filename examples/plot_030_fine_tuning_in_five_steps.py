"""
Fine-tuning in five steps
=========================

Start from a trained network, freeze it, train a new head, unfreeze the top, train both
together: `FineTunedClassifier` does these five steps. How much of the network to
unfreeze is a parameter like any other.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from skdeepfeat import FineTunedClassifier, TrainingHistoryDisplay, load_textures

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
chosen = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[chosen], textures.target[chosen]
train_X, test_X, train_y, test_y = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)

# %%
# Steps 1 to 5, with nothing, one block and three blocks unfrozen in the last two.
classifiers = {}
for unfreeze in (0, 1, 3):
    clf = FineTunedClassifier(
        unfreeze=unfreeze, head_epochs=10, epochs=10, augment="light", random_state=0
    )
    classifiers[unfreeze] = clf.fit(train_X, train_y)
    accuracy = clf.score(test_X, test_y)
    seconds = sum(entry["seconds"] for entry in clf.history_)
    print(f"unfreeze={unfreeze}: accuracy {accuracy:.3f}, trained in {seconds:.1f} s")

# %%
# Only what was unfrozen is new; a pickle holds that and the head.
for unfreeze, clf in classifiers.items():
    arrays = clf.weights_["tail"] | clf.weights_["head"]
    kilobytes = sum(array.nbytes for array in arrays.values()) / 1000
    print(f"unfreeze={unfreeze}: {kilobytes:.0f} kB of weights of its own")

# %%
# The figure: the head learns alone, then together with the top block.
display = TrainingHistoryDisplay.from_estimator(classifiers[1])
display.ax_.set_title("Accuracy on the training images\n", fontsize="medium")
display.figure_.savefig("fine_tuning_in_five_steps.png", dpi=150)
plt.show()
