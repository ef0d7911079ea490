"""LayerDepthDisplay: score by depth of the features, from a search or a ranking."""

from operator import attrgetter

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._backbones.records import Backbone
from .._networks.layers import depth_of
from .._text_features import PretrainedTextFeatures
from .base import Display


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

        Raises
        ------
        TypeError
            If `search` is not a search.
        NotFittedError
            If it is not fitted.
        ValueError
            If it does not vary exactly one layer, or has no such metric.
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
        rows = list(ranking.itertuples()) if is_frame else ranking
        rows = sorted(rows, key=attrgetter("ms"))
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
