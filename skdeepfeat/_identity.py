"""What a network of the user's own computes → what it is known by.

The traced graph says what is computed: its steps in order, the functions and modules
that they call, with their settings and constants. Only what torch and torchvision
publish, and what Python itself has, can be named; a network with a step of any other
kind, or without a graph that computes the same, is known by the object and its code.
"""

import sys
from collections import deque
from collections.abc import Iterator
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import fx, nn

from ._activations import Structure, structure_of
from ._backbones import Backbone, Identity, Skeleton
from ._descriptions import (
    PUBLISHERS,
    Undescribable,
    describe_module,
    describe_tensor,
    describe_value,
    name_of_function,
)
from ._digests import digest_fields
from ._networks import builder_of
from ._tracing import HOOKS

NOT_OWN = PUBLISHERS | sys.stdlib_module_names | {"numpy"}
MOST_FUNCTIONS = 2000  # that are looked at


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
        return {**about, "token": backbone.token}, False


def as_code_stands(backbone: Backbone, image_size: int, known: Identity) -> Identity:
    """The identity of a network that nothing but its object and its code describe.

    Its code is looked at again each time, because what is edited is what runs.
    """
    skeleton = structure_of(backbone, image_size).skeleton
    about = {"network": known.digest, "code": describe_code(backbone, skeleton)}
    return Identity(digest_fields("network as its code stands", 1, about), False)


# The graph ---------------------------------------------------------------------------


def _describe_graph(structure: Structure) -> dict:
    """Steps, and the modules and tensors that they use."""
    if structure.graph is None or not structure.checked:
        raise Undescribable("nobody knows what it computes")
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
        target = name_of_function(target)
    given = [describe_value(value, place) for value in (node.args, node.kwargs)]
    return [node.op, str(target), *given]


def _describe_part(skeleton: nn.Module, target: str):
    """A module, or a tensor: by value unless it is one of the weights."""
    part = attrgetter(target)(skeleton)
    describe_one = describe_module if isinstance(part, nn.Module) else describe_tensor
    return describe_one(part)


# Code --------------------------------------------------------------------------------


def describe_code(backbone: Backbone, skeleton: nn.Module) -> list:
    """The functions of the user's own that a network may call, and what they read.

    Names are looked up where a function would find them, as far as they are written in
    it; what is reached in other ways is not seen.
    """
    waiting: deque[Any] = deque(_classes_of(skeleton))
    waiting += [value for module in skeleton.modules() for value in _called_by(module)]
    if not isinstance(backbone.build, Skeleton):
        waiting.append(builder_of(backbone))
    found: list[list] = []
    seen: set[int] = set()
    while waiting and len(seen) < MOST_FUNCTIONS:
        thing = _function_behind(waiting.popleft())
        if id(thing) not in seen and _is_own(thing):
            seen.add(id(thing))
            values = _values_of(thing)
            found.append([thing.__qualname__, *(_in_words(value) for value in values)])
            waiting += values
    return found


def _classes_of(skeleton: nn.Module) -> list[type]:
    """The classes that modules are of, in order of use."""
    kinds = (base for m in skeleton.modules() for base in type(m).__mro__)
    return list(dict.fromkeys(kinds))


def _called_by(module: nn.Module) -> list:
    """What a module keeps that may be a function: attributes, and hooks."""
    own = vars(module)
    hooks = [hook for place in HOOKS for hook in own[place].values()]
    return [*(v for k, v in own.items() if k not in HOOKS), *hooks]


def _function_behind(thing):
    """The function of a method, property or partial."""
    for name in ("__func__", "fget", "func"):
        thing = getattr(thing, name, None) or thing
    return thing


def _is_own(thing) -> bool:
    """Whether this is a function or class, and neither torch's nor Python's."""
    root = str(getattr(thing, "__module__", "")).partition(".")[0]
    return isinstance(thing, (FunctionType, type)) and root not in NOT_OWN


def _values_of(thing) -> list:
    """What a function or class is made of: its code, and all that its names mean."""
    if isinstance(thing, type):
        return list(vars(thing).values())
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
    given = (thing.__defaults__, thing.__kwdefaults__)
    return [thing.__code__, *given, *cells, *_globals_of(thing)]


def _is_full(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # its function has not come so far
        return False
    return True


def _globals_of(function: FunctionType) -> list:
    """What the names in the code of a function mean, there or in modules it names."""
    names = list(_names_in(function.__code__))
    places = [function.__globals__]
    named = [function.__globals__.get(name) for name in names]
    places += [vars(value) for value in named if _is_own_module(value)]
    return [place[name] for place in places for name in names if name in place]


def _is_own_module(value) -> bool:
    root = getattr(value, "__name__", "").partition(".")[0]
    return isinstance(value, ModuleType) and root not in NOT_OWN


def _names_in(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes, also in functions within."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _in_words(value) -> Any:
    """Code and plain values as they are; of anything else, what it is."""
    if isinstance(value, CodeType):
        return _describe_code(value)
    try:
        return digest_fields("value", 1, {"value": describe_value(value)})
    except TypeError:
        return type(value).__qualname__


def _describe_code(code: CodeType) -> list:
    """What a function does, without where it stands."""
    constants = [
        _describe_code(c) if isinstance(c, CodeType) else str(c) for c in code.co_consts
    ]
    return [code.co_code, list(code.co_names), constants]
