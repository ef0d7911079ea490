"""PretrainedCNNFeatures: parameters, tags, and the walk written once."""

import sys
import threading
import warnings
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from ._backbones import (
    Backbone,
    Layer,
    WeightsSource,
    resolve_backbone,
    resolve_weights,
)
from ._digests import digest, digest_file
from ._exceptions import ImageError, ImageWarning, WeightsError
from ._images import Images, is_table, read_images, shape_rows
from ._layers import aliased_layers, resolve_layer, width_of
from ._pooling import POOLINGS, check_size
from ._progress import FitTask, progress_bar
from ._store import FeatureStore, clear_tables, open_table
from ._validation import (
    CallbackSupportMixin,
    HasMethods,
    Integral,
    Interval,
    StrOptions,
    check_columns,
    check_image_shape,
    check_rows_exist,
    check_table,
    check_value_range,
    with_callbacks,
)

SCHEMA = 1  # raise it when features change, so that stored ones are not served


# What is computed -------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One layer, pooled: the unit that the store keeps."""

    layer: Layer
    pooling: str
    width: int
    fingerprint: bytes


@dataclass(frozen=True)
class Plan:
    """The parameters of an estimator made concrete for one call.

    Everything that changes a feature is in the fingerprints of the columns.
    """

    source: WeightsSource
    weights_key: bytes
    value_range: tuple[float, float] | None
    columns: tuple[Column, ...]
    prefetched: tuple[Column, ...]

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(column.width for column in self.columns)

    @cached_property
    def slices(self) -> list[slice]:
        """Where each column stands in the output."""
        ends = np.cumsum([column.width for column in self.columns]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def weights_key(source: WeightsSource) -> bytes:
    """Digest of the weights, without loading them."""
    if source.path is not None:
        if not source.path.is_file():
            raise WeightsError.missing(source.path)
        return digest_file(source.path)
    if source.seed is not None:
        return digest("seed", str(source.seed), version("torch"))
    if source.published is not None:
        return digest("published", source.published.filename, source.published.sha256)
    return source.backbone.digest


def _find_layer(source: WeightsSource, name) -> Layer:
    """The layer of this alias, index or node."""
    return resolve_layer(source.backbone, name, source.input.image_size)


# Rows of one call -------------------------------------------------------------------


class Rows:
    """The distinct rows of one call, found by content.

    Parameters
    ----------
    images : Images
    fail : callable
        Takes the ImageError of a row whose content cannot be read.
    """

    def __init__(self, images: Images, fail):
        self._first: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._same_as: list[tuple[int, int]] = []
        for row in range(len(images)):
            try:
                key = images.key(row)
            except ImageError as error:
                fail(error)
                continue
            first = self._first.setdefault(key, row)
            if first == row:
                self._key_of[row] = key
            else:
                self._same_as.append((row, first))

    def __len__(self):
        return len(self._key_of)

    def read(self, table, plan: Plan, out) -> list[int]:
        """Fill in what the store has; returns the rows that lack anything."""
        missing: set[int] = set()
        rows, keys = list(self._key_of), list(self._key_of.values())
        for column, place in zip(plan.columns, plan.slices, strict=True):
            lacking = table.read(column.fingerprint, keys, out[:, place], rows)
            missing.update(rows[position] for position in lacking)
        return sorted(missing)

    def write(self, table, plan: Plan, computed, out) -> None:
        """Put the features of one batch into the output and into the store."""
        keys = [self._key_of[row] for row in computed.rows]
        columns = (*plan.columns, *plan.prefetched)
        for column, features in zip(columns, computed.features, strict=True):
            table.write(column.fingerprint, keys, features)
        asked = computed.features[: len(plan.columns)]
        for place, features in zip(plan.slices, asked, strict=True):
            out[computed.rows, place] = features

    def copy_duplicates(self, out, failed: dict, fail) -> None:
        """Give rows of equal content the features, or the error, of the first."""
        for row, first in self._same_as:
            if first in failed:
                fail(failed[first].at(row))
            else:
                out[row] = out[first]


# What a call reports ----------------------------------------------------------------

_errors: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_errors_lock = threading.Lock()


class Report:
    """What went wrong in one call; kept by thread, outside the estimator.

    Parameters
    ----------
    estimator : PretrainedCNNFeatures
        Its `on_error` decides whether an unreadable row raises.
    n_rows : int
    """

    def __init__(self, estimator, n_rows: int):
        self._estimator, self._n_rows = estimator, n_rows
        self.failed: dict[int, ImageError] = {}
        self._in_range = True
        with _errors_lock:
            by_thread = _errors.setdefault(estimator, {})
            by_thread[threading.get_ident()] = self.failed

    def fail(self, error: ImageError) -> None:
        """Raise the error of a row, or remember it."""
        if self._estimator.on_error == "raise":
            raise error
        self.failed[error.row] = error

    def add(self, computed) -> None:
        """Take over the errors of one batch, whose good rows are stored by now."""
        self._in_range &= computed.in_range
        for error in computed.errors:
            self.fail(error)

    def finish(self, out):
        """Fill failed rows with nan, and warn once of each kind of trouble."""
        out[list(self.failed)] = np.nan
        if self.failed:
            warnings.warn(
                f"{len(self.failed)} of {self._n_rows} images could not be read; their "
                "rows are nan and errors_ lists them. The first is "
                f"{self.failed[min(self.failed)]}.",
                ImageWarning,
                stacklevel=4,
            )
        if not self._in_range:
            warnings.warn(
                "Some pixel values lie outside the range that is taken as black to "
                "white for their dtype. If they are on another scale, type for "
                "instance value_range=(0, 255).",
                ImageWarning,
                stacklevel=4,
            )
        return out


def last_errors(estimator) -> list[ImageError]:
    """Errors of the last call of this thread, in the order of rows."""
    with _errors_lock:
        failed = _errors.get(estimator, {}).get(threading.get_ident())
    if failed is None:
        raise AttributeError(
            f"This {type(estimator).__name__} has not transformed anything in this "
            "thread yet, so it has no errors_."
        )
    return [failed[row] for row in sorted(failed)]


def clear_caches():
    """Forget all networks and all features that this process keeps in memory.

    Examples
    --------
    >>> from skdeepfeat import clear_caches
    >>> clear_caches()
    """
    clear_tables()
    networks = sys.modules.get(f"{__package__}._networks")
    if networks is not None:  # what was never imported holds nothing
        networks.clear_networks()


# The estimator ----------------------------------------------------------------------


class PretrainedCNNFeatures(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Deep features of images from a frozen, pretrained convolutional network.

    The activations of one or several layers, pooled over the image, as rows for any
    scikit-learn estimator. Nothing is trained: `fit` only checks its input, and
    `transform` works without it. Every image goes through the network once, whatever
    a grid search does, because rows are kept by image content (see `cache`).

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
    decode : {"exact"}, default="exact"
        "exact" resizes with Pillow, as the published preprocessing does.
    batch_size : int or "auto", default="auto"
        Images computed at once, at most; bounded by what the device bears.
    device : str, default="auto"
        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>".
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the network.
    engine : {"auto", "torch"}, default="auto"
        What runs the network.
    cache : "memory", FeatureStore, or None, default="memory"
        Where features are kept: one bounded table of this process, a named one, or
        nowhere.
    prefetch_layers : {"auto", "all"} or list, default="auto"
        Other layers that are stored in the same pass: "auto" those with an alias
        below the deepest one asked for, which cost nothing; "all" every one with an
        alias; or a list of layers.
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
        Above 0, a progress bar is shown.

    Attributes
    ----------
    errors_ : list of tuple (int, str, str)
        Row, source and reason of the images that the last `transform` of this thread
        could not read.
    n_features_in_ : int
        Number of columns seen in `fit`; only for flat rows and data frames.
    feature_names_in_ : ndarray of shape (1,)
        Name of the column seen in `fit`; only for data frames.

    See Also
    --------
    list_backbones : Names of the networks.
    list_layers : Layers of a network.
    load_image_folder : Paths and classes of a folder of photos.

    Notes
    -----
    The same image gives the same features, bit for bit, whatever else is in X, as
    long as the setting stays; across batch sizes they agree to about 1e-6.

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
        "backbone": [str, Backbone, HasMethods("to_backbone")],
        "weights": [str, HasMethods("__fspath__"), tuple, None],
        "layer": [str, Integral, tuple, list],
        "pooling": [StrOptions(set(POOLINGS))],
        "image_shape": [tuple, list, None],
        "value_range": [tuple, list, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "decode": [StrOptions({"exact"})],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "device": [str],
        "precision": [StrOptions({"float32", "bfloat16", "float16"})],
        "engine": [StrOptions({"auto", "torch"})],
        "cache": [StrOptions({"memory"}), FeatureStore, None],
        "prefetch_layers": [StrOptions({"auto", "all"}), list, tuple],
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
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.output = output
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Check the parameters and the kind of X; nothing is learned.

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
        self._plan()
        self._read(X, reset=True)
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
        with FitTask(self, X) as task:
            return self._walk(X, reset=True, batch_done=task.batch_done)

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
            If the weights cannot be found or do not fit.
        """
        return self._walk(X, reset=False)

    # The walk -----------------------------------------------------------------------

    def _walk(self, X, *, reset, batch_done=lambda: None):
        """X → images → batches → activations → pooled rows → store → array."""
        plan = self._plan()
        images = self._read(X, reset=reset)
        check_size(len(images), plan.width, self.pooling)
        table = open_table(self.cache)
        report = Report(self, len(images))
        rows, out = Rows(images, report.fail), np.empty((len(images), plan.width), "f4")
        missing = rows.read(table, plan, out)
        with progress_bar(len(rows), len(rows) - len(missing), self.verbose) as advance:
            for computed in self._compute(images, plan, missing):
                rows.write(table, plan, computed, out)
                report.add(computed)
                advance(len(computed.rows))
                batch_done()
        rows.copy_duplicates(out, report.failed, report.fail)
        return self._as_output(report.finish(out))

    def _compute(self, images, plan, missing):
        """Features of the missing rows, batch by batch; needs no network for none."""
        if not missing:
            return ()
        from ._engine import Engine

        layers = [(c.layer, c.pooling) for c in (*plan.columns, *plan.prefetched)]
        engine = Engine(
            plan.source,
            plan.weights_key,
            layers,
            self.device,
            self.precision,
            self.batch_size,
        )
        return engine.run(images, missing, plan.value_range, self.n_jobs)

    def _read(self, X, *, reset) -> Images:
        """X as rows of images."""
        if is_table(X):
            table = check_table(
                self,
                X,
                reset=reset,
                image_shape=self.image_shape,
                allow_nan=self.on_error == "nan",
            )
            return shape_rows(table, self.image_shape)
        images = read_images(X)
        check_rows_exist(self, len(images))
        check_columns(self, X, reset=reset)
        return images

    def _as_output(self, out):
        """The array itself, or a tensor of it on the device."""
        if self.output == "numpy":
            return out
        import torch

        from ._device import resolve_device

        return torch.from_numpy(out).to(resolve_device(self.device))

    # Parameters made concrete -------------------------------------------------------

    def _plan(self) -> Plan:
        """Validate the parameters and resolve every default."""
        self._validate_params()
        check_image_shape(self.image_shape)
        value_range = check_value_range(self.value_range)
        source = self._resolve_source()
        key = weights_key(source)
        asked = self._asked(source)
        prefetched = self._prefetched(source, asked)
        columns, others = (
            tuple(self._column(source, key, value_range, layer) for layer in layers)
            for layers in (asked, prefetched)
        )
        return Plan(source, key, value_range, columns, others)

    def _resolve_source(self) -> WeightsSource:
        """The weights, with the preprocessing for the input size asked for."""
        backbone = resolve_backbone(self.backbone)
        source = resolve_weights(backbone, self.weights, self.random_state)
        spec = source.input.scaled(self.image_size)
        if backbone.size_option and source.seed is None and spec != source.input:
            raise ValueError(
                f"Backbone {backbone.name!r} with these weights takes images of "
                f"{source.input.image_size} pixels only. Got image_size="
                f"{self.image_size!r} instead; leave it None."
            )
        return replace(source, input=spec)

    def _asked(self, source) -> list[Layer]:
        """The layers of `layer`, in its order."""
        names = self.layer if isinstance(self.layer, (tuple, list)) else (self.layer,)
        if not names or not all(isinstance(n, (str, Integral)) for n in names):
            raise ValueError(
                "The 'layer' parameter of PretrainedCNNFeatures must name at least one "
                f"layer, by strings or integers. Got {self.layer!r} instead."
            )
        return [_find_layer(source, name) for name in names]

    def _prefetched(self, source, asked) -> list[Layer]:
        """Other layers that are stored in the same pass."""
        if self.pooling == "flatten" or self.cache is None:
            return []
        if isinstance(self.prefetch_layers, str):
            # A file of one's own may have a head for other classes, or none.
            skipped = "logits" if source.path is not None else None
            aliased = aliased_layers(source.backbone)
            deepest = max((layer.index for layer in asked if layer.index), default=0)
            limit = len(aliased) if self.prefetch_layers == "all" else deepest
            wanted = [layer for layer in aliased[:limit] if layer.alias != skipped]
        else:
            wanted = [_find_layer(source, name) for name in self.prefetch_layers]
        nodes = {layer.node for layer in asked}
        by_node = {layer.node: layer for layer in wanted if layer.node not in nodes}
        return list(by_node.values())

    def _column(self, source, key, value_range, layer: Layer) -> Column:
        """One layer with the fingerprint of everything that makes its features."""
        about = (
            SCHEMA,
            source.input,
            value_range,
            self.decode,
            layer.node,
            "none" if layer.layout == "vector" else self.pooling,
            self.precision,
            self.device.partition(":")[0],
        )
        width = width_of(source.backbone, source.input, layer, self.pooling)
        fingerprint = digest(source.backbone.digest, key, repr(about))
        return Column(layer, self.pooling, width, fingerprint)

    # What scikit-learn asks ---------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        source = self._resolve_source()
        return sum(
            width_of(source.backbone, source.input, layer, self.pooling)
            for layer in self._asked(source)
        )

    @property
    def errors_(self) -> list[tuple[int, str, str]]:
        """Row, source and reason of what this thread's last call could not read."""
        return [(error.row, error.source, error.reason) for error in last_errors(self)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        flat = self.image_shape is not None
        tags.input_tags.two_d_array = flat
        tags.input_tags.three_d_array = True
        tags.input_tags.one_d_array = not flat
        tags.input_tags.string = not flat
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = False
        return tags
