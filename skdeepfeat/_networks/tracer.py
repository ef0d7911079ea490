"""Network → the graph of its steps, each with a name.

fx runs the code of a network on stand-ins and records what happens to them. Steps that
are seen to overwrite an earlier value are made to give a new one, so that any value may
be read from the graph.
"""

import inspect
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F

from .._processes import Lock

ENDS = ("placeholder", "output")  # of a graph, which are no steps

# Where a module keeps what is called before and after its forward.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class NotTraceable(RuntimeError):
    """The graph of the network would not compute what the network computes."""


def trace(net: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The graph of a network as its code says, and its named steps."""
    if not calls_its_class(net):  # fx would look at the class alone
        raise NotTraceable(f"the call of {type(net).__name__} was changed")
    tracer = Tracer()
    with Tracer.trace_lock:
        graph = tracer.trace(net)
    if tracer.refused:
        raise NotTraceable("the code goes on where a value cannot be known")
    _allow_any_memory_format(graph)
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
        self.refused = False

    def to_bool(self, obj):
        """Refuse to say whether a value is true, also to code that would not mind."""
        self.refused = True
        return super().to_bool(obj)

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


# Rewriting ---------------------------------------------------------------------------


def _allow_any_memory_format(graph: fx.Graph) -> None:
    """Views of other shapes are copies where the memory format demands it.

    The network itself may run in another format than its author's.
    """
    for view, reshape in (("view", "reshape"), ("view_as", "reshape_as")):
        for node in graph.find_nodes(op="call_method", target=view):
            given = (*node.args, *node.kwargs.values())
            if not any(isinstance(value, torch.dtype) for value in given):
                node.target = reshape


def make_out_of_place(
    graph: fx.Graph, net: nn.Module, overwritten: Mapping[fx.Node, list | None]
) -> None:
    """Let the steps that overwrite earlier values give new ones.

    What is computed later from an overwritten value is computed from the result of the
    step instead, so the network means the same. `overwritten` has for each such
    step the earlier ones whose whole value it overwrites, None where that is a part.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    now: dict[fx.Node, fx.Node] = {}  # where the value of a step is, once overwritten
    for node, before in overwritten.items():
        if before is None or not _make_out_of_place(node, net):
            raise NotTraceable(f"{node} overwrites what it does not return")
        for step in {now.get(step, step) for step in before}:
            step.replace_all_uses_with(
                node, delete_user_cb=lambda user, node=node: order[user] > order[node]
            )
        now |= dict.fromkeys(before, node)


def without_inplace(net: nn.Module) -> nn.Module:
    """Switch off what modules do in place."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net


def _make_out_of_place(node: fx.Node, net: nn.Module) -> bool:
    """Rewrite a step that works in place; says whether that can be done."""
    if node.op == "call_module":  # see `without_inplace`
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
        return hasattr(torch.Tensor, node.target)
    if twin := _twin_of(node.target):
        node.target = twin
        return True
    return _pass_inplace_false(node)


def _twin_of(function) -> Callable | None:
    """The function that gives a new value: torch.add of torch.add_, for instance."""
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
    except ValueError:  # builtins have none, and no such argument either
        return False
    if "inplace" not in signature.parameters:
        return False
    bound = signature.bind(*node.args, **node.kwargs)
    was_in_place = bool(bound.arguments.get("inplace", False))
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return was_in_place
