"""What of timm's code is one step of a graph; timm is not imported here.

timm registers modules and functions whose code torch.fx cannot follow.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

# Modules of torch that are one step; so are timm's variants of them.
PLAIN = (
    nn.Conv2d,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)
STANDARDISED = {"StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"}
# Methods that make a module cheaper without changing what it computes.
SIMPLIFIES = ("fuse", "reparameterize", "switch_to_deploy")


def functions() -> tuple[Callable, ...]:
    """Functions that are one step."""
    return tuple(registered.get_notrace_functions()) if (registered := _timm()) else ()


def is_step(module: nn.Module) -> bool:
    """Whether a module is one step."""
    registered = _timm()
    if registered is None or not _is_of_timm(module):
        return False
    known = isinstance(module, PLAIN) or registered.is_notrace_module(type(module))
    return known or has_simpler_form(module)


def has_simpler_form(module: nn.Module) -> bool:
    """Whether a module can make itself cheaper; whole networks are not steps."""
    if not _is_of_timm(module) or hasattr(module, "forward_features"):
        return False
    return any(hasattr(module, name) for name in SIMPLIFIES)


def standardises(module: nn.Module) -> bool:
    """Whether a module is a convolution that standardises its weights in each call."""
    return _is_of_timm(module) and type(module).__name__ in STANDARDISED


def is_norm_with_activation(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics, then an activation."""
    return _is_of_timm(module) and type(module).__name__ == "BatchNormAct2d"


def pads_by_shape(module: nn.Module) -> bool:
    """Whether a module is a plain convolution but for its padding."""
    return _is_of_timm(module) and type(module).__name__ == "Conv2dSame"


def _is_of_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.")


def _timm() -> Any:
    """timm's registry of such steps, which networks of timm have imported."""
    return sys.modules.get("timm.layers._fx")
