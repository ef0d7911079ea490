"""What a fitted classifier does: its predictions, and the network that it has tuned."""

from dataclasses import replace

import numpy as np
from safetensors.numpy import save_file
from scipy.special import softmax
from sklearn.base import ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from .._backbones.records import Backbone
from .._backbones.saved import can_compare, refuse_other_weights, saved_digest
from .._backbones.weights import WeightsSource, resolve_source
from .._caches import Companions
from .._exceptions import FeatureWarning, ImageError, warn_user
from .._features import PretrainedCNNFeatures
from .._files import local_path, replacing
from .._images.input import read_input
from .._report import hand_over, last_report
from .._validation import PackageEstimator
from .detached_head import DetachedHead, decision

_tuned = Companions()  # classifier → Backbone

# What the features that predictions rest on are computed with.
SHARED = (
    *("image_shape", "value_range", "protocols", "on_error"),
    *("device", "engine", "cache", "n_jobs"),
)


OWN_CLASSES = (
    "Its classes are those of the FineTunedClassifier, whose decision_function returns "
    "their scores."
)


class TunedNetwork(ClassifierMixin, PackageEstimator):
    """Base of the classifier: the network that it has tuned, and its predictions.

    A subclass has the parameters, and stores `weights_`, `classes_`, `seed_` and
    `frozen_digest_` when it is fitted.
    """

    def predict(self, X):
        """Labels of images.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        y : ndarray of shape (n_images,)
            The most likely class of each image.

        Raises
        ------
        ImageError
            If an image cannot be read, whatever `on_error` is.
        WeightsError
            If the weights that training started from have changed since `fit`.
        """
        try:
            scores = self._scores(X, on_error="raise")
        except ImageError as error:
            raise self._without_label(error) from error.__cause__
        return self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_images, n_classes), float32
            In the order of `classes_`.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``.
        WeightsError
            If the weights that training started from have changed since `fit`.
        """
        return softmax(self._scores(X), axis=1)

    def decision_function(self, X):
        """Scores of the classes before they become probabilities.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n_images, n_classes) or (n_images,), float32
            For two classes, the score of the second minus that of the first.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``.
        WeightsError
            If the weights that training started from have changed since `fit`.
        """
        return decision(self._scores(X))

    def as_features(self, layer="penultimate", **parameters):
        """A transformer that computes features of the tuned network.

        Parameters
        ----------
        layer : str, int or tuple, default="penultimate"
            As in :class:`PretrainedCNNFeatures`.
        **parameters
            Its other parameters.

        Returns
        -------
        features : PretrainedCNNFeatures
            Its backbone is this classifier, frozen, which clones and pickles keep.
        """
        check_is_fitted(self)
        kept = {name: getattr(self, name) for name in SHARED}
        backbone = FrozenEstimator(self)
        return PretrainedCNNFeatures(backbone, layer=layer, **(kept | parameters))

    @property
    def errors_(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of the images that the last call could not use."""
        return last_report(self).errors

    def to_backbone(self):
        """The tuned network as a backbone that includes its weights.

        Returns
        -------
        backbone : Backbone
            Its layers are those of the original network, without "logits".
        """
        check_is_fitted(self)
        return _tuned.get(self, self.weights_, self._make_backbone)

    def save_weights(self, path):
        """Write the whole tuned network to a file that `weights` accepts.

        Parameters
        ----------
        path : str or path
            Must end in .safetensors, the format of the file.

        Raises
        ------
        ValueError
            If `path` does not end in .safetensors, or is a URL.
        OSError
            If its folder does not exist, or cannot be written.
        """
        path = local_path(path, "path of save_weights")
        if path.suffix != ".safetensors":
            raise ValueError(
                "The 'path' parameter of save_weights must end in '.safetensors', the "
                f"format of the file. Got {str(path)!r} instead."
            )
        with replacing(path) as partial:
            save_file(dict(self.to_backbone().arrays), partial)

    def count_blocks(self):
        """Number of blocks of the network, the maximum of `unfreeze`.

        Returns
        -------
        n_blocks : int
            Groups of layers with weights of their own, below the head.
        """
        from .tuned_part import find_tuned_part

        source, _ = self._source(0)
        return len(find_tuned_part(source, "all").blocks)

    def divide(self):
        """The features that enter the head, and the head as a classifier of rows.

        Other parts of the package call it.

        Returns
        -------
        features : PretrainedCNNFeatures
            Computes what enters the head.
        head : DetachedHead
            Predicts as this classifier does, from rows of these features.
        """
        check_is_fitted(self)
        source, _ = self._frozen_source()

        from .tuned_part import head_input

        end, inner = head_input(source)
        features = self._tuned_features(layer=end.node)
        return features, DetachedHead(end, inner, self.weights_["head"], self.classes_)

    # Prediction ---------------------------------------------------------------------

    def _scores(self, X, on_error=None) -> np.ndarray:
        """Scores (n_images, n_classes) of the classes, float32; nan where an image
        cannot be read."""
        check_is_fitted(self)
        on_error = on_error or self.on_error
        images = read_input(self, X, reset=False, allow_nan=on_error == "nan")
        source, _ = self._frozen_source()

        from .new_head import head_scores
        from .tuned_part import head_input

        end, inner = head_input(source)
        features = self._tuned_features(layer=end.node, on_error=on_error)
        rows = features._walk(images)  # an array, whatever set_config says
        hand_over(features, self)
        return head_scores(end, inner, self.weights_["head"], rows)

    def _tuned_features(self, **parameters) -> PretrainedCNNFeatures:
        """The transformer that computes what enters the head."""
        if not self.weights_["tail"]:  # nothing below the head was tuned
            return self._frozen_features(self.seed_, **parameters)
        return self.as_features(prefetch_layers=(), **parameters)

    def _frozen_features(self, seed, **parameters) -> PretrainedCNNFeatures:
        """Features of what training starts from."""
        kept = {name: getattr(self, name) for name in SHARED}
        kept |= {"weights": self.weights, "image_size": self.image_size}
        kept |= {"random_state": seed, "prefetch_layers": ()}
        return PretrainedCNNFeatures(self.backbone, **(kept | parameters))

    def _without_label(self, error: ImageError) -> ImageError:
        """The error of an image that `predict` cannot leave without a label."""
        if self.on_error == "raise":
            return error
        reason = (
            f"{error.reason}. predict has no label for it; predict_proba gives it a "
            "row of nan and lists it in errors_"
        )
        return ImageError(error.row, error.source, reason)

    # The network --------------------------------------------------------------------

    def _source(self, seed) -> tuple[WeightsSource, bytes]:
        """The weights that training starts from, and their digest."""
        source = resolve_source(self.backbone, self.weights, seed, self.image_size)
        return source, source.key()

    def _frozen_source(self, remedy="fit again") -> tuple[WeightsSource, bytes]:
        """What training started from; refuses weights that have changed since."""
        source, key = self._source(self.seed_)
        found = saved_digest(source, by_values=True)
        noted, model = self.frozen_digest_, type(self).__name__
        refuse_other_weights(
            noted, found, source, model, "the tuned blocks no longer match", remedy
        )
        if not can_compare(noted):
            self._accept(found)
        return source, key

    def _accept(self, found: str) -> None:
        """Accept the weights found as those that training started from; warn once."""
        self.frozen_digest_ = found
        warn_user(
            f"This {type(self).__name__} was saved by another version of skdeepfeat, "
            "which identified weights in another way. Whether the frozen blocks are "
            "still the same cannot be checked: compare some predictions, then save it "
            "again, so that it is checked from now on.",
            FeatureWarning,
        )

    def _make_backbone(self) -> Backbone:
        """The network with its tuned weights."""
        from .fitted import Fitted, layers_at_size, weights_of

        source, key = self._frozen_source()
        original = source.backbone
        layers = layers_at_size(source)
        classes = [layer.node for layer in layers if layer.alias == "logits"]
        return replace(
            original,
            name=f"tuned {original.name}",
            input=source.input,
            weights=(),
            layers=tuple(layer for layer in layers if layer.node not in classes),
            arrays=weights_of(source, key, Fitted(**self.weights_)),
            embedded=False,
            remedy=OWN_CLASSES,
        )

    def __sklearn_is_fitted__(self):
        return hasattr(self, "weights_")
