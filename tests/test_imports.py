"""Imports run one way, and torch is imported late."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skdeepfeat

PACKAGE = Path(skdeepfeat.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
)

# Rooms of the house, from what stands on everything to what stands on nothing. Each may
# import only from rooms below it; rooms of one line never import each other.
ROOMS = [
    {"__init__"},
    {"_onnx"},
    {"_strategy", "_displays", "_datasets"},
    {"_activation_maps", "_embedding"},
    {"_composites"},
    {"_finetuning", "_ranking"},
    {"_features", "_text_features"},
    {"_walk"},
    {"_cluster"},
    {"_computing"},
    {"_plan", "_choice"},
    {"_report"},
    {"_engines"},
    {"_networks"},
    {"_store"},
    {"_backbones"},
    {"_images", "_texts"},
    {"_validation", "_clock", "_caches", "_listing", "_leave_one_out"},
    {"_digests", "_files"},
    {"_processes", "_exceptions"},
]
FLOOR_OF = {room: -floor for floor, rooms in enumerate(ROOMS) for room in rooms}

# Modules that import torch at once; all others do so inside functions, if at all.
TORCH = {"torch", "torchvision", "safetensors.torch"}
WITH_TORCH = {"_backbones.files", "_backbones.skeletons", "_engines.tf32"}
WITH_TORCH |= {"_engines.torch", "_finetuning.augmentation", "_finetuning.data"}
WITH_TORCH |= {"_finetuning.frozen", "_finetuning.parts", "_finetuning.phases"}
WITH_TORCH |= {"_finetuning.fitted", "_finetuning.new_head", "_finetuning.tuned_part"}
WITH_TORCH |= {"_finetuning.monitoring", "_finetuning.training", "_engines.tokens"}
WITH_TORCH |= {"_finetuning.settling", "_onnx.networks"}
WITH_TORCH |= {m for m in MODULES if m.startswith("_networks.")} - {
    "_networks.__init__",
    "_networks.layers",
    "_networks.pooling",
    "_networks.text_layers",
}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str):
    """(full name, whether at module level) of each thing that a module imports."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    package = ["skdeepfeat", *module.split(".")[:-1]]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        at_top = id(node) in top
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", at_top) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((name, False) for name in named_in(node.value, package))


def named_in(text: str, package: list[str]):
    """The module that a string names in full, for import_module."""
    name, _, _ = text.partition(":")
    full = f"{'.'.join(package)}{name}" if name.startswith(".") else name
    if full.removeprefix("skdeepfeat.") in MODULES and full.startswith("skdeepfeat."):
        yield full


def module_of(name: str) -> str | None:
    """The module of the package in which a full name is found."""
    first, *parts = name.split(".")
    if first != "skdeepfeat":
        return None
    for end in range(len(parts), -1, -1):
        for module in (parts[:end], [*parts[:end], "__init__"]):
            if ".".join(module) in MODULES:
                return ".".join(module)
    return None


def within(module: str):
    """(module of the package, whether at module level) that a module imports."""
    for name, at_top in imported(module):
        found = module_of(name)
        if found and found != module:
            yield found, at_top


def test_every_module_has_a_place_in_the_import_order():
    assert {room_of(module) for module in MODULES} == FLOOR_OF.keys()


@pytest.mark.parametrize(
    "folder", sorted({m.partition(".")[0] for m in MODULES if "." in m})
)
def test_a_folder_says_what_each_of_its_modules_is_for(folder):
    doc = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    within = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert within == set(re.findall(r"``(\w+)``", doc))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    room = room_of(module)
    for name, _ in within(module):
        other = room_of(name)
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], name


def test_no_module_imports_itself_in_a_circle():
    below = {module: {name for name, _ in within(module)} for module in MODULES}
    while leaves := {module for module, names in below.items() if not names}:
        below = {m: names - leaves for m, names in below.items() if m not in leaves}
    assert not below


@pytest.mark.parametrize("module", sorted(set(MODULES) - WITH_TORCH))
def test_torch_is_imported_late(module):
    for name, at_top in imported(module):
        heavy = name.partition(".")[0] in TORCH or name.startswith("safetensors.torch")
        assert not (at_top and (heavy or module_of(name) in WITH_TORCH)), name


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, skdeepfeat as s\n"
        "s.list_layers('resnet50'), s.list_backbones()\n"
        "s.PretrainedCNNFeatures('vgg16').get_feature_names_out()\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_features_import_no_compiler():
    code = (
        "import sys, numpy as np, skdeepfeat as s\n"
        "X = np.zeros((1, 8, 8, 3), np.uint8)\n"
        "s.PretrainedCNNFeatures(engine='torch', cache=None).transform(X)\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'torchvision', 'torch._dynamo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
