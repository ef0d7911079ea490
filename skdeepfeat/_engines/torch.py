"""Runs networks with torch, on a CPU or a GPU: pixels → pooled rows."""

import numpy as np
import torch
from torch import nn

from .._images.recipe import InputSpec
from .._networks.activations import activations_of
from .._networks.image_size import explain_size
from .._networks.pooling import pool
from .._networks.sharing import PRECISIONS, SharedNetwork, get_network
from .._processes import fork_safe
from .base import PooledLayers, Runner
from .tf32 import arithmetic


class Normalise(nn.Module):
    """(b, 3, h, w) floats from 0 to 255 → what the network was trained on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: InputSpec):
        super().__init__()
        for name in ("mean", "std"):
            channels = torch.tensor(getattr(spec, name), dtype=torch.float32)
            self.register_buffer(name, channels.view(1, 3, 1, 1))

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
        self._source, self._layers = pooled.source, pooled.layers
        source = pooled.source
        self.normalise, self._dtype = Normalise(source.input), PRECISIONS[precision]
        self._nodes = tuple(dict.fromkeys(layer.node for layer, _ in pooled.layers))
        self.activations = activations_of(network, source, self._nodes)
        self.eval()

    def forward(self, pixels):
        x = pixels.permute(0, 3, 1, 2).float()  # (b, 3, h, w), channels last
        with explain_size(self._source, self._nodes):
            activations = self.activations(self.normalise(x).to(self._dtype))
        return tuple(
            torch.cat(pool(activations[layer.node], layer.layout, pooling), 1)
            for layer, pooling in self._layers
        )


class TorchRunner(Runner):
    """A network that torch computes; on a GPU one batch is started ahead.

    Parameters
    ----------
    pooled : PooledLayers
    device, precision : str
    batch_size : int
        The largest number of images in a batch.
    """

    out_of_memory = torch.OutOfMemoryError

    @fork_safe
    def __init__(self, pooled: PooledLayers, device, precision, batch_size: int):
        self._network = self._module(pooled, device, precision)
        self._device, self._precision = torch.device(device), precision
        self.ahead = 0 if self._device.type == "cpu" else 1

    def _module(self, pooled: PooledLayers, device, precision) -> nn.Module:
        """What computes a batch, with its weights on the device."""
        network = get_network(pooled.source, pooled.weights_key, device, precision)
        module = PooledModule(pooled, network, precision)
        module.normalise.to(device)
        return module

    def load(self, pixels: np.ndarray) -> torch.Tensor:
        """Copy the pixels as they are, 8-bit ones too, while the device computes."""
        tensor = torch.from_numpy(pixels)
        if self._device.type != "cpu":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    @fork_safe
    @torch.inference_mode()
    def start(self, loaded: torch.Tensor):
        """Compute; on a GPU, queue the computation and the copy of its rows."""
        kind = self._device.type
        # A row is computed in its own precision, whatever autocast the caller is in.
        with arithmetic(self._precision, kind), torch.autocast(kind, enabled=False):
            rows = self._network(loaded)
        if kind == "cpu":
            return rows, None
        sent = [row.to("cpu", non_blocking=True) for row in rows]
        return sent, torch.cuda.current_stream(self._device).record_event()

    def finish(self, started) -> list[np.ndarray]:
        """Wait for the rows."""
        rows, arrival = started
        if arrival is not None:
            arrival.synchronize()
        return [row.numpy() for row in rows]
