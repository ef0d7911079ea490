"""Runs networks with OpenVINO, on a CPU: pixels → pooled rows.

What is compiled is compared with what torch computes for some images, in the batch
size and precision that will be used.
"""

import itertools

import numpy as np

from .._caches import SharedCache
from .._processes import after_fork, leave_to_parent
from .base import PooledLayers, Runner
from .openvino_conversion import (
    check_same,
    compile_for_cpu,
    find_or_convert,
    fingerprint,
)

_compiled = SharedCache(8)


@after_fork
def _compile_anew() -> None:
    """The threads of a compiled network stay with the parent; the child would wait for
    them even to destroy it."""
    for network in _compiled.values():
        leave_to_parent(network)
    _compiled.clear()


class OpenVINORunner(Runner):
    """A network that OpenVINO computes; as many batches are started as keep it busy.

    Parameters
    ----------
    pooled : PooledLayers
    device : str
        "cpu".
    precision : str
    batch_size : int
        Number of images in each batch.
    """

    out_of_memory = ()  # a CPU has no limit that smaller batches would help with

    def __init__(self, pooled: PooledLayers, device, precision, batch_size: int):
        self._n_outputs = len(pooled.layers)
        network = compiled(pooled, precision, batch_size)
        self.ahead = network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        requests = [network.create_infer_request() for _ in range(self.ahead + 1)]
        self._requests = itertools.cycle(requests)

    def load(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels as floats, which the converted network takes."""
        return pixels.astype(np.float32)

    def start(self, loaded: np.ndarray):
        """Let the threads of OpenVINO begin."""
        request = next(self._requests)
        request.start_async({0: loaded}, share_inputs=True)
        return request, loaded  # which must live as long as it is read

    def finish(self, started) -> list[np.ndarray]:
        """Wait for the rows."""
        request, _ = started
        request.wait()
        outputs = range(self._n_outputs)
        return [request.get_output_tensor(i).data.copy() for i in outputs]


def compiled(pooled: PooledLayers, precision: str, n: int):
    """The network for batches of n images; shared by all estimators."""
    name = fingerprint(pooled)

    def make():
        model, expected = find_or_convert(pooled, name)
        size = pooled.source.input.image_size
        model.reshape([n, size, size, 3])
        # Each core computes a batch of its own, so that none waits for another.
        hint = "LATENCY" if n == 1 else "THROUGHPUT"
        network = compile_for_cpu(model, precision, hint)
        check_same(network, n, size, expected, precision)
        return network

    return _compiled.get((name, precision, n), make, pooled.source.backbone)
