"""Computes a digest of the code of a user's network, as it is at this moment.

Code may be edited while a process runs, for instance in a notebook, and its features
may depend on it.
"""

import sys
from collections import deque
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from .._backbones.builders import Skeleton, resolve_builder
from .._backbones.records import Backbone
from .._digests import digest_fields
from .descriptions import PUBLISHERS, describe_value
from .tracer import HOOKS

NOT_OWN = PUBLISHERS | sys.stdlib_module_names | {"numpy"}
# What Python notes of a class, which depends on its place or on what was done with it.
NOT_CODE = {"__dict__", "__weakref__", "__slotnames__", "__firstlineno__"}
NOT_CODE |= {"__static_attributes__", "__abstractmethods__", "_abc_impl"}
MOST_FUNCTIONS = 2000  # that are looked at


def digest_code(backbone: Backbone, skeleton: nn.Module) -> bytes:
    """Digest of the functions that a network may call and of the values they read.

    Names that are written in a function are looked up where the function would find
    them; what it reaches in other ways is not seen.
    """
    waiting: deque[Any] = deque(_classes_of(skeleton))
    waiting += [value for module in skeleton.modules() for value in _called_by(module)]
    if not isinstance(backbone.build, Skeleton):
        waiting.append(resolve_builder(backbone.build, backbone.name))
    found: list[list] = []
    seen: set[int] = set()
    while waiting and len(seen) < MOST_FUNCTIONS:
        thing = _function_behind(waiting.popleft())
        if id(thing) not in seen and _is_own(thing):
            seen.add(id(thing))
            values = _values_of(thing)
            found.append([thing.__name__, *(_in_words(value) for value in values)])
            waiting += values
    return digest_fields("code", 1, {"functions": found})


def _classes_of(skeleton: nn.Module) -> list[type]:
    """The classes of the modules and their bases, in order of use."""
    kinds = (base for m in skeleton.modules() for base in type(m).__mro__)
    return list(dict.fromkeys(kinds))


def _called_by(module: nn.Module) -> list:
    """What may be functions of a module: its attributes and hooks."""
    own = vars(module)
    hooks = [hook for place in HOOKS for hook in own[place].values()]
    return [*(v for k, v in own.items() if k not in HOOKS), *hooks]


def _function_behind(thing):
    """The function of a method, property or partial."""
    for name in ("__func__", "fget", "func"):
        thing = getattr(thing, name, None) or thing
    return thing


def _is_own(thing) -> bool:
    """Whether this is a function or class that neither torch nor Python provides."""
    root = str(getattr(thing, "__module__", "")).partition(".")[0]
    return isinstance(thing, (FunctionType, type)) and root not in NOT_OWN


def _values_of(thing) -> list:
    """What a function or class consists of: its code, and the values of its names."""
    if isinstance(thing, type):  # of which a copy by value has another order
        return [v for k, v in sorted(vars(thing).items()) if k not in NOT_CODE]
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
    given = (thing.__defaults__, thing.__kwdefaults__)
    return [thing.__code__, *given, *cells, *_globals_of(thing)]


def _is_full(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # not assigned yet
        return False
    return True


def _globals_of(function: FunctionType) -> list:
    """Values of the names in a function, among its globals or in modules it names."""
    names = list(_names_in(function.__code__))
    places = [function.__globals__]
    named = [function.__globals__.get(name) for name in names]
    places += [vars(value) for value in named if _is_own_module(value)]
    return [place[name] for place in places for name in names if name in place]


def _is_own_module(value) -> bool:
    root = getattr(value, "__name__", "").partition(".")[0]
    return isinstance(value, ModuleType) and root not in NOT_OWN


def _names_in(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes, also in nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _in_words(value) -> Any:
    """Code and plain values by what they are, anything else by its type."""
    if isinstance(value, CodeType):
        return _describe_code(value)
    try:
        return digest_fields("value", 1, {"value": describe_value(value)})
    except TypeError:
        return type(value).__name__


def _describe_code(code: CodeType) -> list:
    """What a function does, regardless of file and line."""
    constants = [
        _describe_code(c) if isinstance(c, CodeType) else str(c) for c in code.co_consts
    ]
    return [code.co_code, list(code.co_names), constants]
