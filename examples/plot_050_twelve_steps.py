"""
Where are the steps of a tutorial?
==================================

Deep learning tutorials have about twelve steps: load, split, encode
labels, augment, choose a base network, add a head, compile, train,
plot, predict, measure, and look at the errors. Here, most of them are
parameters.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    classification_report,
)
from sklearn.model_selection import train_test_split

from skdeepfeat import (
    FineTunedClassifier,
    TrainingHistoryDisplay,
    load_textures,
)

# %%
# 1. Load the images. 2. Split off a test set. The classifier holds out
# a validation set itself.
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
names = np.array(textures.target_names)
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
X, y = textures.data[order], names[textures.target[order]]
train_X, test_X, train_y, test_y = train_test_split(
    X, y, test_size=0.3, stratify=y, random_state=0
)

# %%
# 3. Labels of any type are encoded internally. 4. Augmentation, 5. base
# network, 6. head, and 7. compilation are parameters.
clf = FineTunedClassifier(
    "mini",  # the base network
    unfreeze=1,
    augment="light",
    dropout=0.2,  # of the new head
    head_epochs=8,
    epochs=8,
    learning_rate=1e-3,
    early_stopping=True,  # on images that are held out
    validation_fraction=0.2,
    n_iter_no_change=8,
    random_state=0,
)

# %%
# 8. Train. 9. Record training and validation accuracy. 10. Predict.
clf.fit(train_X, train_y)
predicted = clf.predict(test_X)

# %%
# 11. Measure. 12. Look at the errors.
print(classification_report(test_y, predicted, zero_division=0))
figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.5), layout="constrained"
)
TrainingHistoryDisplay.from_estimator(clf, ax=left)
ConfusionMatrixDisplay.from_predictions(
    test_y, predicted, ax=right, xticks_rotation=45, colorbar=False
)
right.set_title("Test images")
figure.savefig("twelve_steps.png", dpi=150)
plt.show()
