"""Reads activations with hooks, for networks that torch.fx cannot trace."""

import copy

import torch
from torch import nn

from .._processes import Lock
from .whole import Whole

INPUT_OF = ".input"
# What a network that fx cannot trace returns, and what enters its classifier.
RETURNED, CLASSIFIED = "returned", "enters_classifier"
ENDS_WHEN_RUN = (CLASSIFIED, RETURNED)


class HookedNetwork:
    """Callable that returns the activations of a network that fx cannot trace.

    A private copy of the network is hooked, run under a lock, and stopped by an
    exception once all layers are read. It runs in torch's default memory format, which
    its code may rely on.

    Parameters
    ----------
    network : torch.nn.Module
    nodes : tuple of str
        Names of modules; ``"fc.input"`` is what enters the module ``"fc"``. Or
        ``"returned"``, what the network returns, and ``"enters_classifier"``.
    """

    class _Done(Exception):
        pass

    def __init__(self, network: nn.Module, nodes: tuple[str, ...]):
        self._network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self._lock = Lock()
        self._wanted = frozenset(nodes)
        self._seen: dict[str, torch.Tensor] = {}
        modules = dict(self._network.named_modules())
        self._ends = [n for n in ENDS_WHEN_RUN if n not in modules and n in nodes]
        self._whole = Whole(self._network, CLASSIFIED in self._ends)
        for node in [n for n in nodes if n in modules or n.endswith(INPUT_OF)]:
            name = node.removesuffix(INPUT_OF)
            if node.endswith(INPUT_OF):
                modules[name].register_forward_pre_hook(self._keeper(node))
            else:
                modules[name].register_forward_hook(self._keeper(node))

    def _keeper(self, node):
        def keep(module, args, output=None):
            """Keep the input or output of a module, the first time it is used."""
            value = args[0] if output is None else output
            if isinstance(value, torch.Tensor):  # a later step may work in place
                self._seen.setdefault(node, value.clone())
            if self._seen.keys() == self._wanted:
                raise self._Done

        return keep

    def __call__(self, x):
        with self._lock:
            self._seen.clear()
            try:
                returned = self._whole(x.contiguous())
                values = returned if self._whole.stops_early else (returned, returned)
                ends = dict(zip(ENDS_WHEN_RUN, values, strict=True))
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
