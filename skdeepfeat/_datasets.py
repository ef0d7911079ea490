"""Data sets as Bunches: a folder of photos, and the textures that ship with us."""

import io
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from ._exceptions import ImageWarning, warn_user
from ._files import check_path
from ._images.formats import is_image_name
from ._store.database import entries_of_store


def load_image_folder(root):
    """List the photos of a folder, by class if it has a subfolder for each.

    Nothing is decoded: pass the paths to :class:`PretrainedCNNFeatures`. Photos are
    recognised by their file extension. Links are followed, except those that lead back
    to a folder that contains them; hidden files and folders are skipped, and so are
    stores of features.

    Parameters
    ----------
    root : str or path
        A folder with one subfolder for each class, searched to any depth; or a folder
        of photos without subfolders.

    Returns
    -------
    photos : Bunch
        With the fields

        data : ndarray of str, shape (n_images,)
            Paths: those of each class together, sorted by folder and name.
        target : ndarray of int, shape (n_images,), or None
            Class of each photo, an index into `target_names`; None if `root` has no
            subfolders.
        target_names : list of str
            Names of the subfolders, sorted. One without photos keeps its number, so
            that two folders with the same subfolders have the same classes.
        filenames : ndarray of str, shape (n_images,)
            The same as `data`, as :func:`sklearn.datasets.load_files` calls it.
        n_ignored : int
            How many files were skipped: those without the extension of a photo, files
            next to the subfolders, broken links, pipes and devices.

    Raises
    ------
    FileNotFoundError
        If `root` is not a folder.
    ValueError
        If there are no photos.

    Warns
    -----
    ImageWarning
        If files were skipped, or a subfolder has no photos.

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
    check_path(root, "root")
    root = os.path.expanduser(Path(root))
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{root!r} is not a folder. Pass a folder of photos, or a folder with one "
            "subfolder for each class."
        )
    folders, beside = _contents(root)
    folders = [folder for folder in folders if not _is_store(folder.path)]
    by_class = {f.name: _files_below(f.path, root) for f in folders} or {"": beside}
    photos = [[e.path for e in files if _is_photo(e)] for files in by_class.values()]
    others = [e.path for files in by_class.values() for e in files if not _is_photo(e)]
    ignored = [entry.path for entry in beside] + others if folders else others
    if not any(photos):
        raise ValueError(_nothing_found(root, folders, ignored))
    empty = [name for name, found in zip(by_class, photos, strict=True) if not found]
    _warn_of_ignored(root, ignored)
    _warn_of_empty(root, empty)
    paths, sizes = np.concatenate(list(filter(None, photos))), list(map(len, photos))
    return Bunch(
        data=paths,
        target=np.repeat(np.arange(len(sizes)), sizes) if folders else None,
        target_names=list(by_class) if folders else [],
        filenames=paths,
        n_ignored=len(ignored),
    )


def _contents(folder: str) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """The folders and the other entries of a folder, by name.

    Hidden ones and those of a store of features are skipped.
    """
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    skipped = {n for n in entries_of_store(found) if not _has_photos(found[n])}
    shown = [found[n] for n in found if not (n.startswith(".") or n in skipped)]
    shown.sort(key=lambda entry: entry.name)
    kinds = [_holds(entry.is_dir) for entry in shown]
    folders = [entry for entry, is_dir in zip(shown, kinds, strict=True) if is_dir]
    return folders, [e for e, is_dir in zip(shown, kinds, strict=True) if not is_dir]


def _is_store(folder: str) -> bool:
    """Whether a folder holds a store of features, and nothing else."""
    names = set(os.listdir(folder))
    return len(names) > 0 and names == entries_of_store(names)


def _has_photos(entry: os.DirEntry) -> bool:
    """Whether this is a folder with photos in it."""
    return entry.is_dir() and any(map(is_image_name, os.listdir(entry.path)))


def _is_photo(entry: os.DirEntry) -> bool:
    """Whether this is a file with the extension of a photo, or a link to one."""
    return is_image_name(entry.name) and _holds(entry.is_file)


def _holds(test: Callable[[], bool]) -> bool:
    """The result of a test of an entry; False for a link to itself."""
    try:
        return test()
    except OSError:
        return False


def _files_below(folder: str, root: str) -> list[os.DirEntry]:
    """All files of a folder and the folders below it, sorted by folder and name.

    A link from below a folder back to it is not followed.
    """
    found: dict[str, list[os.DirEntry]] = {}
    above = map(str, Path(root).resolve().parents)
    waiting = [(folder, {_identity(place) for place in (root, *above)})]
    while waiting:
        here, around = waiting.pop()
        if _identity(here) not in around:
            folders, found[here] = _contents(here)
            inside = around | {_identity(here)}
            waiting += [(below.path, inside) for below in folders]
    return [entry for here in sorted(found) for entry in found[here]]


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths of a folder."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _nothing_found(root: str, folders: list, ignored: list[str]) -> str:
    """An error message for a folder without photos."""
    others = f" It has other files, for instance {ignored[0]!r}." if ignored else ""
    if not folders:
        return f"{root!r} has neither subfolders nor images in it.{others}"
    return (
        f"{root!r} has no subfolder with images.{others} Put the photos of each class "
        "into a subfolder of its name, or photos without classes into a folder without "
        "subfolders."
    )


def _warn_of_ignored(root: str, ignored: list[str]) -> None:
    """Warn of files that were skipped."""
    if ignored:
        warn_user(
            f"Left out {len(ignored)} file(s) below {root!r} that are not images or "
            f"not in the subfolder of a class, for instance {ignored[0]!r}.",
            ImageWarning,
        )


def _warn_of_empty(root: str, empty: list[str]) -> None:
    """Warn of classes without photos."""
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        warn_user(
            f"Subfolders of {root!r} without images: {', '.join(map(repr, empty[:5]))}"
            f"{more}. They remain classes without images.",
            ImageWarning,
        )


def load_textures():
    """Load the small set of labelled image patches that ships with the package.

    It makes examples possible offline: 8 classes of grey patches, cut without overlap
    from 8 photos, with random rotation, brightness and contrast, so that raw pixels
    reveal little about the class.

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
