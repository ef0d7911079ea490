"""Which kind of classifier a module or a step of a graph may be."""

from operator import attrgetter

import torch
from torch import fx, nn
from torch.nn import functional as F

from .structure import Structure, steps_below

# Steps that multiply with weights, by name.
PRODUCTS = {"linear", "matmul", "mm", "addmm", "einsum", "bmm", "baddbmm", "inner"}
PRODUCTS |= {"tensordot", "bilinear", "conv1d", "conv2d", "conv3d"}
PRODUCTS |= {"cosinesimilarity", "cdist", "pairwisedistance"}
ELEMENTWISE = {"mul", "sub", "add", "div", "truediv", "rsub", "addcmul"}


def kind_of_module(module: nn.Module) -> str | None:
    """ "linear", "convolution" for a 1 × 1 convolution, or None."""
    if isinstance(module, nn.Linear):
        return "linear"
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return "convolution" if pointwise else None


def kind_of_step(structure: Structure, node: fx.Node) -> str | None:
    """The kind of its module, or "product" with weights of no linear layer."""
    if node.op == "call_module":
        module = structure.skeleton.get_submodule(str(node.target))
        product = isinstance(module, nn.Bilinear)
        return "product" if product else kind_of_module(module)
    weight = node.args[1] if len(node.args) > 1 else None
    own = isinstance(weight, fx.Node) and weight.op == "get_attr"
    if node.target is F.linear and own:
        return "linear"
    read = [n in structure.from_image for n in node.all_input_nodes]
    if read.count(True) != 1 or all(read):
        return None
    product = structure.kind(node) in PRODUCTS or _reads_matrix(structure, node)
    return "product" if product else None


def _reads_matrix(structure: Structure, node: fx.Node) -> bool:
    """Whether a step combines what depends on the image, number by number, with weights
    for several classes."""
    if structure.kind(node) not in ELEMENTWISE:
        return False
    others = {n for n in node.all_input_nodes if n not in structure.from_image}
    others |= {n for other in others for n in steps_below(other)}
    owned = [n for n in others if n.op == "get_attr"]
    return any(is_matrix(attrgetter(str(n.target))(structure.skeleton)) for n in owned)


def owner_of_weights(node: fx.Node) -> str | None:
    """The module whose weights a step uses."""
    if node.op == "call_module":
        return str(node.target)
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return str(weight.target).rpartition(".")[0] or None


def is_convolution(module: nn.Module) -> bool:
    """Whether a module mixes all channels of maps, at more than one place."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) and module.groups == 1


def is_matrix(tensor: torch.Tensor) -> bool:
    """Whether weights have more than one axis with several numbers."""
    return sum(n > 1 for n in tensor.shape) > 1
