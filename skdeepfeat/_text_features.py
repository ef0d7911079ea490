"""PretrainedTextFeatures: its parameters, and how it reads texts."""

from dataclasses import replace
from functools import partial
from numbers import Integral

from ._backbones.text_modules import TextBackbone
from ._backbones.text_registry import resolve_text_backbone
from ._networks.text_layers import TextNetwork
from ._store.stores import FeatureStore
from ._texts.batches import TextReading
from ._texts.input import read_texts
from ._texts.specs import POOLINGS
from ._validation import HasMethods, Interval, StrOptions
from ._walk import PretrainedFeatures


class PretrainedTextFeatures(PretrainedFeatures):
    """Features of texts from word vectors or a frozen, pretrained language model."""

    _parameter_constraints: dict = {
        "backbone": [str, HasMethods("__fspath__"), TextBackbone],
        "weights": [str, None],
        "layer": [str, Integral, tuple, list],
        "pooling": [StrOptions(set(POOLINGS))],
        "max_length": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "device": [str, list, tuple],
        "precision": [StrOptions({"float32", "tf32", "bfloat16", "float16"})],
        "engine": [StrOptions({"auto", "torch", "numpy"})],
        "cache": [str, HasMethods("__fspath__"), FeatureStore, None],
        "prefetch_layers": [StrOptions({"auto", "all"}), list, tuple],
        "on_error": [StrOptions({"raise", "nan"})],
        "output": [StrOptions({"numpy", "torch"})],
        "random_state": [Interval(Integral, 0, 2**63 - 1, closed="both")],
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
