"""Networks of texts: tokens → the states of some layers, shared by all estimators."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .._backbones.builders import resolve_function
from .._backbones.text_records import TextSource
from .sharing import PRECISIONS, SharedNetwork, networks_on

RETURNED, INPUT_OF = "returned", ".input"


class _Done(Exception):
    """All wanted states are known."""


@dataclass(frozen=True)
class HookPoint:
    """Where the states of a layer pass.

    Parameters
    ----------
    module : torch.nn.Module
    number : int, default=0
        Which of its calls in a pass, as blocks may share a module.
    entering : bool, default=False
        Whether the states enter the module, or leave it.
    """

    module: nn.Module
    number: int = 0
    entering: bool = False


class TokenNetwork(nn.Module):
    """Tokens → the states of some layers, computed no further than the deepest.

    The modules are hooked once. What a call wants is kept per thread, so that threads
    share the weights.

    Parameters
    ----------
    net : torch.nn.Module
    points : mapping of str to HookPoint
        Node → where its states pass.
    call : callable
        (net, tokens, mask) → what the network returns.
    """

    def __init__(self, net: nn.Module, points: Mapping[str, HookPoint], call: Callable):
        super().__init__()
        self.net, self._run = net, call
        self._call = threading.local()
        for node, point in points.items():
            hook = self._keeper(node, point.number)
            if point.entering:
                point.module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                point.module.register_forward_hook(hook, with_kwargs=True)

    def forward(self, tokens, mask, wanted):
        """(b, length) tokens → node → states."""
        self._call.seen, self._call.wanted = {}, set(wanted)
        self._call.numbers = Counter()
        try:
            self._keep(RETURNED, self._run(self.net, tokens, mask))
        except _Done:
            pass
        return self._call.seen

    def _keeper(self, node: str, number: int) -> Callable:
        """A hook that keeps what one of the calls of a module takes or returns."""

        def keep(module, args, kwargs, *output):
            if self._call.numbers[node] == number:
                self._keep(node, output[0] if output else entering(args, kwargs))
            self._call.numbers[node] += 1

        return keep

    def _keep(self, node: str, value) -> None:
        """Keep the states of a layer, and stop after the last that is wanted."""
        if node in self._call.wanted:
            self._call.seen.setdefault(node, states_of(value))
            if len(self._call.seen) == len(self._call.wanted):
                raise _Done


def entering(args: tuple, kwargs: dict):
    """The first of what a module takes."""
    return args[0] if args else next(iter(kwargs.values()), None)


def states_of(value):
    """The tensor that a module returns, alone or first, as recurrent ones do."""
    return value[0] if isinstance(value, tuple) else value


def get_token_network(source: TextSource, key: bytes, device: str, precision: str):
    """The network with these weights on this device, shared by the whole process."""

    def make() -> SharedNetwork:
        network = resolve_function(source.builder)(source).eval().requires_grad_(False)
        return SharedNetwork(network.to(device, PRECISIONS[precision]))

    name = (source.identity.digest, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)


@torch.no_grad()
def run_once(network: TokenNetwork, tokens: torch.Tensor, wanted) -> dict:
    """The states of some layers for whole texts (b, length)."""
    return network(tokens, torch.ones_like(tokens, dtype=torch.bool), wanted)
