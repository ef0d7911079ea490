"""ActivationMapDisplay: photos, with what predictions rest on in colour over them."""

from collections.abc import Mapping, Set

import numpy as np
from PIL import Image

from .._activation_maps.maps import Explanation
from .._validation import is_whole
from .base import new_axes, pyplot

MOST_OPAQUE = 0.75  # of a map, where it is strongest


class ActivationMapDisplay:
    """Photos, with the places that predictions rest on in colour over them.

    Use :meth:`from_estimator` to create one.

    Parameters
    ----------
    photos : ndarray of shape (n_images, side, side, 3)
        Photos as they enter the network, with values from 0 to 1.
    maps : ndarray of shape (n_images, h, w)
        Returned by :func:`activation_maps`.
    titles : list of str, default=None
        Titles of the photos.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, shape (n_images,)
        Axes with the photos.
    figure_ : matplotlib Figure
        Figure that contains the axes.

    See Also
    --------
    activation_maps : Compute the maps alone.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdeepfeat import ActivationMapDisplay, PretrainedCNNFeatures
    >>> from skdeepfeat import load_textures
    >>> textures = load_textures()
    >>> model = make_pipeline(PretrainedCNNFeatures(), LogisticRegression())
    >>> model = model.fit(textures.data[::8], textures.target[::8])
    >>> display = ActivationMapDisplay.from_estimator(model, textures.data[:3])
    >>> display.axes_.shape
    (3,)
    """

    def __init__(self, photos, maps, *, titles=None):
        self.photos = photos
        self.maps = maps
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        target=None,
        method="auto",
        class_names=None,
        n_columns=4,
        axes=None,
    ):
        """Compute maps and draw them over the photos.

        Parameters
        ----------
        estimator, X : object
            As in :func:`activation_maps`.
        target : label, array-like of shape (n_images,) or None, default=None
            As in :func:`activation_maps`.
        method : {"auto", "places"}, default="auto"
            As in :func:`activation_maps`.
        class_names : sequence of str, default=None
            Names of the classes, in the order of `classes_`. None shows the labels.
        n_columns : int, default=4
            Number of photos side by side.
        axes : array of matplotlib Axes, default=None
            Axes to draw on, at least one for each photo; None creates a new figure.

        Returns
        -------
        display : ActivationMapDisplay
            The display, already drawn. Titles have the class that a map explains, and
            its probability if `estimator` has `predict_proba`; for a regressor, the
            predicted number; for a photo that cannot be read, that it could not be.

        Raises
        ------
        ValueError
            If `estimator`, `target` or `method` are refused by
            :func:`activation_maps`; if `class_names` has another length than the
            classes; or if there are fewer `axes` than photos.
        """
        explanation = Explanation(estimator, X, target, method)
        names = _class_names(estimator, class_names)
        _check_axes(explanation.n_images, axes, n_columns)
        explained = explanation.explain()
        titles = _titles(explained, names)
        display = cls(explanation.photos(), explained.maps, titles=titles)
        return display.plot(axes=axes, n_columns=n_columns)

    def plot(self, *, axes=None, n_columns=4):
        """Draw the figure.

        Parameters
        ----------
        axes : array of matplotlib Axes, default=None
            Axes to draw on, at least one for each photo; None creates a new figure.
        n_columns : int, default=4
            Number of photos side by side in a new figure.

        Returns
        -------
        display : ActivationMapDisplay
            The display itself.

        Raises
        ------
        ValueError
            If there are fewer `axes`, maps or titles than photos.
        """
        n = len(self.photos)
        titles = [""] * n if self.titles is None else self.titles
        _check_for_each(n, maps=self.maps, titles=titles)
        _check_axes(n, axes, n_columns)
        axes = np.ravel(_grid_of_axes(n, n_columns) if axes is None else axes)
        self.axes_, self.figure_ = axes[:n], axes[0].figure
        for ax, *one in zip(self.axes_, self.photos, self.maps, titles, strict=True):
            _draw_map(ax, *one)
        for ax in axes:
            ax.set_axis_off()
        return self


def _check_for_each(n, **given):
    """Refuse maps or titles of another number than that of the photos."""
    for name, values in given.items():
        if len(values) != n:
            raise ValueError(
                f"The '{name}' parameter of ActivationMapDisplay must have one for "
                f"each of the {n} photos. Got {len(values)} instead."
            )


def _check_axes(n, axes, n_columns):
    """Refuse too few axes for n photos, and what no figure can be made with."""
    if axes is not None and np.size(axes) < n:
        raise ValueError(
            f"The 'axes' parameter must have one for each of the {n} photos. Got "
            f"{np.size(axes)} instead; axes=None creates them."
        )
    if not is_whole(n_columns) or n_columns < 1:
        raise ValueError(
            "The 'n_columns' parameter must be an integer of at least 1. Got "
            f"{n_columns!r} instead."
        )
    if axes is None:
        pyplot()


def _grid_of_axes(n, n_columns):
    """New axes for n photos."""
    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    return new_axes(n_rows, n_columns, figsize=(2.2 * n_columns, 2.4 * n_rows))


def _draw_map(ax, photo, map_, title):
    """Draw a map over a photo: red where it supports the class, blue where it does not.

    Both are as transparent as they are weak.
    """
    side = len(photo), len(photo[0])
    smooth = np.asarray(Image.fromarray(map_.astype(np.float32)).resize(side[::-1]))
    most = np.nanmax(np.abs(smooth), initial=0) or 1.0
    alpha = MOST_OPAQUE * np.nan_to_num(np.abs(smooth) / most)
    ax.imshow(photo)
    ax.imshow(smooth, cmap="bwr", vmin=-most, vmax=most, alpha=alpha)
    ax.set_title(title, fontsize="medium")


def _class_names(estimator, class_names):
    """The name of each class in titles, by class; None for other estimators."""
    classes = getattr(estimator, "classes_", None)
    if class_names is None:
        return None if classes is None else dict(zip(classes, classes, strict=True))
    if classes is None:
        raise ValueError(
            f"The 'class_names' parameter names classes, and {type(estimator).__name__}"
            " predicts none. Leave it out."
        )
    kind = type(class_names).__name__
    unordered = isinstance(class_names, (str, Mapping, Set))
    if unordered or len(class_names) != len(classes):
        n = "" if unordered else f" of {len(class_names)}"
        raise ValueError(
            f"The 'class_names' parameter must be a sequence of {len(classes)} names, "
            f"in the order of classes_ ({', '.join(map(str, classes))}). Got a "
            f"{kind}{n} instead."
        )
    return dict(zip(classes, class_names, strict=True))


def _titles(explained, names):
    """What each map explains, with its probability or number."""
    parts = zip(explained.labels, explained.values, explained.readable, strict=True)
    return [
        _title(names and names[label], value) if readable else "could not be read"
        for label, value, readable in parts
    ]


def _title(name, value):
    """The name of a class and its probability, or the number of a regressor."""
    if name is None:
        return f"{value:.3g}"
    return str(name) if np.isnan(value) else f"{name} {value:.0%}"
