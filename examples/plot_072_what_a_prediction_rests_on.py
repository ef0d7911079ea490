"""
Which part of the photo does the prediction rest on?
====================================================

A classifier learns four photos from small patches of them. Then it sees
all four at once. For each class, the map shows where it finds evidence:
in the right quarter, if it has learnt the photo and nothing else.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import (
    ActivationMapDisplay,
    PretrainedCNNFeatures,
    activation_maps,
)

NAMES = ["astronaut", "chelsea", "coffee", "rocket"]
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 240)) // 4
photos = [
    np.asarray(
        Image.fromarray(getattr(data, name)()).resize((280, 200))
    )
    for name in NAMES
]
patches = [
    extract_patches_2d(
        photo, (96, 96), max_patches=size, random_state=0
    )
    for photo in photos
]
y = np.repeat(NAMES, size)

# %%
# The four photos side by side, as a square.
quarters = [
    np.asarray(Image.fromarray(p).resize((112, 112))) for p in photos
]
mosaic = np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])])

# %%
# Only the predictions of the head are needed. It can be linear, or a
# forest.
HEADS = {
    "logistic regression": LogisticRegression(max_iter=1000),
    "random forest": RandomForestClassifier(300, random_state=0),
}
figure, axes = plt.subplots(
    2, 4, figsize=(8, 4.8), layout="constrained"
)
for row, (name, head) in zip(axes, HEADS.items(), strict=True):
    model = make_pipeline(
        PretrainedCNNFeatures(layer="block6", image_size=224),
        StandardScaler(),
        head,
    )
    model.fit(np.concatenate(patches), y)
    four = np.stack([mosaic] * 4)
    maps = activation_maps(model, four, target=NAMES)
    found = [one.argmax() for one in maps]
    places = [divmod(place, maps.shape[2]) for place in found]
    middle = maps.shape[1] // 2
    right = [
        2 * (y > middle) + (x > middle) == i
        for i, (y, x) in enumerate(places)
    ]
    print(
        f"{name}: {sum(right)} of 4 strongest places are in their photo"
    )
    ActivationMapDisplay.from_estimator(
        model, four, target=NAMES, axes=row
    )
    row[0].set_title(f"{name}\n{row[0].get_title()}", fontsize="medium")
figure.savefig("what_a_prediction_rests_on.png", dpi=150)
plt.show()
