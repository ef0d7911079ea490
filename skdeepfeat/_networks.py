"""Record + weights → a network, built once and shared by all estimators.

Networks live in one bounded table for the whole process. They are in ``eval`` mode and
need no gradients.
"""

import functools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from ._backbones import (
    Backbone,
    Skeleton,
    Weights,
    WeightsSource,
    as_array,
    builder_of,
    digest_tensors,
)
from ._descriptions import describe_settings
from ._digests import digest_fields, sha256_file
from ._exceptions import WeightsError
from ._processes import Lock
from ._shared import SharedTable

MAX_NETWORKS = 8
GPU_SHARE = 0.25  # of a GPU's memory, that networks may take

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,  # rounded inside the GPU's multiplications alone
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class SkipInitialisation(TorchFunctionMode):
    """Leave new parameters as they are: files or seeds fill them afterwards.

    Saves seconds for large networks, and draws nothing from the global generator.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)


@dataclass
class Network:
    """A network with its weights, shared by everybody who names it.

    Parameters
    ----------
    module : torch.nn.Module
        In single precision; on the CPU if it is `rounded` elsewhere.
    absent : frozenset of str
        Entries of the head that the weights file does not have.
    cuts : dict
        Cut networks by layer, which live as long as this one.
    substitutes : dict
        Modules that compute the same in less time, by those that they stand for.
    rounded : tuple (device, dtype) or None
        Where and in which type of numbers cut networks run, if not in this one.
    """

    module: nn.Module
    absent: frozenset[str] = frozenset()
    cuts: dict[tuple, Any] = field(default_factory=dict)
    substitutes: dict[tuple[nn.Module, ...], nn.Module] = field(default_factory=dict)
    rounded: tuple[str, torch.dtype] | None = None
    lock: Any = field(default_factory=Lock)


# The table --------------------------------------------------------------------------

networks = SharedTable(MAX_NETWORKS)
_networks_of_gpu: dict[str, SharedTable] = {}


def networks_on(device: str) -> SharedTable:
    """The networks on a device: some on a CPU, a share of its memory on a GPU."""
    if torch.device(device).type == "cpu":
        return networks
    if device not in _networks_of_gpu:
        bound = GPU_SHARE * memory_of(device)
        _networks_of_gpu.setdefault(device, SharedTable(bound, bytes_of))
    return _networks_of_gpu[device]


def memory_of(device: str) -> int:
    """Bytes of memory that a GPU has."""
    return torch.cuda.get_device_properties(device).total_memory


def bytes_of(network: Network) -> int:
    """What a network takes on its device, with all that was made of it."""
    made = [m for m in network.substitutes.values() if isinstance(m, nn.Module)]
    modules = made if network.rounded else [network.module, *made]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def get_network(source: WeightsSource, key: bytes, device: str, precision: str):
    """The network of these weights on this device; `key` is the weights' digest."""

    def make():
        network, dtype = build_network(source), PRECISIONS[precision]
        if dtype is torch.float32:
            network.module.to(device=device)
        else:  # batch norms are taken in first, and then all is rounded once
            network.rounded = device, dtype
        network.module.to(memory_format=torch.channels_last)
        return network

    # Some networks are built for one size.
    size = source.input.image_size if source.backbone.size_option else None
    identity = source.identity.digest
    name = (identity, size, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)


# Building ---------------------------------------------------------------------------


def build_network(source: WeightsSource) -> Network:
    """A new network on the CPU with the weights of `source`."""
    size, backbone = source.input.image_size, source.backbone
    if source.seed is not None:
        network = Network(_seeded(backbone, size, source.seed))
    else:
        state = _read_state(source)
        module = _without_initialisation(backbone, size)
        values_as_before(backbone, size, None, module)
        network = _fill(module, state, source)
    network.module.eval().requires_grad_(False)
    return network


def call_builder(backbone: Backbone, image_size: int, official=False) -> nn.Module:
    """Call the record's builder.

    `official` networks are built as published weights expect them.
    """
    build = builder_of(backbone)
    options = dict(backbone.options) if official else {}
    if backbone.size_option:
        options[backbone.size_option] = image_size
    with warnings.catch_warnings():
        # torchvision announces a future default of GoogLeNet's initialisation.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return build(**options)


def skeleton_of(backbone: Backbone, image_size: int) -> tuple[nn.Module, bytes]:
    """The network without memory for its weights, for shapes and structure, and the
    digest of values that are gone with it."""
    network = _without_initialisation(backbone, image_size)
    values = values_as_before(backbone, image_size, None, network)
    return network.to("meta").eval(), values


def trial_network(backbone: Backbone, image_size: int) -> nn.Module:
    """The network that a graph is compared with: built alike, with numbers in it."""
    if backbone.arrays is not None:
        source = WeightsSource(backbone, backbone.input, embedded=True)
        return build_network(source).module
    build = functools.partial(call_builder, backbone, image_size, official=True)
    return _with_seed(0, build).eval().requires_grad_(False)


def _without_initialisation(backbone: Backbone, image_size: int) -> nn.Module:
    """The network as published weights expect it, its parameters left as they are."""
    with SkipInitialisation():
        return _with_seed(0, lambda: call_builder(backbone, image_size, official=True))


def _seeded(backbone: Backbone, image_size: int, seed: int) -> nn.Module:
    """The network with random weights."""
    network = _with_seed(int(seed), lambda: call_builder(backbone, image_size))
    values_as_before(backbone, image_size, seed, network)
    return network


def _with_seed(seed: int, build):
    """Build from a seed and put the global generator back."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        return build()
    finally:
        torch.default_generator.set_state(state)


def seeded_values(source: WeightsSource) -> bytes:
    """Digest of the values that a network has from its seed."""
    backbone, size, seed = source.backbone, source.input.image_size, source.seed
    assert seed is not None
    found = backbone.memo.get(
        ("seeded", size if backbone.size_option else None, seed),
        lambda: _values(_seeded(backbone, size, seed), seed),
    )
    return found


def values_as_before(backbone, image_size: int, seed, network: nn.Module) -> bytes:
    """Digest of the values that a builder gives and no file replaces.

    Raises an error if they, or the settings of modules, are others than when this was
    first asked: what is known of the network then does not hold any more.
    """
    if not backbone.is_own or isinstance(backbone.build, Skeleton):
        return b""
    size = image_size if backbone.size_option else None
    # Published weights have options of their own.
    options = seed is None and bool(backbone.options)
    settings = digest_fields("settings", 1, describe_settings(network))
    _check_as_before(backbone, ("settings", size, options), settings)
    found = _values(network, seed)
    _check_as_before(backbone, ("values", size, seed), found)
    return found


def _check_as_before(backbone: Backbone, name: tuple, found: bytes) -> None:
    """Remember a digest, or compare it with the one that is remembered."""
    if backbone.memo.get(name, lambda: found) != found:
        raise WeightsError(
            f"The builder {backbone.build!r} of backbone {backbone.name!r} gives "
            "another network than before: its code was changed, or it draws numbers "
            "that torch.manual_seed does not control. Make a new Backbone after a "
            "change, and seed all that it draws."
        )


def _values(network: nn.Module, seed: int | None) -> bytes:
    """Digest of all tensors of a network, or without a seed of those in no file."""
    tensors = dict(network.named_buffers())
    in_files = network.state_dict()
    if seed is None:
        tensors = {k: v for k, v in tensors.items() if k not in in_files}
    else:
        tensors |= in_files
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.requires_grad:
                tensors[f"{path}.{name}"] = value
    return digest_tensors({name: as_array(value) for name, value in tensors.items()})


# Reading ----------------------------------------------------------------------------


def _verified(path: Path, weights: Weights) -> Path:
    """The path of a published file, if its checksum is the one in its name."""
    if not sha256_file(path).startswith(weights.sha256_prefix):
        raise WeightsError(
            f"{str(path)!r} is damaged or another file: its checksum does not begin "
            f"with {weights.sha256_prefix!r}. Delete it to fetch it again, or pass its "
            "path as weights=... if it is meant."
        )
    return path


def _read_state(source: WeightsSource) -> dict[str, torch.Tensor]:
    """All entries of the weights, by name."""
    if source.embedded:
        arrays = source.backbone.arrays or {}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    if source.published is not None:
        find = packaged if source.published.packaged else download
        return _read_file(find(source.published))
    assert source.path is not None
    return _read_file(source.path)


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    """Entries of a .safetensors or .pth file; never runs code from it."""
    if not path.is_file():
        raise WeightsError.missing(path)
    reader = load_file if path.suffix == ".safetensors" else _read_checkpoint
    try:
        state = reader(path)
    except (SafetensorError, RuntimeError, EOFError, BadZipFile) as e:
        raise WeightsError(
            f"{str(path)!r} cannot be read: it is damaged, cut off, or no file of "
            f"weights at all ({path.stat().st_size:,} bytes). Fetch it again, or save "
            "it with torch.save(net.state_dict(), path) or as .safetensors."
        ) from e
    except UnpicklingError as e:
        raise WeightsError(
            f"{str(path)!r} is not a file of plain weights, and nothing else is loaded "
            "for safety. Save it with torch.save(net.state_dict(), path) or as "
            ".safetensors."
        ) from e
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise WeightsError(
            f"{str(path)!r} holds no plain dictionary of tensors. Save the network's "
            "own weights with torch.save(net.state_dict(), path)."
        )
    return state


def _read_checkpoint(path: Path):
    return torch.load(path, map_location="cpu", weights_only=True)


def packaged(weights: Weights) -> Path:
    """The file that ships with the package, its checksum verified."""
    path = Path(__file__).parent / "_weights" / weights.filename
    if not path.is_file() or sha256_file(path) != weights.sha256:
        raise WeightsError(
            f"{str(path)!r} is not the file that ships with skdeepfeat: it is missing "
            "or changed. Install the package again."
        )
    return path


def download(weights: Weights) -> Path:
    """The published file in torch's own download folder, fetched when missing."""
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
            f"fetched ({e}). Without a connection: copy {weights.filename!r} from "
            f"{weights.url} to {str(folder)!r}, or pass its path as weights=..."
        ) from e
    return path


# Filling ----------------------------------------------------------------------------


def _fill(module: nn.Module, state, source: WeightsSource) -> Network:
    """Put the entries into the network, or say which do not fit.

    The head may be absent or made for other classes: it stays empty then, and
    `Network.absent` names it so that nobody reads a layer that needs it.
    """
    state = _renamed(state, source.backbone)
    own = module.state_dict()
    absent = _drop_foreign_head(state, own, source.backbone.head)
    _check_shapes(state, own, source)
    if any(tensor.is_meta for tensor in own.values()):
        module = module.to_empty(device="cpu")
    result = module.load_state_dict(state, strict=False)
    _check_names(module, result, absent, source)
    _fill_transient_buffers(module, state)
    return Network(module, absent)


def _drop_foreign_head(state, own, head: str | None) -> frozenset[str]:
    """Names of the head's entries that the file lacks or has for other classes."""
    absent = set()
    for name in [k for k in own if head and k.startswith(f"{head}.")]:
        if name not in state or state[name].shape != own[name].shape:
            state.pop(name, None)
            absent.add(name)
    return frozenset(absent)


def _check_shapes(state, own, source: WeightsSource) -> None:
    wrong = [
        f"{name}: file {tuple(state[name].shape)}, network {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise WeightsError(_misfit(source, "with other shapes", wrong))


def _check_names(module: nn.Module, result, absent, source: WeightsSource) -> None:
    """Refuse missing and left-over entries, but for those that no feature needs."""
    missing = [
        name
        for name in result.missing_keys
        if name not in absent and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise WeightsError(_misfit(source, "missing from the file", missing))
    buffers = {name for name, _ in module.named_buffers()}
    left_over = [
        name
        for name in result.unexpected_keys
        if name not in buffers and not name.startswith(source.backbone.unused)
    ]
    if left_over:
        raise WeightsError(_misfit(source, "left over in the file", left_over))


def _fill_transient_buffers(network: nn.Module, state) -> None:
    """Buffers that state dicts leave out, which a user's own network brings along."""
    kept = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in state and name not in kept:
            buffer.copy_(state[name])


def _renamed(state, backbone: Backbone):
    """Old names brought up to date, in a copy that keeps torch's version marks."""
    renamed = state.copy()
    if backbone.rename:
        for name in list(renamed):
            renamed[re.sub(*backbone.rename, name)] = renamed.pop(name)
    return renamed


def _misfit(source: WeightsSource, what: str, entries: list[str]) -> str:
    """One sentence about entries that do not fit, at most six of them named."""
    shown = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "")
    file = source.path or (source.published and source.published.filename)
    return (
        f"The weights in {str(file)!r} do not fit backbone "
        f"{source.backbone.name!r}: {len(entries)} entries {what} ({shown}). Is it a "
        "file of another network?"
    )
