"""Finds the classifier that ends a network, and what enters it."""

from dataclasses import dataclass

from torch import fx

from .._backbones.records import Backbone
from .._processes import fork_safe
from .classifiers import is_convolution, kind_of_step, owner_of_weights
from .end import End, is_vector
from .end_when_run import end_when_run
from .hooks import INPUT_OF
from .structure import Structure, reads_shape, steps_below, structure_of
from .tracer import ENDS

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
# After these, what a linear layer or a filter gives are features, not scores; so are
# the results of modules with weights, such as norms.
ACTIVATIONS = {"relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu"}
ACTIVATIONS |= {"silu", "mish", "hardswish", "hardsigmoid", "softplus", "softsign"}
ACTIVATIONS |= {"normalize", "layernorm", "batchnorm", "groupnorm", "rmsnorm", "sign"}
LIMITS = {"tanh", "atan"}  # activations that also limit scores, if they are scaled back
SCALES = {"mul", "div", "truediv"}
EXPONENTIALS = {"exp", "logsumexp", "softmax", "logsoftmax"}  # of scores, as a rule
# Steps that choose some of the places of the layer before the scores.
CHOOSES = {"getitem", "select"}
UNCLEAR = {"product", "filters"}  # kinds of scores that may as well be features
USE = ("call_module", "get_attr")


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
        return end_when_run(structure)
    returned = structure.returned()
    if returned is None:
        return _end_of_several(structure)
    name = structure.name_of(returned)
    if structure.classified is not None:
        ends = (structure.classified, returned)
        return _stated_end(structure, *map(structure.name_where_computed, ends))
    scores = _scores_before(structure, returned)
    if end := scores and _end_with(structure, scores, name):
        return end
    # Values for each place are not classes of an image.
    unclear = scores is None and _may_mix_scores(structure, returned)
    return End() if unclear else End(penultimate=name)


def _owners(scores: "Scores | None") -> list[str]:
    """The module that may compute these scores, in a list."""
    if scores is None or scores.kind in UNCLEAR:
        return []
    owner = owner_of_weights(scores.node)
    return [owner] if owner else []


def _end_of_several(structure: Structure) -> End:
    """The end of a network that returns several values: scores of heads that read the
    same features, or also these features themselves."""
    nodes, entered, heads = [], set(), []
    for step in structure.all_returned():
        scores = _scores_before(structure, step)
        end = scores and _end_with(structure, scores, structure.name_of(step))
        if end and end.penultimate:
            nodes.append(end.penultimate)
            step = structure.step(end.penultimate)
        entered.add(structure.name_where_computed(step))
        heads += _owners(scores)
    node = nodes[0] if nodes and len(entered) == 1 else None
    return End(penultimate=node, heads=tuple(heads))


@dataclass(frozen=True)
class Scores:
    """The step that may compute class scores, its kind, the kinds of those after it,
    and whether one of these makes them features."""

    node: fx.Node
    kind: str
    follows: frozenset[str]
    activated: bool


def _end_with(structure: Structure, scores: Scores, returned: str) -> End | None:
    """The end of a network with these scores; None if they are features.

    All parts are None if that is not clear.
    """
    name = structure.name_of(scores.node)
    shapes = structure.shapes((name, returned))
    whole = is_vector(shapes.get(name))
    if not whole and not is_vector(shapes.get(returned)):
        return None  # values for each place
    maps = scores.kind == "convolution" or not whole
    known = scores.follows <= (AFTER_MAPS if maps else AFTER_SCORES)
    if scores.activated and (scores.kind == "filters" or not known):
        return None
    unpooled = not whole and (scores.follows & CHOOSES or not scores.follows & POOLS)
    if not known or unpooled or scores.kind in UNCLEAR:
        return End(heads=tuple(_owners(scores)))
    return End(owner_of_weights(scores.node), name + INPUT_OF, name)


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


def _scores_before(structure: Structure, node: fx.Node) -> Scores | None:
    """The possible class scores that reach this step through steps that read only
    them."""
    follows: list[fx.Node] = []
    while not (kind := _kind_of_scores(structure, node)):
        entered = _only_input(structure, node)
        if entered is None:
            return None
        follows.append(node)
        node = entered
    words = frozenset(map(structure.kind, follows))
    return Scores(node, kind, words, _is_activated(structure, follows))


def _is_activated(structure: Structure, follows: list[fx.Node]) -> bool:
    """Whether one of the steps after a layer, the last one first, makes its results
    features."""
    scaled = False
    for step in follows:
        word = structure.kind(step)
        scaled = scaled or word in SCALES
        weighs = step.op == "call_module" and structure.uses_weights(step)
        if weighs or word in ACTIVATIONS or (word in LIMITS and not scaled):
            return True
    return False


def _kind_of_scores(structure: Structure, node: fx.Node) -> str | None:
    """Which kind of classifier a step may be, or "filters" of more than one place."""
    if kind := kind_of_step(structure, node):
        return kind
    if node.op != "call_module":
        return None
    module = structure.skeleton.get_submodule(str(node.target))
    return "filters" if is_convolution(module) else None


def _may_mix_scores(structure: Structure, node: fx.Node) -> bool:
    """Whether a step may be computed from the scores of several classifiers, or from
    those of one classifier as a softmax is."""
    found, seen = [], set()
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        if kind_of_step(structure, step):
            found.append(step)
        elif step.op not in ENDS and not _mixes_with_weights(structure, step):
            waiting += [n for n in step.all_input_nodes if n in structure.from_image]
    below = {n for step in found for n in steps_below(step)}
    last = [step for step in found if step not in below]
    after = {structure.kind(n) for n in seen - below if n.op not in ENDS}
    return len(last) > 1 or bool(last and after & EXPONENTIALS)


def _mixes_with_weights(structure: Structure, node: fx.Node) -> bool:
    """Whether a step does more with weights than to scale or to shift."""
    scales = node.op != "call_module" and structure.kind(node) in AFTER_SCORES
    return structure.uses_weights(node) and not scales


def _only_input(structure: Structure, node: fx.Node) -> fx.Node | None:
    """The only step whose values a step reads, if no other step reads them."""
    inputs = [n for n in node.all_input_nodes if n in structure.from_image]
    if len(inputs) != 1 or inputs[0].op in ENDS:
        return None
    readers = [n for n in inputs[0].users if n in structure.live and not reads_shape(n)]
    return inputs[0] if readers == [node] else None
