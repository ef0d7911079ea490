"""What of timm's code is one step of a graph; timm is not imported here.

timm registers modules and functions whose code torch.fx cannot follow.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

# Modules of torch that are one step; so are timm's variants of them.
PLAIN = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# Methods that make a module cheaper without changing what it computes.
SIMPLIFIES = ("fuse", "reparameterize", "switch_to_deploy")


def functions() -> tuple[Callable, ...]:
    """Functions that are one step."""
    return tuple(registered.get_notrace_functions()) if (registered := _timm()) else ()


def is_step(module: nn.Module) -> bool:
    """Whether a module is one step."""
    registered = _timm()
    if registered is None or not type(module).__module__.startswith("timm."):
        return False
    return isinstance(module, PLAIN) or registered.is_notrace_module(type(module))


def _timm() -> Any:
    """timm's registry of such steps, which networks of timm have imported."""
    return sys.modules.get("timm.layers._fx")
