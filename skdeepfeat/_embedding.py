"""embed_weights: a fitted estimator that needs no weights file, download or registry.

A network by name gets its weights as the arrays that a network of one's own has, cut
to what its layers need.
"""

import copy

import numpy as np

from ._backbones.saved import saved_digest
from ._composites import feature_steps
from ._features import PretrainedCNNFeatures
from ._finetuning.classifier import FineTunedClassifier
from ._plan import requested_layers
from ._validation import with_parameters

DTYPES = {"float32": np.float32, "float16": np.float16}


def embed_weights(estimator, *, dtype="float32"):
    """Copy a fitted estimator, with the weights of its networks inside.

    A saved estimator names its weights, and needs the file or the download again. The
    copy holds them: pickle, joblib, skops and MLflow save them with it, and it predicts
    without files, network or registered backbones. Only the weights that its layers
    need are kept.

    Parameters
    ----------
    estimator : estimator
        A :class:`PretrainedCNNFeatures`, a fitted :class:`FineTunedClassifier`, or a
        fitted composite of scikit-learn that contains them.
    dtype : {"float32", "float16"}, default="float32"
        Type of the weights in the copy. "float32" gives the same features, bit for bit.
        "float16" takes half the space and rounds the weights: features differ by up to
        1 % of the largest one. Those of "mini", whose weights are published in float16,
        do not differ at all.

    Returns
    -------
    embedded : estimator
        A fitted copy. Its feature steps have a :class:`Backbone` with arrays as
        `backbone`, and ``weights="default"``. `weights_digest_` or `frozen_digest_`
        identifies these arrays, so that changed ones are refused.

    Raises
    ------
    ValueError
        If `dtype` is not one of these, or no step of `estimator` reads images.
    NotFittedError
        If a classifier or a composite is not fitted.

    See Also
    --------
    Backbone.from_module : A backbone of a network of your own, with its weights.
    to_onnx : One file that needs neither torch nor scikit-learn.

    Examples
    --------
    >>> import pickle
    >>> from skdeepfeat import PretrainedCNNFeatures, embed_weights, load_textures
    >>> X = load_textures().data[:4]
    >>> features = PretrainedCNNFeatures(layer="block3").fit(X)
    >>> len(pickle.dumps(features)) < 4_000
    True
    >>> embedded = embed_weights(features)
    >>> len(pickle.dumps(embedded)) > 40_000
    True
    >>> bool((embedded.transform(X) == features.transform(X)).all())
    True
    """
    if dtype not in DTYPES:
        raise ValueError(
            "The 'dtype' parameter of embed_weights must be 'float32' or 'float16'. "
            f"Got {dtype!r} instead."
        )
    copies = {
        id(step): _embedded(step, DTYPES[dtype]) for step in feature_steps(estimator)
    }
    return copy.deepcopy(estimator, copies)


def _embedded(step, dtype):
    """A copy of a step that reads images, with its weights."""
    if isinstance(step, PretrainedCNNFeatures):
        return _embedded_features(step, dtype)
    return _embedded_classifier(step, dtype)


def _embedded_features(features: PretrainedCNNFeatures, dtype) -> PretrainedCNNFeatures:
    """A copy of a feature step with the weights up to its layers."""
    from ._networks.embedding import with_arrays

    plan = features._plan()
    source = plan.pooled.source
    layers = requested_layers(features, features._network(), features._layer())
    nodes = tuple(column.layer.node for column in plan.columns.requested)
    backbone = with_arrays(source, (*nodes, *(x.node for x in layers)), dtype)
    values = {"backbone": backbone, "weights": "default"}
    if not isinstance(features.prefetch_layers, str):  # which may be cut off
        values["prefetch_layers"] = ()
    if not isinstance(features.layer, str):  # numbers would count the layers kept
        values["layer"] = tuple(layer.alias or layer.node for layer in layers)
    copied = with_parameters(features, **values)
    copied.weights_digest_ = saved_digest(copied._network().source)
    return copied


def _embedded_classifier(classifier: FineTunedClassifier, dtype) -> FineTunedClassifier:
    """A copy of a classifier with the weights that its training started from."""
    from ._networks.embedding import with_arrays

    source, _ = classifier._frozen_source()
    backbone = with_arrays(source, None, dtype)
    copied = with_parameters(classifier, backbone=backbone, weights="default")
    frozen, _ = copied._source(copied.seed_)
    copied.frozen_digest_ = saved_digest(frozen, by_values=True)
    return copied
