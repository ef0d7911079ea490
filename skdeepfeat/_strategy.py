"""Which kind of transfer learning suits some data: measured, then decided."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch

from ._features import PretrainedCNNFeatures
from ._finetuning.classifier import FineTunedClassifier
from ._networks.layers import list_layers

LARGE = 200  # images of the average class that can bear tuning a network

# (is the data large, is it like what the network was trained on) → (name, why).
STRATEGIES = {
    (False, True): (
        "head only",
        "few images, and the last layer serves them best: train a new head alone",
    ),
    (True, True): (
        "fine-tune",
        "many images like those of the pretraining: tune the top blocks too",
    ),
    (False, False): (
        "earlier layers",
        "few images, and an earlier layer serves them better than the last one: "
        "train a classifier on its features",
    ),
    (True, False): (
        "fine-tune most layers",
        "many images unlike those of the pretraining: tune most of the network",
    ),
}


def recommend_strategy(
    X,
    y,
    *,
    backbone="mini",
    weights="default",
    cv=5,
    random_state=0,
    verbose=1,
    **shared,
):
    """Measure which kind of transfer learning suits some images.

    A linear probe is cross-validated at every depth of the network. Where an earlier
    layer beats the last one by more than the error of the comparison, the images are
    unlike those that the network was trained on. Together with the number of images in
    a class this tells apart the four cases of the textbooks [1]_.

    Parameters
    ----------
    X : sequence of n_images images
        As in :class:`PretrainedCNNFeatures`.
    y : array-like of shape (n_images,)
        Labels; at least 2 images of each class.
    backbone : str or Backbone, default="mini"
        The network.
    weights : str, path or tuple, default="default"
        Its weights.
    cv : int, default=5
        Folds; fewer where a class has fewer images.
    random_state : int, default=0
        Of the folds, and of the estimator that is returned.
    verbose : int, default=1
        Above 0, the explanation is printed.
    **shared
        Other parameters that both estimators have, such as `image_shape`.

    Returns
    -------
    recommendation : Bunch
        With the fields

        strategy : str
            "head only", "fine-tune", "earlier layers", or "fine-tune most layers".
        estimator : estimator
            Ready to be fitted.
        accuracy : dict of str to (float, float)
            Mean accuracy of the probe at each layer, and its standard error.
        images_per_class : float
            Of the average class.
        explanation : str
            What was measured and decided.

    References
    ----------
    .. [1] Yosinski, Clune, Bengio, Lipson, "How transferable are features in deep
       neural networks?", 2014.

    Examples
    --------
    >>> from skdeepfeat import load_textures, recommend_strategy
    >>> textures = load_textures()
    >>> X, y = textures.data[::4], textures.target[::4]
    >>> found = recommend_strategy(X, y, verbose=0)
    >>> found.strategy in ("head only", "earlier layers")
    True
    """
    y = np.asarray(y)
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        raise ValueError(
            "recommend_strategy needs at least 2 classes with at least 2 images each. "
            f"Got {len(counts)} classes, the smallest with {counts.min()}."
        )
    parameters = {"backbone": backbone, "weights": weights, **shared}
    folds = StratifiedKFold(
        min(cv, counts.min()), shuffle=True, random_state=random_state
    )
    scores = _probe_every_depth(X, y, parameters, folds)
    # Of equals the deepest, so that the last layer is only left for something better.
    best = max(reversed(list(scores)), key=lambda layer: scores[layer].mean())
    gain = scores[best] - scores["penultimate"]
    error = _standard_error(gain)
    similar = bool(gain.mean() <= error)
    large = bool(counts.mean() >= LARGE)
    name, why = STRATEGIES[large, similar]
    estimator = _estimator(name, best, parameters, random_state)
    accuracy = {layer: (s.mean(), _standard_error(s)) for layer, s in scores.items()}
    explanation = _explain(name, why, accuracy, best, gain.mean(), error, counts)
    if verbose:
        print(explanation)
    return Bunch(
        strategy=name,
        estimator=estimator,
        accuracy=accuracy,
        images_per_class=float(counts.mean()),
        explanation=explanation,
    )


def _standard_error(values) -> float:
    """Of the mean."""
    return values.std(ddof=1) / np.sqrt(len(values))


def _probe(features):
    """A linear classifier that needs no tuning, on standardised features."""
    head = LogisticRegression(C=0.01, max_iter=1000)
    return make_pipeline(features, StandardScaler(), head)


def _probe_every_depth(X, y, parameters, folds) -> dict[str, np.ndarray]:
    """Accuracy in each fold, by layer from early to late; one pass of the network."""
    features = PretrainedCNNFeatures(prefetch_layers="all", **parameters)
    aliases = [layer.alias for layer in list_layers(features.backbone)]
    depths = [alias for alias in aliases if alias != "logits"]
    return {
        layer: cross_val_score(_probe(features.set_params(layer=layer)), X, y, cv=folds)
        for layer in depths
    }


def _estimator(name, best, parameters, random_state):
    """What a strategy means, ready to be fitted."""
    if name == "earlier layers":
        return _probe(PretrainedCNNFeatures(layer=best, **parameters))
    clf = FineTunedClassifier(random_state=random_state, **parameters)
    n_blocks = clf.count_blocks()
    unfreeze = {
        "head only": 0,
        "fine-tune": min(2, n_blocks),
        "fine-tune most layers": max(1, n_blocks - 1),
    }[name]
    return clf.set_params(unfreeze=unfreeze)


def _explain(name, why, accuracy, best, gain, error, counts) -> str:
    """The figures and what follows from them, as text."""
    lines = ["Accuracy of a linear probe by depth:"]
    for layer, (mean, deviation) in accuracy.items():
        mark = "  <- best" if layer == best else ""
        lines.append(f"  {layer:12} {mean:.3f} +- {deviation:.3f}{mark}")
    size = "many" if counts.mean() >= LARGE else "few"
    found = f"{best!r} is better than 'penultimate' by {gain:.3f} +- {error:.3f}."
    if best == "penultimate":
        found = "No layer is better than 'penultimate'."
    lines += [
        f"{counts.sum()} images in {len(counts)} classes, {counts.mean():.0f} each: "
        f"{size} (the limit is {LARGE}).",
        found,
        f"Strategy: {name}. This is because of {why}.",
    ]
    return "\n".join(lines)
