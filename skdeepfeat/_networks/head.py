"""Finds the classifier that ends a network, and what enters it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .._backbones.records import Backbone
from .._processes import fork_safe
from .comparison import same
from .hooks import CLASSIFIED, INPUT_OF, RETURNED
from .structure import Structure, kind_of_classifier, structure_of
from .tracer import ENDS
from .whole import Whole, can_stop_early

# What may follow the scores of classes: steps without weights that do not mix them. By
# name, whether it is a module, a function or a method.
AFTER_SCORES = {"softmax", "logsoftmax", "sigmoid", "flatten", "squeeze", "reshape"}
AFTER_SCORES |= {"view", "unflatten", "contiguous", "float", "identity"}
AFTER_SCORES |= {"dropout", "dropout1d", "dropout2d", "featuredropout", "alphadropout"}
# What may also follow maps of scores, as in SqueezeNet.
AFTER_MAPS = {"adaptiveavgpool2d", "avgpool2d", "adaptivemaxpool2d", "maxpool2d"}
AFTER_MAPS |= {"mean", "amax", "relu"}
USE = ("call_module", "get_attr")
SHAPES = {"size", "dim", "numel"}  # methods that read no values


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
    scores = _classifier_before(structure, returned)
    if scores and _is_vector(structure.shapes((name,)).get(name)):
        classifier = structure.owner_of_weights(scores)
        return End(classifier, scores + INPUT_OF, scores)
    # Values for each place are no classes of an image.
    several = len(_classifiers_before(structure, returned)) > 1
    return End() if several else End(penultimate=name)


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


def _classifier_before(structure: Structure, node: fx.Node) -> str | None:
    """The classifier whose scores reach this step through steps without weights."""
    follows: set[str] = set()
    while True:
        kind = structure.classifier_kind(node)
        if kind == "linear" and follows <= AFTER_SCORES:
            return structure.name_of(node)
        if kind == "convolution" and follows <= AFTER_SCORES | AFTER_MAPS:
            return structure.name_of(node)
        entered = _only_input(node)
        if kind or entered is None:
            return None
        follows.add(structure.kind(node))
        node = entered


def _classifiers_before(structure: Structure, node: fx.Node) -> list[fx.Node]:
    """The possible classifiers whose scores reach a step, none from another one's."""
    found, waiting = [], [node]
    while waiting:
        step = waiting.pop()
        if structure.classifier_kind(step):
            found.append(step)
        elif step.op not in ENDS and not structure.uses_weights(step):
            waiting += [n for n in step.all_input_nodes if not _reads_shape(n)]
    below = {n for step in found for n in _below(step)}
    return [step for step in dict.fromkeys(found) if step not in below]


def _below(node: fx.Node) -> set[fx.Node]:
    """The steps that a step is computed from."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += step.all_input_nodes
    return found


def _only_input(node: fx.Node) -> fx.Node | None:
    """The only step whose values a step reads, if no other step reads them."""
    inputs = [n for n in node.all_input_nodes if not _reads_shape(n)]
    if len(inputs) != 1 or inputs[0].op in ENDS:
        return None
    readers = [user for user in inputs[0].users if not _reads_shape(user)]
    return inputs[0] if readers == [node] else None


def _reads_shape(node: fx.Node) -> bool:
    """Whether a step returns sizes of a tensor, or numbers computed from them."""
    if node.target in SHAPES or (node.target is getattr and node.args[1] == "shape"):
        return True
    made_of = node.all_input_nodes
    return bool(made_of) and all(map(_reads_shape, made_of))


def _end_when_run(structure: Structure) -> End:
    """The same for a network that fx cannot trace: found by running it."""
    size, network = structure.image_size, structure.real_network()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        returned = network(x)
        if can_stop_early(network):
            classified, scores = Whole(network, stops_early=True)(x)
            if same(scores, returned):
                logits = None if same(classified, returned) else RETURNED
                return End(None, CLASSIFIED, logits)
    *others, last = [("", network, None), *_run_with_weights(network, x)]
    if not isinstance(returned, torch.Tensor):
        return End()
    name, module, given = last
    kind = kind_of_classifier(module)
    if kind is None or not _is_vector(returned.shape[1:]):
        return End(penultimate=RETURNED)
    ends_it = any(
        found.numel() == returned.numel()
        and torch.allclose(found.flatten(), returned.flatten(), atol=1e-6)
        for found in _results_of(kind, given)
    )
    if ends_it:
        return End(name, name + INPUT_OF, name)
    _, other, given_too = others[-1]
    several = kind_of_classifier(other) and _shape(given_too) == _shape(given)
    return End() if several else End(penultimate=RETURNED)


def _run_with_weights(network: nn.Module, x) -> list[tuple[str, nn.Module, Any]]:
    """Name, module and output of the modules with weights, as they run."""
    seen: list = []
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.append((name, m, _copy(out)))
        )
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


def _shape(value) -> tuple | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def _results_of(kind: str, scores) -> list[torch.Tensor]:
    """What a network may return if its classifier returns these scores."""
    if not isinstance(scores, torch.Tensor) or scores.ndim < 2:
        return []
    maps = [scores, scores.relu()] if kind == "convolution" else [scores]
    rows = [scores]
    if kind == "convolution":
        rows += [m.mean((-2, -1)) for m in maps] + [m.amax((-2, -1)) for m in maps]
    steps = (torch.Tensor.clone, torch.sigmoid)
    over_classes = (torch.softmax, torch.log_softmax)
    found = [step(row) for row in rows for step in steps]
    return found + [step(row, 1) for row in rows for step in over_classes]
