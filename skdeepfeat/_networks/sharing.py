"""Networks with their weights, built once and shared by all estimators.

They live in one bounded cache for each device.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._backbones.weights import WeightsSource
from .._caches import SharedCache
from .._processes import Lock
from .building import build_network
from .channels_last import with_channels_last

MAX_NETWORKS = 8
GPU_SHARE = 0.25  # of the memory of a GPU that networks may take

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,  # rounded only inside the multiplications of a GPU
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class SharedNetwork:
    """A network with its weights, shared by all estimators that use it.

    Parameters
    ----------
    module : torch.nn.Module
        In single precision; on the CPU if it is `rounded` elsewhere.
    absent : frozenset of str
        Entries of the head that the weights file does not have.
    rounded : tuple (device, dtype) or None
        Where and in which type the layers are computed, if not as `module` is.
    overwrites : bool
        Whether a step may overwrite a value that no other step reads. False for a
        network that is translated for another engine.

    Attributes
    ----------
    activations : dict
        Callables that return the activations of layers, by input size and nodes. They
        live as long as this network.
    substitutes : dict
        Faster modules that compute the same, by the modules that they replace.
    lock : Lock
        Held while either is filled.
    """

    module: nn.Module
    absent: frozenset[str] = frozenset()
    rounded: tuple[str, torch.dtype] | None = None
    overwrites: bool = True
    activations: dict[tuple, Any] = field(default_factory=dict, init=False)
    substitutes: dict[tuple[nn.Module, ...], nn.Module] = field(
        default_factory=dict, init=False
    )
    lock: Any = field(default_factory=Lock, init=False)


_networks_on: dict[str, SharedCache] = {}


def networks_on(device: str) -> SharedCache:
    """The networks on a device: a number on the CPU, a share of the memory of a GPU."""
    if device not in _networks_on:
        _networks_on.setdefault(device, _make_cache(device))
    return _networks_on[device]


def _make_cache(device: str) -> SharedCache:
    """An empty cache with the bound of a device."""
    if torch.device(device).type == "cpu":
        return SharedCache(MAX_NETWORKS)
    return SharedCache(GPU_SHARE * memory_of(device), bytes_of)


def memory_of(device: str) -> int:
    """Bytes of memory of a GPU."""
    return torch.cuda.get_device_properties(device).total_memory


def bytes_of(network: SharedNetwork) -> int:
    """Bytes that a network and everything made of it take on its device."""
    made = [m for m in network.substitutes.values() if isinstance(m, nn.Module)]
    modules = made if network.rounded else [network.module, *made]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def get_network(source: WeightsSource, key: bytes, device: str, precision: str):
    """The network of these weights on this device; `key` is the weights' digest."""

    def make():
        module, absent = build_network(source)
        with_channels_last(module)
        dtype = PRECISIONS[precision]
        if dtype is torch.float32:
            return SharedNetwork(module.to(device), absent)
        # Batch norms are folded first, so that all weights are rounded once.
        return SharedNetwork(module, absent, rounded=(device, dtype))

    # Some networks are built for one size.
    size = source.input.image_size if source.backbone.size_option else None
    identity = source.identity.digest
    name = (identity, size, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)
