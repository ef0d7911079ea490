"""
Who is this, and is it a stranger?
==================================

The nearest known photo says who a person is, and a threshold on its
distance refuses strangers. FOLDER has a subfolder for each person with
ten photos, like the faces of AT&T Laboratories Cambridge. Without it,
the "persons" are the 24 coins in one photo, each turned and shifted.

    python plot_075_face_recognition.py [FOLDER]
"""

import os
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data, feature, filters
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_image_folder

size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 400))
if sys.argv[1:]:
    faces = load_image_folder(sys.argv[1])
    if set(np.unique(faces.target, return_counts=True)[1]) != {10}:
        sys.exit("FOLDER must have ten photos in each subfolder.")
    photos = [Image.open(p).convert("RGB") for p in faces.data[:size]]
else:
    rng, coins = np.random.default_rng(0), Image.fromarray(data.coins())
    smooth = filters.gaussian(data.coins(), 12)
    middles = feature.peak_local_max(smooth, 20, num_peaks=24)
    moved = middles.repeat(10, axis=0) + rng.integers(-4, 5, (240, 2))
    photos = []
    for y, x in moved[:size].tolist():
        turned = coins.rotate(rng.normal(0, 15), center=(x, y))
        photos.append(turned.crop((x - 28, y - 28, x + 28, y + 28)))
y = np.arange(len(photos)) // 10

# %%
# Five photos of each person are known, but none of every fourth person:
# these are the strangers. For faces, a layer before the last is better.
X = PretrainedCNNFeatures(layer="block6").fit_transform(photos)
first = np.arange(len(photos)).reshape(-1, 10)[:, :5]
known, queries = first[y[::10] % 4 < 3].ravel(), first.ravel() + 5
stranger = y[queries] % 4 == 3
rows = StandardScaler().fit(X[known]).transform(X)

# %%
# Each known person in turn plays the stranger: how far is the nearest
# photo of another person? The threshold accepts one in twenty of these.
apart = cosine_distances(rows[known])
apart[y[known] == y[known][:, None]] = np.inf
threshold = np.quantile(apart.min(axis=1), 0.05)
distances = cosine_distances(rows[queries], rows[known])
found = known[distances.argmin(axis=1)]
accepted = distances.min(axis=1) < threshold
right = accepted & (y[found] == y[queries])
print(f"known persons: {right[~stranger].mean():.0%} recognised")
print(f"strangers: {1 - accepted[stranger].mean():.0%} refused")

# %%
# How many photos of each person does it take, if all are known?
grey = np.stack([p.convert("L").resize((46, 56)) for p in photos])
pixels = grey[:, ::2, ::2].reshape(len(grey), -1)
some = [first[:, :k].ravel() for k in range(1, 6)]
HEADS = {
    "nearest neighbour": KNeighborsClassifier(1, metric="cosine"),
    "logistic regression": LogisticRegression(C=0.01, max_iter=1000),
}
warnings.filterwarnings("ignore", "The number of unique classes")
figure, (above, below) = plt.subplots(2, layout="constrained")
for kind, Z in {"features": X, "pixels": pixels}.items():
    for name, head in HEADS.items():
        model = make_pipeline(StandardScaler(), head)
        fits = (model.fit(Z[i], y[i]) for i in some)
        scores = [fit.score(Z[queries], y[queries]) for fit in fits]
        below.plot([*"12345"], scores, label=f"{kind}, {name}")
below.set(xlabel="known photos of each person", ylabel="accuracy")
below.legend(fontsize="small")
shown = np.argsort(stranger, kind="stable")[np.r_[0:16:5, -16:0:5]]
strips = [np.hstack(grey[i[shown]]) for i in (queries, found)]
above.imshow(np.vstack(strips), "gray")
verdicts = np.where(accepted[shown], "accepted", "refused")
above.set_xticks(range(23, 368, 46), verdicts, fontsize="small")
above.set_yticks([28, 84], ["query", "nearest"])
figure.savefig("face_recognition.png", dpi=150)
plt.show()

# %%
# Use this for an album of your own or a tray of coins, not to identify
# people or control access: the network learned objects, and its errors
# may vary by group. Networks for faces need consent and a legal basis.
