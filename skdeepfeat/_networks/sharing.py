"""Networks with their weights, built once and shared by all estimators.

They live in one bounded table for each device.
"""

import torch
from torch import nn

from .._backbones.weights import WeightsSource
from .._caches import SharedCache
from .building import Network, build_network

MAX_NETWORKS = 8
GPU_SHARE = 0.25  # of a GPU's memory, that networks may take

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,  # rounded inside the GPU's multiplications alone
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


# The table --------------------------------------------------------------------------

networks = SharedCache(MAX_NETWORKS)
_networks_of_gpu: dict[str, SharedCache] = {}


def networks_on(device: str) -> SharedCache:
    """The networks on a device: some on a CPU, a share of its memory on a GPU."""
    if torch.device(device).type == "cpu":
        return networks
    if device not in _networks_of_gpu:
        bound = GPU_SHARE * memory_of(device)
        _networks_of_gpu.setdefault(device, SharedCache(bound, bytes_of))
    return _networks_of_gpu[device]


def memory_of(device: str) -> int:
    """Bytes of memory that a GPU has."""
    return torch.cuda.get_device_properties(device).total_memory


def bytes_of(network: Network) -> int:
    """What a network takes on its device, with all that was made of it."""
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
        network, dtype = build_network(source), PRECISIONS[precision]
        if dtype is torch.float32:
            network.module.to(device=device)
        else:  # batch norms are taken in first, and then all is rounded once
            network.rounded = device, dtype
        network.module.to(memory_format=torch.channels_last)
        return network

    # Some networks are built for one size.
    size = source.input.image_size if source.backbone.size_option else None
    identity = source.identity.digest
    name = (identity, size, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)
