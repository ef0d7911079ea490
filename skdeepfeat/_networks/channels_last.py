"""Puts a network in the memory format in which graphs run."""

from itertools import chain

import torch
from torch import nn


def with_channels_last(net: nn.Module) -> nn.Module:
    """The same network, with the channels of its maps and 2-D filters last in memory.

    torch's own ``net.to(memory_format=...)`` raises an error if there are 3-D filters.
    """
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return net
