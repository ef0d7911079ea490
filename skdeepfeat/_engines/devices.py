"""Resolves "auto": devices, the engine, the batch size and the number of threads.

torch is imported only if there may be a GPU.
"""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .base import PooledLayers

# Files of a GPU's driver on Linux, also under Windows.
GPU_DRIVERS = (
    "/proc/driver/nvidia",
    "/dev/nvidiactl",
    "/dev/nvgpu",
    "/dev/nvhost-ctrl",
    "/dev/dxg",
    "/dev/kfd",
)


@dataclass(frozen=True)
class Ability:
    """What an engine can do on a class of devices.

    Parameters
    ----------
    precisions : tuple of str
        Supported values of the parameter `precision`.
    batch_size : int
        Default number of images of 224 pixels in a batch; it is larger for smaller
        images.
    largest : int
        Largest number of images of 224 pixels, whatever `batch_size` is requested. On
        a CPU, larger batches are slower.
    most_images : int
        Largest number of images of any size.
    """

    precisions: tuple[str, ...]
    batch_size: int
    largest: int
    most_images: int


ALL_PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
ENGINES = {
    ("torch", "cpu"): Ability(ALL_PRECISIONS, 8, 8, 32),
    ("torch", "cuda"): Ability(ALL_PRECISIONS, 64, 512, 512),
    # Each core computes a batch of its own.
    ("openvino", "cpu"): Ability(("float32", "bfloat16"), 4, 4, 16),
    # Vectors of words stay in memory, or in a file.
    ("numpy", "cpu"): Ability(("float32",), 8, 8, 256),
    ("numpy", "cuda"): Ability(("float32",), 8, 8, 256),
}
# What a network takes → the engines that run it; "auto" is the first, if not OpenVINO.
ENGINES_OF = {
    "pixels": ("torch", "openvino"),
    "tokens": ("torch",),
    "words": ("numpy",),
}
CLASSES = {kind for _, kind in ENGINES}  # of devices


def resolve_devices(device) -> tuple[str, ...]:
    """The devices of a list, which must be of one class."""
    resolve_class(device)
    return tuple(map(resolve_device, _names_in(device)))


def resolve_class(device) -> str:
    """ "cpu" or "cuda"; stored rows of a GPU are read where there is none."""
    kinds = {_parse(name)[0] for name in _names_in(device)}
    if len(kinds) != 1:
        raise ValueError(
            "The 'device' parameter must name at least one device, and those of a list "
            f"must be of one class. Got {device!r} instead."
        )
    return kinds.pop()


def _names_in(device) -> list:
    return list(device) if isinstance(device, (list, tuple)) else [device]


def device_class(devices: tuple[str, ...]) -> str:
    """ "cpu" or "cuda": that of resolved devices, which are all of one class."""
    return devices[0].partition(":")[0]


def resolve_device(device) -> str:
    """The first GPU where "auto" finds one, else the CPU."""
    kind, index = _parse(device)
    return "cpu" if kind == "cpu" else _check_gpu(device, index)


def _parse(device) -> tuple[str, int]:
    """The class of a device and its index, whether it exists or not."""
    if isinstance(device, str) and device == "auto":
        return ("cuda" if _has_driver() and _n_gpus() else "cpu"), 0
    kind, _, index = device.partition(":") if isinstance(device, str) else ("",) * 3
    if kind not in CLASSES or not (index.isdigit() or index == ""):
        raise ValueError(
            "The 'device' parameter must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. "
            f"Got {device!r} instead."
        )
    return kind, int(index or 0)


def _check_gpu(device: str, index: int) -> str:
    """The full name of a GPU, or an error if there is no such GPU."""
    n = _n_gpus()
    if n == 0:
        raise ValueError(
            f"device={device!r} was requested, but torch sees no CUDA device here. "
            "Use device='auto' or 'cpu'."
        )
    if index >= n:
        last = f" to 'cuda:{n - 1}'" if n > 1 else ""
        raise ValueError(
            f"device={device!r} was requested, but torch sees {n} CUDA "
            f"device{'s' if n > 1 else ''} here. Use 'cuda:0'{last}, or device='auto'."
        )
    return f"cuda:{index}"


def names_of_gpus(devices: tuple[str, ...]) -> list[str]:
    """Names of these GPUs that are the same in all processes."""
    if device_class(devices) == "cpu":
        return []
    return list({_name_of_gpu(device) for device in devices})


def _name_of_gpu(device: str) -> str:
    import torch

    about = torch.cuda.get_device_properties(device)
    return str(getattr(about, "uuid", device.replace(":", "-")))


def _has_driver() -> bool:
    """Whether there may be a GPU; if not, torch is not imported."""
    return sys.platform != "linux" or any(map(os.path.exists, GPU_DRIVERS))


_n_found: int | None = None  # GPUs, when this process or its parent last looked


def _n_gpus() -> int:
    """Number of GPUs that torch can use; an error in a fork, where it cannot."""
    import torch

    global _n_found
    if torch.cuda._is_in_bad_fork():  # where CUDA cannot be queried
        if _n_found == 0:
            return 0
        raise RuntimeError(
            "This process was forked from one that had used a GPU, and CUDA does not "
            "survive a fork. Start workers in another way, for instance with "
            "multiprocessing.get_context('spawn') or joblib's backend 'loky', or set "
            "device='cpu'."
        )
    _n_found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return _n_found


unconvertible: set[bytes] = set()  # what could not be converted in this process


def _is_own(backbone) -> bool:
    """Whether a network is one of the user's, not a published one with its weights."""
    return backbone.arrays is not None and not backbone.embedded


def resolve_engine(engine: str, kind: str, precision: str, pooled: PooledLayers) -> str:
    """What runs the network on this class of devices.

    "auto" is OpenVINO where it is installed and supports the precision. Networks of the
    user's own are converted only on request.
    """
    allowed = ENGINES_OF[pooled.source.input.takes]
    if engine == "auto":
        able = "openvino" in allowed and _is_able("openvino", kind, precision)
        backbone = pooled.source.backbone
        convert = able and not _is_own(backbone) and _has_openvino()
        engine = "openvino" if convert else allowed[0]
    if engine not in allowed:
        raise ValueError(
            f"engine={engine!r} does not run backbone {pooled.source.backbone.name!r}. "
            f"Use engine='auto' or {' or '.join(map(repr, allowed))}."
        )
    if not _is_able(engine, kind, precision):
        known = ENGINES[engine, "cpu"].precisions
        raise ValueError(
            f"engine={engine!r} runs on a CPU with precision "
            f"{' or '.join(map(repr, known))}. Got precision={precision!r} on "
            f"{kind!r}; use engine='auto'."
        )
    if engine == "openvino" and not _has_openvino():
        raise ImportError(
            "engine='openvino' needs OpenVINO. Type: pip install 'skdeepfeat[openvino]'"
        )
    return "torch" if pooled.digest in unconvertible else engine


def _is_able(engine: str, kind: str, precision: str) -> bool:
    """Whether an engine runs there, with this precision."""
    ability = ENGINES.get((engine, kind))
    return ability is not None and precision in ability.precisions


def _has_openvino() -> bool:
    """Whether it is installed, in a supported version."""
    try:
        return int(version("openvino").partition(".")[0]) >= 2026
    except PackageNotFoundError:
        return False


def resolve_batch_size(batch_size, engine: str, kind: str, spec) -> int:
    """The number of inputs in a batch, which never depends on the number of rows.

    "auto" keeps the amount of work, so that small images make larger batches.
    """
    ability, smaller = ENGINES[engine, kind], spec.relative_number
    if batch_size == "auto":
        batch_size = int(ability.batch_size * smaller)
    most = min(int(ability.largest * smaller), ability.most_images)
    return max(1, min(int(batch_size), most))  # OpenVINO refuses integers of numpy
