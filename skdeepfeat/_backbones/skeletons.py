"""The structure of a network without its tensors, for pickle and skops.

The weights are saved as arrays next to the network. Before it is saved, its tensors are
replaced by plain descriptions: names, shapes and types.
"""

import copy
from typing import Any

import torch
from torch import nn

from .tensors import as_array


def take_out_tensors(module: nn.Module) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy without tensors, and a description of each of them."""
    bare = copy.deepcopy(module)
    described: dict[int, dict[str, Any]] = {}
    kept = []  # alive while their ids are in use
    for path, part in bare.named_modules():
        for place, table in _tables(part):
            for name, tensor in list(table.items()):
                if isinstance(tensor, torch.Tensor):
                    kept.append(tensor)
                    about = described.setdefault(id(tensor), _describe(tensor))
                    about["places"].append([path, place, name])
                    table[name] = None
    return bare, list(described.values())


def put_in_tensors(module: nn.Module, tensors: list[dict[str, Any]]) -> nn.Module:
    """Undo `take_out_tensors` in place; shared tensors are shared again."""
    for about in tensors:
        tensor = _make(about)
        for path, place, name in about["places"]:
            dict(_tables(module.get_submodule(path)))[place][name] = tensor
    return module


def _tables(part: nn.Module) -> list[tuple[str, dict]]:
    """The places where a module keeps tensors: as weights, or as attributes."""
    return [
        ("_parameters", part._parameters),
        ("_buffers", part._buffers),
        ("attribute", vars(part)),
    ]


def _describe(tensor: torch.Tensor) -> dict[str, Any]:
    """What is needed to create a tensor again; values only if it has any."""
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "learns": tensor.requires_grad,
        "parameter": isinstance(tensor, nn.Parameter),
        "values": None if tensor.is_meta else as_array(tensor),
        "places": [],
    }


def _make(about: dict[str, Any]) -> torch.Tensor:
    """The tensor of a description."""
    dtype = getattr(torch, about["dtype"])
    if about["values"] is None:
        tensor = torch.empty(about["shape"], dtype=dtype, device="meta")
    else:
        tensor = torch.from_numpy(about["values"].copy()).to(dtype)
    if about["parameter"]:
        return nn.Parameter(tensor, requires_grad=about["learns"])
    return tensor.requires_grad_(about["learns"])
