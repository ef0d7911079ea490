"""Reads activations with hooks, for networks that torch.fx cannot trace."""

import re
from collections import Counter
from collections.abc import Container

import torch
from torch import nn

from .._backbones.copies import copy_of
from .._processes import Lock
from .comparison import only_tensor, tensors_of
from .whole import Whole

INPUT_OF = ".input"
# What a network that fx cannot trace returns, and what enters its classifier.
RETURNED, CLASSIFIED = "returned", "enters_classifier"
ENDS_WHEN_RUN = (CLASSIFIED, RETURNED)


def use_named(node: str, modules: Container[str]) -> tuple[str, int] | None:
    """The module that a node names, and which of its uses: "fc_1" is the second one."""
    name = node.removesuffix(INPUT_OF)
    if name in modules:
        return name, 0
    found = re.fullmatch(r"(.+)_([1-9][0-9]*)", name)
    return (found[1], int(found[2])) if found and found[1] in modules else None


def name_of_use(name: str, use: int) -> str:
    """The node of a use of a module, counted from 0."""
    return f"{name}_{use}" if use else name


class HookedNetwork:
    """Callable that returns the activations of a network that fx cannot trace.

    A private copy of the network is hooked, run under a lock, and stopped by an
    exception once all layers are read. It runs in torch's default memory format, which
    its code may rely on.

    Parameters
    ----------
    network : torch.nn.Module
    nodes : tuple of str
        Names of modules; ``"fc.input"`` is what enters the module ``"fc"``, and
        ``"fc_1"`` is its output when it is used for the second time. Or ``"returned"``,
        what the network returns, and ``"enters_classifier"``.
    """

    class _Done(Exception):
        pass

    def __init__(self, network: nn.Module, nodes: tuple[str, ...]):
        self._network = copy_of(network).to(memory_format=torch.contiguous_format)
        self._lock = Lock()
        self._wanted = frozenset(nodes)
        self._seen: dict[str, torch.Tensor] = {}
        self._uses: Counter[str] = Counter()
        modules = dict(self._network.named_modules())
        self._ends = [n for n in ENDS_WHEN_RUN if n not in modules and n in nodes]
        self._whole = Whole(self._network, CLASSIFIED in self._ends)
        for node in nodes:
            if node not in self._ends and (found := use_named(node, modules)):
                self._hook(modules[found[0]], node, found[1])

    def _hook(self, module: nn.Module, node: str, use: int) -> None:
        """Keep the input or the output of a module in one of its uses."""

        def before(module, args, kwargs):
            self._keep(node, use, next(iter(tensors_of([args, kwargs])), None))

        def after(module, args, output):
            self._keep(node, use, output)

        if node.endswith(INPUT_OF):
            module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            module.register_forward_hook(after)

    def _keep(self, node: str, use: int, value) -> None:
        """Keep a value if it is that of the right use; stop with the last one."""
        if isinstance(value, (tuple, list)):  # objects are results of whole networks
            value = only_tensor(value)
        if self._uses[node] == use and isinstance(value, torch.Tensor):
            self._seen[node] = value.clone()  # a later step may work in place
        self._uses[node] += 1
        if self._seen.keys() == self._wanted:
            raise self._Done

    def returned(self, x):
        """What the copy of the network returns, which reads no layer."""
        return self._whole.net(x.contiguous())

    def __call__(self, x):
        with self._lock:
            self._seen.clear()
            self._uses.clear()
            try:
                returned = self._whole(x.contiguous())
                values = returned if self._whole.stops_early else (returned, returned)
                ends = dict(zip(ENDS_WHEN_RUN, map(only_tensor, values), strict=True))
                self._seen |= {name: ends[name] for name in self._ends}
            except self._Done:
                pass
            return dict(self._seen)

    def state_dict(self):
        """Entries of the network, like those of a module."""
        return self._network.state_dict()

    def to(self, device, dtype) -> None:
        """Run on this device, in this type, from now on."""
        self._network.to(device, dtype)
