"""Deep features of images for scikit-learn, from pretrained convolutional networks."""

from ._activation_maps.maps import activation_maps
from ._backbones import inspector as _inspector
from ._backbones.listing import list_backbones
from ._backbones.records import Backbone
from ._backbones.registry import register_backbone
from ._backbones.text_modules import TextBackbone
from ._datasets import load_image_folder, load_textures
from ._displays.activation_map import ActivationMapDisplay
from ._displays.layer_depth import LayerDepthDisplay
from ._displays.training_history import TrainingHistoryDisplay
from ._embedding import embed_weights
from ._exceptions import (
    EngineWarning,
    FeatureWarning,
    ImageError,
    ImageWarning,
    LayerWarning,
    MapWarning,
    OutputTooLarge,
    RecipeWarning,
    StoreWarning,
    TextError,
    TextWarning,
    WeightsError,
    WorkerError,
)
from ._features import PretrainedCNNFeatures, clear_caches
from ._finetuning.classifier import FineTunedClassifier
from ._networks.layers import list_layers
from ._onnx.exporting import to_onnx
from ._ranking import rank_layers
from ._store.stores import FeatureStore
from ._strategy import recommend_strategy
from ._text_features import PretrainedTextFeatures

__version__ = "0.2.0.dev0"

__all__ = [
    "ActivationMapDisplay",
    "Backbone",
    "EngineWarning",
    "FeatureStore",
    "FeatureWarning",
    "FineTunedClassifier",
    "ImageError",
    "ImageWarning",
    "LayerDepthDisplay",
    "LayerWarning",
    "MapWarning",
    "OutputTooLarge",
    "PretrainedCNNFeatures",
    "PretrainedTextFeatures",
    "RecipeWarning",
    "StoreWarning",
    "TextBackbone",
    "TextError",
    "TextWarning",
    "TrainingHistoryDisplay",
    "WeightsError",
    "WorkerError",
    "activation_maps",
    "clear_caches",
    "embed_weights",
    "list_backbones",
    "list_layers",
    "load_image_folder",
    "load_textures",
    "rank_layers",
    "recommend_strategy",
    "register_backbone",
    "to_onnx",
]
_inspector.inspected_by(f"{__name__}._networks.inspection")
for _name in __all__:
    globals()[_name].__module__ = __name__
