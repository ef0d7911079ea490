"""Resolves "auto": devices, the engine, the batch size and the number of threads.

torch is imported only if there may be a GPU.
"""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from joblib.parallel import get_active_backend

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
}
CLASSES = {kind for _, kind in ENGINES}  # of devices


def resolve_devices(device) -> tuple[str, ...]:
    """The devices of a list, which must be of one class."""
    names = list(device) if isinstance(device, (list, tuple)) else [device]
    found = tuple(resolve_device(name) for name in names)
    if len({device_class((name,)) for name in found}) != 1:
        raise ValueError(
            "The 'device' parameter must name at least one device, and those of a list "
            f"must be of one class. Got {device!r} instead."
        )
    return found


def device_class(devices: tuple[str, ...]) -> str:
    """ "cpu" or "cuda": that of resolved devices, which are all of one class."""
    return devices[0].partition(":")[0]


def resolve_device(device) -> str:
    """The first GPU where "auto" finds one, else the CPU."""
    if device == "auto":
        return "cuda:0" if _has_driver() and _n_gpus() else "cpu"
    kind, _, index = device.partition(":") if isinstance(device, str) else ("",) * 3
    if kind not in CLASSES or not (index.isdigit() or index == ""):
        raise ValueError(
            "The 'device' parameter must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. "
            f"Got {device!r} instead."
        )
    return device if kind == "cpu" else _check_gpu(device, int(index or 0))


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
    return f"gpu-{getattr(about, 'uuid', device.replace(':', '-'))}"


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


def resolve_engine(engine: str, kind: str, precision: str, pooled: PooledLayers) -> str:
    """What runs the network on this class of devices.

    "auto" is OpenVINO where it is installed and supports the precision. Networks of the
    user's own are converted only on request.
    """
    if engine == "auto":
        able = _is_able("openvino", kind, precision)
        backbone = pooled.source.backbone
        own = backbone.arrays is not None and not backbone.embedded
        convert = able and not own and _has_openvino()
        engine = "openvino" if convert else "torch"
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


def resolve_batch_size(batch_size, engine: str, kind: str, image_size: int) -> int:
    """The number of images in a batch, which never depends on the number of rows.

    "auto" keeps the number of pixels, so that small images make larger batches.
    """
    ability, smaller = ENGINES[engine, kind], (224 / image_size) ** 2
    if batch_size == "auto":
        batch_size = int(ability.batch_size * smaller)
    most = min(int(ability.largest * smaller), ability.most_images)
    return max(1, min(batch_size, most))


def resolve_threads(n_jobs) -> int:
    """Number of decoding threads; None means one for each core that joblib allows."""
    # A worker that may not start processes may still start threads.
    backend, _ = get_active_backend(prefer="threads")
    return max(1, backend.effective_n_jobs(-1 if n_jobs is None else n_jobs))
