"""What builds a network: a function, the name of one, or the structure of a network.

A record names its function as ``"module:function"``. A file may only name functions
that do nothing but build networks. This module does not import torch.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._exceptions import WeightsError
from .copies import copy_of

PLAIN = (bool, int, float, str, type(None))  # options that keep a network published
PACKAGE = __package__.partition(".")[0]
TIMM_BUILDERS = f"{PACKAGE}._networks.timm_networks"
# Networks from these modules are identified by name, even if their code changes.
PUBLISHERS = {
    "torchvision.models": "torchvision",
    PACKAGE: PACKAGE,
    TIMM_BUILDERS: "timm",
}

# Modules that older pickles name → where their builders are now.
MOVED = {f"{PACKAGE}._smallnets": f"{PACKAGE}._networks.smallnets"}
# Builders that older pickles name → the last version of the package that has them.
REMOVED = {f"{PACKAGE}._networks.smallnets:mini": "0.1.0.dev0"}
# Modules whose functions do nothing but build networks, and so may be named in a file.
BUILDERS = {"torchvision.models", TIMM_BUILDERS, *MOVED}
BUILDERS |= {f"{PACKAGE}._networks.{n}" for n in ("smallnets", "efficientnet_lite")}

FUNCTIONS = ("build", "convert")  # fields of a backbone that may name a function
NAMES_A_FUNCTION = (
    "The saved backbone {!r} names the function {!r}, which would be called to build "
    "its network. A file may only name functions of skdeepfeat and torchvision that "
    "build networks. Create the backbone and fit the model again, and save it with "
    "this version of skdeepfeat."
)


@dataclass(frozen=True)
class Skeleton:
    """Builder of a user's network: its structure, without the values of its weights."""

    module: Any

    def __call__(self):
        return copy_of(self.module)

    def __getstate__(self):
        from .skeletons import take_out_tensors

        _refuse_parametrized(self.module)
        module, tensors = take_out_tensors(self.module)
        return {"module": module, "tensors": tensors}

    def __setstate__(self, state):
        from .skeletons import put_in_tensors

        tensors = state.get("tensors", [])  # earlier versions kept them in the module
        module = put_in_tensors(state["module"], tensors)
        object.__setattr__(self, "module", module)


def _refuse_parametrized(module) -> None:
    """Refuse to save modules whose classes torch creates at runtime."""
    for name, part in module.named_modules():
        if type(part).__name__.startswith("Parametrized"):
            raise TypeError(
                f"The module {name!r} of the network is parametrized, as by "
                "weight_norm, and torch cannot pickle it. Pass from_module the same "
                "network without parametrizations, with the weights that they give."
            )


def check_build(build) -> None:
    """Refuse a builder that other processes could not find."""
    known = isinstance(build, (str, Skeleton))
    if not known and "<" in getattr(build, "__qualname__", "<unnamed>"):
        raise TypeError(
            "The 'build' of a Backbone must be a function at the top of a module, or "
            f"'module:function', so that other processes find it. Got {build!r} "
            "instead. Backbone.from_module(net, image_size=...) takes any network."
        )


def resolve_builder(build, name: str) -> Callable[..., Any]:
    """The builder of the backbone of this name, imported if it is given as a string."""
    if not isinstance(build, str):
        return build
    module, _, function = build.partition(":")
    current = f"{MOVED.get(module, module)}:{function}"
    if last := REMOVED.get(current):
        raise WeightsError.retired(f"the network of backbone {name!r}", last)
    return resolve_function(current)


def resolve_function(reference) -> Callable[..., Any]:
    """The function that a string ``"module:function"`` names, or the given one."""
    if callable(reference):
        return reference
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)


def published_as(build, options: Mapping[str, Any]) -> str | None:
    """Name of a published network, by its builder and its options, or None."""
    simple = all(type(value) in PLAIN for value in options.values())
    if not isinstance(build, str) or not simple:
        return None
    module, _, function = build.partition(":")
    if module not in PUBLISHERS and module.startswith(f"{PACKAGE}."):
        module = PACKAGE
    publisher = PUBLISHERS.get(module)
    return publisher and f"{publisher}.{function}"


def is_foreign(function) -> bool:
    """Whether a function is given by a name that a file might misuse."""
    return isinstance(function, str) and function.partition(":")[0] not in BUILDERS


def refuse_foreign(function, backbone: str | None) -> None:
    """Refuse a function that a file names and that may do more than build a network."""
    if is_foreign(function):
        raise WeightsError(NAMES_A_FUNCTION.format(backbone, function))
