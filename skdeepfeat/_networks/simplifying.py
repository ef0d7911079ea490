"""Makes steps of timm cheaper that compute more than inference needs.

Blocks that are trained as several parallel branches become one convolution, as their
own code does it [1]_, and weights that are standardised in every call are standardised
once [2]_.

References
----------
.. [1] Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021.
.. [2] Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
   Standardization", 2019.
"""

import copy

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .channels_last import with_channels_last
from .timm_steps import has_simpler_form, standardises
from .tracer import calls_its_class


def can_simplify(module: nn.Module) -> bool:
    """Whether a step has a cheaper form, and does nothing that this would skip."""
    simpler = has_simpler_form(module) or any(map(standardises, module.modules()))
    return simpler and all(map(calls_its_class, module.modules()))


def simplified(module: nn.Module) -> nn.Module:
    """A cheaper module that computes the same, made in double precision, or the module
    itself if its code cannot make one."""
    like = next(module.parameters())
    holder = nn.Sequential(copy.deepcopy(module).double())
    if has_simpler_form(module):
        from timm.utils import reparameterize_model

        try:
            reparameterize_model(holder, inplace=True)
        except Exception:  # whatever the code of a block raises
            return module
    _standardise_once(holder)
    made = holder[0].eval().requires_grad_(False)
    return with_channels_last(made.to(like.dtype))


def _standardise_once(module: nn.Module) -> None:
    """Replace the convolutions within a module that standardise their weights."""
    for name, child in module.named_children():
        if standardises(child):
            setattr(module, name, _plain_convolution(child))
        else:
            _standardise_once(child)


def _plain_convolution(module) -> nn.Conv2d:
    """A convolution with the weights that a module standardises."""
    from timm.layers import Conv2dSame

    kind = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d
    plain = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        bias=module.bias is not None,
    )
    plain.weight = nn.Parameter(_weight_in_use(module), requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
    return plain


def _weight_in_use(module) -> torch.Tensor:
    """The weights that a call of a module passes to its convolution."""
    x = module.weight.new_zeros(1, module.in_channels, *module.kernel_size)
    with _Weights() as seen, torch.no_grad():
        module(x)
    return seen.weights[-1].detach().clone()


class _Weights(TorchFunctionMode):
    """A context that notes the weights of all convolutions."""

    def __init__(self):
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))
