"""Networks of texts of the user's own: their layers, identity and weights."""

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .._backbones.records import Layer
from .._backbones.text_modules import ModuleSource
from .._processes import fork_safe
from .._texts.specs import TokenSpec
from .descriptions import Undescribable, describe_classes, describe_module
from .loading import transient_buffers
from .token_networks import INPUT_OF, RETURNED, HookPoint, TokenNetwork, run_once

LENGTH = 48  # tokens of the longest text with which layouts are found
TRIED = 3  # texts that are computed together and alone

# (sizes of an output, which of them follow the length) → layout, place of features
LAYOUTS = {(2, ()): ("vector", 0), (3, (1,)): ("tokens", 1), (3, (2,)): ("channels", 0)}


@fork_safe
def build_module(source: ModuleSource) -> TokenNetwork:
    """A new network on the CPU with its own weights."""
    record = source.backbone
    net = record.build().to_empty(device="cpu")
    state = {name: torch.from_numpy(a.copy()) for name, a in record.arrays.items()}
    net.load_state_dict(state, strict=False)
    for name, buffer in transient_buffers(net).items():
        buffer.copy_(state[name])
    return _hooked(net, {layer.node for layer in record.layers})


def _hooked(net: nn.Module, nodes: Iterable[str]) -> TokenNetwork:
    """A network whose nodes of these names can be read; it sees padding as tokens."""
    modules = dict(net.named_modules())
    points = {
        n: HookPoint(modules[n.removesuffix(INPUT_OF)], entering=n.endswith(INPUT_OF))
        for n in nodes
        if n != RETURNED
    }
    return TokenNetwork(net, points, lambda net, tokens, mask: net(tokens))


@fork_safe
def describe_text_module(net: nn.Module, version: str | None) -> tuple[dict, str]:
    """Named values that identify a network of torch's modules, or why not.

    With a version, other modules are identified by their classes and settings.
    """
    if version is not None:
        return {"version": version, "modules": describe_classes(net.to("meta"))}, ""
    try:
        return {"modules": describe_module(net.to("meta"))}, ""
    except Undescribable as error:
        return {}, str(error)


@fork_safe
def count_tokens(net: nn.Module) -> int:
    """How many different tokens a network takes: the rows of the tables that read them,
    or all of int32."""
    net, sizes = copy.deepcopy(net), [2**31]
    tokens = _some_tokens(net, 2)

    def note(table, args):
        if args and torch.equal(args[0], tokens):  # places, for instance, differ
            sizes.append(table.num_embeddings)

    for table in _tables(net):
        table.register_forward_pre_hook(note)
    with contextlib.suppress(Exception), torch.no_grad():  # found elsewhere
        net(tokens)
    return min(sizes)


# Layers ------------------------------------------------------------------------------


@fork_safe
def find_text_layers(
    net: nn.Module, max_length: int | None, head: str | None
) -> tuple[Layer, ...]:
    """The layers of a network, in order of depth; refuses what gives no rows."""
    net = copy.deepcopy(net)  # which is hooked
    parts = _parts(net)
    longest = max(2, min(LENGTH, max_length or LENGTH))
    large, small = (_outputs(net, parts, n) for n in (longest, longest * 2 // 3))
    _outputs(net, parts, TokenSpec(b"", max_length).padded_length(0))
    laid_out = {node: _layout(large[node].shape, small[node].shape) for node in large}
    layouts = {node: layout for node, layout in laid_out.items() if layout}
    order = [node for node in layouts if node in parts]
    head = head or _head_of(parts, order, layouts)
    _check_head(head, layouts)
    end = _end_of(order, layouts, large)
    layers = []
    for i, (alias, node) in enumerate(_named(order, head, parts, end)):
        layout, place = layouts[node]
        shape = tuple(large[node].shape[1:])
        layers.append(Layer(alias, node, i, layout, shape, shape[place], None))
    return tuple(layers)


def _end_of(order: list[str], layouts: dict, values: dict) -> str:
    """The node of what the network returns, or else the last one with rows."""
    ends = [n for n in order if torch.equal(values[n], values[RETURNED])]
    ends += [node for node in (RETURNED, *reversed(order)) if node in layouts]
    if not ends:
        raise ValueError(
            "No part of the network returns a vector for each text, or for each place "
            "in it."
        )
    return ends[0]


def _check_head(head: str | None, layouts: dict) -> None:
    """Refuse a head that is not a part with one row for each text."""
    if head is not None and head not in layouts:
        known = [node for node in layouts if not node.endswith(INPUT_OF)]
        raise ValueError(
            f"head={head!r} names no part of the network that returns vectors. Known "
            f"are {', '.join(map(repr, known))}."
        )


def _parts(net: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The parts of a network: its children, and those of its lists and sequences."""
    found: dict[str, nn.Module] = {}
    for name, child in net.named_children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            found |= _parts(child, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = child
    return found


def _outputs(net: nn.Module, parts: dict[str, nn.Module], length: int) -> dict:
    """What enters and leaves each part for some texts, by node in order of use."""
    tokens = _some_tokens(net, length)
    nodes = [node for name in parts for node in (name, f"{name}{INPUT_OF}")]
    network = _hooked(net, nodes)
    try:
        together = run_once(network, tokens, [*nodes, RETURNED])
        alone = [run_once(network, text[None], [RETURNED])[RETURNED] for text in tokens]
    except Exception as error:  # of the user's code
        raise ValueError(
            "The network of TextBackbone.from_module must take tokens of shape (n, "
            f"length), int64. With {length} tokens it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_rows(together[RETURNED], alone)
    return {n: v for n, v in together.items() if isinstance(v, torch.Tensor)}


def _some_tokens(net: nn.Module, length: int) -> torch.Tensor:
    """Tokens (`TRIED`, length) that are in all tables of a network."""
    n_tokens = min((table.num_embeddings for table in _tables(net)), default=2)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n_tokens, (TRIED, length), generator=generator)


def _tables(net: nn.Module) -> list[nn.Embedding]:
    return [m for m in net.modules() if isinstance(m, nn.Embedding)]


def _check_rows(together, alone) -> None:
    """Refuse a network that mixes the texts of a batch, or draws numbers."""
    if not isinstance(together, torch.Tensor):
        raise ValueError(
            "The network of TextBackbone.from_module must return a tensor. Got a "
            f"{type(together).__name__} instead; wrap it in a module that returns one "
            "of its tensors."
        )
    one_by_one = torch.cat(alone)
    same = together.shape == one_by_one.shape
    if same and torch.allclose(together, one_by_one, 1e-3, 1e-4):
        return
    raise ValueError(
        "The features of a text depend on the other texts in the batch, or differ from "
        "call to call. Pass batch_first=True to recurrent modules, and call net.eval()."
    )


def _layout(large: Any, small: Any) -> tuple[str, int] | None:
    """Layout of an output, and where its features are, from its shape for two lengths;
    None if it has neither a vector for each text nor one for each place."""
    follow = tuple(
        i for i, (a, b) in enumerate(zip(large, small, strict=False)) if a != b
    )
    return LAYOUTS.get((len(large), follow))


def _head_of(parts: dict, order: list[str], layouts: dict) -> str | None:
    """The linear layer at the end of a network, if there is one."""
    last = order[-1] if order else ""
    is_head = isinstance(parts.get(last), nn.Linear) and layouts[last][0] == "vector"
    return last if is_head else None


def _named(order: list[str], head: str | None, parts: dict, end: str):
    """(alias, node) of each layer, in order of depth."""
    n_blocks = 0
    for name in order:
        if isinstance(parts[name], nn.Embedding):
            yield "embeddings", name
        elif name != head:
            n_blocks += 1
            yield f"block{n_blocks}", name
    if head is None:
        yield "penultimate", end
        return
    yield "penultimate", f"{head}{INPUT_OF}"
    yield "logits", head
