"""Network → the graph of its steps, each with a name.

fx runs the code of a network on stand-ins and records what happens to them. Steps that
would overwrite an earlier value are made to give a new one, so that any value may be
read from the graph.
"""

import inspect
import math
import operator
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ._processes import Lock

ENDS = ("placeholder", "output")  # of a graph, which are no steps

# In-place arithmetic → the same without changing what an earlier layer returned.
OUT_OF_PLACE: dict[Any, Callable] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
}


# Where a module keeps what is called before and after its forward.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class NotTraceable(RuntimeError):
    """A call of the network does more than the forward of its class."""


def trace(net: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The graph of a network in which no step works in place, and its named steps."""
    if not calls_its_class(net):  # fx would look at the class alone
        raise NotTraceable(f"the call of {type(net).__name__} was changed")
    tracer = Tracer()
    with Tracer.trace_lock:
        graph = tracer.trace(net)
    _remove_inplace_steps(graph, net)
    inside = {n: step for step, n in tracer.name_of.items() if step.op not in ENDS}
    return graph, inside


def calls_its_class(module: nn.Module) -> bool:
    """Whether a call of a module is a call of its class's forward and no more."""
    own = vars(module)
    hooked = any(own[place] for place in HOOKS)
    return not (hooked or "forward" in own) and (
        type(module).__call__ is nn.Module.__call__
    )


class Tracer(fx.Tracer):
    """Records the steps of a network, named as torchvision names them.

    A module that is one step has its own name; any other step that of the module which
    takes it and of its function; what repeats is numbered.

    While fx traces, every call of every module in the process passes through its
    tracer; those of other threads are let through untouched, and `trace_lock` keeps two
    traces apart.
    """

    trace_lock = Lock()
    # Buffers are read when the graph runs, not turned into constants of the skeleton.
    proxy_buffer_attributes = True

    def __init__(self):
        # A network that uses torchvision's own operators has imported them.
        operators = sys.modules.get("torchvision.ops")
        autowrapped = (math, operators) if operators else (math,)
        super().__init__(autowrap_modules=autowrapped)
        classes = [m for _, m in inspect.getmembers(operators, inspect.isclass)]
        self._leaves = tuple(m for m in classes if issubclass(m, nn.Module))
        self._thread = threading.get_ident()
        self._path = ""
        self._count: Counter[str] = Counter()
        self._taken: set[str] = set()
        self.name_of: dict[fx.Node, str] = {}

    def is_leaf_module(self, m, module_qualified_name):
        """Whether a module is one step."""
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        published = type(m).__module__.startswith("torchvision.")
        return is_leaf or (published and isinstance(m, self._leaves))

    def call_module(self, m, forward, args, kwargs):
        """Trace a module, unless another thread calls it."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        outer, self._path = self._path, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._path = outer

    def create_proxy(self, kind, *arguments, **keywords):
        """Record a step, and name it."""
        proxy = super().create_proxy(kind, *arguments, **keywords)
        parts = [self._path] if self._path else []
        if kind != "call_module":  # fx numbers its own names through the whole network
            parts.append(re.sub(r"_[0-9]+$", "", proxy.node.name))
        name = free = ".".join(parts)
        while free in self._taken:
            self._count[name] += 1
            free = f"{name}_{self._count[name]}"
        self._taken.add(free)
        self.name_of[proxy.node] = free
        return proxy


def _remove_inplace_steps(graph: fx.Graph, net: nn.Module) -> None:
    """Replace steps that would overwrite the value of an earlier layer.

    What was computed later from the overwritten value is computed from the result of
    the step instead, so the network means the same.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _make_out_of_place(node, net) or not node.all_input_nodes:
            continue
        place = order[node]
        node.all_input_nodes[0].replace_all_uses_with(
            node, delete_user_cb=lambda user, place=place: order[user] > place
        )


def _make_out_of_place(node: fx.Node, net: nn.Module) -> bool:
    """Rewrite a step that works in place; says whether it did."""
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__"):
            node.target = name.removesuffix("_")
            return True
    if node.op == "call_function":
        if node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
            return True
        return _pass_inplace_false(node)
    return False


def _pass_inplace_false(node: fx.Node) -> bool:
    """Calls such as F.relu(x, inplace=True) become F.relu(x, inplace=False)."""
    try:
        signature = inspect.signature(node.target)  # type: ignore[arg-type]
    except ValueError:  # builtins have none, and no such argument either
        return False
    if "inplace" not in signature.parameters:
        return False
    bound = signature.bind(*node.args, **node.kwargs)
    was_in_place = bool(bound.arguments.get("inplace", False))
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return was_in_place
