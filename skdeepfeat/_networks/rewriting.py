"""Rewrites a cut graph to compute the same in less time.

Batch norms are folded into the convolutions before them, weights are rounded once, and
sums and activations overwrite values that nothing else reads.
"""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .tracer import calls_its_class

# Modules that give a new tensor, which is no view of another.
MAKES_NEW = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
SUMS = (operator.add, torch.add)


def fold_batch_norms(cut: fx.GraphModule, made: dict, apart: set[str]) -> None:
    """Replace a convolution and the batch norm after it by one convolution.

    No layer may depend on which others are read: convolutions that have an alias stay
    `apart` always, and what is asked for between the two otherwise is computed
    besides. `made` keeps what was made for other cuts of the same network.
    """
    for node in [n for n in cut.graph.nodes if n.op == "call_module"]:
        module, before = _module_of(cut, node), next(iter(node.all_input_nodes), None)
        if _is_untraced_sequence(module):
            _replace(cut, node, node, made, _fold_within, module)
        elif before and before.op == "call_module" and before.target not in apart:
            conv = _module_of(cut, before)
            if _can_fold(conv, module):
                _replace(cut, before, node, made, _fold, conv, module)
    _tidy(cut)


def round_off(cut: fx.GraphModule, made: dict, device: str, dtype) -> None:
    """Replace modules and tensors by copies on a device, in another type of numbers.

    What has been folded before is rounded once, and not rounded, folded and rounded.
    """
    for node in [n for n in cut.graph.nodes if n.op in ("call_module", "get_attr")]:
        part = operator.attrgetter(str(node.target))(cut)
        if part not in made:
            made[part] = _rounded(part, device, dtype)
        if isinstance(part, nn.Module):
            _set_module(cut, node, made[part])
        else:
            node.target = _free_name(cut, node)
            cut.register_buffer(node.target, made[part])
    _tidy(cut)


def _rounded(part, device: str, dtype):
    """A copy of a module or tensor; integers stay what they are."""
    if isinstance(part, nn.Module):
        return copy.deepcopy(part).to(device, dtype)
    return part.to(device, dtype if part.is_floating_point() else part.dtype)


def _replace(cut: fx.GraphModule, first, last, made: dict, make, *modules) -> None:
    """Put one module, made of others, where the steps from `first` to `last` are."""
    if modules not in made:
        made[modules] = make(*modules)
    with cut.graph.inserting_after(last):
        step = cut.graph.call_module("", first.args, first.kwargs)
    _set_module(cut, step, made[modules])
    last.replace_all_uses_with(step)


def _module_of(cut: fx.GraphModule, node: fx.Node) -> nn.Module:
    return cut.get_submodule(str(node.target))


def _set_module(cut: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let a step call a module that no other step knows."""
    name = _free_name(cut, node)
    cut.add_submodule(name, module)
    node.target = name


def _free_name(cut: fx.GraphModule, node: fx.Node) -> str:
    """A name for what a step uses that nothing else has."""
    name = f"own_{node.name}"
    while hasattr(cut, name):
        name += "_"
    return name


def _tidy(cut: fx.GraphModule) -> None:
    """Forget steps and modules that are of no use any more."""
    cut.graph.eliminate_dead_code()
    cut.delete_all_unused_submodules()
    cut.recompile()


def _fold_within(steps) -> nn.Sequential:
    """The same steps, batch norms taken in by the convolutions before them."""
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
    """Whether these are just a convolution and a norm with statistics of its own."""
    kinds = _is_plain(conv, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d)
    return kinds and norm.running_mean is not None


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module does what its class does; hooks may do something else."""
    return type(module) is kind and calls_its_class(module)


def _is_untraced_sequence(module: nn.Module) -> bool:
    """Whether a step is several modules one after the other and no more."""
    plain = type(module).forward is nn.Sequential.forward
    return plain and calls_its_class(module)


def _fold(conv, norm) -> nn.Module:
    """One convolution that does the work of both, computed in double precision."""
    dtype = conv.weight.dtype
    both = fuse_conv_bn_eval(
        copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double().eval()
    )
    return both.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)


def overwrite_in_place(cut: fx.GraphModule) -> None:
    """Let sums and activations overwrite what nobody else reads.

    New memory takes more time than they do. Values are overwritten only where a module
    or a sum has just made them, so that nothing else can be a view of them.
    """
    for node in list(cut.graph.nodes):
        private = [n for n in node.all_input_nodes if _is_private(cut, n)]
        if not private:
            continue
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            place = node.args.index(private[0])
            node.target, node.args = add_onto, (*node.args, place)
        elif node.target in (F.relu, torch.relu):
            node.target, node.args, node.kwargs = torch.relu_, (private[0],), {}
        elif node.op == "call_module" and hasattr(_module_of(cut, node), "inplace"):
            _set_module(cut, node, _in_place(_module_of(cut, node)))
    _tidy(cut)


def _is_private(cut: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value of a step is a tensor of its own that one other step reads."""
    makes_new = node.target in (*SUMS, add_onto)
    if node.op == "call_module":
        makes_new = _makes_new(_module_of(cut, node))
    return makes_new and len(node.users) == 1


def _makes_new(module: nn.Module) -> bool:
    """Whether what a module gives is a new tensor, and no view."""
    return type(module) in MAKES_NEW and calls_its_class(module)


def add_onto(first, second, place: int):
    """The sum, in the memory of the one at `place` if both are tensors alike."""
    both = (first, second)
    if not all(isinstance(value, torch.Tensor) for value in both):
        return first + second
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return first + second
    return both[place].add_(both[1 - place])


def _in_place(module: nn.Module) -> nn.Module:
    """The same activation, which overwrites its input."""
    module = copy.copy(module)
    module.inplace = True  # type: ignore[assignment]
    return module
