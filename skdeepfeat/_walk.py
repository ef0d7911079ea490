"""The walk that estimators of all kinds of input share: X → rows → store → array."""

from functools import partial

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from ._backbones.saved import can_compare, refuse_other_weights, saved_digest
from ._choice import choose_layer, score_layers, warn_without_signal
from ._clock import Clock
from ._cluster.spreading import place_to_compute
from ._engines.devices import resolve_devices, unconvertible
from ._exceptions import ConversionError, EngineWarning, warn_user
from ._files import local_path, replacing
from ._networks.pooling import check_size
from ._plan import (
    Network,
    Plan,
    Reading,
    chooses_layer,
    layers_to_choose_from,
    make_plan,
    requested_layers,
)
from ._report import FitTask, Report, last_report, progress_bar, say
from ._store.rows import Inputs, Rows
from ._store.stores import open_table
from ._validation import (
    PackageEstimator,
    check_cache,
    check_npy,
    check_target,
    with_callbacks,
)

# Set by `fit`.
CHOSEN = ("layer_", "layer_scores_", "layer_neighbor_scores_", "layer_accuracies_")
FITTED = ("weights_digest_", *CHOSEN)

NOT_CHOSEN = (
    "This %(name)s has not chosen a layer yet: layer='auto' needs fit(X, y). Fit it, "
    "or name a layer such as layer='penultimate'."
)

STORES_NOTHING = (
    "warm stores features, and the 'cache' parameter of {}, {!r}, keeps none. Pass "
    "cache='memory', the path of a folder, or a FeatureStore."
)


class PretrainedFeatures(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, PackageEstimator
):
    """Base of the estimators that return features of a frozen network.

    A subclass says what its rows and its networks are: it implements `_read`,
    `_network`, `_reading` and `__sklearn_tags__`.
    """

    def fit(self, X, y=None):
        """Check the input and record the weights; choose the layer if it is "auto".

        Parameters
        ----------
        X : sequence of n_rows images or texts
            Images are paths, encoded bytes, PIL images, arrays or tensors, in any
            container; or flat rows of shape (n_rows, n_values) if `image_shape` is
            set. Texts are strings, or bytes in UTF-8, in any container.
        y : array-like of shape (n_rows,) or (n_rows, n_outputs), default=None
            What the features should predict, for ``layer="auto"``: floats are numbers,
            all other types are classes. Otherwise ignored.

        Returns
        -------
        self : estimator
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is not valid; or with ``layer="auto"``, if there is no `y` or
            it has missing values.
        WeightsError
            If the weights cannot be found.
        """
        self._note_weights()
        if chooses_layer(self):
            self._choose(X, y)
        else:
            self._read(X, reset=True)
        return self

    @with_callbacks
    def fit_transform(self, X, y=None):
        """Fit as `fit` does, and return the features of X.

        Parameters
        ----------
        X : sequence of n_rows images or texts
            As in `fit`.
        y : array-like of shape (n_rows,) or (n_rows, n_outputs), default=None
            What the features should predict, for ``layer="auto"``: floats are numbers,
            all other types are classes. Otherwise ignored.

        Returns
        -------
        features : ndarray of shape (n_rows, n_features), float32
            As returned by `transform`.

        Raises
        ------
        ImageError, TextError, ValueError, WeightsError
            As `fit` and `transform` do.
        """
        self._note_weights()
        with FitTask(self, X, "batch") as task:
            walk = partial(self._walk, reset=True)
            if chooses_layer(self):
                walk = partial(self._choose, y=y)
            return self._as_output(walk(X, batch_done=task.step_done))

    def transform(self, X):
        """Return the features of the rows of X.

        Parameters
        ----------
        X : sequence of n_rows images or texts
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n_rows, n_features), float32
            In the order of X; C-contiguous.

        Raises
        ------
        ImageError, TextError
            If a row cannot be read and ``on_error="raise"``.
        NotFittedError
            If ``layer="auto"`` and `fit` has not chosen a layer.
        OutputTooLarge
            If the output of ``pooling="flatten"`` would exceed its limit.
        WeightsError
            If the weights cannot be found, do not fit the network, or have changed
            since `fit`.
        """
        return self._as_output(self._walk(X))

    def transform_to(self, path, X):
        """Write the features of rows to a file, which may be larger than memory.

        With `cache` in a folder, this can be interrupted at any time: the next call
        continues from the features computed so far. The file appears once it is
        complete.

        Parameters
        ----------
        path : str or path
            The file to write, whose name must end in ".npy". An existing file is
            replaced.
        X : sequence of n_rows images or texts
            As in `fit`.

        Returns
        -------
        features : memmap of shape (n_rows, n_features), float32
            The features, read from the file as needed.

        Raises
        ------
        ImageError, TextError
            If a row cannot be read and ``on_error="raise"``.
        ValueError
            If the name of the file does not end in ".npy".

        Examples
        --------
        >>> import tempfile
        >>> from skdeepfeat import PretrainedCNNFeatures, load_textures
        >>> folder = tempfile.mkdtemp()
        >>> features = PretrainedCNNFeatures(cache=f"{folder}/store")
        >>> rows = features.transform_to(f"{folder}/rows.npy", load_textures().data[:4])
        >>> rows.shape
        (4, 1280)
        """
        path = local_path(path, "path of transform_to")
        check_npy(path)
        with replacing(path) as incomplete:

            def make_output(*shape):
                return np.lib.format.open_memmap(incomplete, "w+", np.float32, shape)

            self._walk(X, make_output=make_output).flush()
        return np.load(path, mmap_mode="r")

    def warm(self, X):
        """Store the features of the rows of X without returning them.

        Later calls, for instance in a grid search with many workers, then only read
        them.

        Parameters
        ----------
        X : sequence of n_rows images or texts
            As in `fit`.

        Returns
        -------
        self : estimator
            The estimator itself.

        Raises
        ------
        ImageError, TextError
            If a row cannot be read and ``on_error="raise"``.
        ValueError
            If `cache` is None, or a store of no bytes.

        Examples
        --------
        >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures
        >>> store = FeatureStore(name="textures")
        >>> features = PretrainedCNNFeatures(cache=store, prefetch_layers="all")
        >>> features.warm(load_textures().data[:4]).cache.info()["misses"]
        4
        """
        self._check_parameters()
        if open_table(self.cache).max_bytes == 0:
            raise ValueError(STORES_NOTHING.format(type(self).__name__, self.cache))
        self._walk(X, fitting=True, make_output=lambda n, width: None)
        return self

    # What a kind of input adds ------------------------------------------------------

    def _read(self, X, *, reset) -> Inputs:
        """The rows of X; records its columns, or compares them."""
        raise NotImplementedError

    def _network(self) -> Network:
        """The network of the parameters, with the source of its weights."""
        raise NotImplementedError

    def _reading(self, network: Network) -> Reading:
        """How rows become the input of the network."""
        raise NotImplementedError

    def _check_parameters(self) -> None:
        """Refuse parameters that are not allowed."""
        self._validate_params()
        check_cache(self.cache)

    # Computing features -------------------------------------------------------------

    def _walk(self, X, *, fitting=False, **options):
        """The output, computed with torch if no other engine can run the network."""
        plan = self._plan(fitting)
        try:
            return self._walk_along(plan, X, **options)
        except ConversionError as error:  # nothing was computed
            unconvertible.add(plan.pooled.digest)
            warn_user(
                f"torch runs backbone {plan.pooled.source.backbone.name!r}, because "
                f"{plan.engine!r} cannot: {error}. Set engine='torch' to silence this "
                "warning.",
                EngineWarning,
            )
            return self._walk_along(self._plan(fitting), X, **options)

    def _walk_along(
        self, plan, X, *, reset=False, make_output=None, batch_done=lambda: None
    ):
        """X → rows → batches → activations → pooled rows → store → array."""
        inputs = self._read(X, reset=reset)
        out = (make_output or self._allocate)(len(inputs), plan.columns.width)
        report, clock = Report(self, len(inputs), inputs.wording), Clock()
        table, place = open_table(self.cache, plan.obstacle), place_to_compute(plan)
        rows = Rows(place.take(inputs), table, plan.columns, out, report, clock)
        with (
            progress_bar(len(inputs), self.verbose, inputs.wording) as show,
            rows,
            place,
        ):
            for window in rows.windows(plan.reading):
                while rows.read():
                    for computed in place.compute(window, rows, table, clock):
                        rows.write(computed)
                        show(rows.n_done)
                        batch_done()
                show(rows.n_done)
        rows.finish()
        report.finish(out)
        report.measured(plan.device_class, plan.engine, rows.n_computed, clock)
        if self.verbose:
            say(report.sentence())
        return out

    def _allocate(self, n, width):
        """An empty array for the output."""
        check_size(n, width, self.pooling)
        return np.empty((n, width), np.float32)

    def _as_output(self, out):
        """The array itself, or a tensor on the device."""
        if self.output == "numpy":
            return out
        import torch

        return torch.from_numpy(out).to(resolve_devices(self.device)[0])

    # Choosing a layer ----------------------------------------------------------------

    def _choose(self, X, y, **options):
        """Set `layer_` to the layer that suits y; its features are returned."""
        features, scores = self.score_layers(X, y, **options)
        self.layer_ = choose_layer(scores)
        self.layer_scores_ = {name: score.r2 for name, score in scores.items()}
        self.layer_neighbor_scores_ = {n: s.neighbors_r2 for n, s in scores.items()}
        accuracies = {name: score.accuracy for name, score in scores.items()}
        if None not in accuracies.values():
            self.layer_accuracies_ = accuracies
        warn_without_signal(scores, self.layer_)
        return np.ascontiguousarray(features[self.layer_])

    def score_layers(self, X, y, **options):
        """Compute the features and the scores of all layers, in one pass.

        Other parts of the package call it; use :func:`rank_layers` instead.

        Parameters
        ----------
        X : sequence of n_rows images or texts
            As in `fit`.
        y : array-like of shape (n_rows,) or (n_rows, n_outputs)
            What the features should predict.
        **options
            How to walk, such as what to call after each batch.

        Returns
        -------
        features : dict of str to ndarray of shape (n_rows, n_features)
            Features of each layer.
        scores : dict of str to LayerScore
            Score of each layer, in order of depth.
        """
        y = check_target(self, y)
        inputs = self._read(X, reset=True)
        check_consistent_length(inputs, y)
        rows = self._walk(inputs, fitting=True, **options)
        columns = self._plan(fitting=True).columns
        layers = self._layers_to_fit(self._network())
        places = zip(layers, columns.slices, strict=True)
        features = {layer: rows[:, place] for layer, place in places}
        return features, score_layers(features, y)

    # Resolving parameters -----------------------------------------------------------

    def _plan(self, fitting=False) -> Plan:
        """Validate the parameters and resolve every default."""
        self._check_parameters()
        network = self._network()
        self._check_weights(network.source)
        layer = self._layers_to_fit(network) if fitting else self._layer()
        return make_plan(self, network, self._reading(network), layer)

    def _layer(self):
        """The layer that `transform` reads."""
        if not chooses_layer(self):
            return self.layer
        check_is_fitted(self, "layer_", msg=NOT_CHOSEN)
        return self.layer_

    def _layers_to_fit(self, network: Network):
        """The layers that `fit` needs."""
        if not chooses_layer(self):
            return self.layer
        return layers_to_choose_from(self, network)

    def _note_weights(self) -> None:
        """Record which weights and preprocessing this estimator is fitted with."""
        for name in FITTED:  # by an earlier fit
            self.__dict__.pop(name, None)
        self._plan(fitting=True)
        self.weights_digest_ = saved_digest(self._network().source)

    def _check_weights(self, source) -> None:
        """Refuse weights or preprocessing that have changed since `fit`."""
        noted = getattr(self, "weights_digest_", None)
        if noted is None or not can_compare(noted):  # no fit, or another version
            return
        consequence = "models fitted on its features are no longer valid"
        refuse_other_weights(
            noted, saved_digest(source), source, type(self).__name__, consequence
        )

    # Conventions of scikit-learn ----------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        network = self._network()
        self._check_weights(network.source)
        layers = requested_layers(self, network, self._layer())
        return sum(network.width(layer, self.pooling) for layer in layers)

    def get_feature_names_out(self, input_features=None):
        """Return the names of the features, prefixed by the name of the column.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Only used to check against the names seen in `fit`.

        Returns
        -------
        names : ndarray of str, shape (n_features,)
            "front_pretrainedcnnfeatures0" and so on if the column seen in `fit` is a
            Series or a column of a data frame named "front"; otherwise
            "pretrainedcnnfeatures0" and so on.

        Examples
        --------
        >>> from skdeepfeat import PretrainedCNNFeatures
        >>> PretrainedCNNFeatures().get_feature_names_out()[:2].tolist()
        ['pretrainedcnnfeatures0', 'pretrainedcnnfeatures1']
        """
        self._layer()  # its error says what to do
        names = super().get_feature_names_out(input_features)
        columns = getattr(self, "feature_names_in_", ())
        if len(columns) != 1:  # unknown, or pixels
            return names
        return np.array([f"{columns[0]}_{name}" for name in names], dtype=object)

    @property
    def errors_(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of each row that the last call could not read."""
        return last_report(self).errors

    @property
    def stats_(self) -> dict:
        """Statistics of the last call of this thread."""
        return last_report(self).stats

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = tags.target_tags.required = chooses_layer(self)
        return tags
