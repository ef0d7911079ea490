"""Loads the entries of a weights file into a network, or says which do not fit."""

import re
from collections import OrderedDict

import torch
from torch import nn

from .._backbones.builders import resolve_function
from .._backbones.contents import strip_wrapper
from .._backbones.copies import keeping_ties
from .._backbones.records import Backbone
from .._backbones.weights import OwnWeights, WeightsSource
from .._exceptions import WeightsError

# Ends of names in files that no feature needs: counts, and values of modules' own.
NO_WEIGHTS = ("num_batches_tracked", "_extra_state")


def fill_weights(
    module: nn.Module, state, source: WeightsSource
) -> tuple[nn.Module, frozenset[str]]:
    """Load the entries into the network, or raise an error that names the wrong ones.

    The head may be missing or have other classes: then it is zero and its entries are
    returned, so that no layer that needs them is read.
    """
    own = {n: t for n, t in module.state_dict().items() if torch.is_tensor(t)}
    state = _converted(_renamed(state, source.backbone, own, source.name), own, source)
    absent = _drop_foreign_head(state, own, source.backbone.head)
    if isinstance(source, OwnWeights):  # which may be cut to what its layers need
        absent |= own.keys() - state.keys()
    _check_shapes(state, own, source)
    _check_numbers(state, own, source)
    if any(tensor.is_meta for tensor in own.values()):
        module = keeping_ties(module, lambda net: net.to_empty(device="cpu"))
        _zero_missing(dict(module.named_buffers()), state)  # some are in no state dict
    _zero_missing(module.state_dict(), state)
    result = module.load_state_dict(_versioned(state, module, absent), strict=False)
    _check_names(module, result, absent, source)
    _fill_transient_buffers(module, state)
    return module, absent


def _zero_missing(tensors: dict, state) -> None:
    """Set what no file holds to zero: new memory may contain anything, also numbers
    that overflow when the whole network is run."""
    for name, tensor in tensors.items():
        if name not in state and torch.is_tensor(tensor):
            tensor.zero_()


def _versioned(state, module: nn.Module, absent: frozenset[str]):
    """Entries as torch reads them: of the network's own version if the names are its.

    Networks that have renamed their entries look for the version. A file may have none,
    or one of a module around the network.
    """
    own, state = module.state_dict(), OrderedDict(state)
    if state.keys() == own.keys() - absent:
        state._metadata = own._metadata  # type: ignore[attr-defined]
    return state


def _drop_foreign_head(state, own, head: str | None) -> frozenset[str]:
    """Names of entries of the head that are missing or have other classes."""
    absent = _foreign_head(state, own, head)
    if absent >= (of_head := _of_head(own, head)):  # then the file may have another one
        absent |= _of_other_heads(state, head) - own.keys()
    for name in absent:
        state.pop(name, None)
    return frozenset(absent & of_head)


def _of_head(names, head: str | None) -> set[str]:
    """The names of the entries of the head."""
    return {name for name in names if head and name.startswith(f"{head}.")}


def _of_other_heads(names, head: str | None) -> set[str]:
    """The names of what a file may have instead of a head, or of the list of layers
    that ends with it."""
    layers, _, last = (head or "").rpartition(".")
    found = _of_head(names, head)
    if last.isdigit():
        numbered = re.compile(rf"{re.escape(layers)}\.[0-9]+\.")
        found |= {name for name in names if numbered.match(name)}
    return found


def _check_shapes(state, own, source: WeightsSource) -> None:
    wrong = [
        f"{name}: file {tuple(state[name].shape)}, network {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise WeightsError(_misfit(source, "with other shapes", wrong))


def _check_numbers(state, own, source: WeightsSource) -> None:
    """Refuse entries that are not numbers of the network's kind, or no numbers."""
    read = {name: state[name] for name in own if name in state}
    wrong = [f"{n}: {why}" for n, t in read.items() if (why := _wrong(t, own[n]))]
    if wrong:
        raise WeightsError(_misfit(source, "without plain numbers", wrong, NUMBERS))


def _wrong(tensor: torch.Tensor, own: torch.Tensor) -> str:
    """Why a tensor of a file cannot be read as the network's own, or ""."""
    if tensor.is_meta:
        return "it has no values, as on the device 'meta'"
    if tensor.layout != torch.strided:
        return f"it is {str(tensor.layout).removeprefix('torch.')}"
    kinds = _kind(tensor), _kind(own)
    if kinds[0] != kinds[1]:
        return f"file {tensor.dtype}, network {own.dtype}"
    if tensor.is_floating_point() and bool(tensor.isnan().any()):
        return "it contains NaN"
    return ""


def _kind(tensor: torch.Tensor) -> str:
    """What kind of numbers a tensor has; those of quantised networks are whole."""
    if tensor.is_complex():
        return "complex"
    return "fractions" if tensor.is_floating_point() else "whole"


def _check_names(module: nn.Module, result, absent, source: WeightsSource) -> None:
    """Raise an error for missing or unexpected entries that a feature may need."""
    missing = [
        name
        for name in result.missing_keys
        if name not in absent and not name.endswith(NO_WEIGHTS)
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


def transient_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that no file holds: their values come from the code."""
    kept = network.state_dict(keep_vars=True).keys()
    return {k: v for k, v in network.named_buffers() if k not in kept}


def _fill_transient_buffers(network: nn.Module, state) -> None:
    """Fill buffers that state dicts leave out, which come with a user's own network."""
    for name, buffer in transient_buffers(network).items():
        if name in state:
            buffer.copy_(state[name])


def _renamed(state, backbone: Backbone, own, name: str):
    """A copy with the network's own names."""
    renamed = dict(state)
    if backbone.rename:
        for old in list(renamed):
            renamed[re.sub(*backbone.rename, old)] = renamed.pop(old)
    try:
        strip_wrapper(renamed, own, backbone.head)
    except WeightsError as error:
        raise WeightsError(
            f"The weights in {name!r} do not fit backbone {backbone.name!r}: {error}."
        ) from None
    return renamed


def _converted(state, own, source: WeightsSource):
    """Entries as the network's own loader converts them; as they are if it cannot, or
    if they fit."""
    backbone = source.backbone
    if not backbone.convert or _fit(state, own, backbone.head):
        return state
    # The loader wants a head of the right size, whatever the file has.
    foreign = _foreign_head(state, own, backbone.head)
    given = {**state, **{name: torch.zeros(own[name].shape) for name in foreign}}
    convert = resolve_function(backbone.convert)
    size = source.input.image_size
    options = {backbone.size_option: size} if backbone.size_option else {}
    try:
        converted = convert(str(backbone.build).partition(":")[2], given, **options)
    except Exception:  # whatever the loader raises; `fill_weights` says what is wrong
        return state
    return {name: value for name, value in converted.items() if name not in foreign}


def _fit(state, own, head: str | None) -> bool:
    """Whether entries have the names and shapes of the network's, head aside."""
    foreign = _foreign_head(state, own, head)
    names = (own.keys() ^ state.keys()) - foreign
    wrong = [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    return not names and set(wrong) <= foreign


def _foreign_head(state, own, head: str | None) -> set[str]:
    """Names of entries of the head that are missing or have other shapes."""
    return {
        name
        for name in _of_head(own, head)
        if name not in state or state[name].shape != own[name].shape
    }


NUMBERS = "Save the weights of the network itself, in float32, after a training run."
FOREIGN = "Is it a file of another network?"


def _misfit(source: WeightsSource, what: str, entries: list[str], advice=FOREIGN):
    """A message about entries that do not fit, which names at most six of them."""
    shown = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "")
    counted = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
    return (
        f"The weights in {source.name!r} do not fit backbone "
        f"{source.backbone.name!r}: {counted} {what} ({shown}). {advice}"
    )
