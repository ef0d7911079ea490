"""Traces a network with torch.fx: network → graph of its steps, each with a name.

fx runs the code of the network on stand-ins for its tensors and records what happens to
them.
"""

import inspect
import math
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx, nn

from .._processes import Lock
from . import timm_steps
from .whole import Whole

ENDS = ("placeholder", "output")  # nodes of a graph that are not steps

# Attributes of a module that hold its hooks.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BRANCHES = "its code branches on the values of a tensor"


class NotTraceable(RuntimeError):
    """The graph of a network would not compute what the network does; says why."""


@dataclass
class Found:
    """What a trace finds.

    Parameters
    ----------
    graph : fx.Graph
        It follows the code of the network and returns what the network returns.
    named : dict of str to fx.Node
        Its steps.
    classified : fx.Node or None
        What enters the classifier, if the network can stop there.
    """

    graph: fx.Graph
    named: dict[str, fx.Node]
    classified: fx.Node | None


def trace(net: nn.Module, whole: Whole | None = None, fixed=()) -> Found:
    """Trace a network, by default from its images to what it returns.

    `fixed` are tensors whose values the code may look at: they become constants.
    """
    if change := changed_call(net):  # fx would look at the class alone
        raise NotTraceable(change)
    whole = whole or Whole(net)
    tracer = Tracer(net, fixed)
    with Tracer.trace_lock:
        graph = tracer.trace(whole)
    if tracer.refused:
        raise NotTraceable(BRANCHES)
    _name_as_in_network(graph, whole)
    _allow_any_memory_format(graph)
    if fixed:
        _follow_images(graph)
    classified = _return_scores(graph) if whole.stops_early else None
    inside = {n: step for step, n in tracer.name_of.items() if step.op not in ENDS}
    return Found(graph, inside, classified)


def _name_as_in_network(graph: fx.Graph, whole: Whole) -> None:
    """Name modules, tensors and the input as the network does, not as `Whole` does."""
    for node in graph.nodes:
        if node.op == "get_attr":  # `path_of_module` names the modules
            node.target = str(node.target).removeprefix(Whole.PREFIX)
        elif node.op == "placeholder":
            node.target = whole.argument
    whole.hand_over_constants()


def _follow_images(graph: fx.Graph) -> None:
    """Create tensors where the images are, not where fixed tensors were."""
    images = next(iter(graph.find_nodes(op="placeholder")))
    with graph.inserting_after(images):
        device = graph.call_function(getattr, (images, "device"))
    for node in graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.update_kwarg("device", device)


def _return_scores(graph: fx.Graph) -> fx.Node | None:
    """Make a graph return the scores alone; returns what enters the classifier."""
    output = graph.output_node()
    both = output.args[0]
    assert isinstance(both, tuple)
    classified, scores = both
    output.args = (scores,)
    return classified if isinstance(classified, fx.Node) else None


def calls_its_class(module: nn.Module) -> bool:
    """Whether a call of a module is a call of its class's forward and no more."""
    return not changed_call(module)


def changed_call(module: nn.Module) -> str:
    """Why a call of a module is not just a call of its class's forward, or ""."""
    own, name = vars(module), type(module).__name__
    if any(own[place] for place in HOOKS):
        return f"one of its modules, of class {name}, has a hook"
    if "forward" in own:
        return f"one of its modules, of class {name}, has a replaced 'forward' method"
    own_call = type(module).__call__ is not nn.Module.__call__
    if own_call and not isinstance(module, fx.GraphModule):  # whose call changes errors
        return f"one of its modules, of class {name}, has its own '__call__' method"
    return ""


class Tracer(fx.Tracer):
    """Records the steps of a network, named as torchvision names them.

    A module that is one step has its own name. Any other step has the name of the
    module that runs it and of its function. Repeated names are numbered.

    While fx traces, all calls of modules in the process pass through its tracer. Calls
    of other threads continue unchanged, and `trace_lock` prevents two traces at once.
    """

    trace_lock = Lock()
    # Buffers are read when the graph runs, not turned into constants of the skeleton.
    proxy_buffer_attributes = True

    def __init__(self, net: nn.Module, fixed=()):
        # A network that uses torchvision's own operators has imported them.
        operators = sys.modules.get("torchvision.ops")
        autowrapped: tuple = (math, operators) if operators else (math,)
        super().__init__(autowrapped, timm_steps.functions())
        classes = [m for _, m in inspect.getmembers(operators, inspect.isclass)]
        self._leaves = tuple(m for m in classes if issubclass(m, nn.Module))
        self._net, self._fixed = net, {id(tensor) for tensor in fixed}
        # `Whole` calls methods of the network, in whose modules fx would not look.
        self._autowrap_search += [sys.modules[c.__module__] for c in type(net).__mro__]
        self._thread = threading.get_ident()
        self._path = ""
        self._count: Counter[str] = Counter()
        self._taken: set[str] = set()
        self.name_of: dict[fx.Node, str] = {}
        self.refused = False

    def to_bool(self, obj):
        """Refuse to say whether a value is true; code may continue after the error."""
        self.refused = True
        raise NotTraceable(BRANCHES)

    def is_leaf_module(self, m, module_qualified_name):
        """Whether a module is one step."""
        if m is self._net or isinstance(m, torch.nn.DataParallel):
            return False
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        published = type(m).__module__.startswith("torchvision.")
        is_leaf = is_leaf or (published and isinstance(m, self._leaves))
        return is_leaf or timm_steps.is_step(m)

    def path_of_module(self, mod):
        """The name of a module in the network."""
        if mod is self._net:
            return ""
        return super().path_of_module(mod).removeprefix(Whole.PREFIX)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        """Record that a tensor of the network is read, unless its value is fixed."""
        if id(attr_val) in self._fixed:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

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
            own_name = re.sub(r"_[0-9]+$", "", proxy.node.name)
            if kind == "get_attr":
                own_name = own_name.removeprefix(Whole.PREFIX.replace(".", "_"))
            parts.append(own_name)
        name = free = ".".join(parts)
        while free in self._taken:
            self._count[name] += 1
            free = f"{name}_{self._count[name]}"
        self._taken.add(free)
        self.name_of[proxy.node] = free
        return proxy


def _allow_any_memory_format(graph: fx.Graph) -> None:
    """Replace views by reshapes, which copy where the memory format requires it.

    Graphs run with channels last, in which a view may be impossible.
    """
    for view, reshape in (("view", "reshape"), ("view_as", "reshape_as")):
        for node in graph.find_nodes(op="call_method", target=view):
            given = (*node.args, *node.kwargs.values())
            if not any(isinstance(value, torch.dtype) for value in given):
                node.target = reshape
