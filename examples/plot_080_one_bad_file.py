"""
One bad file in many
====================

A download was cut short, a file is no image, a path is wrong. With `on_error="nan"`
these rows become nan, all others stay as they are, and `errors_` says what went wrong.
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

from skdeepfeat import ImageWarning, PretrainedCNNFeatures, load_textures

# %%
# A folder of files, three of which are damaged in ways that happen.
size = int(os.environ.get("SKDEEPFEAT_EXAMPLE_SIZE", 320))
textures = load_textures()
folder = Path(tempfile.mkdtemp())
chosen = np.random.default_rng(0).permutation(len(textures.data))[:size]
paths, y = [], textures.target[chosen]
for row in chosen:
    paths.append(folder / f"{row:03}.jpg")
    Image.fromarray(textures.data[row]).save(paths[-1])
bad = {7: "cut", 23: "text", 42: "gone"}
paths[7].write_bytes(paths[7].read_bytes()[:400])
paths[23].write_text("<html>404 Not Found</html>")
paths[42].unlink()

# %%
# The number of rows never changes, and good rows are those of a clean run.
features = PretrainedCNNFeatures(on_error="nan", cache=None)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImageWarning)
    rows = features.transform(paths)
for row, source, reason in features.errors_:
    print(f"row {row} ({Path(source.strip(chr(39))).name}): {reason}")
clean = [row for row in range(size) if row not in bad]
alone = PretrainedCNNFeatures(cache=None).transform([paths[row] for row in clean])
print("good rows equal those of a clean run:", np.array_equal(rows[clean], alone))

# %%
# In a pipeline an imputer fills the nan, so that one file costs one row and no more.
pipeline = make_pipeline(
    PretrainedCNNFeatures(on_error="nan"),
    SimpleImputer(),
    StandardScaler(),
    LogisticRegression(C=0.01, max_iter=1000),
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImageWarning)
    accuracy = pipeline.fit(paths, y).score(paths, y)
print(f"accuracy on what it was fitted on: {accuracy:.2f}")

# %%
# The figure: the first features of the first rows; three white rows, no more.
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.imshow(rows[:60, :120], aspect="auto", interpolation="nearest", cmap="viridis")
axes.set_yticks(list(bad), [f"row {row}: {why}" for row, why in bad.items()])
axes.set(xlabel="feature", title="Features of 60 files, three of them damaged")
figure.savefig("one_bad_file.png", dpi=150)
plt.show()
