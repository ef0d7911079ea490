"""A whole network as a function of images, and what enters its classifier.

Networks in the style of timm compute their features and then their head, and the head
can stop before the classifier. What it returns there is what "penultimate" means.
"""

import inspect

import torch
from torch import fx, nn


class Whole(nn.Module):
    """A network with one argument: optional ones of its own keep their defaults.

    Parameters
    ----------
    net : torch.nn.Module
    stops_early : bool
        Whether to return a tuple of what enters the classifier and what the network
        returns, instead of the latter alone.
    """

    PREFIX = "net."

    def __init__(self, net: nn.Module, stops_early: bool = False):
        super().__init__()
        self.net, self.stops_early = net, stops_early

    def forward(self, x):
        if not self.stops_early:
            return self.net(x)
        maps = self.net.forward_features(x)
        early = self.net.forward_head(_each(separate, maps), pre_logits=True)
        return early, self.net.forward_head(maps)

    @property
    def argument(self) -> str:
        """The name of the network's own argument for images."""
        return next(iter(inspect.signature(self.net.forward).parameters))

    def hand_over_constants(self) -> None:
        """Leave the tensors that tracing has set here on the network instead."""
        for place in (vars(self), self._buffers):
            for name, value in list(place.items()):
                if isinstance(value, torch.Tensor):
                    setattr(self.net, name, value)


class Intermediates(Whole):
    """A network in the style of timm as a function that returns its stages alone."""

    def forward(self, x):
        return self.net.forward_intermediates(x, intermediates_only=True)


def has_intermediates(net: nn.Module) -> bool:
    """Whether a network can return its stages."""
    return can_stop_early(net) and hasattr(type(net), "forward_intermediates")


@fx.wrap
def separate(x: torch.Tensor) -> torch.Tensor:
    """A copy, as a head may overwrite what it is given; one step of a graph."""
    return x.clone()


def _each(function, maps):
    """The same lists of maps, after a function."""
    if isinstance(maps, (list, tuple)):
        return type(maps)(_each(function, value) for value in maps)
    return function(maps)


def can_stop_early(net: nn.Module) -> bool:
    """Whether a network has a head that can stop before the classifier."""
    head = getattr(type(net), "forward_head", None)
    if head is None or not hasattr(type(net), "forward_features"):
        return False
    return "pre_logits" in inspect.signature(head).parameters
