""" "auto" → a device, a computed batch shape, a number of decoding threads."""

import joblib
import torch

# Images of 224 pixels that are computed at once: what "auto" means, and the most that a
# device bears; of smaller images more, up to a number. On a CPU more make it slower.
BATCH_SIZES = {"cpu": 8, "cuda": 64}
BEARABLE = {"cpu": 8, "cuda": 512}
MOST_IMAGES = {"cpu": 64, "cuda": 512}


def resolve_device(device: str) -> torch.device:
    """The first GPU where there is one, else the CPU."""
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in BATCH_SIZES or not (index.isdigit() or index == ""):
        raise ValueError(
            "The 'device' parameter must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. "
            f"Got {device!r} instead."
        )
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} was asked for, but torch sees no CUDA device here. "
            "Use device='auto' or 'cpu'."
        )
    return resolved


def resolve_batch_size(batch_size, device: torch.device, image_size: int) -> int:
    """The computed batch shape: never taken from the number of images.

    "auto" keeps the number of pixels, so small networks get enough work at once.
    """
    kind, smaller = device.type, (224 / image_size) ** 2
    if batch_size == "auto":
        batch_size = int(BATCH_SIZES[kind] * smaller)
    most = min(int(BEARABLE[kind] * smaller), MOST_IMAGES[kind])
    return max(1, min(batch_size, most))


def resolve_threads(n_jobs) -> int:
    """Decoding threads; None means one for every core that joblib leaves us."""
    return max(1, joblib.effective_n_jobs(-1 if n_jobs is None else n_jobs))
