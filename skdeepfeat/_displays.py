"""Figures of training histories, searches over layers and maps, as displays.

Matplotlib is imported only when a figure is drawn; the extra [plot] installs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from operator import attrgetter

import numpy as np
from PIL import Image
from sklearn.utils.validation import check_is_fitted

from ._activation_maps.maps import Explanation
from ._backbones.records import Backbone
from ._finetuning.classifier import FineTunedClassifier
from ._networks.layers import depth_of
from ._text_features import PretrainedTextFeatures
from ._validation import is_whole


class Display(ABC):
    """Base of the displays."""

    def plot(self, ax=None):
        """Draw the figure.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : Display
            The display itself.
        """
        self.ax_ = _new_axes() if ax is None else ax
        self.figure_ = self.ax_.figure
        self.lines_ = []
        self._draw()
        return self

    @abstractmethod
    def _draw(self):
        """Draw on `ax_`, and store the lines in `lines_`."""


def _new_axes(n_rows=1, n_columns=1, **options):
    """The axes of a new figure, in an array if there are several."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib. Install it with pip install 'skdeepfeat[plot]'."
        ) from error
    return plt.subplots(n_rows, n_columns, layout="constrained", **options)[1]


class TrainingHistoryDisplay(Display):
    """Loss or accuracy of a fine-tuned classifier, epoch by epoch.

    Use :meth:`from_estimator` to create one.

    Parameters
    ----------
    history : list of dict
        The `history_` attribute of a :class:`FineTunedClassifier`.
    metric : {"accuracy", "loss"}, default="accuracy"
        Metric to draw.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        Curve of the training images, then of the held-out images, if any.

    Examples
    --------
    >>> from skdeepfeat import FineTunedClassifier, TrainingHistoryDisplay
    >>> from skdeepfeat import load_textures
    >>> textures = load_textures()
    >>> X, y = textures.data[::8], textures.target[::8]
    >>> clf = FineTunedClassifier(epochs=1, random_state=0).fit(X, y)
    >>> display = TrainingHistoryDisplay.from_estimator(clf)
    """

    def __init__(self, history, *, metric="accuracy"):
        self.history = history
        self.metric = metric

    @classmethod
    def from_estimator(cls, estimator, *, metric="accuracy", ax=None):
        """Draw the history of a fitted classifier.

        Parameters
        ----------
        estimator : FineTunedClassifier
            A fitted classifier.
        metric : {"accuracy", "loss"}, default="accuracy"
            Metric to draw.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : TrainingHistoryDisplay
            The display, already drawn.
        """
        if not isinstance(estimator, FineTunedClassifier):
            raise TypeError(
                "The 'estimator' parameter must be a fitted FineTunedClassifier. Got "
                f"{type(estimator).__name__} instead; of a pipeline, pass its step."
            )
        check_is_fitted(estimator)
        return cls(estimator.history_, metric=metric).plot(ax=ax)

    def _draw(self):
        metrics = ("accuracy", "loss")
        if self.metric not in metrics:
            raise ValueError(
                f"The 'metric' parameter must be one of {', '.join(metrics)}. Got "
                f"{self.metric!r} instead."
            )
        epochs = np.arange(1, len(self.history) + 1)
        for name, label in (
            (self.metric, "training"),
            (f"validation_{self.metric}", "held out"),
        ):
            if any(name in entry for entry in self.history):
                values = [entry.get(name, np.nan) for entry in self.history]
                self.lines_ += self.ax_.plot(epochs, values, marker="o", label=label)
        n_head = sum(entry["phase"] == "head" for entry in self.history)
        if 0 < n_head < len(self.history):
            self._divide(n_head + 0.5)
        self.ax_.set(xlabel="epoch", ylabel=self.metric)
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.ax_.legend()

    def _divide(self, place):
        """Mark the epoch from which the blocks learn together with the head."""
        self.ax_.axvline(place, color="grey", linestyle=":")
        for text, shift, side in (
            ("head alone", -6, "right"),
            ("head and blocks", 6, "left"),
        ):
            self.ax_.annotate(
                text,
                (place, 1.01),
                (shift, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                color="grey",
            )


_cost = attrgetter("ms")


class LayerDepthDisplay(Display):
    """Score by depth of the features, from a search over layers or a ranking.

    Use :meth:`from_search` or :meth:`from_ranking` to create one.

    Parameters
    ----------
    layers : list of str
        Layers in order of depth.
    scores : dict of str to ndarray of shape (n_layers,)
        Score at each layer, for each network or each setting of the other parameters of
        a search; NaN where there is no such layer. The keys are the labels of the
        lines.
    score_name : str, default="score"
        Label of the vertical axis.
    costs : dict of str to ndarray of shape (n_layers,), default=None
        Milliseconds it takes to compute an image up to each layer, for each of the
        lines. None draws the layers at equal distances.
    chosen : tuple of (str, str), default=None
        Label and layer of a point to mark.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        One line for each network or each setting of the other parameters.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdeepfeat import LayerDepthDisplay, PretrainedCNNFeatures, load_textures
    >>> textures = load_textures()
    >>> pipeline = make_pipeline(PretrainedCNNFeatures(), GaussianNB())
    >>> grid = {"pretrainedcnnfeatures__layer": ["block5", "block2"]}
    >>> search = GridSearchCV(pipeline, grid, cv=2)
    >>> search = search.fit(textures.data[::8], textures.target[::8])
    >>> LayerDepthDisplay.from_search(search).layers
    ['block2', 'block5']
    """

    def __init__(self, layers, scores, *, score_name="score", costs=None, chosen=None):
        self.layers = layers
        self.scores = scores
        self.score_name = score_name
        self.costs = costs
        self.chosen = chosen

    @classmethod
    def from_search(cls, search, *, metric="score", names=None, ax=None):
        """Draw the scores of a fitted search that varies the layer.

        Parameters
        ----------
        search : GridSearchCV or similar
            Fitted search over a parameter called "layer" or "<step>__layer", and
            possibly other parameters.
        metric : str, default="score"
            Name of the scorer to draw, if the search has several.
        names : callable or None, default=None
            Function that takes the dict of the other parameters and returns the label
            of their line, which shows the best score of those with the same label.
            None lists their values.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : LayerDepthDisplay
            The display, already drawn.
        """
        _check_is_search(search)
        scores = _final_scores(search.cv_results_, metric)
        key = _key_of_layer(search.cv_results_["params"])
        varied = [params for params, _ in scores if key in params]
        layers = sorted(
            dict.fromkeys(_hashable(params[key]) for params in varied),
            key=_depth_in_networks(search, key, varied),
        )
        lines: dict[str, np.ndarray] = {}
        for params, score in scores:
            others = {k: v for k, v in params.items() if k != key}
            label = names(others) if names else ", ".join(map(_word, others.values()))
            line = lines.setdefault(label, np.full(len(layers), np.nan))
            if key in params:
                place = layers.index(_hashable(params[key]))
                line[place] = np.fmax(line[place], score)
        return cls(list(map(str, layers)), lines, score_name=metric).plot(ax=ax)

    @classmethod
    def from_ranking(cls, ranking, *, ax=None):
        """Draw the score of each layer against the time to compute it.

        Parameters
        ----------
        ranking : list or DataFrame
            Returned by :func:`rank_layers`.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : LayerDepthDisplay
            The display, already drawn, with a line for each network and a mark at the
            chosen layer.

        Examples
        --------
        >>> from skdeepfeat import LayerDepthDisplay, load_textures, rank_layers
        >>> textures = load_textures()
        >>> ranking = rank_layers(textures.data[::8], textures.target[::8])
        >>> display = LayerDepthDisplay.from_ranking(ranking)
        """
        is_frame = hasattr(ranking, "itertuples")
        rows = sorted(ranking.itertuples() if is_frame else ranking, key=_cost)
        layers = list(dict.fromkeys(row.layer for row in rows))
        missing = np.full(len(layers), np.nan)
        scores = {row.backbone: missing.copy() for row in rows}
        costs = {row.backbone: missing.copy() for row in rows}
        for row in rows:
            place = layers.index(row.layer)
            scores[row.backbone][place] = row.score
            costs[row.backbone][place] = row.ms
        chosen = next(((row.backbone, row.layer) for row in rows if row.chosen), None)
        display = cls(layers, scores, score_name="score", costs=costs, chosen=chosen)
        return display.plot(ax=ax)

    def _draw(self):
        for label, values in self.scores.items():
            self.lines_ += self.ax_.plot(
                *self._line(label, values), marker="o", label=label
            )
        x = "layer, from early to late" if self.costs is None else "ms for one image"
        self.ax_.set(xlabel=x, ylabel=self.score_name)
        if self.chosen:
            self._mark(*self.chosen)
        if len(self.scores) > 1:
            self.ax_.legend(fontsize="small")

    def _line(self, label, values):
        """Where the points of a line are, from left to right."""
        if self.costs is None:
            return self.layers, values
        order = np.argsort(self.costs[label])
        known = order[np.isfinite(values[order])]
        return self.costs[label][known], values[known]

    def _mark(self, label, layer):
        """Mark a layer with its name."""
        place = self.layers.index(layer)
        x = layer if self.costs is None else self.costs[label][place]
        y = self.scores[label][place]
        self.ax_.plot([x], [y], "o", ms=14, mfc="none", color="black")
        self.ax_.annotate(layer, (x, y), (0, 12), textcoords="offset points")


def _final_scores(results, metric) -> list[tuple[dict, float]]:
    """Each candidate of a search with its score, by successive halving the last one."""
    name = f"mean_test_{metric}"
    if name not in results:
        known = [n.removeprefix("mean_test_") for n in results if "mean_test_" in n]
        raise ValueError(
            f"The search has no metric {metric!r}. Pass one that it has, as metric=: "
            f"{', '.join(map(repr, known))}."
        )
    pairs = zip(results["params"], results[name], strict=True)
    last = {_identity(params): (params, score) for params, score in pairs}
    return list(last.values())


def _identity(params) -> tuple:
    """What is the same for a candidate in all iterations; two networks may have the
    same text."""
    return tuple((name, _hashable(value)) for name, value in params.items())


def _word(value) -> str:
    """A value in the label of a line."""
    return value.name if isinstance(value, Backbone) else str(value)


def _check_is_search(search) -> None:
    """Refuse what is not a fitted search."""
    check_is_fitted(search)
    if not hasattr(search, "cv_results_"):
        raise TypeError(
            "The 'search' parameter must be a fitted search, such as GridSearchCV. Got "
            f"{type(search).__name__} instead."
        )


def _key_of_layer(candidates) -> str:
    """The only parameter that is a layer."""
    varied = list(dict.fromkeys(key for params in candidates for key in params))
    keys = [key for key in varied if key == "layer" or key.endswith("__layer")]
    if not keys:
        raise ValueError(
            "The search does not vary a parameter called 'layer'. Its parameters "
            f"are {', '.join(map(repr, varied))}."
        )
    if len(keys) > 1:
        raise ValueError(
            f"The search varies several layers, {', '.join(map(repr, keys))}, which "
            "are not one depth. Draw a search that varies one of them."
        )
    return keys[0]


def _hashable(value):
    """A value of a parameter; a list as a tuple, and what has no hash as text."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value


def _depth_in_networks(search, key, candidates):
    """A function that maps a layer, or a tuple of some, to the depth of the deepest one
    in the networks of the candidates; it is -1 for other values."""
    parameters, step = search.estimator.get_params(), key.rpartition("__")[0]
    named = f"{step}__backbone" if step else "backbone"
    networks = {}
    for params in candidates:
        owner = params.get(step, parameters[step]) if step else search.estimator
        kind = "text" if isinstance(owner, PretrainedTextFeatures) else "image"
        network = params.get(named, owner.backbone)
        networks[network if isinstance(network, str) else id(network)] = network, kind
    return lambda layer: max(depth_of(*network, layer) for network in networks.values())


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
        estimator, X, target, method : object
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
        """
        explanation = Explanation(estimator, X, target, method)
        names = _class_names(estimator, class_names)
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
        """
        n = len(self.photos)
        titles = [""] * n if self.titles is None else self.titles
        _check_for_each(n, maps=self.maps, titles=titles)
        axes = np.ravel(_grid_of_axes(n, n_columns) if axes is None else axes)
        if len(axes) < n:
            raise ValueError(
                f"The 'axes' parameter must have one for each of the {n} photos. Got "
                f"{len(axes)} instead; axes=None creates them."
            )
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


def _grid_of_axes(n, n_columns):
    """New axes for n photos."""
    if not is_whole(n_columns) or n_columns < 1:
        raise ValueError(
            "The 'n_columns' parameter must be an integer of at least 1. Got "
            f"{n_columns!r} instead."
        )
    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    return _new_axes(n_rows, n_columns, figsize=(2.2 * n_columns, 2.4 * n_rows))


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
