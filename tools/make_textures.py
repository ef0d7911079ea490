"""Write skdeepfeat/_data/textures.npz, the small labelled data set of the package.

    pip install scikit-image
    python tools/make_textures.py

It consists of square patches that do not overlap, cut from photos in scikit-image that
are in the public domain or under CC0. The patches are converted to grey, rotated, and
changed in brightness and contrast, so that neither colour nor brightness distinguishes
the classes.
"""

import argparse
from pathlib import Path

import numpy as np
from skimage import data
from skimage.color import rgb2gray

OUTPUT = Path(__file__).parents[1] / "skdeepfeat" / "_data" / "textures.npz"
SIDE, PER_CLASS = 48, 40
SOURCES = {
    "brick": data.brick,
    "cat": data.chelsea,
    "coins": data.coins,
    "grass": data.grass,
    "gravel": data.gravel,
    "retina": lambda: data.retina()[350:1060, 350:1060],
    "stars": data.hubble_deep_field,
    "tissue": data.immunohistochemistry,
}


def cut(photo, rng):
    """Patches of a photo in random order, each changed at random."""
    grey = rgb2gray(photo) if photo.ndim == 3 else photo / 255
    rows, columns = (side // SIDE for side in grey.shape)
    cells = [(r * SIDE, c * SIDE) for r in range(rows) for c in range(columns)]
    for r, c in rng.permutation(cells)[:PER_CLASS]:
        patch = np.rot90(grey[r : r + SIDE, c : c + SIDE], rng.integers(4))
        patch = (patch - patch.mean()) / (patch.std() + 0.02)
        patch = rng.uniform(0.35, 0.65) + rng.uniform(0.08, 0.2) * patch
        noisy = patch + rng.normal(0, 0.02, patch.shape)
        yield (noisy.clip(0, 1) * 255).round().astype(np.uint8)


def main():
    rng = np.random.default_rng(0)
    images = [patch for source in SOURCES.values() for patch in cut(source(), rng)]
    target = np.repeat(np.arange(len(SOURCES)), PER_CLASS)
    order = rng.permutation(len(images))
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        OUTPUT,
        images=np.stack(images)[order],
        target=target[order].astype(np.uint8),
        target_names=np.array(list(SOURCES)),
    )
    print(f"{len(images)} patches, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
