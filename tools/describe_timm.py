"""Write _backbones/timm.json, the records of timm's networks.

    python tools/describe_timm.py            # names, recipes, licences, parameters
    python tools/describe_timm.py resnet18   # also the layers of these networks

Run it after raising the supported version of timm. Nothing is downloaded; layers and
numbers of parameters that the file already has are kept. Layers are written only if
their values are those that timm computes.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch
from check_timm import TOLERANCE, compare, difference, is_good, random_network
from describe_torchvision import Meter
from timm.models import _registry as registry

from skdeepfeat._backbones import timm_records as known
from skdeepfeat._backbones.layouts import LAYOUTS
from skdeepfeat._backbones.records import Layer
from skdeepfeat._networks import discovery
from skdeepfeat._networks.layers import aliased_layers
from skdeepfeat._networks.stages import MOST_BLOCKS, Stage, stem_and_blocks
from skdeepfeat._networks.structure import fill_graph, structure_of
from skdeepfeat._networks.trial import fill

OUTPUT = Path(known.__file__).with_name("timm.json")


def configured(architecture):
    """Its versions, the default one first."""
    names = registry._model_with_tags[architecture]
    configurations = [registry._model_pretrained_cfgs[name] for name in names]
    return [known.version_of(architecture, c.to_dict()) for c in configurations]


class Numbers(dict):
    """Gives each new value the next number."""

    def __missing__(self, value):
        self[value] = len(self)
        return self[value]


def row_of(version, recipes, licences):
    """What the file has of a version."""
    height, width = version.size
    row = [
        version.tag,
        height if height == width else [height, width],
        recipes[version.recipe],
        version.classes,
        licences[version.licence],
    ]
    usual = f"{known.HUB}timm/{version.name}"
    return row if version.url == usual else [*row, version.url]


def counts_of(versions, before):
    """{number of classes: number of parameters} of an architecture."""
    names = {str(version.classes): version.name for version in reversed(versions)}
    return (
        before if before.keys() == names.keys() else dict(map(counted, names.items()))
    )


def counted(item):
    classes, name = item
    with torch.device("meta"):
        net = timm.create_model(name)
    return classes, sum(parameter.numel() for parameter in net.parameters())


# Layers -------------------------------------------------------------------------------


class AllValues(torch.fx.Interpreter):
    """Runs a graph and keeps the value of each step."""

    def __init__(self, module):
        super().__init__(module)
        self.extra_traceback = False
        self.values = {}

    def run_node(self, n):
        self.values[n] = value = super().run_node(n)
        return value


def place_stages(structure, net, x, stages):
    """{alias: (node, layout)} of the steps whose values are those of timm's stages."""
    run = AllValues(fill_graph(structure, net, structure.graph))
    run.run(x)
    steps = {n.name: value for n, value in run.values.items()}
    found = {}
    for node in structure.nodes:
        for layout, places in possible_places(steps.get(structure.step(node).name)):
            for alias, stage in stages.items():
                if difference(places, stage) < TOLERANCE:
                    found.setdefault(alias, (node, layout))
    return by_depth(structure, found)


def by_depth(structure, found):
    """The same in the order of the graph, where blocks have their numbers."""
    order = {node: place for place, node in enumerate(structure.nodes)}
    stem = {"stem": found.pop("stem")} if "stem" in found else {}
    blocks = sorted(found.values(), key=lambda pair: order[pair[0]])
    return stem | {f"block{i}": pair for i, pair in enumerate(blocks, 1)}


def possible_places(value):
    """(layout, (n, channels, places)) as which a value may be read."""
    if not isinstance(value, torch.Tensor) or value.ndim not in (3, 4):
        return
    kinds = {4: ("chw", "hwc"), 3: ("tokens", "cls+tokens")}[value.ndim]
    for layout in kinds:
        yield layout, LAYOUTS[layout].as_maps(value).flatten(2)


def described(name):
    """What the file has of the layers of an architecture, checked against timm."""
    backbone = replace(known.timm_backbone(name), layers=None)
    structure = structure_of(backbone, backbone.input.image_size)
    if not structure.traceable:
        raise ValueError(f"not traced: {structure.fault}")
    layers = aliased_layers(backbone)
    found = compare(name, layers=layers)
    if found.get("wrong") or (found.get("missing") and len(layers) < MOST_BLOCKS):
        layers = with_stages_by_value(backbone, layers)
        found = compare(name, layers=layers)
    if not is_good(found):
        raise ValueError(json.dumps(found))
    return {
        "layers": rows_of(structure, layers),
        "averages": {a.node: a.average_of for a in layers if a.average_of},
    }


def with_stages_by_value(backbone, layers):
    """The layers, with the stages where their values are those of timm."""
    structure, net, x = random_network(backbone)
    with torch.no_grad():
        given = net.forward_intermediates(x, intermediates_only=True)
        aliases = list(aliases_of(net.feature_info))
        stages = dict(zip(aliases, [v.flatten(2) for v in given], strict=True))
        places = place_stages(structure, net, x, stages)
    structure = structure_of(backbone, backbone.input.image_size)
    found = discovery._layers(structure, {a: node for a, (node, _) in places.items()})
    found = {
        a: Layer.from_shape(
            a, layer.node, None, places[a][1], layer.shape, layer.stride
        )
        for a, layer in found.items()
    }
    ends = {a.alias: a for a in layers if a.alias in ("penultimate", "logits")}
    return tuple(
        replace(layer, index=i) for i, layer in enumerate((found | ends).values())
    )


def aliases_of(info):
    """The aliases of all stages, of which none has a node yet."""
    stages = [Stage(about["module"], None) for about in getattr(info, "info", info)]
    stem, blocks = stem_and_blocks(stages)
    numbered = [f"block{i}" for i in range(1, len(blocks) + 1)]
    return ["stem", *numbered] if stem is stages[0] else numbered


def rows_of(structure, layers):
    """Rows of the table, with the share of the multiplications up to each layer."""
    nodes = tuple(dict.fromkeys(layer.node for layer in layers))
    graph = structure.graph_to(nodes)
    structure.skeleton.requires_grad_(False)  # else counting would need gradients
    module = fill(structure.skeleton, structure.skeleton, graph)
    meter = Meter(module)
    size = structure.image_size
    with torch.no_grad():
        meter.measure(torch.zeros(1, 3, size, size, device="meta"))
    returned = module.graph.output_node().args[0]
    flops = {node: meter.flops[step.name] for node, step in returned.items()}
    total = max(flops.values()) or 1
    return [
        [a.alias, a.node, a.layout, a.shape, a.stride, round(flops[a.node] / total, 4)]
        for a in layers
    ]


# The file -----------------------------------------------------------------------------


def main(names):
    before = json.loads(OUTPUT.read_text())["architectures"] if OUTPUT.exists() else {}
    recipes, licences, architectures = Numbers(), Numbers(), {}
    for architecture in timm.list_models():
        versions = configured(architecture)
        about = {"tags": [row_of(v, recipes, licences) for v in versions]}
        if versions[0].fixed:
            about["fixed"] = True
        if classifier := next((v.classifier for v in versions if v.classifier), None):
            about["classifier"] = classifier
        if checksums := {v.tag: v.former for v in versions if v.former}:
            about["checksums"] = checksums
        old = before.get(architecture, {})
        about["counts"] = counts_of(versions, old.get("counts", {}))
        kept = ("layers", "averages")
        architectures[architecture] = about | {k: old[k] for k in kept if k in old}
    write(recipes, licences, architectures)
    for name in names:
        start = time.perf_counter()
        try:
            architectures[name] |= described(name)
            write(recipes, licences, architectures)
            print(name, f"{time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:
            print("LEFT OUT", name, type(error).__name__, str(error)[:500], flush=True)


def write(recipes, licences, architectures):
    lines = [f'"{name}": {json.dumps(a)}' for name, a in architectures.items()]
    parts = [
        f'"timm": {json.dumps(timm.__version__)}',
        f'"recipes": {json.dumps(list(recipes))}',
        f'"licences": {json.dumps(list(licences))}',
        '"architectures": {\n' + ",\n".join(lines) + "\n}",
    ]
    OUTPUT.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="also write their layers")
    main(parser.parse_args().names)
