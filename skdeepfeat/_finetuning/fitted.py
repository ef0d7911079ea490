"""What training leaves: tuned weights as arrays, and the whole tuned network."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .._backbones.records import Layer
from .._backbones.tensors import named_tensors
from .._backbones.weights import WeightsSource
from .._networks.layers import aliased_layers
from .._networks.sharing import get_network
from .._networks.structure import structure_of
from .._processes import fork_safe
from .tuned_part import replaced_modules


@dataclass
class Fitted:
    """The result of training, as arrays and plain values.

    Parameters
    ----------
    tail, head : dict of str to ndarray
        Parameters and buffers by name; those of the tail are named as in the network.
    scaling : dict of str to ndarray
        "mean" and "scale" of what enters the head, in the first fit.
    history : list of dict
        One entry for each epoch.
    """

    tail: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    scaling: dict[str, np.ndarray]
    history: list[dict[str, Any]] = field(default_factory=list)


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the parameters and buffers of a module."""
    return {k: v.cpu().numpy().copy() for k, v in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays into the parameters and buffers of their names."""
    tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
    module.load_state_dict(module.state_dict() | tensors)


@fork_safe
def weights_of(source: WeightsSource, key: bytes, fitted: Fitted) -> dict:
    """All weights of the tuned network as arrays, named as in the network.

    The last layer is left out, since its classes are specific to one data set.
    """
    module = get_network(source, key, "cpu", "float32").module
    tensors = named_tensors(module)
    replaced = replaced_modules(source)
    arrays = {
        name: tensor.numpy().copy()
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in replaced
    }
    inner = {
        f"{source.backbone.head}." + name.removeprefix("inner."): array
        for name, array in fitted.head.items()
        if name.startswith("inner.")
    }
    arrays |= inner
    for name, array in fitted.tail.items():
        for same in _names_of(tensors, name):
            arrays[same] = array
    return arrays


def _names_of(tensors: dict[str, torch.Tensor], name: str) -> list[str]:
    """All names of a tensor that several modules share."""
    place = tensors[name].data_ptr()
    return [n for n, t in tensors.items() if n == name or t.data_ptr() == place != 0]


def layers_at_size(source: WeightsSource) -> list[Layer]:
    """The aliased layers, with their shapes at the image size in use."""
    backbone, size = source.backbone, source.input.image_size
    layers = aliased_layers(backbone)
    if size == backbone.input.image_size:
        return list(layers)
    nodes = tuple(dict.fromkeys(layer.node for layer in layers))
    shapes = structure_of(backbone, size).shapes(nodes, size)
    return [replace(layer, shape=shapes[layer.node]) for layer in layers]
