"""Finds the vectors of a network that are the plain average of one of its maps.

Such a vector equals the map under ``pooling="avg"``, so only one of the two needs to be
computed and stored.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .._backbones.records import Layer

# Steps that change neither the values nor their order: a vector with one value for each
# channel is the same before and after them.
KEEP_VALUES: set[Any] = {nn.Identity, nn.AlphaDropout, nn.FeatureAlphaDropout}
KEEP_VALUES |= {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, "contiguous"}
KEEP_ORDER = KEEP_VALUES | {nn.Flatten, "flatten", "squeeze", "view", "reshape"}
KEEP_ORDER |= {torch.flatten, torch.squeeze, torch.reshape}
DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}

# The axes of the places in an image; axis 0 is the batch.
PLACES = {"chw": {2, 3}, "hwc": {1, 2}, "tokens": {1}, "channels": {2}}


def with_averages(
    layers: tuple[Layer, ...], step_of: Callable[[str], fx.Node], net: nn.Module
) -> tuple[Layer, ...]:
    """The same layers; each vector names the map among them whose average it is."""
    maps = {step_of(m.node): m for m in reversed(layers) if m.layout in PLACES}

    def averaged(layer):
        same = _averaged_map(step_of(layer.node), maps, net)
        return same.node if same and same.features == layer.features else None

    return tuple(
        replace(layer, average_of=averaged(layer))
        if layer.layout == "vector"
        else layer
        for layer in layers
    )


def _averaged_map(step: fx.Node, maps: dict[fx.Node, Layer], net) -> Layer | None:
    """The map whose average over all places is the value of a step."""
    mean = _behind(step, KEEP_ORDER, net)
    if not mean.all_input_nodes:
        return None
    averaged = maps.get(_behind(mean.all_input_nodes[0], KEEP_VALUES, net, maps))
    if averaged is None:
        return None
    axes = _mean_axes(mean, net, len(averaged.shape) + 1)
    return averaged if axes == PLACES[averaged.layout] else None


def averaged_step(step: fx.Node, net: nn.Module) -> fx.Node | None:
    """The step whose maps (n, c, h, w) are averaged to the vector of another step."""
    mean = _behind(step, KEEP_ORDER, net)
    if not mean.all_input_nodes or _mean_axes(mean, net, 4) != PLACES["chw"]:
        return None
    return mean.all_input_nodes[0]


def _behind(step: fx.Node, passed: set, net, wanted=()) -> fx.Node:
    """This step, or the first before it, that is wanted or must not be passed."""
    while step not in wanted and (_kind(step, net) in passed or _is_off(step)):
        step = step.all_input_nodes[0]
    return step


def _kind(step: fx.Node, net: nn.Module) -> Any:
    """A function, the name of a method, or the class of a module without hooks."""
    if step.op != "call_module":
        return step.target if step.op.startswith("call_") else None
    module = net.get_submodule(str(step.target))
    hooked = module._forward_hooks or module._forward_pre_hooks
    return None if hooked else type(module)


def _arguments(step: fx.Node) -> dict[str, Any]:
    """The arguments of a function of torch.nn, by name."""
    signature = inspect.signature(step.target)  # type: ignore[arg-type]
    bound = signature.bind(*step.args, **step.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_off(step: fx.Node) -> bool:
    """Whether this is a dropout that drops nothing."""
    return step.target in DROPOUTS and not _arguments(step)["training"]


def _mean_axes(step: fx.Node, net: nn.Module, n_axes: int) -> set[int]:
    """The axes over which a step takes the plain mean, counted from the front."""
    kind = _kind(step, net)
    if kind in (torch.mean, "mean") and step.kwargs.get("dtype") is None:
        axes = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else ())
        numbers = axes if isinstance(axes, (tuple, list)) else [axes]
        return {axis % n_axes for axis in numbers if isinstance(axis, int)}
    return {2, 3} if _pooled_size(step, kind, net) in (1, (1, 1), [1, 1]) else set()


def _pooled_size(step: fx.Node, kind, net: nn.Module) -> Any:
    """What an adaptive average pool leaves of height and width, None of others."""
    if kind is nn.AdaptiveAvgPool2d:
        return net.get_submodule(str(step.target)).output_size
    return _arguments(step)["output_size"] if kind is F.adaptive_avg_pool2d else None
