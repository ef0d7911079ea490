"""What a network of the user's own computes → what it is known by.

The traced graph says what is computed: its steps in order, the functions and modules
that they call, with their settings and constants. Only what torch and torchvision
publish, and what Python itself has, can be named; a step of any other kind, and a
network that cannot be traced, is known by the object alone.
"""

import sys
from enum import Enum
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import resolve_name

from ._activations import Structure, structure_of
from ._backbones import Backbone, as_array
from ._digests import Tagged, digest_fields
from ._tracing import calls_its_class

PUBLISHERS = {"torch", "torchvision", "operator", "math", "builtins"}
PLAIN = {type(None), bool, int, float, complex, str, bytes}
SAME_IN_WORDS = (torch.dtype, torch.device, torch.layout, torch.memory_format)

# What every module keeps for itself, and what modules keep of their own tensors.
BOOKKEEPING = set(vars(nn.Module()))
BOOKKEEPING |= {"_flat_weights", "_flat_weight_refs"}  # of torch's recurrent networks
BOOKKEEPING -= {"training"}


class Undescribable(TypeError):
    """Something of a network has no name that means the same everywhere."""


def describe(backbone: Backbone, image_size: int, about: dict) -> tuple[dict, bool]:
    """Named values that tell this network from all others, weights apart, and whether
    they mean the same in other processes."""
    structure = structure_of(backbone, image_size)
    if structure.values:
        about = {**about, "values": structure.values}
    try:
        described = _describe_graph(structure)
        graph = digest_fields("graph", 1, described)
        return {**about, "graph": graph}, True
    except TypeError:  # also of values that have no digest
        code = [_describe_class(kind) for kind in _classes_of(structure.skeleton)]
        return {**about, "token": backbone.token, "code": code}, False


# The graph ---------------------------------------------------------------------------


def _describe_graph(structure: Structure) -> dict:
    """Steps, and the modules and tensors that they use."""
    if structure.graph is None:
        raise Undescribable("torch.fx cannot trace it")
    place = {node: i for i, node in enumerate(structure.graph.nodes)}
    steps = [_describe_step(structure, node, place) for node in structure.graph.nodes]
    used = [n for n in structure.graph.nodes if n.op in ("call_module", "get_attr")]
    parts = {
        target: _describe_part(structure.skeleton, target)
        for target in sorted({str(node.target) for node in used})
    }
    return {"steps": steps, "parts": parts, "names": list(structure.nodes)}


def _describe_step(structure: Structure, node: fx.Node, place: dict) -> list:
    """What a step does, and to which values."""
    target = node.target
    if node.op == "call_function":
        target = _name_of_function(target)
    given = [_describe_value(value, place) for value in (node.args, node.kwargs)]
    return [node.op, str(target), *given]


def _describe_part(skeleton: nn.Module, target: str):
    """A module, or a tensor: by value unless it is one of the weights."""
    part = attrgetter(target)(skeleton)
    return _describe_module(part) if isinstance(part, nn.Module) else _tensor(part)


def _describe_module(module: nn.Module) -> dict:
    """Class, settings, and the modules within; nobody looks into its code."""
    kind, own = type(module), vars(module)
    replaced = [name for name in own if callable(getattr(kind, name, None))]
    if replaced or not calls_its_class(module):
        raise Undescribable(f"{kind.__name__} has methods or hooks of its own")
    settings = {k: v for k, v in own.items() if k not in BOOKKEEPING}
    tensors = {**module._parameters, **module._buffers}
    return {
        "class": _name_in_module(kind),
        "settings": _describe_value(settings),
        "tensors": {k: v if v is None else _tensor(v) for k, v in tensors.items()},
        "within": {k: v and _describe_module(v) for k, v in module._modules.items()},
    }


def _tensor(tensor: torch.Tensor) -> Tagged:
    """Values where there are any; those of the weights are known besides."""
    about: list[Any] = [str(tensor.dtype), list(tensor.shape)]
    return Tagged("tensor", about if tensor.is_meta else [*about, as_array(tensor)])


# Values ------------------------------------------------------------------------------


def _describe_value(value, place=None):
    """A constant or setting in plain terms, steps by their place in the graph."""
    if type(value) in PLAIN or isinstance(value, (np.generic, np.ndarray)):
        return value
    for kinds, describe_one in KINDS:
        if isinstance(value, kinds):
            return describe_one(value, place)
    if callable(value):
        return Tagged("function", _name_of_function(value))
    raise Undescribable(f"a {type(value).__name__}")


def _describe_items(values, place) -> list:
    return [_describe_value(value, place) for value in values]


KINDS: tuple = (
    (fx.Node, lambda v, place: Tagged("step", place[v])),
    (torch.Tensor, lambda v, place: _tensor(v)),
    (SAME_IN_WORDS, lambda v, place: Tagged("torch", str(v))),
    (Enum, lambda v, place: Tagged("enum", [_name_in_module(type(v)), v.name])),
    (
        slice,
        lambda v, place: Tagged(
            "slice", _describe_items((v.start, v.stop, v.step), place)
        ),
    ),
    (type(...), lambda v, place: Tagged("ellipsis", None)),
    (range, lambda v, place: Tagged("range", [v.start, v.stop, v.step])),
    (tuple, lambda v, place: tuple(_describe_items(v, place))),
    (list, _describe_items),
    ((set, frozenset), lambda v, place: frozenset(_describe_items(v, place))),
    (dict, lambda v, place: dict(_describe_items(v.items(), place))),
)


# Names -------------------------------------------------------------------------------


def _name_of_function(function) -> str:
    """The public name of a function of torch, torchvision or Python."""
    try:
        return resolve_name(function) or _name_in_module(function)
    except TypeError as error:  # of what cannot be hashed
        raise Undescribable(str(error)) from error


def _name_in_module(thing) -> str:
    """Module and name of a class or function, if looking there finds it again."""
    module = str(getattr(thing, "__module__", "")).removeprefix("_")  # as in _operator
    name = str(getattr(thing, "__qualname__", "<unnamed>"))
    try:
        found = attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):
        found = None
    if found is not thing or module.partition(".")[0] not in PUBLISHERS:
        raise Undescribable(f"{module}.{name}")
    return f"{module}.{name}"


# Code --------------------------------------------------------------------------------


def _classes_of(skeleton: nn.Module) -> list[type]:
    """The classes of the user's own that modules are of, in order of use."""
    kinds = [base for m in skeleton.modules() for base in type(m).__mro__]
    return [
        kind
        for kind in dict.fromkeys(kinds)
        if kind.__module__.partition(".")[0] not in PUBLISHERS
    ]


def _describe_class(kind: type) -> list:
    """The code of the methods of a class."""
    methods = [(k, v) for k, v in vars(kind).items() if isinstance(v, FunctionType)]
    return [[name, _describe_code(method.__code__)] for name, method in methods]


def _describe_code(code: CodeType) -> list:
    """What a function does, without where it stands."""
    constants = [
        _describe_code(c) if isinstance(c, CodeType) else str(c) for c in code.co_consts
    ]
    return [code.co_code, list(code.co_names), constants]
