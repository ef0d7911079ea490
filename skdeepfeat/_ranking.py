"""Rank the layers of networks by how well they suit a target."""

from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from ._backbones.registry import resolve_backbone
from ._backbones.text_registry import refuse_texts
from ._choice import choose_layer
from ._features import PretrainedCNNFeatures
from ._images.input import read_input
from ._images.windows import Images
from ._listing import Field, Listing
from ._networks.layers import list_layers

# Parts of the time of an image: what every layer takes, and what grows with depth.
SAME, GROWING = ("reading", "decoding", "copying"), ("network", "workers")
_quality = attrgetter("score")
SAMPLE = 32  # images that are computed again if all features were stored


class RankedLayer(NamedTuple):
    """One layer of a network in a ranking, as a row of its table."""

    backbone: str
    layer: str
    score: float
    r2: float
    neighbors_r2: float
    accuracy: float | None
    error: float | None
    features: int
    ms: float
    chosen: bool


SHOWN = {
    "backbone": Field("backbone", attrgetter("backbone")),
    "layer": Field("layer", attrgetter("layer")),
    "score": Field("score", attrgetter("score"), ".3f"),
    "r2": Field("R²", attrgetter("r2"), ".3f"),
    "neighbors_r2": Field("of neighbours", attrgetter("neighbors_r2"), ".3f"),
    "accuracy": Field("accuracy", attrgetter("accuracy"), ".3f"),
    "error": Field("error", attrgetter("error"), ".4g"),
    "features": Field("features", attrgetter("features"), ","),
    "ms": Field("ms an image", attrgetter("ms"), ".1f"),
    "chosen": Field("", lambda row: "<- chosen" if row.chosen else ""),
}


def rank_layers(
    X,
    y,
    *,
    backbone="mini",
    weights="default",
    as_frame=False,
    verbose=0,
    **parameters,
):
    """Rank the layers of one or several networks by how well they predict y.

    The score of a layer is the mean of two R² for images that are left out one at a
    time: that of a ridge regression on its features, which has a closed form [1]_, and
    that of the mean of the five nearest neighbours. All layers of a network are
    computed in one pass, and the features are stored. On small and large sets, the
    layer with the best score was as good for logistic regression, support vector
    machines and nearest neighbours as the one that cross-validation of these
    classifiers finds, at a fraction of the time.

    Parameters
    ----------
    X : sequence of n_images images
        Images, as in :class:`PretrainedCNNFeatures`.
    y : array-like of shape (n_images,) or (n_images, n_outputs)
        Floats are numbers to predict; all other types are classes.
    backbone : str or Backbone, or list of these, default="mini"
        The networks, each as in :class:`PretrainedCNNFeatures`.
    weights : str, path, tuple or None, or list of these, default="default"
        The weights, as in :class:`PretrainedCNNFeatures`; a list has one entry for
        each network.
    as_frame : bool, default=False
        Return a pandas data frame.
    verbose : int, default=0
        Verbosity level. Above 0, show the progress of each pass.
    **parameters
        Other parameters of :class:`PretrainedCNNFeatures`, such as `cache`.

    Returns
    -------
    ranking : list of named tuple, or DataFrame if `as_frame`
        One entry for each distinct layer, the best score first. The list prints as a
        table. The fields are:

        backbone, layer : str
            The network and the alias of the layer.
        score : float
            The mean of the next two.
        r2, neighbors_r2 : float
            R² for images that are left out, of the regression and of the neighbours;
            with both at or below 0, the layer predicts nothing.
        accuracy : float or None
            Fraction of these images whose class is predicted; None for numbers.
        error : float or None
            Root mean squared error for these images, in units of y; for several
            outputs the mean of theirs; None for classes.
        features : int
            Number of features.
        ms : float
            Milliseconds that it takes to compute one image up to this layer: measured
            for all layers of the network, and divided by their share of the network's
            multiplications. If the features are stored, 32 images are computed again
            to measure it. On a cluster, the time that all its workers take together.
        chosen : bool
            Whether the layer is the choice of ``layer="auto"`` for the best of the
            networks.

    Raises
    ------
    TypeError
        If `layer` is among the parameters: all layers are ranked.
    ValueError
        If there is no network, one of them takes texts, a list of `weights` has another
        length, or `y` has missing values or fewer than two rows.
    ImportError
        If `as_frame` is set and pandas is not installed.

    See Also
    --------
    LayerDepthDisplay.from_ranking : Draw scores against the time to compute a layer.
    recommend_strategy : Decide whether to fine-tune the network.

    Notes
    -----
    The features are scaled to a deviation of 1. The penalty of the ridge regression is
    chosen for each layer, by the same squared error. LogME [2]_ and other scores
    without labels of held-out images can mislead [3]_. This one is an exact prediction
    error, but that of a classifier other than yours.

    References
    ----------
    .. [1] Allen, "The Relationship Between Variable Selection and Data Augmentation
       and a Method for Prediction", 1974.
    .. [2] You, Liu, Wang, Long, "LogME: Practical Assessment of Pre-trained Models for
       Transfer Learning", 2021.
    .. [3] Singh, Hess, Vanschoren, "How NOT to benchmark your SITE metric", 2025,
       arXiv 2510.06448.

    Examples
    --------
    >>> from skdeepfeat import load_textures, rank_layers
    >>> textures = load_textures()
    >>> ranking = rank_layers(textures.data[::4], textures.target[::4])
    >>> sum(row.chosen for row in ranking)
    1
    """
    if "layer" in parameters:
        raise TypeError(
            "rank_layers has no 'layer' parameter: it ranks all layers of a network. "
            "Leave it out."
        )
    backbones = _backbones_in(backbone)
    versions = _weights_in(weights, len(backbones))
    as_table = _as_frame() if as_frame else _as_list
    make = partial(PretrainedCNNFeatures, layer="auto", verbose=verbose, **parameters)
    steps = [make(b, weights=w) for b, w in zip(backbones, versions, strict=True)]
    names = _names_of(backbones)
    for features in steps:  # refuse now what would fail after the networks before it
        features._plan(fitting=True)
    ranked = [list(_rank(*one, X, y)) for one in zip(names, steps, strict=True)]
    best = max(ranked, key=lambda rows: max(map(_quality, rows)))
    rows = [
        row._replace(chosen=row.chosen and some is best)
        for some in ranked
        for row in some
    ]
    return as_table(sorted(rows, key=_quality, reverse=True))


def _backbones_in(backbone) -> list:
    """The networks of a `backbone` parameter; refuses networks of texts, and none."""
    backbones = list(backbone) if isinstance(backbone, (list, tuple)) else [backbone]
    if not backbones:
        raise ValueError(
            "The 'backbone' parameter of rank_layers must be a network or a list of "
            f"at least one. Got {backbone!r} instead; pass for example "
            "backbone=['mini', 'resnet18']."
        )
    for network in backbones:
        refuse_texts(network)
    return backbones


def _weights_in(weights, n_networks: int) -> list:
    """The weights of each network; refuses a list of another length."""
    versions = weights if isinstance(weights, list) else [weights] * n_networks
    if len(versions) != n_networks:
        raise ValueError(
            f"The 'weights' of rank_layers must be one value, or a list with one entry "
            f"for each network. Got {len(versions)} entries for {n_networks} "
            "networks."
        )
    return versions


def _names_of(backbones) -> list[str]:
    """A name of each network, numbered where several have the same."""
    names = [b if isinstance(b, str) else resolve_backbone(b).name for b in backbones]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    several = [names.count(name) > 1 for name in names]
    return [
        f"{name} ({number})" if repeated else name
        for name, number, repeated in zip(names, numbers, several, strict=True)
    ]


def _rank(name: str, features: PretrainedCNNFeatures, X, y) -> Iterator[RankedLayer]:
    """The layers of one network in order of depth, its choice marked."""
    images = read_input(features, X, reset=True, allow_nan=features.on_error == "nan")
    rows, scores = features.score_layers(images, y)
    ms = _milliseconds(features, images)
    chosen = choose_layer(scores)
    for layer, score in scores.items():
        quality = score.mean_r2, score.r2, score.neighbors_r2
        about = score.accuracy, score.error, rows[layer].shape[1], ms[layer]
        yield RankedLayer(name, layer, *quality, *about, layer == chosen)


def _milliseconds(features: PretrainedCNNFeatures, images: Images) -> dict[str, float]:
    """How long one image takes up to each layer, as the last call measured it."""
    n_computed = features.stats_["n_computed"]
    n = min(SAMPLE, len(images) - n_computed)
    if n_computed < n:  # too few to tell: most were stored
        features.set_params(cache=None, verbose=0)._walk(images.head(n), fitting=True)
    stats = features.stats_
    each = 1000 * stats["seconds"] / max(1, stats["n_computed"])
    same, growing = (
        each * sum(stats["shares"].get(part, 0) for part in parts)
        for parts in (SAME, GROWING)
    )
    return {
        layer.alias: same + growing * (layer.share or 1)
        for layer in list_layers(features.backbone)
    }


def _filled(rows: list[RankedLayer]) -> list[str]:
    """The names of the columns that are not empty."""
    return [name for name in SHOWN if getattr(rows[0], name) is not None]


def _as_list(rows: list[RankedLayer]) -> Listing:
    """A list that prints as a table."""
    return Listing(rows, [SHOWN[name] for name in _filled(rows)])


def _as_frame() -> Callable:
    """What makes a data frame of rows; refuses if pandas is missing."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "as_frame=True needs pandas. Type: pip install pandas"
        ) from error
    return lambda rows: pd.DataFrame(rows)[_filled(rows)]
