"""Finds the classifier of a network that torch.fx cannot trace, by running it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .comparison import only_tensor, same
from .end import End, is_vector
from .hooks import CLASSIFIED, INPUT_OF, RETURNED, name_of_use
from .structure import Structure, is_convolution, kind_of_classifier
from .whole import Whole, can_stop_early

# After these, the output of a linear layer is no score.
ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.softplus, torch.tanh, F.normalize),
)


def end_when_run(structure: Structure) -> End:
    """The end of a network: as it says itself, or of the last module with weights."""
    network, x = structure.real_network(), _noise(structure.image_size)
    with torch.no_grad():
        returned = only_tensor(network(x))
        if can_stop_early(network):
            classified, scores = Whole(network, stops_early=True)(x)
            if same(scores, returned):
                logits = None if same(classified, returned) else RETURNED
                return End(None, CLASSIFIED, logits)
    if not isinstance(returned, torch.Tensor):
        return End()
    uses = _run_with_weights(network, x)
    if uses and _may_multiply(network, uses[-1].value, returned):
        return End()
    return _end_after(uses, returned)


def _noise(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, size, size, generator=generator, dtype=torch.float32)


def children_in_features(network: Any, image_size: int) -> set[str]:
    """Names of the top-level children that a network runs before its head."""
    seen: set[str] = set()
    for name, module in network.named_modules():
        child = name.partition(".")[0]
        module.register_forward_pre_hook(lambda *call, child=child: seen.add(child))
    with torch.no_grad():
        network.forward_features(_noise(image_size))
    return seen


@dataclass(frozen=True)
class Use:
    """A use of a module with weights: its node, and the module and what it returned."""

    node: str
    name: str
    module: nn.Module
    value: Any


def _end_after(uses: list[Use], returned: torch.Tensor) -> End:
    """The end of a network that uses these modules in this order.

    All parts are None if it is not clear.
    """
    features = End(penultimate=RETURNED)
    last = uses[-1] if uses else None
    if last is None or not isinstance(last.value, torch.Tensor):
        return features
    if not any(is_vector(value.shape[1:]) for value in (last.value, returned)):
        return features  # values for each place
    kind = kind_of_classifier(last.module)
    if kind and _is_one_of(_results_of(kind, last.value), returned):
        return End(last.name, last.node + INPUT_OF, last.node)
    return End() if _may_be_scores(kind, uses, returned) else features


def _may_be_scores(kind: str | None, uses: list[Use], returned: torch.Tensor) -> bool:
    """Whether a network may return scores, though they are not those of its last
    module."""
    last, others = uses[-1], uses[:-1]
    if kind == "linear":
        activated = [function(last.value) for function in ACTIVATIONS]
        return not _is_one_of(activated, returned)
    if kind == "convolution":
        other = others[-1] if others else last
        several = other.module is not last.module and kind_of_classifier(other.module)
        return bool(several) and _shape(other.value) == _shape(last.value)
    whole = is_convolution(last.module) and is_vector(last.value.shape[1:])
    return whole and _is_one_of(_results_of("linear", last.value.flatten(1)), returned)


def _may_multiply(network: nn.Module, value, returned: torch.Tensor) -> bool:
    """Whether a matrix, in a module around others, may turn a value into the result."""
    around = [module for module in network.modules() if [*module.children()]]
    weights = [p for module in around for p in module.parameters(recurse=False)]
    widths = returned.shape[1:] if returned.ndim == 2 else ()
    return any(
        sorted(matrix.shape) == sorted((size, width))
        for matrix in weights
        for size in (_shape(value) or ())[1:]
        for width in widths
    )


def _is_one_of(values: list[torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether one of these has the same numbers in the same order."""
    return any(
        value.numel() == expected.numel()
        and torch.allclose(value.flatten(), expected.flatten(), atol=1e-6)
        for value in values
    )


def _run_with_weights(network: nn.Module, x) -> list[Use]:
    """The uses of modules with weights of their own in which no other such module runs,
    in order; the network keeps the hooks."""
    seen: list[Use] = []
    begun: list[int] = []
    uses: Counter[str] = Counter()

    def begin(*call):
        begun.append(len(seen))

    def end(name, module, output):
        uses[name] += 1
        if begun.pop() == len(seen):  # else it contains the last one
            node = name_of_use(name, uses[name] - 1)
            seen.append(Use(node, name, module, _copy(output)))

    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(
                lambda m, args, out, name=name: end(name, m, out)
            )
    with torch.no_grad():
        network(x)
    return seen


def _shape(value) -> tuple | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def _results_of(kind: str, scores: torch.Tensor) -> list[torch.Tensor]:
    """What a network may return if its classifier returns these scores."""
    if scores.ndim < 2:
        return []
    maps = [scores, scores.relu()] if kind == "convolution" else [scores]
    places = (-2, -1) if kind == "convolution" else tuple(range(1, scores.ndim - 1))
    rows = [scores]
    if places:
        rows += [m.mean(places) for m in maps] + [m.amax(places) for m in maps]
    steps = (torch.Tensor.clone, torch.sigmoid)
    over_classes = (torch.softmax, torch.log_softmax)
    found = [step(row) for row in rows for step in steps]
    return found + [step(row, 1) for row in rows for step in over_classes]
