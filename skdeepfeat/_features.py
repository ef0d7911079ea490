"""PretrainedCNNFeatures: its parameters, and how it reads images."""

from ._backbones.records import Backbone
from ._backbones.weights import resolve_source
from ._caches import SharedCache
from ._engines.devices import resolve_class, unconvertible
from ._images.batches import ImageReading
from ._images.input import read_input, set_input_tags
from ._networks.layers import ImageNetwork
from ._networks.pooling import POOLINGS
from ._store.stores import FeatureStore, clear_tables
from ._validation import (
    HasBackbone,
    HasMethods,
    HasPath,
    StrOptions,
    WholeNumber,
    check_image_shape,
    check_value_range,
)
from ._walk import PretrainedFeatures


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


class PretrainedCNNFeatures(PretrainedFeatures):
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
        Number of images that are decoded at once, by threads; on a GPU, from 4 on, by
        processes, once there are many images. None means all cores, unlike in
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
    layer_neighbor_scores_ : dict of str to float
        For each of these layers, R² for images that are predicted by the mean of their
        five nearest neighbours; only with ``layer="auto"``. `layer_` is the deepest
        layer whose mean of both R² is within 0.01 of the best one.
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

    _parameter_constraints: dict = {
        "backbone": [str, Backbone, HasBackbone()],
        "weights": [str, HasPath(), tuple, None],
        "layer": [str, WholeNumber(), tuple, list],
        "pooling": [StrOptions(set(POOLINGS))],
        "image_shape": [tuple, list, None],
        "value_range": [tuple, list, None],
        "image_size": [WholeNumber(1), None],
        "decode": [StrOptions({"exact", "fast"})],
        "batch_size": [
            WholeNumber(1),
            StrOptions({"auto"}),
        ],
        "device": [str, list, tuple],
        "precision": [StrOptions({"float32", "tf32", "bfloat16", "float16"})],
        "engine": [StrOptions({"auto", "torch", "openvino"})],
        "cache": [str, HasMethods("__fspath__"), FeatureStore, None],
        "prefetch_layers": [StrOptions({"auto", "all"}), list, tuple],
        "protocols": [tuple, list],
        "on_error": [StrOptions({"raise", "nan"})],
        "n_jobs": [WholeNumber(), None],
        "output": [StrOptions({"numpy", "torch"})],
        "random_state": [WholeNumber(0, 2**63 - 1)],
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

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_image_shape(self.image_shape)

    def _read(self, X, *, reset):
        return read_input(self, X, reset=reset, allow_nan=self.on_error == "nan")

    def _network(self) -> ImageNetwork:
        return ImageNetwork(
            resolve_source(
                self.backbone, self.weights, self.random_state, self.image_size
            )
        )

    def _reading(self, network) -> ImageReading:
        value_range = check_value_range(self.value_range)
        beside_gpu = resolve_class(self.device) != "cpu"
        return ImageReading(value_range, self.decode, self.n_jobs, beside_gpu)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        set_input_tags(tags, self.image_shape)
        return tags
