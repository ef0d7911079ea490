"""Pixels → pooled rows with torch, on a CPU or a GPU."""

import numpy as np
import torch
from torch import nn

from .._images.recipe import InputSpec
from .._networks.activations import activations_of, explain_size
from .._networks.building import SharedNetwork
from .._networks.hooks import HookedNetwork
from .._networks.pooling import pool
from .._networks.sharing import PRECISIONS, get_network
from .._processes import fork_safe
from .base import PooledLayers
from .tf32 import arithmetic


class Normalise(nn.Module):
    """(b, 3, h, w) floats from 0 to 255 → what the network was trained on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: InputSpec):
        super().__init__()
        for name in ("mean", "std"):
            channels = torch.tensor(getattr(spec, name)).view(1, 3, 1, 1)
            self.register_buffer(name, channels)

    def forward(self, batch):
        return batch.div(255).sub_(self.mean).div_(self.std)


class PooledModule(nn.Module):
    """(b, h, w, 3) pixels from 0 to 255 → one (b, width) float32 tensor for each layer.

    Parameters
    ----------
    pooled : PooledLayers
    network : SharedNetwork
        With these weights, in this precision.
    precision : str
    """

    def __init__(self, pooled: PooledLayers, network: SharedNetwork, precision: str):
        super().__init__()
        source, self._layers = pooled.source, pooled.layers
        self._source = source
        self.normalise, self._dtype = Normalise(source.input), PRECISIONS[precision]
        nodes = tuple(dict.fromkeys(layer.node for layer, _ in pooled.layers))
        self._nodes = nodes
        self.cut = activations_of(network, source, nodes)
        self.eval()

    @property
    def traceable(self) -> bool:
        """Whether the network is a graph, which other engines can take over."""
        return not isinstance(self.cut, HookedNetwork)

    def forward(self, pixels):
        x = pixels.permute(0, 3, 1, 2).float()  # (b, 3, h, w), channels last
        with explain_size(self._source, self._nodes):
            activations = self.cut(self.normalise(x).to(self._dtype))
        return tuple(
            torch.cat(pool(activations[layer.node], layer.layout, pooling), 1)
            for layer, pooling in self._layers
        )


class TorchRunner:
    """The three steps of an engine; on a GPU a batch is started ahead.

    Parameters
    ----------
    pooled : PooledLayers
    device, precision : str
    batch_size : int
        How many images come at once, at most.
    """

    out_of_memory = torch.OutOfMemoryError

    @fork_safe
    def __init__(self, pooled: PooledLayers, device, precision, batch_size: int):
        network = get_network(pooled.source, pooled.weights_key, device, precision)
        self._network = PooledModule(pooled, network, precision)
        self._network.normalise.to(device)
        self._device, self._precision = torch.device(device), precision
        self.ahead = 0 if self._device.type == "cpu" else 1

    def load(self, pixels: np.ndarray) -> torch.Tensor:
        """8-bit pixels travel as they are, and while the device computes."""
        tensor = torch.from_numpy(pixels)
        if self._device.type != "cpu":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    @fork_safe
    @torch.inference_mode()
    def start(self, pixels: torch.Tensor):
        """Compute, or tell a GPU to compute and to send the rows."""
        kind = self._device.type
        # The precision is ours: that of a caller's own autocast is none of the row's.
        with arithmetic(self._precision, kind), torch.autocast(kind, enabled=False):
            rows = self._network(pixels)
        if kind == "cpu":
            return rows, None
        sent = [row.to("cpu", non_blocking=True) for row in rows]
        return sent, torch.cuda.current_stream(self._device).record_event()

    def finish(self, started) -> list[np.ndarray]:
        """The rows as arrays, once they are there."""
        rows, arrival = started
        if arrival is not None:
            arrival.synchronize()
        return [row.numpy() for row in rows]
