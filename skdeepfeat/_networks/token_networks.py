"""Networks of texts: tokens → the states of some layers, shared by all estimators."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import nn

from .._backbones.records import imported
from .._backbones.text_records import TextSource
from .sharing import PRECISIONS, SharedNetwork, networks_on

RETURNED, INPUT_OF = "returned", ".input"


class _Done(Exception):
    """All wanted states are known."""


class TokenNetwork(nn.Module):
    """Tokens → the states of some layers, computed no further than the deepest.

    The modules are hooked once. What a call wants is kept per thread, so that threads
    share the weights.

    Parameters
    ----------
    net : torch.nn.Module
    places : mapping of str to torch.nn.Module
        Node → the module whose output it is; the node "NAME.input" is what enters it.
    call : callable
        (net, tokens, mask) → what the network returns.
    """

    def __init__(self, net: nn.Module, places: Mapping[str, nn.Module], call: Callable):
        super().__init__()
        self.net, self._run = net, call
        self._call = threading.local()
        for node, module in places.items():
            if node.endswith(INPUT_OF):
                keep = self._keeper_of_input(node)
                module.register_forward_pre_hook(keep, with_kwargs=True)
            else:
                module.register_forward_hook(self._keeper(node))

    def forward(self, tokens, mask, wanted):
        """(b, length) tokens → node → states."""
        self._call.seen, self._call.wanted = {}, set(wanted)
        try:
            self._keep(RETURNED, self._run(self.net, tokens, mask))
        except _Done:
            pass
        return self._call.seen

    def _keeper_of_input(self, node: str) -> Callable:
        def keep(module, args, kwargs):
            self._keep(node, args[0] if args else next(iter(kwargs.values())))

        return keep

    def _keeper(self, node: str) -> Callable:
        return lambda module, args, output: self._keep(node, output)

    def _keep(self, node: str, value) -> None:
        """Keep the states of a layer, and stop after the last that is wanted."""
        if node in self._call.wanted:
            self._call.seen.setdefault(node, states_of(value))
            if len(self._call.seen) == len(self._call.wanted):
                raise _Done


def states_of(value):
    """The tensor that a module returns, alone or first, as recurrent ones do."""
    return value[0] if isinstance(value, tuple) else value


def get_token_network(source: TextSource, key: bytes, device: str, precision: str):
    """The network with these weights on this device, shared by the whole process."""

    def make() -> SharedNetwork:
        network = imported(source.builder)(source).eval().requires_grad_(False)
        return SharedNetwork(network.to(device, PRECISIONS[precision]))

    name = (source.identity.digest, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)


@torch.no_grad()
def run_once(network: TokenNetwork, tokens: torch.Tensor, wanted) -> dict:
    """The states of some layers for whole texts (b, length)."""
    return network(tokens, torch.ones_like(tokens, dtype=torch.bool), wanted)
