"""Runs networks of texts with torch: tokens → pooled rows."""

from typing import Any

from torch import nn

from .._networks.token_networks import get_token_network
from .._networks.token_pooling import pool_tokens
from .base import PooledLayers
from .torch import TorchRunner


class PooledStates(nn.Module):
    """(b, length) padded tokens → one (b, width) float32 tensor for each layer.

    Parameters
    ----------
    pooled : PooledLayers
    encoder : torch.nn.Module
    """

    def __init__(self, pooled: PooledLayers, encoder: nn.Module):
        super().__init__()
        self._encoder, self._layers = encoder, pooled.layers
        backbone: Any = pooled.source.backbone
        self._padding = backbone.padding
        self._nodes = tuple(dict.fromkeys(layer.node for layer, _ in pooled.layers))

    def forward(self, padded):
        mask = padded >= 0
        tokens = padded.masked_fill(~mask, self._padding).long()
        states = self._encoder(tokens, mask, self._nodes)
        return tuple(
            pool_tokens(states[layer.node], layer.layout, mask, how)
            for layer, how in self._layers
        )


class TokenRunner(TorchRunner):
    """A network of texts that torch computes."""

    def _module(self, pooled: PooledLayers, device, precision) -> nn.Module:
        """What computes a batch, with its weights on the device."""
        source: Any = pooled.source
        network = get_token_network(source, pooled.weights_key, device, precision)
        return PooledStates(pooled, network.module)
