"""The orientation in a file's metadata → an upright image."""

from collections.abc import Callable

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag

# Orientation → the rotation or flip, for PIL images and for (h, w, ...) arrays.
ROTATIONS: dict[int, tuple[Image.Transpose, Callable[[np.ndarray], np.ndarray]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda a: a[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda a: a[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda a: a[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda a: a.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda a: np.rot90(a, -1)),
    7: (Image.Transpose.TRANSVERSE, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, np.rot90),
}

ON_ITS_SIDE = (5, 6, 7, 8)  # whose width is the height of the upright image


def orientation_of(image: Image.Image) -> int:
    """The orientation still to be applied to a loaded image, 1 for none.

    Metadata that cannot be read are ignored, since the pixels are good without them.
    """
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return int(orientation) if orientation in ROTATIONS else 1
    except Exception:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image, rotated or flipped as its metadata say."""
    orientation = orientation_of(image)
    return image if orientation == 1 else image.transpose(ROTATIONS[orientation][0])


def rotated(array: np.ndarray, orientation) -> np.ndarray:
    """An array of pixels, rotated or flipped upright."""
    return ROTATIONS[orientation][1](array) if orientation in ROTATIONS else array
