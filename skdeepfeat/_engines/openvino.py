"""Pixels → pooled rows with OpenVINO, on a CPU.

A network with its preprocessing and pooling is converted once and kept on disk, with
what torch computes for two images, so that later processes need neither the conversion
nor torch. What runs is compared with that, in the batches to come. A
converted network is a graph and plain weights; neither runs code.
"""

import contextlib
import itertools
import os
import secrets
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .._caches import SharedCache
from .._digests import digest, digest_fields, digest_file
from .._exceptions import ConversionError
from .._processes import after_fork, leave_to_parent
from .base import PooledLayers


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


CONVERSION = 2  # raise it when the same network is converted to another one
# Of the largest feature, between a converted network and torch.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1}
EXAMPLES = 2  # images that are compared
EXPECTED = "expected.npz"  # what torch computes for them
MAX_BYTES = 2 << 30  # of converted networks on disk; the oldest go first
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

_compiled = SharedCache(8)


@after_fork
def _compile_anew() -> None:
    """The threads of a compiled network stay with the parent; it would wait for them
    even when it is destroyed."""
    for network in _compiled.values():
        leave_to_parent(network)
    _compiled.clear()


class OpenVINONetwork:
    """The three steps of an engine; as many batches are started as keep it busy.

    Parameters
    ----------
    pooled : PooledLayers
    device : str
        "cpu".
    precision : str
    batch_size : int
        How many images come at once.
    """

    out_of_memory = ()  # a CPU has no limit that smaller batches would help with

    def __init__(self, pooled: PooledLayers, device, precision, batch_size: int):
        self._n_outputs = len(pooled.layers)
        network = compiled(pooled, precision, batch_size)
        self.ahead = network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        requests = [network.create_infer_request() for _ in range(self.ahead + 1)]
        self._requests = itertools.cycle(requests)

    def load(self, pixels: np.ndarray) -> np.ndarray:
        """The converted network takes floats."""
        return pixels.astype(np.float32)

    def start(self, pixels: np.ndarray):
        """Let the threads of OpenVINO begin."""
        request = next(self._requests)
        request.start_async({0: pixels}, share_inputs=True)
        return request, pixels  # which must live as long as they are read

    def finish(self, started) -> list[np.ndarray]:
        """The rows, once they are there."""
        request, _ = started
        request.wait()
        outputs = range(self._n_outputs)
        return [request.get_output_tensor(i).data.copy() for i in outputs]


def compiled(pooled: PooledLayers, precision: str, n: int):
    """The network for batches of n images; shared by all estimators."""
    name = fingerprint(pooled)

    def make():
        model, expected = read_converted(name) or convert(pooled, name)
        size = pooled.source.input.image_size
        model.reshape([n, size, size, 3])
        # Of several batches each core takes one, so that none waits for another.
        hint = "LATENCY" if n == 1 else "THROUGHPUT"
        network = compile_for_cpu(model, PRECISIONS[precision], hint)
        _check_same(network, n, size, expected, TOLERANCES[precision])
        return network

    return _compiled.get((name, precision, n), make, pooled.source.backbone)


def compile_for_cpu(model, precision: str, hint="LATENCY"):
    """A network that runs, on as many threads as torch would take."""
    threads, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": hint,  # "LATENCY" puts all cores at one batch
        "INFERENCE_NUM_THREADS": int(threads) if threads.isdigit() else 0,  # 0: all
        "ENABLE_CPU_PINNING": False,  # or all workers would share the first cores
    }
    return openvino.Core().compile_model(model, "CPU", options)


def fingerprint(pooled: PooledLayers) -> str:
    """Name of a converted network: what it is made of."""
    about = {"openvino": version("openvino"), "computed": pooled.digest}
    return digest_fields("conversion", CONVERSION, about).hex()


# Conversion -------------------------------------------------------------------------


def convert(pooled: PooledLayers, name: str):
    """Convert a network from torch, and keep it with what torch computes."""
    import torch

    from .._networks.building import build_network
    from .torch import PooledNetwork

    # Built for this alone: torch's copy is not needed any more afterwards.
    built = build_network(pooled.source)
    built.module.float()
    network = PooledNetwork(pooled, built, "float32")
    if not network.traceable:
        raise ConversionError("torch.fx cannot trace the network")
    size = pooled.source.input.image_size
    example = torch.from_numpy(example_pixels(EXAMPLES, size))
    try:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of the tracer, about fixed sizes
            model = translate(network, example)
            expected = [rows.numpy() for rows in network(example)]
        model.reshape([-1, size, size, 3])
        alone = compile_for_cpu(model, "f32")
        _check_same(alone, EXAMPLES, size, expected, TOLERANCES["float32"])
    except ConversionError:
        raise
    except Exception as error:  # OpenVINO raises whatever its front end raises
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ConversionError(reason) from error
    if not pooled.source.identity.lasting:  # no later process would find it
        return model, expected
    keep_converted(model, expected, name)
    # What later processes will compute with, which may round in another order.
    return read_converted(name) or (model, expected)


def example_pixels(n: int, size: int) -> np.ndarray:
    """A batch of n images, of which some repeat."""
    pixels = np.random.default_rng(0).uniform(0, 255, (EXAMPLES, size, size, 3))
    return np.resize(pixels.astype(np.float32), (n, size, size, 3))


def translate(network, example):
    """A torch network in OpenVINO's terms.

    OpenVINO's own `convert_model` does the same, and reports it to its makers.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(network, example_input=example)
    return frontend.convert(frontend.load(decoder))


def _check_same(network, n: int, size: int, expected, tolerance: float) -> None:
    """Compare the features of some pixels with torch's, in the batches to come."""
    found = network(example_pixels(n, size)).values()
    for got, wanted in zip(found, expected, strict=True):
        difference = np.abs(got - np.resize(wanted, got.shape)).max()
        if not difference <= tolerance * np.abs(wanted).max():
            raise ConversionError(f"features differ from torch's by {difference:.0e}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


# On disk ----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where converted networks are kept; RuntimeError if this user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skdeepfeat" / "openvino"


def keep_converted(model, expected: list[np.ndarray], name: str) -> None:
    """Write a converted network with its checksum; a folder appears when complete.

    If that cannot be done, the next process converts again.
    """
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(".partial", name, folder))
    except (OSError, RuntimeError):
        return
    try:
        openvino.save_model(model, partial / "model.xml", compress_to_fp16=False)
        np.savez(partial / EXPECTED, *expected)
        (partial / "checksum").write_text(_checksum(partial))
        partial.rename(folder / name)
    except (OSError, RuntimeError):  # OpenVINO's own on a full disk
        shutil.rmtree(partial, ignore_errors=True)
    _make_room()


def read_converted(name: str):
    """A converted network, and what torch computes for the examples; None if it is not
    there, or damaged, and then removed."""
    try:
        folder = cache_folder() / name
        read = _state_of(folder)
    except (OSError, RuntimeError):
        return None
    try:
        if (folder / "checksum").read_text() == _checksum(folder):
            os.utime(folder)  # it is in use
            with np.load(folder / EXPECTED) as arrays:
                expected = list(arrays.values())
            return openvino.Core().read_model(folder / "model.xml"), expected
    except (OSError, RuntimeError):
        pass
    _remove(folder, read)
    return None


def _state_of(folder: Path) -> tuple[int, int]:
    """What tells a folder from another one that takes its place."""
    about = folder.stat()
    return about.st_ino, about.st_mtime_ns


def _remove(folder: Path, read: tuple[int, int]) -> None:
    """Remove what was read as damaged, but not what has taken its place since."""
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.damaged")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        if _state_of(aside) != read:
            aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _checksum(folder: Path) -> str:
    files = [folder / name for name in ("model.xml", "model.bin", EXPECTED)]
    return digest(*map(digest_file, files)).hex()


def _make_room() -> None:
    """Delete what was used least recently, while all is more than the bound.

    What a killed process has left half written counts as any other.
    """
    folders = [f for f in cache_folder().iterdir() if f.is_dir()]
    used = {f: (_modified(f), _size(f)) for f in folders}
    total = sum(size for _, size in used.values())
    for folder in sorted(folders, key=used.__getitem__)[:-1]:
        if total <= MAX_BYTES:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= used[folder][1]


def _modified(folder: Path) -> float:
    """When it was last used; what another process has removed, long ago."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0
