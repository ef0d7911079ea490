"""Finds the classifier that ends a network, and what enters it."""

import math

import torch
from torch import fx, nn

from .._backbones.records import Backbone
from .._processes import fork_safe
from .hooks import RETURNED
from .structure import Structure, kind_of_classifier, structure_of
from .tracer import ENDS

# What may follow the scores of classes: steps without weights that do not mix them. By
# name, whether it is a module, a function or a method.
AFTER_SCORES = {"softmax", "logsoftmax", "sigmoid", "flatten", "squeeze", "reshape"}
AFTER_SCORES |= {"view", "unflatten", "contiguous", "float", "identity"}
AFTER_SCORES |= {"dropout", "dropout1d", "dropout2d", "featuredropout", "alphadropout"}
# What may also follow maps of scores, as in SqueezeNet.
AFTER_MAPS = {"adaptiveavgpool2d", "avgpool2d", "adaptivemaxpool2d", "maxpool2d"}
AFTER_MAPS |= {"mean", "amax", "relu"}
SHAPES = {"size", "dim", "numel"}  # methods that read no values


@fork_safe
def find_head(backbone: Backbone) -> str | None:
    """Name of the module that ends a network with classes, None if none does."""
    structure = structure_of(backbone, backbone.input.image_size)
    try:
        classifier, _ = end_of(structure)
    except Exception:  # it takes no images of its size; reported with its layers
        return None
    if classifier is None or not structure.traceable:
        return classifier
    return structure.owner_of_weights(classifier)


def end_of(structure: Structure) -> tuple[str | None, str | None]:
    """The node of the classifier that ends a network, and the node that it returns;
    each None if there is no such node."""
    if not structure.traceable:
        return _end_when_run(structure)
    returned = structure.returned()
    if returned is None:
        return None, None
    name = structure.name_of(returned)
    classifier = _classifier_before(structure, returned)
    if classifier and not _is_vector(structure.shapes((name,)).get(name)):
        classifier = None  # values for each place are no classes of an image
    return classifier, name


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


def _end_when_run(structure: Structure) -> tuple[str | None, str | None]:
    """The same for a network that fx cannot trace: found by running it."""
    size = structure.image_size
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    name, module, given, returned = _last_with_weights(structure.real_network(), x)
    if not isinstance(returned, torch.Tensor):
        return None, None
    kind = kind_of_classifier(module)
    if kind is None or not _is_vector(returned.shape[1:]):
        return None, RETURNED
    same = any(
        found.numel() == returned.numel()
        and torch.allclose(found.flatten(), returned.flatten(), atol=1e-6)
        for found in _results_of(kind, given)
    )
    return (name if same else None), RETURNED


def _last_with_weights(network: nn.Module, x):
    """Name, module and output of the last module with weights to run, and the output
    of the network."""
    seen: list = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(
                lambda m, args, out, name=name: seen.append((name, m, _copy(out)))
            )
    with torch.no_grad():
        returned = network(x)
    return (*(seen[-1] if seen else ("", network, None)), returned)


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
