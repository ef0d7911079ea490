"""What a file of ONNX says of itself: where it comes from, and what it takes."""

import json
from dataclasses import asdict
from importlib.metadata import version

from .._backbones.registry import licence_of
from .._backbones.saved import saved_digest
from .._composites import Composite
from .._images.recipe import InputSpec

RESIZES = {
    "crop": "resize the short side to {resize} pixels ({interpolation}), and take the "
    "square of {image_size} pixels at the centre",
    "squash": "resize to {resize} × {resize} pixels ({interpolation}), and take the "
    "square of {image_size} pixels at the centre",
    "border": "resize the long side to {resize} pixels ({interpolation}), and fill the "
    "square of {image_size} pixels with the mean colour",
    None: "resize to {image_size} × {image_size} pixels ({interpolation})",
}
DECODES = {
    "exact": "",
    "fast": "; as the images of this estimator were, JPEGs may be decoded at 1/2, 1/4 "
    "or 1/8 of their size (draft) and resized with reducing_gap=2 in Pillow",
}
STANDARDISED = "; the graph itself divides by 255 and standardises the channels"


def describe(composite: Composite, estimator, spec: InputSpec) -> dict[str, str]:
    """Names and texts that go into the file."""
    steps = [_describe_step(step) for step in composite.features]
    about = {
        "skdeepfeat_version": version("skdeepfeat"),
        "recipe": recipe_in_words(spec, composite.features[0].decode),
        "recipe_numbers": json.dumps(asdict(spec)),
        "feature_names": json.dumps(_names(composite)),
    }
    about |= {name: " + ".join(step[name] for step in steps) for name in steps[0]}
    if hasattr(estimator, "classes_"):
        about["classes"] = json.dumps(estimator.classes_.tolist())
    return about


def recipe_in_words(spec: InputSpec, decode: str) -> str:
    """What to do with a photo before it enters the graph."""
    kind = None if spec.resize is None else spec.mode
    return RESIZES[kind].format(**asdict(spec)) + DECODES[decode] + STANDARDISED


def _describe_step(step) -> dict[str, str]:
    """Network, layers and weights of a feature step."""
    plan = step._plan()
    source = plan.pooled.source
    return {
        "backbone": source.backbone.name,
        "layer": json.dumps(step._layer(), default=int),  # of numpy
        "pooling": step.pooling,
        "weights": source.name,
        "weights_digest": saved_digest(source),
        "licence": licence_of(source.backbone) or "not known",
    }


def _names(composite: Composite) -> list[str]:
    """The names of the features that enter the head."""
    return [
        name for step in composite.features for name in step.get_feature_names_out()
    ]
