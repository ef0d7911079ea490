"""Describes modules, settings and functions in terms that hold in every process.

Only what torch, torchvision and Python itself provide has such a name.
"""

import contextlib
import sys
from enum import Enum
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import resolve_name

from .._backbones.tensors import as_array
from .._digests import Tagged, digest_fields
from .tracer import changed_call

PUBLISHERS = {"torch", "torchvision", "timm", "operator", "math", "builtins"}
PUBLISHED_OPERATORS = {"aten", "prims", "prim", "torchvision"}  # in torch.ops
PLAIN = {type(None), bool, int, float, complex, str, bytes}
SAME_IN_WORDS = (torch.dtype, torch.device, torch.layout, torch.memory_format)

# Attributes of every module, and references of modules to their own tensors.
BOOKKEEPING = set(vars(nn.Module()))
BOOKKEEPING |= {"_flat_weights", "_flat_weight_refs"}  # of torch's recurrent networks
BOOKKEEPING -= {"training"}


class Undescribable(TypeError):
    """Something in a network has no name that means the same everywhere; says what."""


def is_published(thing) -> bool:
    """Whether torch, torchvision or Python provides a class or function."""
    return str(thing.__module__).partition(".")[0].lstrip("_") in PUBLISHERS


def describe_settings(network: nn.Module) -> dict[str, list]:
    """Settings of the modules that torch provides, if they can be described.

    Those of other modules are constants of the traced graph.
    """
    return {
        path: [type(module).__qualname__, _settings_in_words(module)]
        for path, module in network.named_modules()
        if is_published(type(module))
    }


def describe_classes(network: nn.Module) -> dict[str, list]:
    """Class of each module, and those of its settings that can be described."""
    found = {}
    for path, module in network.named_modules():
        kind = type(module)
        settings = _settings_in_words(module)
        found[path] = [kind.__module__, kind.__qualname__, settings]
    return found


def _settings_in_words(module: nn.Module) -> dict[str, Any]:
    """Digests of the settings that can be described."""
    found = {}
    for name, value in _settings(module).items():
        with contextlib.suppress(TypeError):
            about = {"value": describe_value(value)}
            found[name] = digest_fields("setting", 1, about)
    return found


def _settings(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module other than its tensors and submodules."""
    return {k: v for k, v in vars(module).items() if k not in BOOKKEEPING}


def describe_module(module: nn.Module) -> dict:
    """Class, settings and submodules; the class stands for its code."""
    kind, own = type(module), vars(module)
    if change := changed_call(module):
        raise Undescribable(change)
    if replaced := [name for name in own if callable(getattr(kind, name, None))]:
        about = f"class {kind.__name__}, has a replaced {replaced[0]!r} method"
        raise Undescribable(f"one of its modules, of {about}")
    tensors = {**module._parameters, **module._buffers}
    return {
        "class": _name_in_module(kind),
        "settings": describe_value(_settings(module)),
        "tensors": {
            k: v if v is None else describe_tensor(v) for k, v in tensors.items()
        },
        "within": {k: v and describe_module(v) for k, v in module._modules.items()},
    }


def describe_tensor(tensor: torch.Tensor) -> Tagged:
    """Type, shape and values, but for the weights, which have their own digest."""
    about: list[Any] = [str(tensor.dtype), list(tensor.shape)]
    return Tagged("tensor", about if tensor.is_meta else [*about, as_array(tensor)])


# Values ------------------------------------------------------------------------------


def describe_value(value, place=None):
    """A constant or setting in plain terms; steps by their place in the graph."""
    if type(value) in PLAIN or isinstance(value, (np.generic, np.ndarray)):
        return value
    for kinds, describe_one in KINDS:
        if isinstance(value, kinds):
            return describe_one(value, place)
    if callable(value):
        return Tagged("function", name_of_function(value))
    raise Undescribable(f"it uses an object of class {type(value).__name__}")


def _describe_items(values, place) -> list:
    return [describe_value(value, place) for value in values]


KINDS: tuple = (
    (fx.Node, lambda v, place: Tagged("step", place[v])),
    (torch.Tensor, lambda v, place: describe_tensor(v)),
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


def name_of_function(function) -> str:
    """The public name of a function of torch, torchvision or Python."""
    if isinstance(function, (OpOverload, OpOverloadPacket)):
        return _name_of_operator(function)
    try:
        published = resolve_name(function)
    except TypeError as error:  # of what cannot be hashed
        kind = type(function).__name__
        raise Undescribable(f"it calls an object of class {kind}") from error
    return published or _name_in_module(function)


def _name_of_operator(function) -> str:
    """Name and overload of an operator of torch.ops, which others may extend."""
    name = str(function)
    if name.partition(".")[0] not in PUBLISHED_OPERATORS:
        raise Undescribable(
            f"it calls torch.ops.{name}, which may differ in another process"
        )
    return f"torch.ops.{name}"


def _name_in_module(thing) -> str:
    """Module and name of a class or function, if that is where it is found."""
    module = str(getattr(thing, "__module__", "")).removeprefix("_")  # as in _operator
    name = str(getattr(thing, "__qualname__", "<unnamed>"))
    try:
        found = attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):
        found = None
    if found is not thing or module.partition(".")[0] not in PUBLISHERS:
        raise Undescribable(
            f"it uses {module}.{name}, which may differ in another process"
        )
    return f"{module}.{name}"
