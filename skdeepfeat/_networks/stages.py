"""The stages of a network in the style of timm, which describes them itself.

Its attribute `feature_info` names the modules after which its stages end, and their
numbers of channels.
"""

import math
import re
from dataclasses import dataclass

from torch import nn

from .._backbones.layouts import LAYOUTS
from .._backbones.records import Layer
from .._validation import is_whole
from .hooks import INPUT_OF

MOST_BLOCKS = 12  # which have an alias; of more, every second or third has one


@dataclass(frozen=True)
class Stage:
    """What a network says of a stage: the node where it ends, and its channels."""

    node: str
    channels: int | None


def stage_info(net: nn.Module) -> list[Stage]:
    """What a network says of its stages, in order."""
    info = getattr(net, "feature_info", None) or ()
    return [
        Stage(about["module"], about["num_chs"])
        for about in getattr(info, "info", info)
    ]


def stages_of(net: nn.Module) -> dict[str, Stage]:
    """The stages in order of depth, by alias; empty if the network describes none."""
    stages = stage_info(net)
    if len({stage.node for stage in stages}) < max(2, len(stages)):
        return {}
    stem, blocks = stem_and_blocks(stages)
    step = math.ceil(len(blocks) / MOST_BLOCKS)
    numbered = {f"block{i}": block for i, block in enumerate(blocks, 1)}
    kept = {
        a: b
        for i, (a, b) in enumerate(numbered.items(), 1 - len(blocks))
        if i % step == 0
    }
    return {"stem": stem, **kept} if stem else kept


def stem_and_blocks(stages: list[Stage]) -> tuple[Stage | None, list[Stage]]:
    """The stem is the first entry if it is named unlike the second, as "stem" is unlike
    "stages.0"; or else what enters the first of the blocks."""
    first, second = (re.sub(r"[0-9]", "", stage.node) for stage in stages[:2])
    if first != second:
        return stages[0], stages[1:]
    container = re.match(r"\w+\.0\b", stages[0].node)
    stem = Stage(container.group() + INPUT_OF, None) if container else None
    return stem, stages


def fits(layer: Layer, channels: int | None) -> bool:
    """Whether a layer is what a network says of a stage."""
    places = LAYOUTS[layer.layout].places(layer.shape)
    return bool(places) and channels in (None, layer.features)


def stated_tokens(net: nn.Module) -> int | None:
    """Number of tokens that belong to no place of the image, as a network states it;
    None if it does not."""
    return max(
        (n for n in map(_stated_by, net.modules()) if n is not None), default=None
    )


def other_tokens(net: nn.Module) -> int | None:
    """The same number, also as the names of its tensors say it, such as a class token;
    None if none does."""
    named = [1 for module in net.modules() if _has_class_token(module)]
    stated = [n for n in map(_stated_by, net.modules()) if n is not None]
    return max(stated + named, default=None)


def _stated_by(module: nn.Module) -> int | None:
    stated = getattr(module, "num_prefix_tokens", None)
    return int(stated) if is_whole(stated) else None


def _has_class_token(module: nn.Module) -> bool:
    tokens = (getattr(module, name, None) for name in ("class_token", "cls_token"))
    return any(token is not None for token in tokens)
