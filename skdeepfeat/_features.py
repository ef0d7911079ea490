"""PretrainedCNNFeatures: its parameters, its tags, and how `transform` computes."""

import secrets
import shutil
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from ._backbones.records import Backbone
from ._backbones.saved import can_compare, refuse_other_weights, saved_digest
from ._backbones.weights import WeightsSource, resolve_source
from ._caches import SharedCache
from ._choice import choose_layer, score_layers, warn_without_signal
from ._clock import Clock
from ._cluster.spreading import place_to_compute
from ._engines.devices import resolve_devices, resolve_threads, unconvertible
from ._exceptions import ConversionError, EngineWarning, warn_user
from ._images.input import read_input, set_input_tags
from ._networks.layers import width_of
from ._networks.pooling import POOLINGS, check_size
from ._plan import (
    Plan,
    chooses_layer,
    layers_to_choose_from,
    make_plan,
    requested_layers,
)
from ._report import FitTask, Report, last_report, progress_bar
from ._store.rows import Rows
from ._store.stores import FeatureStore, clear_tables, open_table
from ._validation import (
    CallbackSupportMixin,
    HasBackbone,
    HasMethods,
    Interval,
    StrOptions,
    check_image_shape,
    check_target,
    complete_state,
    with_callbacks,
)

# Set by `fit`.
FITTED = ("weights_digest_", "layer_", "layer_scores_", "layer_accuracies_")

NOT_CHOSEN = (
    "This %(name)s has not chosen a layer yet: layer='auto' needs fit(X, y). Fit it, "
    "or name a layer such as layer='penultimate'."
)


def clear_caches():
    """Remove all networks and all features that this process keeps in memory.

    Features stored in folders are kept.

    Examples
    --------
    >>> from skdeepfeat import clear_caches
    >>> clear_caches()
    """
    clear_tables()
    SharedCache.clear_all()
    unconvertible.clear()


class PretrainedCNNFeatures(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Deep features of images from a frozen, pretrained convolutional network.

    The activations of one or several layers are pooled over the image and returned as
    rows for any scikit-learn estimator. Nothing is trained: `fit` only checks its input
    and records a digest of the weights, and `transform` also works without it; with
    ``layer="auto"``, `fit` also chooses the layer that suits `y`. Features are stored
    by the content of the images (see `cache`), so each image passes through the network
    once, even in a grid search.

    Parameters
    ----------
    backbone : str, Backbone or fitted estimator, default="mini"
        The network: a name from :func:`list_backbones`, a :class:`Backbone`, or a
        fitted :class:`FineTunedClassifier`.
    weights : str, path, tuple, or None, default="default"
        The weights of the network: "default" for its first published version or, for a
        network of your own, its own weights; the name of a published version such as
        "IMAGENET1K_V2"; the path of a .pth or .safetensors file; a tuple (name of the
        version whose preprocessing to use, path); or None for random weights, drawn
        with the seed `random_state`.
    layer : str, int, or tuple of these, default="penultimate"
        The layer or layers to read: an alias such as "block3" or an index from
        :func:`list_layers`, or the name of a node of the traced network. The features
        of several layers are computed in one pass and concatenated. "auto" lets `fit`
        choose an aliased layer by how well it predicts `y`; see the notes.
    pooling : {"avg", "max", "avgmax", "gem", "stochastic", "flatten"}, \
            default="avg"
        How to pool the activations over the height and width of a layer. "flatten"
        keeps all positions and raises :class:`OutputTooLarge` if the output in memory
        would exceed 4 GiB.
    image_shape : tuple of int or None, default=None
        The shape of the images in flat rows of numbers: (h, w), (h, w, channels) or
        (channels, h, w). One entry may be -1.
    value_range : tuple (low, high) or None, default=None
        Values of black and white in arrays, tensors and images of more than 8 bits.
        None means (0, 255) for integers, (0, 65535) for 16-bit unsigned integers, and
        (0, 1) for floats and booleans.
    image_size : int or None, default=None
        Side of the network's input in pixels. None means the size for which the
        weights were published.
    decode : {"exact", "fast"}, default="exact"
        How to decode and resize. "exact" follows the published preprocessing. "fast"
        lets the JPEG decoder and the resize skip pixels of images that are more than
        twice too large, which is several times faster for photos at the resolution of
        a camera and changes the features slightly.
    batch_size : int or "auto", default="auto"
        Maximum number of images computed at once. The value is limited by what the
        device can handle; "auto" chooses it from the device and `image_size`.
    device : str or list of str, default="auto"
        The device to compute on: "auto" (a GPU if there is one), "cpu", "cuda" or
        "cuda:<index>"; or a list of GPUs, which take turns computing the batches.
    precision : {"float32", "tf32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the network. "float32" also has full precision on a GPU. "tf32"
        lets a GPU round inside multiplications, and equals "float32" on a CPU.
    engine : {"auto", "torch", "openvino"}, default="auto"
        The library that runs the network. "openvino" converts the network for faster
        computation on CPUs. "auto" does so if OpenVINO is installed, except for
        networks of your own.
    cache : "memory", path, FeatureStore, or None, default="memory"
        Where to store features: "memory" for a table of limited size in the memory of
        this process; a path for a folder that persists and that all processes on this
        machine can share; a :class:`FeatureStore` for a place with a size limit of
        your choice; or None to store nothing.
    prefetch_layers : {"auto", "all"} or list, default="auto"
        Other layers to store in the same pass. "auto" stores the aliased layers below
        the deepest requested one, which cost nothing, and all aliased layers once
        images that are stored at one depth are requested at another. "all" stores all
        aliased layers from the start, and so does "auto" with ``layer="auto"``. A list
        names the layers to store.
    protocols : tuple of str, default=()
        Schemes of the URLs that may be opened, such as ("s3", "https"), through fsspec
        (extra ``[remote]``). Local files may always be opened.
    on_error : {"raise", "nan"}, default="raise"
        What to do with an image that cannot be read. "raise" raises
        :class:`ImageError` with its row. "nan" fills its row with NaN and warns once.
    n_jobs : int or None, default=None
        Number of threads that decode images. None means all cores, unlike in
        scikit-learn, where it means 1.
    output : {"numpy", "torch"}, default="numpy"
        Type of the output. "torch" returns a tensor on the device, for estimators that
        support the array API.
    random_state : int, default=0
        Seed of the random weights; only used with ``weights=None``.
    verbose : int, default=0
        Verbosity level. Above 0, show a progress bar and print how long the call took.

    Attributes
    ----------
    errors_ : list of tuple (int, str, str)
        Row, source and reason for each image that the last `transform` of this thread
        could not read.
    stats_ : dict
        Statistics of the last `transform` of this thread: "device", "engine",
        "n_images", "n_computed" (the images that passed through the network),
        "seconds", "images_per_second", and "shares", the fractions of the time spent
        on "hashing", "store", "building" (the network, if it is not in memory yet),
        "reading" and "decoding" (only the time spent waiting for them, as both run
        while the network computes), "copying" (to the device) and "network"; on a
        cluster, "workers" (the time spent waiting for them) instead of most of these.
    weights_digest_ : str
        Hexadecimal digest of the weights and of their preprocessing in `fit`; does not
        depend on the layer. A fitted estimator refuses other weights.
    layer_ : str
        Alias of the layer that `transform` reads; only with ``layer="auto"``.
    layer_scores_ : dict of str to float
        For each distinct layer in order of depth, its R² for images that are left out
        of a ridge regression one at a time; only with ``layer="auto"``.
    layer_accuracies_ : dict of str to float
        For each of these layers, the fraction of left-out images whose class is
        predicted; only with ``layer="auto"`` and if `y` are classes.
    n_features_in_ : int
        Number of columns seen in `fit`; only for flat rows, data frames and named
        Series.
    feature_names_in_ : ndarray of shape (1,)
        Name of the column seen in `fit`; only for data frames and named Series.

    See Also
    --------
    list_backbones : List the names of the networks.
    list_layers : List the layers of a network.
    rank_layers : Compare the layers of several networks as ``layer="auto"`` does.
    load_image_folder : Load the paths and classes of a folder of photos.

    Notes
    -----
    With the same parameters and batch shape, an image always has the same features, bit
    for bit, whatever else is in X. They agree to about 1e-6 across batch sizes, and
    between a single row, which is computed alone, and several.

    Pickles and clones contain the parameters but never the weights. All estimators in a
    process share the networks.

    Inside ``joblib.parallel_config(backend="dask")``, or "ray" or "spark", the workers
    of the cluster compute the rows that are not stored, and read their files.

    With ``layer="auto"``, `fit` computes all aliased layers before the head in one
    pass. On the standardised features of each, a ridge regression predicts every image
    from all others, in closed form [1]_, with a penalty of its own. The deepest layer
    is chosen whose R² is at most 0.01 below the best. If no R² exceeds 0.01, it is the
    penultimate layer, with a :class:`LayerWarning`. In a pipeline, each fold of a
    cross-validation chooses from its training images alone. All images count the same,
    and are taken to be independent: if there are several of one patient or one video,
    search over layers with groups instead. Without a cache, `transform` computes the
    images of `fit` again.

    References
    ----------
    .. [1] Allen, "The Relationship Between Variable Selection and Data Augmentation
       and a Method for Prediction", 1974.

    Examples
    --------
    >>> import numpy as np
    >>> from skdeepfeat import PretrainedCNNFeatures
    >>> photos = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    >>> features = PretrainedCNNFeatures("resnet18", weights=None, layer="block1")
    >>> features.fit_transform(photos).shape
    (2, 64)
    """

    _doc_link_module = "skdeepfeat"
    _doc_link_template = (
        "https://skdeepfeat.readthedocs.io/en/stable/generated/"
        "skdeepfeat.{estimator_name}.html"
    )

    _parameter_constraints: dict = {
        "backbone": [str, Backbone, HasBackbone()],
        "weights": [str, HasMethods("__fspath__"), tuple, None],
        "layer": [str, Integral, tuple, list],
        "pooling": [StrOptions(set(POOLINGS))],
        "image_shape": [tuple, list, None],
        "value_range": [tuple, list, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "decode": [StrOptions({"exact", "fast"})],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "device": [str, list, tuple],
        "precision": [StrOptions({"float32", "tf32", "bfloat16", "float16"})],
        "engine": [StrOptions({"auto", "torch", "openvino"})],
        "cache": [str, HasMethods("__fspath__"), FeatureStore, None],
        "prefetch_layers": [StrOptions({"auto", "all"}), list, tuple],
        "protocols": [tuple, list],
        "on_error": [StrOptions({"raise", "nan"})],
        "n_jobs": [Integral, None],
        "output": [StrOptions({"numpy", "torch"})],
        "random_state": [Interval(Integral, 0, 2**63 - 1, closed="both")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone="mini",
        *,
        weights="default",
        layer="penultimate",
        pooling="avg",
        image_shape=None,
        value_range=None,
        image_size=None,
        decode="exact",
        batch_size="auto",
        device="auto",
        precision="float32",
        engine="auto",
        cache="memory",
        prefetch_layers="auto",
        protocols=(),
        on_error="raise",
        n_jobs=None,
        output="numpy",
        random_state=0,
        verbose=0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.pooling = pooling
        self.image_shape = image_shape
        self.value_range = value_range
        self.image_size = image_size
        self.decode = decode
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.engine = engine
        self.cache = cache
        self.prefetch_layers = prefetch_layers
        self.protocols = protocols
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.output = output
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Check the input and record the weights; choose the layer if it is "auto".

        Parameters
        ----------
        X : sequence of n_images images
            Paths, encoded bytes, PIL images, arrays or tensors, in any container; or
            flat rows of shape (n_images, n_values) if `image_shape` is set.
        y : array-like of shape (n_images,) or (n_images, n_outputs), default=None
            What the features should predict, for ``layer="auto"``: floats are numbers,
            all other types are classes. Otherwise ignored.

        Returns
        -------
        self : PretrainedCNNFeatures
            The estimator itself.
        """
        self._note_weights()
        if chooses_layer(self):
            self._choose(X, y)
        else:
            read_input(self, X, reset=True, allow_nan=self.on_error == "nan")
        return self

    @with_callbacks
    def fit_transform(self, X, y=None):
        """Fit as `fit` does, and return the features of X.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.
        y : array-like of shape (n_images,) or (n_images, n_outputs), default=None
            What the features should predict, for ``layer="auto"``: floats are numbers,
            all other types are classes. Otherwise ignored.

        Returns
        -------
        features : ndarray of shape (n_images, n_features), float32
            As returned by `transform`.
        """
        self._note_weights()
        with FitTask(self, X, "batch") as task:
            walk = partial(self._walk, reset=True)
            if chooses_layer(self):
                walk = partial(self._choose, y=y)
            return self._as_output(walk(X, batch_done=task.step_done))

    def transform(self, X):
        """Return the features of images.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n_images, n_features), float32
            One row for each image, in the order of X; C-contiguous.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``.
        NotFittedError
            If ``layer="auto"`` and `fit` has not chosen a layer.
        WeightsError
            If the weights cannot be found, do not fit the network, or have changed
            since `fit`.
        """
        return self._as_output(self._walk(X))

    def transform_to(self, path, X):
        """Write the features of images to a file, which may be larger than memory.

        With `cache` in a folder, this can be interrupted at any time: the next call
        continues from the features computed so far. The file appears once it is
        complete.

        Parameters
        ----------
        path : str or path
            The .npy file to write. An existing file is replaced.
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        features : memmap of shape (n_images, n_features), float32
            The features, read from the file as needed.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``.

        Examples
        --------
        >>> import tempfile
        >>> from skdeepfeat import PretrainedCNNFeatures, load_textures
        >>> folder = tempfile.mkdtemp()
        >>> features = PretrainedCNNFeatures(cache=f"{folder}/store")
        >>> rows = features.transform_to(f"{folder}/rows.npy", load_textures().data[:4])
        >>> rows.shape
        (4, 512)
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")

        def make_output(*shape):
            return np.lib.format.open_memmap(partial, "w+", np.float32, shape)

        try:
            self._walk(X, make_output=make_output).flush()
            if path.exists():  # keep its permissions, as open() does
                shutil.copymode(path, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return np.load(path, mmap_mode="r")

    def warm(self, X):
        """Store the features of images without returning them.

        Later calls, for instance in a grid search with many workers, then only read
        them.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        self : PretrainedCNNFeatures
            The estimator itself.

        Examples
        --------
        >>> from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures
        >>> store = FeatureStore(name="textures")
        >>> features = PretrainedCNNFeatures(cache=store, prefetch_layers="all")
        >>> features.warm(load_textures().data[:4]).cache.info()["misses"]
        4
        """
        self._walk(X, fitting=True, make_output=lambda n, width: None)
        return self

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
        """X → images → batches → activations → pooled rows → store → array."""
        images = read_input(self, X, reset=reset, allow_nan=self.on_error == "nan")
        out = (make_output or self._allocate)(len(images), plan.columns.width)
        report, clock = Report(self, len(images)), Clock()
        table, place = open_table(self.cache, plan.obstacle), place_to_compute(plan)
        rows = Rows(place.take(images), table, plan.columns, out, report, clock)
        with progress_bar(len(images), self.verbose) as show, rows, place:
            for window in rows.windows(resolve_threads(self.n_jobs), plan.rescaled):
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
            print(report.sentence())
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
        X : sequence of n_images images
            As in `fit`.
        y : array-like of shape (n_images,) or (n_images, n_outputs)
            What the features should predict.
        **options
            How to walk, such as what to call after each batch.

        Returns
        -------
        features : dict of str to ndarray of shape (n_images, n_features)
            Features of each layer.
        scores : dict of str to LayerScore
            Score of each layer, in order of depth.
        """
        y = check_target(self, y)
        images = read_input(self, X, reset=True, allow_nan=self.on_error == "nan")
        check_consistent_length(images, y)
        rows = self._walk(images, fitting=True, **options)
        columns = self._plan(fitting=True).columns
        layers = self._layers_to_fit(self._source())
        places = zip(layers, columns.slices, strict=True)
        features = {layer: rows[:, place] for layer, place in places}
        return features, score_layers(features, y)

    # Resolving parameters -----------------------------------------------------------

    def _plan(self, fitting=False) -> Plan:
        """Validate the parameters and resolve every default."""
        self._validate_params()
        check_image_shape(self.image_shape)
        source = self._source()
        self._check_weights(source)
        layer = self._layers_to_fit(source) if fitting else self._layer()
        return make_plan(self, source, layer)

    def _layer(self):
        """The layer that `transform` reads."""
        if not chooses_layer(self):
            return self.layer
        check_is_fitted(self, "layer_", msg=NOT_CHOSEN)
        return self.layer_

    def _layers_to_fit(self, source: WeightsSource):
        """The layers that `fit` needs."""
        if not chooses_layer(self):
            return self.layer
        return layers_to_choose_from(self, source)

    def _note_weights(self) -> None:
        """Record which weights and preprocessing this estimator is fitted with."""
        for name in FITTED:  # by an earlier fit
            self.__dict__.pop(name, None)
        self._plan(fitting=True)
        self.weights_digest_ = saved_digest(self._source())

    def _check_weights(self, source: WeightsSource) -> None:
        """Refuse weights or preprocessing that have changed since `fit`."""
        noted = getattr(self, "weights_digest_", None)
        if noted is None or not can_compare(noted):  # no fit, or another version
            return
        consequence = "models fitted on its features are no longer valid"
        refuse_other_weights(
            noted, saved_digest(source), source, type(self).__name__, consequence
        )

    def _source(self) -> WeightsSource:
        """The weights, with the preprocessing for the current input size."""
        return resolve_source(
            self.backbone, self.weights, self.random_state, self.image_size
        )

    # Conventions of scikit-learn ----------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        source = self._source()
        return sum(
            width_of(source.backbone, source.input, layer, self.pooling)
            for layer in requested_layers(self, source, self._layer())
        )

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
        """Row, source and reason of each image that the last call could not read."""
        return last_report(self).errors

    @property
    def stats_(self) -> dict:
        """Statistics of the last call of this thread."""
        return last_report(self).stats

    def __setstate__(self, state):
        super().__setstate__(complete_state(type(self), state))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        set_input_tags(tags, self.image_shape)
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = tags.target_tags.required = chooses_layer(self)
        return tags
