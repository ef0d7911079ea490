"""Write _backbones/torchvision.json, the records of torchvision's models.

    python tools/describe_torchvision.py

Run it after raising the supported version of torchvision. Networks are built without
weights and run on the meta device, which requires no download and little memory. Add
the aliases of a new architecture to `FAMILIES`.
"""

import argparse
import json
import math
import re
import warnings
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.feature_extraction import (
    create_feature_extractor,
    get_graph_node_names,
)

from skdeepfeat._backbones.layouts import ENLARGED, layout_of_tokens, stride_of
from skdeepfeat._backbones.records import Layer
from skdeepfeat._networks.averages import with_averages
from skdeepfeat._networks.building import SkipInitialisation
from skdeepfeat._networks.discovery import layout_of_maps
from skdeepfeat._networks.structure import representative_node
from skdeepfeat._networks.tracer import trace

OUTPUT = Path(__file__).parents[1] / "skdeepfeat" / "_backbones" / "torchvision.json"


def numbered(*names):
    """Aliases block1, block2, ... for these modules."""
    return {f"block{i}": name for i, name in enumerate(names, 1)}


def stages(net, container):
    """The first child, then the last one of each run of children of equal shape."""
    shapes = {}
    hooks = [
        child.register_forward_hook(
            lambda _, __, out, key=key: shapes.__setitem__(key, tuple(out.shape[1:]))
        )
        for key, child in net.get_submodule(container).named_children()
    ]
    net(torch.zeros(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    rows = [(f"{container}.{key}", shape) for key, shape in shapes.items()]
    ends = [a for (a, shape), (_, after) in pairwise(rows[1:]) if shape != after]
    return [rows[0][0], *ends, rows[-1][0]]


def children_of_type(net, *types):
    """Names of the modules whose class is one of these."""
    return [name for name, m in net.named_modules() if type(m).__name__ in types]


def vgg_like(net):
    relus = children_of_type(net, "ReLU")
    return {
        "stem": relus[0],
        **numbered(*children_of_type(net.features, "MaxPool2d")),
        "penultimate": relus[-1],
        "logits": "classifier.6",
    }


def in_features(aliases):
    """The same aliases, with the names of blocks relative to `features`."""
    return {
        alias: f"features.{name}" if alias.startswith("block") else name
        for alias, name in aliases.items()
    }


def stage_like(container, penultimate, logits):
    def aliases(net):
        first, *rest = stages(net, container)
        return {
            "stem": first,
            **numbered(*rest),
            "penultimate": penultimate,
            "logits": logits,
        }

    return aliases


def fixed(stem, blocks, penultimate, logits):
    return lambda net: {
        "stem": stem,
        **numbered(*blocks),
        "penultimate": penultimate,
        "logits": logits,
    }


# Pattern of the model's name → (its aliases, name of its head); the first match counts.
FAMILIES = {
    r"resnet|resnext|wide_resnet": (
        fixed("maxpool", [f"layer{i}" for i in range(1, 5)], "flatten", "fc"),
        "fc",
    ),
    r"regnet": (
        fixed(
            "stem",
            [f"trunk_output.block{i}" for i in range(1, 5)],
            "flatten",
            "fc",
        ),
        "fc",
    ),
    r"alexnet|vgg": (lambda net: in_features(vgg_like(net)), "classifier.6"),
    r"densenet": (
        fixed(
            "features.pool0",
            [f"features.denseblock{i}" for i in range(1, 4)] + ["relu"],
            "flatten",
            "classifier",
        ),
        "classifier",
    ),
    r"squeezenet": (
        lambda net: {
            "stem": "features.2",
            **numbered(*children_of_type(net, "Fire")),
            "penultimate": "features.12",
            "logits": "flatten",
        },
        "classifier.1",
    ),
    r"googlenet|inception": (
        lambda net: {
            "stem": "maxpool2",
            **numbered(
                *(k for k, _ in net.named_children() if re.match("inception|Mixed", k))
            ),
            "penultimate": "flatten",
            "logits": "fc",
        },
        "fc",
    ),
    r"mobilenet_v3": (
        stage_like("features", "classifier.1", "classifier.3"),
        "classifier.3",
    ),
    r"efficientnet_lite": (
        lambda net: {
            "stem": "act0",
            **numbered(*stages(net, "blocks")),
            "penultimate": "flatten",
            "logits": "fc",
        },
        "fc",
    ),
    r"mobilenet_v2|efficientnet": (
        stage_like("features", "flatten", "classifier.1"),
        "classifier.1",
    ),
    r"mnasnet": (
        fixed(
            "layers.2",
            [f"layers.{i}" for i in (7, 8, 9, 10, 11, 12, 13, 16)],
            "mean",
            "classifier.1",
        ),
        "classifier.1",
    ),
    r"shufflenet": (
        fixed("conv1", ["stage2", "stage3", "stage4", "conv5"], "mean", "fc"),
        "fc",
    ),
    r"convnext": (
        fixed(
            "features.0",
            [f"features.{i}" for i in (1, 3, 5, 7)],
            "classifier.1",
            "classifier.2",
        ),
        "classifier.2",
    ),
    r"swin": (
        fixed("features.0", [f"features.{i}" for i in (1, 3, 5, 7)], "flatten", "head"),
        "head",
    ),
    r"maxvit": (
        fixed(
            "stem", [f"blocks.{i}" for i in range(4)], "classifier.2", "classifier.5"
        ),
        "classifier.5",
    ),
    r"vit": (
        lambda net: {
            "stem": "conv_proj",
            **numbered(
                *(f"encoder.layers.{k}" for k, _ in net.encoder.layers.named_children())
            ),
            "penultimate": "getitem_5",
            "logits": "heads.head",
        },
        "heads.head",
    ),
}
# Official GoogLeNet and Inception weights need an input scaling of their own, and
# contain auxiliary heads that no feature needs.
OFFICIAL_OPTIONS = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {
        "transform_input": True,
        "aux_logits": False,
        "init_weights": False,
    },
}
UNUSED = {"googlenet": ["aux1.", "aux2."], "inception_v3": ["AuxLogits."]}
# Old DenseNet files name a part of a dense layer `norm.1`, which is now `norm1`.
RENAME = [r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."]


def size_option(name):
    """The argument that sets the input size of networks built for one size, or None."""
    if name.startswith("vit"):
        return "image_size"
    return None


def describe_weights(version):
    """The address and the preprocessing of a version."""
    recipe = version.transforms()
    return {
        "url": version.url,
        "resize": recipe.resize_size[0],
        "crop": recipe.crop_size[0],
        "interpolation": recipe.interpolation.value,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }


def described_by_torchvision(version):
    """Number of parameters, including the classifier, and the licence if stated."""
    meta = version.meta
    stated = {"licence": meta["license"]} if "license" in meta else {}
    return {"parameters": meta["num_params"], **stated}


class Meter(torch.fx.Interpreter):
    """Runs a graph and records the shape and the accumulated cost at each node."""

    def __init__(self, graph_module):
        super().__init__(graph_module)
        self.shapes, self.flops = {}, {}

    def measure(self, x):
        with FlopCounterMode(display=False) as self.counter:
            self.run(x)

    def run_node(self, node):
        value = super().run_node(node)
        self.shapes[node.name] = tuple(getattr(value, "shape", ()))
        self.flops[node.name] = self.counter.get_total_flops()
        return value


def measure(net, nodes, size):
    """(shape without the batch axis, accumulated cost) of each node, by name."""
    cut = create_feature_extractor(net, nodes, suppress_diff_warning=True).eval()
    meter = Meter(torch.fx.GraphModule(net, cut.graph))
    meter.measure(torch.zeros(1, 3, size, size, device="meta"))
    (returned,) = next(n for n in cut.graph.nodes if n.op == "output").args
    places = {node: returned[node].name for node in nodes}
    return {n: (meter.shapes[at][1:], meter.flops[at]) for n, at in places.items()}


def describe_layers(net, family, size):
    names = get_graph_node_names(net, suppress_diff_warning=True)[1]
    aliases = {a: representative_node(m, names) for a, m in family(net).items()}
    nodes = sorted(set(aliases.values()))
    measured = measure(net, nodes, size)
    try:
        larger = measure(net, nodes, size + ENLARGED)
    except Exception:  # built for one size; such networks keep channels first
        larger = {}
    has_class = hasattr(net, "class_token")
    total = measured[aliases["logits"]][1]
    rows = []
    for alias, node in aliases.items():
        shape, cost = measured[node]
        larger_shape = larger.get(node, (None,))[0]
        layout = layout_of(shape, larger_shape, has_class)
        stride = stride_of(layout, shape, larger_shape, size)
        rows.append([alias, node, layout, shape, stride, round(cost / total, 4)])
    return rows


def layout_of(shape, larger, has_class):
    """How the output of a node is laid out; the maps of square images are square."""
    if len(shape) == 3:
        return layout_of_maps(shape, larger)
    is_square = math.isqrt(shape[0]) ** 2 == shape[0]
    others = int(has_class and not is_square)
    return "vector" if len(shape) == 1 else layout_of_tokens(others)


def describe_averages(net, rows):
    """{node of a vector: node of the map whose average it is}."""
    _, steps = trace(net)
    layers = tuple(
        Layer.from_shape(alias, node, index, layout, shape, stride)
        for index, (alias, node, layout, shape, stride, _) in enumerate(rows)
    )
    found = with_averages(layers, steps.__getitem__, net)
    return {layer.node: layer.average_of for layer in found if layer.average_of}


def describe(name):
    family, head = next(v for k, v in FAMILIES.items() if re.search(k, name))
    versions = models.get_model_weights(name)
    weights = {version.name: describe_weights(version) for version in versions}
    default = next(v.name for v in versions if v == versions.DEFAULT)
    options = OFFICIAL_OPTIONS.get(name, {})
    size = weights[default]["crop"]
    sized = {k: size for k in [size_option(name)] if k}
    with SkipInitialisation():
        net = models.get_model(name, weights=None, **options, **sized)
    net = net.eval().to("meta")
    with torch.no_grad():
        layers = describe_layers(net, family, size)
    averages = describe_averages(net, layers)
    record = {"head": head, "default": default, "weights": weights, "layers": layers}
    if averages:
        record["averages"] = averages
    if options:
        record |= {"options": options, "unused": UNUSED[name]}
    if name.startswith("densenet"):
        record["rename"] = RENAME
    if size_option(name):
        record["size_option"] = size_option(name)
    return record | described_by_torchvision(versions.DEFAULT)


def main():
    warnings.simplefilter("ignore")
    names = models.list_models(module=models)
    lines = []
    for name in names:
        lines.append(f'"{name}": {json.dumps(describe(name))}')
        print(name, flush=True)
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(names)} models written to {OUTPUT.name}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
