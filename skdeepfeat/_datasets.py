"""Photos on disk, and the small set that ships with the package, as Bunches."""

import io
import os
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils import Bunch

from ._exceptions import ImageWarning


def load_image_folder(root):
    """List the photos of a folder that has one subfolder for each class.

    Nothing is decoded: the paths are meant for :class:`PretrainedCNNFeatures`. Files
    are photos by the ending of their name; hidden files and others are left out.

    Parameters
    ----------
    root : str or path
        A folder with one subfolder for each class, searched to any depth.

    Returns
    -------
    photos : Bunch
        With the fields

        data : ndarray of str, shape (n_images,)
            Paths, sorted by class and name.
        target : ndarray of int, shape (n_images,)
            Class of each photo, an index into `target_names`.
        target_names : list of str
            Names of the subfolders that hold photos, sorted.
        filenames : ndarray of str, shape (n_images,)
            The same as `data`, as :func:`sklearn.datasets.load_files` calls it.
        n_ignored : int
            How many files were left out because they are no images by their name.

    Raises
    ------
    FileNotFoundError
        If `root` is no folder.
    ValueError
        If no subfolder holds a photo.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> from skdeepfeat import load_image_folder
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ["ant", "bee"]:
    ...         (pathlib.Path(root) / name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(pathlib.Path(root) / name / "1.png")
    ...     photos = load_image_folder(root)
    >>> photos.target_names, photos.target
    (['ant', 'bee'], array([0, 1]))
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{str(root)!r} is no folder. Pass a folder with one subfolder for each "
            "class."
        )
    by_class = {}
    shown = [path for path in sorted(root.iterdir()) if not _is_hidden(path.name)]
    ignored = [str(path) for path in shown if path.is_file()]
    for folder in filter(Path.is_dir, shown):
        files = _files_below(folder)
        photos = [path for path in files if is_image_name(path)]
        ignored += [path for path in files if not is_image_name(path)]
        if photos:
            by_class[folder.name] = photos
    if not by_class:
        raise ValueError(
            f"{str(root)!r} has no subfolder with images. Put the photos of each class "
            "into a subfolder of its name."
        )
    if ignored:
        warnings.warn(
            f"{len(ignored)} files below {str(root)!r} are no images in a class's "
            f"subfolder and were left out, for instance {ignored[0]!r}.",
            ImageWarning,
            stacklevel=2,
        )
    names = list(by_class)
    paths = np.array([path for photos in by_class.values() for path in photos])
    target = np.repeat(np.arange(len(names)), [len(p) for p in by_class.values()])
    return Bunch(
        data=paths,
        target=target,
        target_names=names,
        filenames=paths,
        n_ignored=len(ignored),
    )


def is_image_name(path: str) -> bool:
    """Whether Pillow has a reader for files with this ending."""
    return os.path.splitext(path)[1].lower() in Image.registered_extensions()


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _files_below(folder: Path) -> list[str]:
    """All files of a folder and its subfolders, sorted; hidden ones left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [os.path.join(parent, name) for name in files if not _is_hidden(name)]
    return sorted(found)


def load_textures():
    """Load the small set of labelled image patches that ships with the package.

    It makes examples and first tries possible offline: 8 classes of grey patches, cut
    without overlap from 8 photos and changed in direction, brightness and contrast,
    so that raw pixels say little of the class.

    Returns
    -------
    textures : Bunch
        With the fields

        data : ndarray of shape (320, 48, 48), uint8
            The images, in random order.
        target : ndarray of int, shape (320,)
            Class of each image, an index into `target_names`; 40 of each.
        target_names : list of str
            What the photos show.
        DESCR : str
            Where the photos come from.

    Examples
    --------
    >>> from skdeepfeat import load_textures
    >>> textures = load_textures()
    >>> textures.data.shape, textures.target_names[:3]
    ((320, 48, 48), ['brick', 'cat', 'coins'])
    """
    folder = resources.files(__package__) / "_data"
    with (folder / "textures.npz").open("rb") as file:
        arrays = np.load(io.BytesIO(file.read()), allow_pickle=False)
    return Bunch(
        data=arrays["images"],
        target=arrays["target"].astype(int),
        target_names=arrays["target_names"].tolist(),
        DESCR=(folder / "textures.md").read_text(),
    )
