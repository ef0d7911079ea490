"""Makes a graph faster: folds batch norms, simplifies steps, works in place.

Batch norms are folded into the convolutions before them, steps that have a cheaper form
take it, weights are rounded once, and sums and activation functions overwrite values
that no other step reads.
"""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .channels_last import with_channels_last
from .simplifying import can_simplify, simplified
from .timm_steps import is_norm_with_activation, pads_by_shape
from .tracer import calls_its_class

# Modules that return a new tensor, not a view of another one.
MAKES_NEW = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
SUMS = (operator.add, torch.add)


def fold_batch_norms(net: fx.GraphModule, made: dict, apart: set[str]) -> None:
    """Replace a convolution and the batch norm after it by one convolution.

    No layer may depend on which others are read: convolutions with an alias are never
    folded (`apart`); any other that is requested is computed in addition. `made` holds
    the modules that were made for other layers of the same network.
    """
    for node in [n for n in net.graph.nodes if n.op == "call_module"]:
        module, before = _module_of(net, node), next(iter(node.all_input_nodes), None)
        if _is_untraced_sequence(module):
            _replace(net, node, node, made, _fold_within, module)
        elif before and before.op == "call_module" and before.target not in apart:
            conv = _module_of(net, before)
            if _can_fold(conv, module):
                _replace(net, before, node, made, _fold, conv, module)
    _tidy(net)


def simplify(net: fx.GraphModule, made: dict) -> None:
    """Replace modules by cheaper ones that compute the same."""
    for node in [n for n in net.graph.nodes if n.op == "call_module"]:
        module = _module_of(net, node)
        if can_simplify(module):
            _replace(net, node, node, made, simplified, module)
    _tidy(net)


def round_off(net: fx.GraphModule, made: dict, device: str, dtype) -> None:
    """Replace modules and tensors by copies on a device, in another type of numbers.

    It comes after folding, so that weights are rounded only once.
    """
    for node in [n for n in net.graph.nodes if n.op in ("call_module", "get_attr")]:
        part = operator.attrgetter(str(node.target))(net)
        if part not in made:
            made[part] = _rounded(part, device, dtype)
        if isinstance(part, nn.Module):
            _set_module(net, node, made[part])
        else:
            node.target = _free_name(net, node)
            net.register_buffer(node.target, made[part])
    _tidy(net)


def _rounded(part, device: str, dtype):
    """A copy of a module or tensor; integers keep their type."""
    if isinstance(part, nn.Module):
        return copy.deepcopy(part).to(device, dtype)
    return part.to(device, dtype if part.is_floating_point() else part.dtype)


def _replace(net: fx.GraphModule, first, last, made: dict, make, *modules) -> None:
    """Replace the steps from `first` to `last` by one module made of theirs."""
    if modules not in made:
        made[modules] = make(*modules)
    with net.graph.inserting_after(last):
        step = net.graph.call_module("", first.args, first.kwargs)
    _set_module(net, step, made[modules])
    last.replace_all_uses_with(step)


def _module_of(net: fx.GraphModule, node: fx.Node) -> nn.Module:
    return net.get_submodule(str(node.target))


def _set_module(net: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Make a step call a module that no other step calls."""
    name = _free_name(net, node)
    net.add_submodule(name, module)
    node.target = name


def _free_name(net: fx.GraphModule, node: fx.Node) -> str:
    """An unused name for a part of a step."""
    name = f"own_{node.name}"
    while hasattr(net, name):
        name += "_"
    return name


def _tidy(net: fx.GraphModule) -> None:
    """Drop steps and modules that are no longer used."""
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()


def _fold_within(steps) -> nn.Sequential:
    """The same modules, with batch norms folded into the convolutions before them."""
    kept: list[nn.Module] = []
    for step in steps:
        if kept and _can_fold(kept[-1], step):
            kept[-1] = _fold(kept[-1], step)
        elif kept and _makes_new(kept[-1]) and hasattr(step, "inplace"):
            kept.append(_in_place(step))
        else:
            kept.append(step)
    return nn.Sequential(*kept)


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether these are a plain convolution and a norm with running statistics."""
    folds = type(conv) is nn.Conv2d or pads_by_shape(conv)
    folded = type(norm) is nn.BatchNorm2d or is_norm_with_activation(norm)
    plain = folds and folded and calls_its_class(conv) and calls_its_class(norm)
    return plain and norm.running_mean is not None


def _is_untraced_sequence(module: nn.Module) -> bool:
    """Whether a step is a plain sequence of modules."""
    plain = type(module).forward is nn.Sequential.forward
    return plain and calls_its_class(module)


def _fold(conv, norm) -> nn.Module:
    """One convolution that replaces both, computed in double precision, and the
    activation of the norm, if it has one."""
    dtype = conv.weight.dtype
    both = fuse_conv_bn_eval(
        copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double().eval()
    )
    with_channels_last(both.to(dtype)).requires_grad_(False)
    if isinstance(getattr(norm, "act", nn.Identity()), nn.Identity):
        return both
    return Activated(both, _in_place(norm.act))


class Activated(nn.Sequential):
    """A convolution and an activation function that overwrites its result."""


def overwrite_in_place(net: fx.GraphModule) -> None:
    """Make sums and activation functions overwrite values that no other step reads.

    Allocating memory takes longer than computing them. A value is overwritten only if a
    module or a sum has just made it, so that nothing else is a view of it.
    """
    for node in list(net.graph.nodes):
        private = [n for n in node.all_input_nodes if _is_private(net, n)]
        if not private:
            continue
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            place = node.args.index(private[0])
            node.target, node.args = add_onto, (*node.args, place)
        elif node.target in (F.relu, torch.relu):
            node.target, node.args, node.kwargs = torch.relu_, (private[0],), {}
        elif node.op == "call_module" and hasattr(_module_of(net, node), "inplace"):
            _set_module(net, node, _in_place(_module_of(net, node)))
    _tidy(net)


def _is_private(net: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value of a step is a new tensor that only one other step reads."""
    makes_new = node.target in (*SUMS, add_onto)
    if node.op == "call_module":
        makes_new = _makes_new(_module_of(net, node))
    return makes_new and len(node.users) == 1


def _makes_new(module: nn.Module) -> bool:
    """Whether a module returns a new tensor, not a view."""
    known = type(module) in (*MAKES_NEW, Activated) or pads_by_shape(module)
    return known and calls_its_class(module)


def add_onto(first, second, place: int):
    """The sum, in the memory of the one at `place` if shapes and types agree."""
    both = (first, second)
    if not all(isinstance(value, torch.Tensor) for value in both):
        return first + second
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return first + second
    return both[place].add_(both[1 - place])


def _in_place(module: nn.Module) -> nn.Module:
    """The same activation function, which overwrites its input if it can."""
    if not hasattr(module, "inplace"):
        return module
    module = copy.copy(module)
    module.inplace = True  # type: ignore[assignment]
    return module
