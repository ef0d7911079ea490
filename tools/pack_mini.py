"""Pack a trained trunk as skdeepfeat/_weights/mini.safetensors, with its manifest.

python examples/train_mini.py ... --out run
python tools/pack_mini.py run/best.pth
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision import models

sys.path.insert(0, str(Path(__file__).parent))
from describe_torchvision import FAMILIES, describe_layers

FOLDER = Path(__file__).parents[1] / "skdeepfeat" / "_weights"
IMAGE_SIZE = 128
ARCHITECTURE = "mobilenet_v3_small"
INPUT = {
    "resize": round(IMAGE_SIZE * 256 / 224),
    "crop": IMAGE_SIZE,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
ABOUT = {
    "architecture": f"torchvision {ARCHITECTURE} without its classifier, float16",
    "origin": "distilled by this project from SqueezeNet 1.0 (Han et al., Deep "
    "Compression, BSD licence) on crops of 1,000 photos, one of each ImageNet class; "
    "no label was used",
    "licence": "BSD-3-Clause",
    "retrain": "python examples/train_mini.py --photos PHOTOS --teacher "
    "squeezenet1_0.pth --out run && python tools/pack_mini.py run/best.pth",
}


def trunk_layers():
    """Aliased layers of the trunk; the last maps are the penultimate layer."""
    family = next(aliases for k, (aliases, _) in FAMILIES.items() if k in ARCHITECTURE)
    net = models.get_model(ARCHITECTURE, weights=None).eval().to("meta")
    with torch.no_grad():
        rows = describe_layers(net, family, IMAGE_SIZE)
    rows = [row for row in rows if row[0].startswith(("stem", "block"))]
    rows.append(["penultimate", *rows[-1][1:]])
    return [[*row[:4], round(row[4] / rows[-1][4], 4)] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trunk", type=Path)
    state = torch.load(parser.parse_args().trunk, weights_only=True)
    state = {
        f"features.{name}": tensor.half().contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    file = FOLDER / "mini.safetensors"
    save_file(state, file)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    record = {
        **ABOUT,
        "sha256": checksum,
        "build": f"torchvision.models:{ARCHITECTURE}",
        "head": "classifier",
        "default": "MINI_V1",
        "weights": {"MINI_V1": {"url": f"package:{file.name}", **INPUT}},
        "layers": trunk_layers(),
    }
    (FOLDER / "manifest.json").write_text(json.dumps({"mini": record}, indent=1) + "\n")
    print(f"{file.name}: {file.stat().st_size:,} bytes, sha256 {checksum}")


if __name__ == "__main__":
    main()
