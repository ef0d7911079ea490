"""PretrainedCNNFeatures: parameters, tags, and the walk written once."""

import secrets
import shutil
from itertools import chain
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from ._backbones.records import Backbone
from ._backbones.saved import can_compare, saved_digest, what_changed
from ._backbones.weights import WeightsSource, resolve_source
from ._caches import SharedCache
from ._clock import Clock
from ._engines.devices import (
    names_of_gpus,
    resolve_devices,
    resolve_threads,
    unconvertible,
)
from ._engines.running import Engine
from ._exceptions import ConversionError, EngineWarning, WeightsError, warn_user
from ._images.input import read_input, set_input_tags
from ._networks.layers import width_of
from ._networks.pooling import POOLINGS, check_size
from ._plan import Plan, make_plan, requested_layers
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
    complete_state,
    with_callbacks,
)


def clear_caches():
    """Forget all networks and all features that this process keeps in memory.

    Examples
    --------
    >>> from skdeepfeat import clear_caches
    >>> clear_caches()
    """
    clear_tables()
    SharedCache.clear_all()
    unconvertible.clear()


# The estimator ----------------------------------------------------------------------


class PretrainedCNNFeatures(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Deep features of images from a frozen, pretrained convolutional network.

    The activations of one or several layers, pooled over the image, as rows for any
    scikit-learn estimator. Nothing is trained: `fit` checks its input and notes which
    weights there are, and `transform` works without it. Every image goes through the
    network once, whatever a grid search does, because rows are kept by image content
    (see `cache`).

    Parameters
    ----------
    backbone : str, Backbone or fitted estimator, default="mini"
        The network: a name of :func:`list_backbones`, a :class:`Backbone`, or a
        fitted classifier that has a method ``to_backbone``.
    weights : str, path, tuple, or None, default="default"
        Which weights: "default", the name of a published version such as
        "IMAGENET1K_V2", the path of a .pth or .safetensors file, a tuple (name of
        the version whose preprocessing to use, path), or None for random weights
        seeded by `random_state`.
    layer : str, int, or tuple of these, default="penultimate"
        Where features are read: an alias such as "block3" or an index of
        :func:`list_layers`, or a node of the traced network. The layers of a tuple
        are read in one pass and stand side by side.
    pooling : {"avg", "max", "avgmax", "gem", "stochastic", "flatten"}, \
            default="avg"
        What is done over the height and width of a layer. "flatten" keeps all places
        and is refused above 4 GiB of output.
    image_shape : tuple of int or None, default=None
        Flat rows of numbers are images of this shape: (h, w), (h, w, channels) or
        (channels, h, w). One entry may be -1.
    value_range : tuple (low, high) or None, default=None
        Values of black and white in arrays, tensors and images of more than 8 bits.
        By default (0, 255) for integers, (0, 65535) for 16-bit unsigned ones, (0, 1)
        for floats and booleans.
    image_size : int or None, default=None
        Side of the network's input in pixels; default: that of the weights.
    decode : {"exact", "fast"}, default="exact"
        "exact" decodes and resizes as the published preprocessing does. "fast" lets
        the JPEG decoder and the resize skip pixels of images that are more than twice
        too large: several times faster for photos as cameras take them, with features
        that differ a little.
    batch_size : int or "auto", default="auto"
        Images computed at once, at most; bounded by what the device bears.
    device : str or list of str, default="auto"
        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>"; or a list of
        GPUs, which take turns at the batches.
    precision : {"float32", "tf32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the network. "float32" is that of a CPU on a GPU too; "tf32"
        lets a GPU round inside its multiplications, and is "float32" on a CPU.
    engine : {"auto", "torch", "openvino"}, default="auto"
        What runs the network. "openvino" converts it, for CPUs; "auto" does so where
        OpenVINO is installed and the network is not one of your own.
    cache : "memory", path, FeatureStore, or None, default="memory"
        Where features are kept: in one bounded table of this process, in a folder
        that all processes of this machine may share and that lasts, in a store with a
        bound of its own, or nowhere.
    prefetch_layers : {"auto", "all"} or list, default="auto"
        Other layers that are stored in the same pass: "auto" those with an alias
        below the deepest one asked for, which cost nothing, and every one with an
        alias as soon as a second depth is asked of images that are stored at one;
        "all" every one with an alias from the start; or a list of layers.
    protocols : tuple of str, default=()
        Schemes of URLs that may be opened, such as ("s3", "https"), through fsspec
        (extra ``[remote]``). Files always may.
    on_error : {"raise", "nan"}, default="raise"
        What an unreadable image does: raise :class:`ImageError` with its row, or
        fill its row with nan, and warn once.
    n_jobs : int or None, default=None
        Threads that decode images; None means all cores.
    output : {"numpy", "torch"}, default="numpy"
        "torch" gives a tensor on the device, for heads that support the array API.
    random_state : int, default=0
        Seed of the random weights when ``weights=None``.
    verbose : int, default=0
        Above 0, a progress bar is shown, and a line about what the call took.

    Attributes
    ----------
    errors_ : list of tuple (int, str, str)
        Row, source and reason of the images that the last `transform` of this thread
        could not read.
    stats_ : dict
        What the last `transform` of this thread took: "device", "engine", "n_images",
        "n_computed" (that went through the network), "seconds", "images_per_second",
        and "shares" of the time: "hashing", "store", "building" (of the network, where
        it is not there yet), "reading" and "decoding" (the wait for them; they go on
        beside the network), "copying" (to the device) and "network".
    weights_digest_ : str
        Of the weights and their preprocessing in `fit`, hexadecimal, whatever the
        layer. A fitted estimator refuses others.
    n_features_in_ : int
        Number of columns seen in `fit`; only for flat rows, data frames and named
        Series.
    feature_names_in_ : ndarray of shape (1,)
        Name of the column seen in `fit`; only for data frames and named Series.

    See Also
    --------
    list_backbones : Names of the networks.
    list_layers : Layers of a network.
    load_image_folder : Paths and classes of a folder of photos.

    Notes
    -----
    At one setting and one batch shape the same image gives the same features, bit for
    bit, whatever else is in X. Across batch sizes, and between a single row, which is
    computed alone, and several, they agree to about 1e-6.

    Pickles and clones carry parameters, never weights, and networks are shared by
    all estimators of a process.

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
        """Check the parameters and the kind of X, and note the weights.

        Parameters
        ----------
        X : sequence of n_images images
            Paths, encoded bytes, PIL images, arrays or tensors, in any container; or
            flat rows of shape (n_images, n_values) with `image_shape`.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : PretrainedCNNFeatures
            The estimator itself.
        """
        self._note_weights()
        read_input(self, X, reset=True, allow_nan=self.on_error == "nan")
        return self

    @with_callbacks
    def fit_transform(self, X, y=None):
        """Check X as `fit` does and return its features.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.
        y : object, default=None
            Ignored.

        Returns
        -------
        features : ndarray of shape (n_images, n_features), float32
            As from `transform`.
        """
        self._note_weights()
        with FitTask(self, X, "batch") as task:
            out = self._walk(X, reset=True, batch_done=task.step_done)
            return self._as_output(out)

    def transform(self, X):
        """Return the features of images.

        Parameters
        ----------
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n_images, n_features), float32
            One C-contiguous row for each image, in the order of X.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``.
        WeightsError
            If the weights cannot be found, do not fit the network, or are not those of
            `fit`.
        """
        return self._as_output(self._walk(X))

    def transform_to(self, path, X):
        """Write the features of images to a file, which may be larger than memory.

        With a store in a folder this can be interrupted at any moment: the next call
        goes on from what was computed. The file appears when it is complete.

        Parameters
        ----------
        path : str or path
            The .npy file to write; replaced if it exists.
        X : sequence of n_images images
            As in `fit`.

        Returns
        -------
        features : memmap of shape (n_images, n_features), float32
            The file, opened for reading.

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
            if path.exists():  # which keeps its permissions, as with open()
                shutil.copymode(path, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return np.load(path, mmap_mode="r")

    def warm(self, X):
        """Store the features of images without returning them.

        What comes later, for instance a grid search with many workers, then only
        reads.

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
        self._walk(X, make_output=lambda n, width: None)
        return self

    # The walk -----------------------------------------------------------------------

    def _walk(self, X, **options):
        """The walk, with torch from the start where another engine cannot go."""
        plan = self._plan()
        try:
            return self._walk_along(plan, X, **options)
        except ConversionError as error:  # nothing was computed
            unconvertible.add(plan.pooled.digest)
            warn_user(
                f"torch runs backbone {plan.pooled.source.backbone.name!r}, because "
                f"{plan.engine!r} cannot: {error}. Set engine='torch' to say so.",
                EngineWarning,
            )
            return self._walk_along(self._plan(), X, **options)

    def _walk_along(
        self, plan, X, *, reset=False, make_output=None, batch_done=lambda: None
    ):
        """X → images → batches → activations → pooled rows → store → array."""
        images = read_input(self, X, reset=reset, allow_nan=self.on_error == "nan")
        out = (make_output or self._allocate)(len(images), plan.columns.width)
        report, clock = Report(self, len(images)), Clock()
        table = open_table(self.cache, plan.obstacle)
        rows = Rows(images, table, plan.columns, out, report, clock)
        with progress_bar(len(images), self.verbose) as show, rows:
            for window in rows.windows(resolve_threads(self.n_jobs), plan.rescaled):
                while rows.read():
                    with table.use_gpus(lambda: names_of_gpus(plan.devices)):
                        for computed in self._compute(plan, window, rows, clock):
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
        """The output in memory."""
        check_size(n, width, self.pooling)
        return np.empty((n, width), np.float32)

    def _compute(self, plan, window, rows, clock):
        """Features of the missing rows that no one else computes, batch by batch."""
        claimed = rows.claim()
        first = next(claimed, None)
        if first is None:
            return  # others compute them all: no network is built here
        with clock.measure("building"):
            engine = Engine(
                plan.pooled_for(rows.columns),
                plan.devices,
                self.precision,
                1 if len(rows.missing) == 1 else self.batch_size,  # for latency
                plan.engine,
            )
        yield from engine.run(
            window,
            chain([first], claimed),
            plan.value_range,
            self.decode,
            self.n_jobs,
            clock,
        )

    def _as_output(self, out):
        """The array itself, or a tensor of it on the device."""
        if self.output == "numpy":
            return out
        import torch

        return torch.from_numpy(out).to(resolve_devices(self.device)[0])

    # Parameters made concrete -------------------------------------------------------

    def _plan(self) -> Plan:
        """Validate the parameters and resolve every default."""
        self._validate_params()
        check_image_shape(self.image_shape)
        source = self._source()
        self._check_weights(source)
        return make_plan(self, source)

    def _note_weights(self) -> None:
        """Remember which weights and preprocessing this estimator is fitted with."""
        if hasattr(self, "weights_digest_"):  # of an earlier fit
            delattr(self, "weights_digest_")
        self._plan()
        self.weights_digest_ = saved_digest(self._source())

    def _check_weights(self, source: WeightsSource) -> None:
        """Refuse weights or preprocessing that have changed since `fit`."""
        noted = getattr(self, "weights_digest_", None)
        if noted is None or not can_compare(noted):  # not fitted, or by other versions
            return
        found = saved_digest(source)
        if found != noted:
            raise WeightsError(
                f"{what_changed(noted, found, source)} changed since this "
                f"{type(self).__name__} was fitted, so what was fitted on its features "
                "does not fit. Restore what it was, or fit again."
            )

    def _source(self) -> WeightsSource:
        """The weights, with the preprocessing for the input size in use."""
        return resolve_source(
            self.backbone, self.weights, self.random_state, self.image_size
        )

    # What scikit-learn asks ---------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        source = self._source()
        return sum(
            width_of(source.backbone, source.input, layer, self.pooling)
            for layer in requested_layers(self, source)
        )

    def get_feature_names_out(self, input_features=None):
        """Return the names of the features, which begin with that of the column.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Only compared with the names seen in `fit`.

        Returns
        -------
        names : ndarray of str, shape (n_features,)
            "front_pretrainedcnnfeatures0" and so on if `fit` has seen a column
            "front", of a data frame or as a Series; else "pretrainedcnnfeatures0".

        Examples
        --------
        >>> from skdeepfeat import PretrainedCNNFeatures
        >>> PretrainedCNNFeatures().get_feature_names_out()[:2].tolist()
        ['pretrainedcnnfeatures0', 'pretrainedcnnfeatures1']
        """
        names = super().get_feature_names_out(input_features)
        columns = getattr(self, "feature_names_in_", ())
        if len(columns) != 1:  # unknown, or pixels
            return names
        return np.array([f"{columns[0]}_{name}" for name in names], dtype=object)

    @property
    def errors_(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of what this thread's last call could not read."""
        return last_report(self).errors

    @property
    def stats_(self) -> dict:
        """What this thread's last call took, and where."""
        return last_report(self).stats

    def __setstate__(self, state):
        super().__setstate__(complete_state(type(self), state))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        set_input_tags(tags, self.image_shape)
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = False
        return tags
