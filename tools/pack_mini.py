"""Pack a trained trunk as _backbones/shipped/mini.safetensors, with its manifest.

python tools/train_mini.py ... --out run
python tools/pack_mini.py run/best.pth
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from skdeepfeat._networks.smallnets import mini

sys.path.insert(0, str(Path(__file__).parent))
from describe_torchvision import FAMILIES, describe_layers

FOLDER = Path(__file__).parents[1] / "skdeepfeat" / "_backbones" / "shipped"
IMAGE_SIZE = 96
INPUT = {
    "resize": round(IMAGE_SIZE * 256 / 224),
    "crop": IMAGE_SIZE,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
ABOUT = {
    "architecture": "SqueezeNet 1.0 without its classifier, float16",
    "origin": "the ImageNet weights of SqueezeNet 1.0 by Han et al. (Deep Compression, "
    "BSD licence), taught by this project to see in 96 pixels what they see in 224, on "
    "crops of 1,000 photos, one of each ImageNet class; no label was used",
    "licence": "BSD-3-Clause",
    "retrain": "python tools/train_mini.py --photos PHOTOS --teacher "
    "squeezenet1_0.pth --out run && python tools/pack_mini.py run/best.pth",
}


def trunk_layers():
    """Aliased layers of the trunk; the last maps are the penultimate layer."""
    aliases, _ = FAMILIES["squeezenet"]
    last = {"logits": "features.12"}  # the trunk has no logits
    with torch.no_grad():
        rows = describe_layers(
            mini().eval().to("meta"), lambda net: aliases(net) | last, IMAGE_SIZE
        )
    rows = [row for row in rows if row[0].startswith(("stem", "block"))]
    rows.append(["penultimate", *rows[-1][1:]])
    return [[*row[:5], round(row[5] / rows[-1][5], 4)] for row in rows]


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
        "parameters": sum(tensor.numel() for tensor in mini().parameters()),
        "build": "skdeepfeat._networks.smallnets:mini",
        "head": None,
        "default": "MINI_V1",
        "weights": {"MINI_V1": {"url": f"package:{file.name}", **INPUT}},
        "layers": trunk_layers(),
    }
    (FOLDER / "manifest.json").write_text(json.dumps({"mini": record}, indent=1) + "\n")
    print(f"{file.name}: {file.stat().st_size:,} bytes, sha256 {checksum}")


if __name__ == "__main__":
    main()
