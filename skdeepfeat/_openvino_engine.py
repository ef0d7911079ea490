"""Pixels → pooled rows with OpenVINO, on a CPU.

A network with its preprocessing and pooling is converted once, compared with torch,
and kept on disk, so that later processes need neither the conversion nor torch. A
converted network is a graph and plain weights; neither runs code.
"""

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ._digests import digest, digest_file
from ._exceptions import ConversionError
from ._plan import PooledLayers
from ._shared import SharedTable


@contextlib.contextmanager
def _unreported():
    """A context in which OpenVINO finds no reporter: it tells its makers of imports."""
    found = "openvino_telemetry" in sys.modules
    if not found:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not found:
            del sys.modules["openvino_telemetry"]


with _unreported():
    import openvino
    import openvino.frontend

CONVERSION = 1  # raise it when the same network is converted to another one
TOLERANCE = 1e-4  # of the largest feature, between a converted network and torch
MAX_BYTES = 2 << 30  # of converted networks on disk; the oldest go first
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

_compiled = SharedTable(8)


class OpenVINONetwork:
    """The three steps of an engine; a batch is started ahead.

    Parameters
    ----------
    pooled : PooledLayers
    device : str
        "cpu".
    precision : str
    """

    ahead = 1
    out_of_memory = ()  # a CPU has no limit that smaller batches would help with

    def __init__(self, pooled: PooledLayers, device: str, precision: str):
        self._pooled, self._precision = pooled, precision
        self._requests: dict[int, itertools.cycle] = {}
        self._request(1)  # fails before anything is decoded, if it must

    def load(self, pixels: np.ndarray) -> np.ndarray:
        """The converted network takes floats."""
        return pixels.astype(np.float32)

    def start(self, pixels: np.ndarray):
        """Let the threads of OpenVINO begin."""
        request = self._request(len(pixels))
        request.start_async({0: pixels}, share_inputs=True)
        return request, pixels  # which must live as long as they are read

    def finish(self, started) -> list[np.ndarray]:
        """The rows, once they are there."""
        request, _ = started
        request.wait()
        outputs = range(len(self._pooled.layers))
        return [request.get_output_tensor(i).data.copy() for i in outputs]

    def _request(self, n: int):
        """The next of the requests that are in flight at once, for n images."""
        if n not in self._requests:
            network = compiled(self._pooled, self._precision, n)
            requests = [network.create_infer_request() for _ in range(self.ahead + 1)]
            self._requests[n] = itertools.cycle(requests)
        return next(self._requests[n])


def compiled(pooled: PooledLayers, precision: str, n: int):
    """The network for batches of n images; shared by all estimators."""
    name = fingerprint(pooled)

    def make():
        model = read_converted(name) or convert(pooled, name)
        size = pooled.source.input.image_size
        model.reshape([n, size, size, 3])
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # all cores at one batch
            # As many threads as torch takes; 0 means all cores.
            "INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS") or 0),
        }
        return openvino.Core().compile_model(model, "CPU", options)

    return _compiled.get((name, precision, n), make)


def fingerprint(pooled: PooledLayers) -> str:
    """Name of a converted network: what it is made of."""
    source = pooled.source
    layers = [(layer.node, layer.layout, how) for layer, how in pooled.layers]
    about = repr((CONVERSION, version("openvino"), source.input, layers))
    return digest(source.backbone.digest, pooled.weights_key, about).hex()


# Conversion -------------------------------------------------------------------------


def convert(pooled: PooledLayers, name: str):
    """Convert a network from torch, see that it computes the same, and keep it."""
    import torch

    from ._torch_engine import PooledNetwork

    network = PooledNetwork(pooled, "cpu", "float32")
    if not network.traceable:
        raise ConversionError("torch.fx cannot trace the network")
    size = pooled.source.input.image_size
    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    example = torch.from_numpy(pixels.astype(np.float32))
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the tracer's, about sizes it takes as fixed
            model = translate(network, example)
            expected = [rows.numpy() for rows in network(example)]
        model.reshape([-1, size, size, 3])
        _check_same(model, example.numpy(), expected)
    except Exception as error:  # OpenVINO raises whatever its front end raises
        raise ConversionError(
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    keep_converted(model, name)
    return model


def translate(network, example):
    """A torch network in OpenVINO's terms.

    OpenVINO's own `convert_model` does the same, and reports it to its makers.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(network, example_input=example)
    return frontend.convert(frontend.load(decoder))


def _check_same(model, pixels: np.ndarray, expected: list[np.ndarray]) -> None:
    """Compare the features of some pixels, one image at a time and together."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(model, "CPU", options)
    for rows in (slice(0, 1), slice(0, 2)):
        found = network(pixels[rows]).values()
        for got, wanted in zip(found, expected, strict=True):
            difference = np.abs(got - wanted[rows]).max() / np.abs(wanted).max()
            if not difference <= TOLERANCE:
                raise ValueError(f"features differ from torch's by {difference:.0e}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


# On disk ----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where converted networks are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skdeepfeat" / "openvino"


def keep_converted(model, name: str) -> None:
    """Write a converted network with its checksum; a folder appears when complete."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(".partial", name, cache_folder()))
        openvino.save_model(model, partial / "model.xml", compress_to_fp16=False)
        (partial / "checksum").write_text(_checksum(partial))
        partial.rename(cache_folder() / name)
        _make_room()
    except OSError:
        pass  # no room, or somebody else was faster: the next process converts again


def read_converted(name: str):
    """A converted network, None if it is not there or damaged."""
    folder = cache_folder() / name
    try:
        if (folder / "checksum").read_text() != _checksum(folder):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)  # it is in use
    except OSError:
        return None
    return openvino.Core().read_model(folder / "model.xml")


def _checksum(folder: Path) -> str:
    return digest(
        *(digest_file(folder / f"model.{end}") for end in ("xml", "bin"))
    ).hex()


def _make_room() -> None:
    """Delete what was used least recently, while all is more than the bound."""
    folders = sorted(cache_folder().iterdir(), key=lambda f: f.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in f.iterdir()) for f in folders]
    total = sum(sizes)
    for folder, size in zip(folders[:-1], sizes, strict=False):
        if total <= MAX_BYTES:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size
