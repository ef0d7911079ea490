"""The `unfreeze` parameter → which part of a network is tuned, and where it begins."""

import copy
from dataclasses import dataclass
from operator import attrgetter

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .._backbones.records import Layer
from .._backbones.weights import WeightsSource
from .._networks.hooks import INPUT_OF
from .._networks.layers import aliased_layers, resolve_layer
from .._networks.structure import Structure, structure_of


@dataclass(frozen=True)
class TunedPart:
    """Which part of a network is tuned.

    Parameters
    ----------
    start : str or None
        Node after which the tail begins; None if the tail is the whole network.
    end : Layer
        What enters the head.
    blocks : tuple of str
        Last nodes of the tuned blocks, in order of depth.
    inner : nn.Module or None
        The dense layers of the head before the last one, without weights, if the
        backbone's head has several.
    """

    start: str | None
    end: Layer
    blocks: tuple[str, ...]
    inner: nn.Sequential | None

    @property
    def has_tail(self) -> bool:
        """Whether any block is tuned, in addition to the head."""
        return len(self.blocks) > 0

    @property
    def width(self) -> int:
        """Number of features that enter the head."""
        return self.end.features


def find_tuned_part(source: WeightsSource, unfreeze) -> TunedPart:
    """The part that a number of blocks, a lowest layer, or "all" means."""
    structure = structure_of(source.backbone, source.input.image_size)
    if not structure.traceable:
        raise ValueError(
            f"Backbone {source.backbone.name!r} cannot be traced by torch.fx "
            f"({structure.fault}), so it cannot be divided into a frozen and a tuned "
            "part. Use PretrainedCNNFeatures(backbone) with any classifier instead."
        )
    end, inner = head_input(source)
    _refuse_other_width(source, end, inner)
    blocks = _tunable_blocks(structure, end)
    n_tuned = _number_tuned(source, blocks, unfreeze)
    frozen, tuned = blocks[: len(blocks) - n_tuned], blocks[len(blocks) - n_tuned :]
    start = frozen[-1].node if frozen else None
    if not tuned:
        start = end.node
    return TunedPart(start, end, tuple(layer.node for layer in tuned), inner)


def head_input(source: WeightsSource) -> tuple[Layer, nn.Sequential | None]:
    """The layer that enters the head, and the layers of the head before the last."""
    backbone, size = source.backbone, source.input.image_size
    end = resolve_layer(backbone, "penultimate", size)
    skeleton = structure_of(backbone, size).skeleton
    head = skeleton.get_submodule(backbone.head) if backbone.head else None
    inside = end.node.startswith(f"{backbone.head}.")
    if not inside or not isinstance(head, nn.Sequential):
        return end, None
    inner = _layers_before_the_last(head)
    dense = _dense_layers(head)
    if not dense:
        return end, None
    first = dense[-1] if inner is None else dense[0]
    return resolve_layer(backbone, f"{backbone.head}.{first}{INPUT_OF}", size), inner


def _dense_layers(head: nn.Sequential) -> list[str]:
    """Names of the dense layers that follow each other in a head."""
    names = []
    for name, layer in head.named_children():
        if isinstance(layer, nn.Linear):
            names.append(name)
        elif isinstance(layer, nn.Sequential):
            names += [f"{name}.{inside}" for inside in _dense_layers(layer)]
    return names


def _layers_before_the_last(head: nn.Sequential) -> nn.Sequential | None:
    """The layers from the first dense one to the last, which can all start anew; None
    if there are not several."""
    linear = [i for i, layer in enumerate(head) if isinstance(layer, nn.Linear)]
    if len(linear) < 2:
        return None
    layers = head[linear[0] : linear[-1]]  # which keep their names
    if any(map(is_parametrized, layers.modules())):
        return None
    return copy.deepcopy(layers)


def replaced_modules(source: WeightsSource) -> set[str]:
    """Names of the modules whose weights the new head replaces."""
    head = source.backbone.head
    if head is None:
        return set()
    end, _ = head_input(source)
    skeleton = structure_of(source.backbone, source.input.image_size).skeleton
    names = [name for name, _ in skeleton.named_modules()]
    names = [name for name in names if name == head or name.startswith(f"{head}.")]
    first = end.node.removesuffix(INPUT_OF)
    return set(names[names.index(first) :] if first in names else names)


def _refuse_other_width(source: WeightsSource, end: Layer, inner) -> None:
    """Refuse an image size that the dense layers of a head cannot take."""
    if inner is not None and inner[0].in_features != end.features:
        raise ValueError(
            f"Backbone {source.backbone.name!r} has a head of several layers, which "
            f"takes {inner[0].in_features} features. With image_size="
            f"{source.input.image_size} there are {end.features}; "
            "leave image_size=None."
        )


def _tunable_blocks(structure: Structure, end: Layer) -> list[Layer]:
    """Aliased layers below the head that end a block with parameters."""
    layers = [
        layer
        for layer in aliased_layers(structure.backbone)
        if layer.alias not in ("penultimate", "logits")
        and structure.comes_before(layer.node, end.node)
    ]
    block_of = structure.block_of(tuple(layer.node for layer in layers))
    with_weights = {
        block
        for target, block in block_of.items()
        if _has_parameters(attrgetter(target)(structure.skeleton))
    }
    return [layer for i, layer in enumerate(layers) if i in with_weights]


def _number_tuned(source: WeightsSource, blocks: list[Layer], unfreeze) -> int:
    """Number of blocks, from the top, that `unfreeze` means."""
    name = source.backbone.name
    aliases = [layer.alias for layer in blocks]
    if unfreeze == "all":
        return len(blocks)
    if isinstance(unfreeze, str):
        wanted = resolve_layer(source.backbone, unfreeze, source.input.image_size)
        nodes = [layer.node for layer in blocks]
        if wanted.node not in nodes:
            raise ValueError(
                f"unfreeze={unfreeze!r} is not a block of backbone {name!r} that can "
                f"be tuned. Its blocks are {', '.join(map(repr, aliases))}."
            )
        return len(blocks) - nodes.index(wanted.node)
    if unfreeze > len(blocks) == 0:
        raise ValueError(
            f"Backbone {name!r} has no blocks with weights below its head, so "
            f"unfreeze={unfreeze} cannot tune any. Set unfreeze=0."
        )
    if unfreeze > len(blocks):
        raise ValueError(
            f"unfreeze={unfreeze} is deeper than backbone {name!r}, which has "
            f"{len(blocks)} blocks: {', '.join(map(repr, aliases))}. Use at most "
            f"{len(blocks)}, or 'all'."
        )
    return unfreeze


def _has_parameters(part) -> bool:
    """Whether a module has parameters, or a tensor is one."""
    if isinstance(part, nn.Module):
        return any(True for _ in part.parameters())
    return isinstance(part, nn.Parameter)
