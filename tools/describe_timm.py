"""Write _backbones/timm.json, the records of timm's networks.

    python tools/describe_timm.py            # names, recipes, licences
    python tools/describe_timm.py resnet18   # also the layers of these networks
    python tools/describe_timm.py --all      # also the layers of all that lack them

Run it after raising the supported version of timm. Nothing is downloaded, and layers
that the file already has are kept.
"""

import json
import sys
from pathlib import Path

import timm
from timm.models import _registry as registry

from skdeepfeat._backbones import timm_records as known

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


def main():
    before = json.loads(OUTPUT.read_text())["architectures"] if OUTPUT.exists() else {}
    recipes, licences, architectures = Numbers(), Numbers(), {}
    for architecture in timm.list_models():
        versions = configured(architecture)
        about = {"tags": [row_of(v, recipes, licences) for v in versions]}
        if versions[0].fixed:
            about["fixed"] = True
        if classifier := next((v.classifier for v in versions if v.classifier), None):
            about["classifier"] = classifier
        kept = ("parameters", "layers", "averages")
        old = before.get(architecture, {})
        architectures[architecture] = about | {k: old[k] for k in kept if k in old}
    write(recipes, licences, architectures)


def write(recipes, licences, architectures):
    lines = [f'"{name}": {json.dumps(a)}' for name, a in architectures.items()]
    parts = [
        f'"timm": {json.dumps(timm.__version__)}',
        f'"recipes": {json.dumps(list(recipes))}',
        f'"licences": {json.dumps(list(licences))}',
        '"architectures": {\n' + ",\n".join(lines) + "\n}",
    ]
    OUTPUT.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"{len(architectures)} architectures written to {OUTPUT.name}")


if __name__ == "__main__":
    main()
