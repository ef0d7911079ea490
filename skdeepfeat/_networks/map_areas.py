"""The numbers of places of the maps that a network makes its rows of tokens from."""

import torch
from torch import fx, nn

from .hooks import use_named
from .structure import Structure

OF_MAPS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d)
KINDS = {module.__name__.lower() for module in OF_MAPS}  # of functions
OF_ROWS = (nn.Linear, nn.LayerNorm)  # which may make tokens of patches of pixels
OF_LINES = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)
KNOWN = OF_MAPS + OF_ROWS + OF_LINES
Run = list[tuple[str, nn.Module | None, tuple[int, ...]]]  # name, module, shape


def areas_before(structure: Structure, node: str, below: set[fx.Node]) -> list[int]:
    """The numbers of places of the maps that a node is computed from, in order.

    If there is no graph, those of the maps that are computed before it; if there are
    no maps, that of the first rows, which are patches.
    """
    if structure.graph is None:
        run = _run_of(structure)
        return _areas(run[: _place_in(run, node)])
    return _areas(_steps(structure, below))


def rows_before(structure: Structure, node: str) -> list[tuple[nn.Module, tuple]]:
    """The known modules that are run up to the end of a module, and their shapes."""
    run = _run_of(structure)
    ended = run[: _place_in(run, node) + 1]
    return [(module, shape) for _, module, shape in ended if module and shape]


def modules_run(structure: Structure) -> tuple[str, ...]:
    """The names of the modules that are run, in the order in which they first end."""
    return tuple(dict.fromkeys(name for name, *_ in _run_of(structure)))


def _run_of(structure: Structure) -> Run:
    name = ("run", structure.image_size)
    return structure.backbone.memo.get(name, lambda: _run(structure))


def _areas(run: Run) -> list[int]:
    """The numbers of places of the maps in a run, or of its first rows."""
    shapes = [shape for _, module, shape in run if not isinstance(module, OF_ROWS)]
    maps = [shape[1] * shape[2] for shape in shapes if len(shape) == 3]
    rows = [shape for _, module, shape in run if isinstance(module, OF_ROWS)]
    return maps or [shape[0] for shape in rows[:1] if len(shape) == 2]


def _steps(structure: Structure, below: set[fx.Node]) -> Run:
    """The steps of a graph that give maps or rows, of those below a node."""
    assert structure.graph is not None
    found: dict[str, nn.Module | None] = {}
    for node in structure.graph.nodes:
        module = _module_of(structure, node)
        if node in below and (
            isinstance(module, OF_MAPS + OF_ROWS)
            or (node.op == "call_function" and structure.kind(node) in KINDS)
        ):
            found[structure.name_of(node)] = module
    shapes = structure.shapes(tuple(found)) if found else {}
    return [(name, module, shapes.get(name, ())) for name, module in found.items()]


def _module_of(structure: Structure, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    return structure.skeleton.get_submodule(str(node.target))


def _run(structure: Structure) -> Run:
    """The modules of a network in the order in which they end."""
    network = structure.real_network()
    seen: Run = []

    def note(name, module, value):
        known = isinstance(module, KNOWN) and isinstance(value, torch.Tensor)
        seen.append((name, module, tuple(value.shape[1:]) if known else ()))

    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: note(name, m, out))
    size = structure.image_size
    with torch.no_grad():
        network(torch.zeros(2, 3, size, size, dtype=torch.float32))
    return seen


def _place_in(run: Run, node: str) -> int:
    """Where a module ends, or after all of them if a node is not a module."""
    name, use = use_named(node, {name for name, *_ in run}) or (node, 0)
    ends = [place for place, (ended, *_) in enumerate(run) if ended == name]
    return ends[use] if use < len(ends) else len(run)
