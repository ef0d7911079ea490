"""
What happens to one bad file in many?
=====================================

A download was cut short, a file is not an image, a path is wrong. With
`on_error="nan"`, these rows become nan, all others are unchanged, and
`errors_` lists what went wrong.
"""

import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import (
    ImageWarning,
    PretrainedCNNFeatures,
    load_textures,
)

# %%
# Write a folder of files, and damage three of them.
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
folder = Path(tempfile.mkdtemp())
order = np.random.default_rng(0).permutation(len(textures.data))[:size]
y = textures.target[order]
paths = [folder / f"{i:03}.jpg" for i in order]
for path, i in zip(paths, order, strict=True):
    Image.fromarray(textures.data[i]).save(path)
bad = {7: "cut", 23: "text", 42: "gone"}
paths[7].write_bytes(paths[7].read_bytes()[:400])
paths[23].write_text("<html>404 Not Found</html>")
paths[42].unlink()

# %%
# The number of rows never changes, and good rows are the same as
# without the bad files.
warnings.simplefilter("ignore", ImageWarning)
features = PretrainedCNNFeatures(on_error="nan", cache=None)
rows = features.transform(paths)
for row, _, reason in features.errors_:
    print(f"row {row}: {reason}")
clean = [row for row in range(size) if row not in bad]
alone = features.transform([paths[row] for row in clean])
print("good rows are the same:", np.array_equal(rows[clean], alone))

# %%
# In a pipeline, an imputer replaces the nan.
model = make_pipeline(
    PretrainedCNNFeatures(on_error="nan"),
    SimpleImputer(),
    StandardScaler(),
    LogisticRegression(C=0.01, max_iter=1000),
)
accuracy = model.fit(paths, y).score(paths, y)
print(f"accuracy on the training images: {accuracy:.2f}")

# %%
# The first features of the first rows. Only three rows are white.
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
shown = rows[:60, :120]
axes.imshow(shown, aspect="auto", interpolation="nearest")
axes.set_yticks(
    list(bad), [f"row {i}: {why}" for i, why in bad.items()]
)
axes.set(xlabel="feature", title="Features of 60 files, 3 damaged")
figure.savefig("one_bad_file.png", dpi=150)
plt.show()
