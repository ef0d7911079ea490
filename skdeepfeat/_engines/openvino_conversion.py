"""A network of torch → the same network in OpenVINO's terms, compared with torch.

A network with its preprocessing and pooling is converted once and kept on disk with
what torch computes for two images.
"""

import warnings
from importlib.metadata import version

import numpy as np

from .._digests import digest_fields
from .._exceptions import ConversionError, in_one_line
from .._processes import threads_of_openmp
from .base import PooledLayers
from .openvino_cache import as_read, keep_converted, read_converted
from .openvino_import import openvino

CONVERSION = 2  # raise it when the same network is converted to another one
# Of the largest feature, between a converted network and torch.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1}
EXAMPLES = 2  # images that are compared
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

Converted = tuple["openvino.Model", list[np.ndarray]]  # and the expected rows


def find_or_convert(pooled: PooledLayers, name: str) -> Converted:
    """A converted network and what torch computes for the examples, kept on disk."""
    if found := read_converted(name):
        return found
    model, expected = convert(pooled)
    if pooled.source.identity.lasting:  # else no later process would find it
        keep_converted(model, expected, name)
    return read_converted(name) or (as_read(model), expected)


def fingerprint(pooled: PooledLayers) -> str:
    """Name of a converted network: a digest of what it computes."""
    about = {"openvino": version("openvino"), "computed": pooled.digest}
    return digest_fields("conversion", CONVERSION, about).hex()


def convert(pooled: PooledLayers) -> Converted:
    """Convert a network from torch, or raise a ConversionError that says why not."""
    network = _pooled_module(pooled)  # weights that cannot be read are another error
    try:
        return _convert(network, pooled.source.input.image_size)
    except ConversionError:
        raise
    except Exception as error:  # OpenVINO raises whatever its front end raises
        raise ConversionError(in_one_line(error)) from error


def _convert(network, size: int) -> Converted:
    """Translate a network, and compare it with torch on the example images."""
    import torch

    example = torch.from_numpy(example_pixels(EXAMPLES, size))
    with (
        torch.inference_mode(),
        torch.autocast("cpu", enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch.jit's, about fixed sizes
        model = translate(network, example)
        expected = [rows.numpy() for rows in network(example)]
    model.reshape([-1, size, size, 3])
    check_same(compile_for_cpu(model, "float32"), EXAMPLES, size, expected, "float32")
    return model, expected


def _pooled_module(pooled: PooledLayers):
    """The network in torch, built for the conversion alone and not shared."""
    from .._networks.building import build_network
    from .._networks.sharing import SharedNetwork
    from .._networks.structure import structure_of
    from .._networks.trial import looks_at_values
    from .torch import PooledModule

    source = pooled.source
    module, absent = build_network(source)
    structure = structure_of(source.backbone, source.input.image_size)
    if not structure.traceable and looks_at_values(module, source.input.image_size):
        raise ConversionError(f"torch cannot trace the network ({structure.fault})")
    # OpenVINO loses its way where a step overwrites a view of another layer's maps.
    network = SharedNetwork(module.float(), absent, overwrites=False)
    return PooledModule(pooled, network, "float32")


def example_pixels(n: int, size: int) -> np.ndarray:
    """A batch of n images; some are repeated if n is large."""
    pixels = np.random.default_rng(0).uniform(0, 255, (EXAMPLES, size, size, 3))
    return np.resize(pixels.astype(np.float32), (n, size, size, 3))


def translate(network, example):
    """A torch network in OpenVINO's terms.

    OpenVINO's own `convert_model` does the same, but reports it to its makers.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(network, example_input=example)
    return frontend.convert(frontend.load(decoder))


def compile_for_cpu(model, precision: str, hint="LATENCY"):
    """A network that runs, on as many threads as torch would use."""
    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": hint,  # "LATENCY" puts all cores at one batch
        "INFERENCE_NUM_THREADS": threads_of_openmp() or 0,  # 0: all
        "ENABLE_CPU_PINNING": False,  # else all workers would share the first cores
    }
    return openvino.Core().compile_model(model, "CPU", options)


def check_same(network, n: int, size: int, expected, precision: str) -> None:
    """Compare the rows of the examples with torch's, in batches of n images."""
    found = network(example_pixels(n, size)).values()
    for got, wanted in zip(found, expected, strict=True):
        difference = np.abs(got - np.resize(wanted, got.shape)).max()
        if not difference <= TOLERANCES[precision] * np.abs(wanted).max():
            raise ConversionError(f"features differ from torch's by {difference:.0e}")
