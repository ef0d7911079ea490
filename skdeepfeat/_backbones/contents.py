"""What is in a weights file: its format, and the weights among other things.

torch is not imported.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from .._exceptions import WeightsError

# How the names of weights files end.
SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".pkl", ".tar")
# Files of a model on the hub or in a folder, in the order in which they are preferred.
OF_MODELS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")

# How compressed files that hold others begin. Zip archives also hold torch's weights.
ARCHIVE = b"PK"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
PICKLE = b"\x80"
GIT_LFS = b"version https://git-lfs"
INDEX = ".index.json"  # of a network that is saved in several files

SAVE = "torch.save(net.state_dict(), path) or as .safetensors"


# The format ---------------------------------------------------------------------------


def format_of(path: Path) -> str:
    """The format of a weights file, "torch" or "safetensors", by its first bytes."""
    with path.open("rb") as file:
        start = file.read(32)
    if _begins_with_header(start, path.stat().st_size):
        return "safetensors"
    if start.startswith(ARCHIVE):
        _check_archive(path)
        return "torch"
    if start.startswith(PICKLE):
        return "torch"
    if start[8:9] == b"{" and INDEX not in path.name:
        return "safetensors"  # cut short
    raise WeightsError(f"{str(path)!r} is not a weights file{_what_it_is(start, path)}")


def _begins_with_header(start: bytes, size: int) -> bool:
    """Whether a file begins with the length of a header in JSON, and the header.

    The length may begin like a file of another format.
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _what_it_is(start: bytes, path: Path) -> str:
    """The end of a sentence about the first bytes of a file that has no weights."""
    if path.name.endswith(INDEX):
        return (
            ", but lists the parts of one. Join them: read the entries of each part "
            "into one dictionary, and save it with torch.save(entries, path)."
        )
    if start.startswith(COMPRESSED):
        return ": it is compressed. Unpack it, and pass the path of the file inside."
    if start.startswith(GIT_LFS):
        return (
            ", but names one that Git has not fetched. In the folder of the copy, "
            "type: git lfs pull"
        )
    return (
        f": it begins with {start.decode('latin-1')!r}. Download it again, or save the "
        f"weights with {SAVE}."
    )


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is not one of torch's, in which there is a pickle, and
    one that is damaged, which torch itself does not notice."""
    with ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.startswith("__MACOSX/")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"{str(path)!r} contains a network compiled by TorchScript, whose code is "
            f"not loaded. Save its weights with {SAVE}."
        )
    if any(name.endswith("data.pkl") for name in names):
        _refuse_damaged(path)
        return
    weights = [name for name in names if name.endswith(SUFFIXES)]
    if weights:
        raise WeightsError(
            f"{str(path)!r} is a zip archive that contains {listed(weights)}. Unpack "
            "it, and pass the path of the file inside."
        )
    raise WeightsError(
        f"{str(path)!r} is not a weights file: it is a zip archive that contains "
        f"{listed(names) or 'nothing'}. Save the weights with {SAVE}."
    )


def _refuse_damaged(path: Path) -> None:
    """Refuse a file of torch in which an entry does not have its checksum."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise WeightsError(
            f"{str(path)!r} is damaged: {damaged!r} in it does not have the checksum "
            f"that the file states. Download it again, or save the weights with "
            f"{SAVE}, after torch.serialization.set_crc32_options(True)."
        )


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names, with quotes and commas."""
    shown = [repr(name) for name in names]
    return ", ".join([*shown[:most], *(["..."] if len(shown) > most else [])])


# Training checkpoints -----------------------------------------------------------------

# Names of averages over the training, which are preferred, as with timm's `use_ema`:
# "state_dict_ema", "model_ema", "ema_state_dict", "ema.module", "swa_model".
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)\d*([._]|$)", re.IGNORECASE)
# Names of the weights themselves.
TRAINED = "state_dict model_state_dict model_state model net network".split()
TRAINED += "params weights module shadow".split()


def weights_among(content: Any, is_tensor) -> Any:
    """The weights in a training checkpoint; the content itself if there are none.

    If there are several sets of weights, the average over the training is preferred.
    """
    if not isinstance(content, dict) or is_plain(content, is_tensor):
        return content
    for names in (_averaged(content), TRAINED):
        found = {n: weights_among(content[n], is_tensor) for n in names if n in content}
        found = {n: state for n, state in found.items() if is_plain(state, is_tensor)}
        if len(found) > 1 and names is not TRAINED:
            raise WeightsError(
                f"There are several averages of weights: {listed(found)}. Save the "
                "one to use with torch.save(state, path), and pass the path."
            )
        if found:
            return next(iter(found.values()))
    return content


def _averaged(content: dict) -> list[str]:
    """Names of the entries that are averages over the training."""
    return [n for n in content if isinstance(n, str) and AVERAGED.search(n)]


def is_plain(content: Any, is_tensor) -> bool:
    """Whether this is a dictionary of tensors by name."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and is_tensor(v) for name, v in content.items())
    )


# Names of entries ---------------------------------------------------------------------

COUNTER = "n_averaged"  # torch's averaged networks count their updates
# What torch adds to the names of parts that are compiled, computed again in training,
# or spread over devices.
WRAPPERS = r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."


def strip_wrapper(
    state: MutableMapping[str, Any], own: Collection[str], head: str | None
) -> None:
    """Remove the prefix that a module around a network adds to names of its entries.

    Such modules are those of training in parallel ("module."), of compiled and averaged
    networks, of Lightning ("model."), and of the user's own. Entries of other parts are
    left out. Raises an error if several parts are like the network.
    """
    if COUNTER not in own:
        state.pop(COUNTER, None)
    _strip_inner_wrappers(state, own)
    while (prefix := _common_prefix(state)) and not _have(own, prefix):
        _keep_under(prefix, state)
    found = _prefixes_of_networks(state, _needed(own, head))
    if "" in found or not found:
        return
    if len(found) > 1:
        raise WeightsError(
            f"it contains {len(found)} such networks, under {listed(found)}. Save the "
            "entries of one of them in another file, without this part of their names"
        )
    _keep_under(found[0], state)


def _strip_inner_wrappers(
    state: MutableMapping[str, Any], own: Collection[str]
) -> None:
    """Remove the names of wrappers from within the names of entries."""
    for name in list(state):
        plain = re.sub(WRAPPERS, "", name)
        if name not in own and plain not in state:
            state[plain] = state.pop(name)


def _needed(own: Collection[str], head: str | None) -> set[str]:
    """Names of a network's entries that every file of it has."""
    absent = (f"{head}.",) if head else ()
    counts = "num_batches_tracked"
    return {n for n in own if not n.startswith(absent) and not n.endswith(counts)}


def _prefixes_of_networks(names: Iterable[str], needed: set[str]) -> list[str]:
    """What precedes most of the needed names, once for each network in a file."""
    count = Counter(p for n in names for p, rest in _divided(n) if rest in needed)
    return sorted(prefix for prefix, n in count.items() if 2 * n > len(needed))


def _common_prefix(names: Iterable[str]) -> str:
    """The first part of names, with its dot, if all have it; otherwise ""."""
    firsts = {first + dot for first, dot, _ in (n.partition(".") for n in names)}
    return firsts.pop() if len(firsts) == 1 and all("." in f for f in firsts) else ""


def _have(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _divided(name: str) -> Iterator[tuple[str, str]]:
    """All (prefix, rest) of a name, divided after its dots."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _keep_under(prefix: str, state: MutableMapping[str, Any]) -> None:
    """Keep the entries under a prefix, without it; in place, for torch's metadata."""
    for name in list(state):
        value = state.pop(name)
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = value
