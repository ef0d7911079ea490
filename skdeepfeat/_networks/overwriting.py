"""Finds the steps of a graph that work in place, and makes them give new values.

Any value may then be read from the graph, since no later step overwrites it.
"""

import inspect
import operator
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F

from .comparison import tensors_of
from .tracer import NotTraceable


class Watcher(fx.Interpreter):
    """Runs a graph and notes which steps overwrite the value of an earlier one.

    torch counts the changes of each tensor and its views. For each such step
    `overwritten` has the earlier steps whose whole value it replaces by its own, or
    None if a part of it is read elsewhere.
    """

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False
        self.overwritten: dict[fx.Node, list[fx.Node] | None] = {}
        self._order = {node: place for place, node in enumerate(self.graph.nodes)}

    def run_node(self, n):
        """Run a step and compare the versions of its inputs before and after."""
        given = [t for step in n.all_input_nodes for t in tensors_of(self.env[step])]
        counts = [tensor._version for tensor in given]
        value = super().run_node(n)
        pairs = zip(given, counts, strict=True)
        changed = [tensor for tensor, count in pairs if tensor._version != count]
        if changed:
            self.overwritten[n] = self._replaced(n, value, changed)
        return value

    def _replaced(self, node, value, changed) -> list[fx.Node] | None:
        """The steps whose whole value is the one that was changed."""
        if not all(_same_place(value, tensor) for tensor in changed):
            return None
        sharing = [step for step in self.env if _shares(self.env[step], value)]
        whole = [step for step in sharing if _same_place(self.env[step], value)]
        parts = set(sharing) - set(whole)
        return None if any(self._read_after(node, step) for step in parts) else whole

    def _read_after(self, node, step) -> bool:
        return any(self._order[user] > self._order[node] for user in step.users)


def _memory(tensor: torch.Tensor) -> int:
    """A number that is the same for tensors that share memory, even on "meta"."""
    return tensor.untyped_storage()._cdata


def _shares(value, tensor: torch.Tensor) -> bool:
    """Whether any tensor in a value shares memory with this one."""
    return any(_memory(part) == _memory(tensor) for part in tensors_of(value))


def _same_place(value, tensor: torch.Tensor) -> bool:
    """Whether a value is this tensor, possibly as another object."""
    return isinstance(value, torch.Tensor) and (
        (_memory(value), value.storage_offset(), value.shape, value.stride())
        == (_memory(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())
        and value.dtype == tensor.dtype
    )


# Functions that return a new value, or a part of one, and change none.
NEW_VALUES = {operator.add, operator.sub, operator.mul, operator.floordiv}
NEW_VALUES |= {operator.mod, operator.getitem, getattr, torch.flatten, F.pad}


def overwrites_nothing(graph: fx.Graph, net: nn.Module) -> bool:
    """Whether the names of the steps alone show that none works in place.

    A run on the device "meta" would show it for any network, but it makes torch import
    a compiler, which takes longer than all else before the first features.
    """
    return not any(_may_overwrite(node, net) for node in graph.nodes)


def _may_overwrite(node: fx.Node, net: nn.Module) -> bool:
    """Whether a step may work in place: it says so, or is not known not to."""
    flagged = any(value is True for value in (*node.args, *node.kwargs.values()))
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        known = type(module).__module__.startswith("torch.nn.modules.")
        return not known or getattr(module, "inplace", False)
    if node.op == "call_method":
        return flagged or str(node.target).endswith("_")
    if node.op == "call_function":
        return flagged or "out" in node.kwargs or node.target not in NEW_VALUES
    return False


def make_out_of_place(
    graph: fx.Graph, net: nn.Module, overwritten: Mapping[fx.Node, list | None]
) -> None:
    """Make steps that overwrite earlier values return new ones.

    Later steps that read the overwritten value read the result of the step instead, so
    the network computes the same. `overwritten` is that of a `Watcher`.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    now: dict[fx.Node, fx.Node] = {}  # step → the step that has overwritten its value
    for node, before in overwritten.items():
        if before is None:
            raise NotTraceable(
                f"its step {node.name!r} overwrites an earlier value in place"
            )
        if not _make_out_of_place(node, net):
            _work_on_copies(node, before)
        for step in {now.get(step, step) for step in before}:
            step.replace_all_uses_with(
                node,
                # Copies, which have no place, are made before the step.
                delete_user_cb=lambda user, at=order[node]: order.get(user, -1) > at,
            )
        now |= dict.fromkeys(before, node)


def _work_on_copies(node: fx.Node, steps: list[fx.Node]) -> None:
    """Let a step overwrite copies of the values of these steps."""
    for step in [given for given in node.all_input_nodes if given in steps]:
        with node.graph.inserting_before(node):
            copied = node.graph.call_method("clone", (step,))
        node.replace_input_with(step, copied)


def without_inplace(net: nn.Module) -> nn.Module:
    """Switch off the in-place mode of all modules."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net


def _make_out_of_place(node: fx.Node, net: nn.Module) -> bool:
    """Rewrite a step that works in place; return whether that is possible."""
    if node.op == "call_module":  # see `without_inplace`
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        twin = str(node.target).removesuffix("_")
        if hasattr(torch.Tensor, twin):
            node.target = twin
        return node.target == twin
    if function := _twin_of(node.target):
        node.target = function
        return True
    return _pass_inplace_false(node)


def _twin_of(function) -> Callable | None:
    """The function that returns a new value, such as torch.exp for torch.exp_."""
    name = getattr(function, "__name__", "")
    if name.endswith("_"):
        for place in (torch, F):
            if getattr(place, name, None) is function:
                return getattr(place, name.removesuffix("_"), None)
    return None


def _pass_inplace_false(node: fx.Node) -> bool:
    """Calls such as F.relu(x, inplace=True) become F.relu(x, inplace=False)."""
    try:
        signature = inspect.signature(node.target)  # type: ignore[arg-type]
    except ValueError:  # builtins, which have no such argument either
        return False
    if "inplace" not in signature.parameters:
        return False
    bound = signature.bind(*node.args, **node.kwargs)
    was_in_place = bool(bound.arguments.get("inplace", False))
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return was_in_place
