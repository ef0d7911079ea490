"""PretrainedTextFeatures: its parameters, and how it reads texts."""

from dataclasses import replace
from functools import partial

from ._backbones.text_modules import TextBackbone
from ._backbones.text_registry import resolve_text_backbone
from ._networks.text_layers import TextNetwork
from ._store.stores import FeatureStore
from ._texts.batches import TextReading
from ._texts.input import read_texts
from ._texts.specs import POOLINGS
from ._validation import HasMethods, StrOptions, WholeNumber
from ._walk import PretrainedFeatures


class PretrainedTextFeatures(PretrainedFeatures):
    """Features of texts from word vectors or a frozen, pretrained language model.

    The states of one or several layers are pooled over the tokens of a text and
    returned as rows for any scikit-learn estimator. Nothing is trained: `fit` only
    checks its input and records a digest of the weights, and `transform` also works
    without it; with ``layer="auto"``, `fit` also chooses the layer that suits `y`.
    Features are stored by the content of the texts (see `cache`), so each text passes
    through the network once, even in a grid search.

    Needs the extra ``[text]``.

    Parameters
    ----------
    backbone : str, path or TextBackbone, default="wordllama"
        What computes the features: "wordllama", the token vectors that pip installs
        with the extra; the folder of a transformer encoder that
        ``save_pretrained`` has written, or its id on the hub of Hugging Face, such as
        "sentence-transformers/all-MiniLM-L6-v2"; a file of word vectors: GloVe's .txt,
        word2vec's .txt and .bin, fastText's .vec and .bin; or a
        :class:`TextBackbone`, a network of your own.
    weights : str or None, default="default"
        "default" for the weights in the folder or file, or None for random weights of
        an encoder, drawn with the seed `random_state`.
    layer : str, int, or tuple of these, default="penultimate"
        The layer or layers to read: "embeddings", "block1" and so on, "penultimate",
        what the encoder returns, or an index from :func:`list_layers`. The features of
        several layers are computed in one pass and concatenated. "auto" lets `fit`
        choose a layer by how well it predicts `y`; see the notes of
        :class:`PretrainedCNNFeatures`.
    pooling : {"mean", "max", "cls", "meanmax"}, default="mean"
        How to pool the states of the tokens: their mean, their largest values, the
        state of the first token, or mean and largest values. Padding is left out. Word
        vectors have no first token that stands for the text, so they do not support
        "cls".
    max_length : int or None, default=None
        Number of tokens after which a text is cut, with a warning. None means as many
        as the network reads.
    batch_size : int or "auto", default="auto"
        Maximum number of texts computed at once; fewer if they are long. The value is
        limited by what the device can handle.
    device : str or list of str, default="auto"
        The device to compute on: "auto" (a GPU if there is one), "cpu", "cuda" or
        "cuda:<index>"; or a list of GPUs, which take turns computing the batches.
    precision : {"float32", "tf32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the network. "float32" also has full precision on a GPU. "tf32"
        lets a GPU round inside multiplications, and equals "float32" on a CPU.
    engine : {"auto", "torch", "numpy"}, default="auto"
        The library that computes: torch for networks, and numpy for word vectors.
    cache : "memory", path, FeatureStore, or None, default="memory"
        Where to store features: "memory" for a table of limited size in the memory of
        this process; a path for a folder that persists and that all processes on this
        machine can share; a :class:`FeatureStore` for a place with a size limit of
        your choice; or None to store nothing. Features of images may be in the same
        store.
    prefetch_layers : {"auto", "all"} or list, default="auto"
        Other layers to store in the same pass. "auto" stores the layers below the
        deepest requested one, which cost nothing, and all layers once texts that are
        stored at one depth are requested at another. "all" stores all layers from the
        start, and so does "auto" with ``layer="auto"``. A list names the layers to
        store.
    on_error : {"raise", "nan"}, default="raise"
        What to do with a row that is not a text, such as None. "raise" raises
        :class:`TextError` with its row. "nan" fills its row with NaN and warns once.
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
        Row, source and reason for each row that the last `transform` of this thread
        could not read.
    stats_ : dict
        Statistics of the last `transform` of this thread: "device", "engine",
        "n_texts", "n_computed" (the texts that passed through the network), "seconds",
        "texts_per_second", and "shares", the fractions of the time spent on "hashing",
        "store", "building" (the network, if it is not in memory yet), "tokenizing",
        "copying" (to the device) and "network".
    weights_digest_ : str
        Hexadecimal digest of the weights, the configuration and the tokenizer in `fit`;
        does not depend on the layer. A fitted estimator refuses others.
    layer_ : str
        Alias of the layer that `transform` reads; only with ``layer="auto"``.
    layer_scores_ : dict of str to float
        For each distinct layer in order of depth, its R² for texts that are left out
        of a ridge regression one at a time; only with ``layer="auto"``.
    layer_neighbor_scores_ : dict of str to float
        For each of these layers, R² for texts that are predicted by the mean of their
        five nearest neighbours; only with ``layer="auto"``.
    layer_accuracies_ : dict of str to float
        For each of these layers, the fraction of left-out texts whose class is
        predicted; only with ``layer="auto"`` and if `y` are classes.
    n_features_in_ : int
        Number of columns seen in `fit`; only for data frames and named Series.
    feature_names_in_ : ndarray of shape (1,)
        Name of the column seen in `fit`; only for data frames and named Series.

    See Also
    --------
    PretrainedCNNFeatures : The same for images.
    TextBackbone : A network of your own.
    list_layers : List the layers of a network.

    Notes
    -----
    A text has the same features, bit for bit, whatever else is in X: it is padded to
    one of a few lengths that depends on the text alone, and the number of texts that
    are computed at once is fixed. They agree to about 1e-6 across batch sizes, and
    between a single row, which is computed alone, and several.

    An encoder computes two short texts when it is loaded. If padding changes its
    states, each text is computed alone, at its own length. An encoder whose features
    depend on earlier texts is refused, and so is one for which transformers does not
    return the states between the blocks.

    Weights are read from .safetensors files, and no code of a model is run: what needs
    ``trust_remote_code`` is refused. Files of word vectors are read once, those of
    fastText by gensim's reader, and none as a pickle. Afterwards they are opened from a
    table in the cache folder of the user, which takes no memory except for the words
    that are used.

    Words are runs of letters, marks and digits, and single other signs; they are
    compared in their composed form (NFC). A word that a file does not have is looked up
    in lower case, and left out if it is missing again; with subwords in a .bin file of
    fastText, its vector is the mean of those [1]_. The features of a text without any
    known word are zeros.

    References
    ----------
    .. [1] Bojanowski, Grave, Joulin, Mikolov, "Enriching Word Vectors with Subword
       Information", 2017.

    Examples
    --------
    >>> from skdeepfeat import PretrainedTextFeatures
    >>> texts = ["a wonderful film", "we want our money back"]
    >>> PretrainedTextFeatures().fit_transform(texts).shape
    (2, 256)
    """

    _parameter_constraints: dict = {
        "backbone": [str, HasMethods("__fspath__"), TextBackbone],
        "weights": [str, None],
        "layer": [str, WholeNumber(), tuple, list],
        "pooling": [StrOptions(set(POOLINGS))],
        "max_length": [WholeNumber(1), None],
        "batch_size": [
            WholeNumber(1),
            StrOptions({"auto"}),
        ],
        "device": [str, list, tuple],
        "precision": [StrOptions({"float32", "tf32", "bfloat16", "float16"})],
        "engine": [StrOptions({"auto", "torch", "numpy"})],
        "cache": [str, HasMethods("__fspath__"), FeatureStore, None],
        "prefetch_layers": [StrOptions({"auto", "all"}), list, tuple],
        "on_error": [StrOptions({"raise", "nan"})],
        "output": [StrOptions({"numpy", "torch"})],
        "random_state": [WholeNumber(0, 2**63 - 1)],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone="wordllama",
        *,
        weights="default",
        layer="penultimate",
        pooling="mean",
        max_length=None,
        batch_size="auto",
        device="auto",
        precision="float32",
        engine="auto",
        cache="memory",
        prefetch_layers="auto",
        on_error="raise",
        output="numpy",
        random_state=0,
        verbose=0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.pooling = pooling
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.engine = engine
        self.cache = cache
        self.prefetch_layers = prefetch_layers
        self.on_error = on_error
        self.output = output
        self.random_state = random_state
        self.verbose = verbose

    def _read(self, X, *, reset):
        return read_texts(self, X, reset=reset)

    def _network(self) -> TextNetwork:
        backbone = resolve_text_backbone(self.backbone)
        source = backbone.source(self.weights, self.random_state)
        spec = source.input.limited(self.max_length)
        return TextNetwork(replace(source, input=spec))

    def _plan(self, fitting=False):
        plan = super()._plan(fitting)
        plan.pooled.source.backbone.compare_pooling(self.pooling)
        return plan

    def _reading(self, network) -> TextReading:
        source = network.source
        make = partial(source.backbone.make_tokenizer, source.input.max_length)
        return TextReading(make)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags
