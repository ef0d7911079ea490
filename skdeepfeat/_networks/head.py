"""Finds the classifier that ends a network, and what enters it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .._backbones.records import Backbone
from .._processes import fork_safe
from .comparison import only_tensor, same
from .hooks import CLASSIFIED, INPUT_OF, RETURNED, name_of_use
from .structure import (
    Structure,
    kind_of_classifier,
    reads_shape,
    steps_below,
    structure_of,
)
from .tracer import ENDS
from .whole import Whole, can_stop_early

# What may follow the scores of classes: steps that do not mix them. By name, whether it
# is a module, a function or a method.
AFTER_SCORES = {"softmax", "logsoftmax", "sigmoid", "logsigmoid", "exp", "log"}
AFTER_SCORES |= {"flatten", "squeeze", "unsqueeze", "reshape", "view", "unflatten"}
AFTER_SCORES |= {"getitem", "select", "argmax", "contiguous", "identity"}
AFTER_SCORES |= {"to", "float", "double", "half", "bfloat16"}
AFTER_SCORES |= {"add", "sub", "mul", "div", "truediv", "neg"}  # numbers or parameters
AFTER_SCORES |= {"dropout", "dropout1d", "dropout2d", "featuredropout", "alphadropout"}
# What may also follow scores at each place, as in SqueezeNet.
POOLS = {"adaptiveavgpool2d", "avgpool2d", "adaptivemaxpool2d", "maxpool2d"}
POOLS |= {"mean", "amax"}
AFTER_MAPS = AFTER_SCORES | POOLS | {"relu"}
# Steps that choose places, of which the layer before the scores has others, too.
CHOOSES = {"getitem", "select"}
# After these, the output of a linear layer is no score, in code that is not traced.
ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.softplus, torch.tanh, F.normalize),
)
USE = ("call_module", "get_attr")


@dataclass(frozen=True)
class End:
    """The end of a network; each part is None if there is no such node.

    Parameters
    ----------
    classifier : str or None
        Name of the module that computes the class scores.
    penultimate : str or None
        The node of what enters the classifier; without one, of what is returned.
    logits : str or None
        The node of the class scores.
    """

    classifier: str | None = None
    penultimate: str | None = None
    logits: str | None = None


@fork_safe
def find_head(backbone: Backbone) -> str | None:
    """Name of the module that ends a network with classes, None if none does."""
    structure = structure_of(backbone, backbone.input.image_size)
    try:
        return end_of(structure).classifier
    except Exception:  # it takes no images of its size; reported with its layers
        return None


def end_of(structure: Structure) -> End:
    """The end of a network: as it says itself, or where a classifier is found."""
    if not structure.traceable:
        return _end_when_run(structure)
    returned = structure.returned()
    if returned is None:
        return End()
    name = structure.name_of(returned)
    if structure.classified is not None:
        ends = (structure.classified, returned)
        return _stated_end(structure, *map(structure.name_where_computed, ends))
    scores = _scores_before(structure, returned)
    if end := scores and _end_with(structure, scores, name):
        return end
    # Values for each place are no classes of an image.
    several = len(_classifiers_before(structure, returned)) > 1
    return End() if several else End(penultimate=name)


@dataclass(frozen=True)
class Scores:
    """The step that may compute class scores, its kind, and the kinds of those after
    it."""

    node: fx.Node
    kind: str
    follows: frozenset[str]


def _end_with(structure: Structure, scores: Scores, returned: str) -> End | None:
    """The end of a network with these scores; None if they are features.

    All parts are None if that is not clear.
    """
    name = structure.name_of(scores.node)
    shapes = structure.shapes((name, returned))
    whole = _is_vector(shapes.get(name))
    maps = scores.kind == "convolution" or not whole
    if not scores.follows <= (AFTER_MAPS if maps else AFTER_SCORES):
        return None
    if not whole and not _is_vector(shapes.get(returned)):
        return None  # values for each place
    unpooled = not whole and (scores.follows & CHOOSES or not scores.follows & POOLS)
    if unpooled or scores.kind == "product":
        return End()
    return End(structure.owner_of_weights(name), name + INPUT_OF, name)


def _stated_end(structure: Structure, classified: str, returned: str) -> End:
    """The end of a network that can stop before its classifier."""
    if classified == returned:
        return End(penultimate=returned)
    above = structure.graph_to((returned,)), structure.graph_to((classified,))
    users, before = ({str(n.target) for n in g.nodes if n.op in USE} for g in above)
    owners = {structure.module_of(target) for target in users - before}
    with_weights = [name for name in owners if structure.has_weights(name)]
    classifier = with_weights[0] if len(with_weights) == 1 else None
    return End(classifier, classified, returned)


def _is_vector(shape) -> bool:
    """Whether an image has a row of numbers, for a single place."""
    return bool(shape) and math.prod(shape) == max(shape)


def _scores_before(structure: Structure, node: fx.Node) -> Scores | None:
    """The possible class scores that reach this step through steps that read only
    them."""
    follows: set[str] = set()
    while not (kind := structure.classifier_kind(node)):
        entered = _only_input(structure, node)
        if entered is None:
            return None
        follows.add(structure.kind(node))
        node = entered
    return Scores(node, kind, frozenset(follows))


def _classifiers_before(structure: Structure, node: fx.Node) -> list[fx.Node]:
    """The possible classifiers whose scores reach a step, none from another one's."""
    found, waiting = [], [node]
    while waiting:
        step = waiting.pop()
        if structure.classifier_kind(step):
            found.append(step)
        elif step.op not in ENDS and not _mixes_with_weights(structure, step):
            waiting += [n for n in step.all_input_nodes if n in structure.from_image]
    below = {n for step in found for n in steps_below(step)}
    return [step for step in dict.fromkeys(found) if step not in below]


def _mixes_with_weights(structure: Structure, node: fx.Node) -> bool:
    """Whether a step does more with weights than to scale or to shift."""
    scales = node.op != "call_module" and structure.kind(node) in AFTER_SCORES
    return structure.uses_weights(node) and not scales


def _only_input(structure: Structure, node: fx.Node) -> fx.Node | None:
    """The only step whose values a step reads, if no other step reads them."""
    inputs = [n for n in node.all_input_nodes if n in structure.from_image]
    if len(inputs) != 1 or inputs[0].op in ENDS:
        return None
    readers = [user for user in inputs[0].users if not reads_shape(user)]
    return inputs[0] if readers == [node] else None


def _end_when_run(structure: Structure) -> End:
    """The same for a network that fx cannot trace: found by running it."""
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
    return _end_after(_run_with_weights(network, x), returned)


def _noise(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def children_in_features(network: Any, image_size: int) -> set[str]:
    """Names of the top-level children that a network runs before its head."""
    seen: set[str] = set()
    for name, module in network.named_modules():
        child = name.partition(".")[0]
        module.register_forward_pre_hook(lambda *call, child=child: seen.add(child))
    with torch.no_grad():
        network.forward_features(_noise(image_size))
    return seen


def _end_after(uses: list, returned: torch.Tensor) -> End:
    """The end of a network that uses these modules with weights in this order."""
    if not uses:
        return End(penultimate=RETURNED)
    node, name, module, scores = uses[-1]
    kind = kind_of_classifier(module)
    if kind is None or not isinstance(scores, torch.Tensor):
        return End(penultimate=RETURNED)
    if not any(_is_vector(value.shape[1:]) for value in (scores, returned)):
        return End(penultimate=RETURNED)  # values for each place
    if _is_one_of(_results_of(kind, scores), returned):
        return End(name, node + INPUT_OF, node)
    if kind == "linear":
        activated = [function(scores) for function in ACTIVATIONS]
        return End(penultimate=RETURNED) if _is_one_of(activated, returned) else End()
    _, _, other, scores_too = uses[-2] if len(uses) > 1 else uses[-1]
    several = other is not module and kind_of_classifier(other) is not None
    same_shape = _shape(scores_too) == _shape(scores)
    return End() if several and same_shape else End(penultimate=RETURNED)


def _is_one_of(values: list[torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether one of these has the same numbers in the same order."""
    return any(
        value.numel() == expected.numel()
        and torch.allclose(value.flatten(), expected.flatten(), atol=1e-6)
        for value in values
    )


def _run_with_weights(network: nn.Module, x) -> list[tuple[str, str, nn.Module, Any]]:
    """Node, name, module and output of each use of a module with weights of its own in
    which no other such module runs, in order."""
    seen: list = []
    begun: list[int] = []
    uses: Counter[str] = Counter()

    def begin(*call):
        begun.append(len(seen))

    def end(name, module, output):
        uses[name] += 1
        if begun.pop() == len(seen):  # else it contains the last one
            node = name_of_use(name, uses[name] - 1)
            seen.append((node, name, module, _copy(output)))

    hooks = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_pre_hook(begin))
            hooks.append(
                module.register_forward_hook(
                    lambda m, args, out, name=name: end(name, m, out)
                )
            )
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
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
