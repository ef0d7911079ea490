"""Finds the classifier of a network that torch.fx cannot trace, by running it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .classifiers import is_convolution, is_matrix, kind_of_module
from .comparison import only_tensor, same, tensors_of
from .end import End, is_vector
from .hooks import CLASSIFIED, INPUT_OF, RETURNED, name_of_use
from .structure import Structure
from .whole import Whole, can_stop_early

# After these, the output of a linear layer is not a score.
ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.softplus, torch.tanh, F.normalize),
)
# Modules whose classes are from here use their weights as their names say.
KNOWN = "torch.nn.modules"


def end_when_run(structure: Structure) -> End:
    """The end of a network: as it says itself, or of the last module with weights."""
    network, x = structure.real_network(), _noise(structure.image_size)
    with torch.no_grad():
        returned = only_tensor(structure.run(network, x))
        if can_stop_early(network):
            classified, scores = Whole(network, stops_early=True)(x)
            if same(scores, returned):
                logits = None if same(classified, returned) else RETURNED
                return End(None, CLASSIFIED, logits)
    if not isinstance(returned, torch.Tensor):
        return End()
    uses = _run_with_weights(network, x)
    end = _classifier_at_end(uses, returned)
    return end or _end_without(network, x, uses, returned)


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


def _classifier_at_end(uses: list[Use], returned: torch.Tensor) -> End | None:
    """The end of a network that returns the scores of the last of these modules."""
    last = uses[-1] if uses else None
    if last is None or not isinstance(last.value, torch.Tensor):
        return None
    kind = kind_of_module(last.module)
    vector = any(is_vector(value.shape[1:]) for value in (last.value, returned))
    if (
        not kind
        or not vector
        or not _is_one_of(_results_of(kind, last.value), returned)
    ):
        return None
    return End(last.name, last.node + INPUT_OF, last.node)


def _end_without(network: nn.Module, x, uses: list[Use], returned) -> End:
    """The end of a network that returns features; all parts are None if it is not
    clear."""
    features, last = End(penultimate=RETURNED), uses[-1] if uses else None
    value = last.value if last else None
    values = [v for v in (returned, value) if isinstance(v, torch.Tensor)]
    if not any(v.ndim == 1 or is_vector(v.shape[1:]) for v in values):
        return features  # values for each place
    if _depends_on(_unknown_weights(network, uses, returned), network, x, returned):
        return End()
    if last is None or value is None or len(values) < 2:
        return features
    kind = kind_of_module(last.module)
    return End() if _may_be_scores(kind, uses, returned) else features


def _may_be_scores(kind: str | None, uses: list[Use], returned: torch.Tensor) -> bool:
    """Whether a network may return scores, though they are not those of its last
    module."""
    last, others = uses[-1], uses[:-1]
    if isinstance(last.module, nn.Bilinear):
        return True
    if kind == "linear":
        activated = [function(last.value) for function in ACTIVATIONS]
        return not _is_one_of(activated, returned)
    if kind == "convolution":
        other = others[-1] if others else last
        several = other.module is not last.module and kind_of_module(other.module)
        return bool(several) and _shape(other.value) == _shape(last.value)
    return is_convolution(last.module) and _is_one_of(_after_filters(last), returned)


def _after_filters(last: Use) -> list[torch.Tensor]:
    """What a network may return if filters give the scores, for one place or more."""
    if is_vector(last.value.shape[1:]):
        return _results_of("linear", last.value.flatten(1))
    maps = last.value.flatten(2)
    return [maps.mean(2), maps.amax(2), maps.logsumexp(2)]


def _unknown_weights(network: nn.Module, uses: list[Use], returned) -> list:
    """Weights that no known module has used and that may give the result."""
    known = {
        use.module for use in uses if type(use.module).__module__.startswith(KNOWN)
    }
    owners = [module for module in network.modules() if module not in known]
    weights = [tensor for module in owners for tensor in _tensors_of(module)]
    width = returned.shape[1:].numel() if returned.ndim > 1 else 1
    if width == 1:
        return [tensor for tensor in weights if tensor.numel() > 1]
    return [t for t in weights if is_matrix(t) and width in t.shape]


def _depends_on(weights: list, network: nn.Module, x, returned: torch.Tensor) -> bool:
    """Whether a network returns something else with other weights, which it keeps."""
    generator = torch.Generator().manual_seed(0)
    for tensor in weights:
        other = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.data = other.to(tensor.device)
    with torch.no_grad():
        return bool(weights) and not same(only_tensor(network(x)), returned)


def _tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters, buffers and other tensors of a module itself, with fractions."""
    own = tensors_of(list(vars(module).values()))
    return [tensor for tensor in own if tensor.is_floating_point()]


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
