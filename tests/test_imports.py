"""Imports run one way, and torch is imported late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skdeepfeat

PACKAGE = Path(skdeepfeat.__file__).parent

# Each line may import only from lines above it; siblings never import each other.
LINES = [
    {"_processes", "_exceptions", "_layouts", "_depth", "_formats"}
    | {"_orientation", "_scratch"},
    {"_digests", "_shared", "_table", "_budget"},
    {"_samples", "_references"},
    {"_decoding"},
    {"_cells"},
    {"_backbones", "_validation", "_images", "_pooling", "_disk", "_datasets"}
    | {"_progress", "_tracing"},
    {"_descriptions", "_evidence", "_smallnets", "_skeletons", "_averages"}
    | {"_arithmetic"},
    {"_networks", "_code"},
    {"_batches", "_store", "_plan", "_inputs", "_traced", "_augmentation"},
    {"_device", "_activations", "_report"},
    {"_engine"},
    {"_torch_engine", "_layers", "_identity", "_rows"},
    {"_openvino_engine", "_features", "_parts", "_pixels"},
    {"_training"},
    {"_finetune"},
    {"_strategy", "_displays"},
    {"__init__"},
]
LINE_OF = {module: i for i, line in enumerate(LINES) for module in line}
TORCH = {"torch", "torchvision", "safetensors.torch"}
HEAVY = {"_networks", "_smallnets", "_skeletons", "_tracing", "_averages"}
HEAVY |= {"_activations", "_identity", "_torch_engine", "_parts", "_training"}
HEAVY |= {"_augmentation", "_pixels", "_arithmetic"}
HEAVY |= {"_descriptions", "_evidence", "_code", "_traced"}
# Torch is needed there for one thing each, inside a function: (module, imported).
LATE = {
    ("_layers", "_activations"),
    ("_plan", "_networks"),
    ("_features", "torch"),
    ("_device", "torch"),
    ("_openvino_engine", "torch"),
    ("_openvino_engine", "_networks"),
    ("_openvino_engine", "_torch_engine"),
    ("_finetune", "_parts"),
    ("_finetune", "_pixels"),
    ("_finetune", "_training"),
}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(module):
    """(name, whether at module level) of everything that a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module, node in top
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)


def test_every_module_has_its_line():
    assert sorted(LINE_OF) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    for name, _ in imports(module):
        if name in LINE_OF:
            assert LINE_OF[name] < LINE_OF[module], f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - HEAVY))
def test_torch_is_imported_late_and_in_few_places(module):
    heavy = TORCH | HEAVY
    found = {(module, name) for name, _ in imports(module) if name in heavy}
    assert found <= LATE
    assert not any(at_top for name, at_top in imports(module) if name in heavy)


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, skdeepfeat as s\n"
        "s.list_layers('resnet50'), s.list_backbones()\n"
        "s.PretrainedCNNFeatures('vgg16').get_feature_names_out()\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
