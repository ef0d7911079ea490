"""Network + names of layers → a smaller network that returns just those activations.

The graph of a network is traced on its skeleton (torch.fx), cut after the last layer
asked for, and bound to the shared network's own weights: nothing is hooked, copied
or computed in vain, and many threads may run it at once. Networks that fx cannot
trace run as a private copy with hooks, one thread at a time (:class:`HookedNetwork`).
"""

import contextlib
import copy
import functools
import math
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._averages import with_averages
from ._backbones import Backbone, Layer, WeightsSource, resolve_weights
from ._exceptions import WeightsError
from ._layouts import ENLARGED, stride_of
from ._networks import Network, build_network
from ._processes import Lock, fork_safe
from ._traced import fill, traced
from ._tracing import ENDS, calls_its_class, without_inplace

INPUT_OF = ".input"
RETURNED = "returned"  # what a network returns that fx cannot trace

# Modules that give a new tensor, which is no view of another.
MAKES_NEW = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
SUMS = (operator.add, torch.add)

# Structure ---------------------------------------------------------------------------


class Structure:
    """What is known of a network without its weights: nodes, and shapes at a size.

    Parameters
    ----------
    backbone : Backbone
    image_size : int
        Side of the input.
    """

    def __init__(self, backbone: Backbone, image_size: int):
        self.backbone, self.image_size = backbone, image_size
        found = traced(backbone, image_size)
        self.skeleton, self.graph, self._named = (
            found.skeleton,
            found.graph,
            found.named,
        )
        self.values, self.checked = found.values, found.checked
        self.nodes = tuple(self._named)
        if self.graph is None:
            modules = (name for name, _ in self.skeleton.named_modules() if name)
            self.nodes = (*dict.fromkeys((*modules, RETURNED)),)

    @property
    def traceable(self) -> bool:
        """Whether fx could trace the network."""
        return self.graph is not None

    def canonical(self, node: str) -> str | None:
        """The full name of a node, None if there is no such node.

        A module stands for the last node within it.
        """
        reader = node.removesuffix(INPUT_OF)
        if reader != node:
            return node if reader in self.nodes else None
        return representative_node(node, self.nodes)

    def cut(self, nodes: tuple[str, ...]) -> fx.Graph:
        """The graph that returns {node: value} for these nodes and does no more."""
        assert self.graph is not None
        copies: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph.graph_copy(self.graph, copies)
        graph.output({name: copies[self._node(name)] for name in nodes})
        module = fx.GraphModule(self.skeleton, graph)
        module.graph.eliminate_dead_code()
        return module.graph

    def tail(self, start: str, end: str) -> fx.Graph | None:
        """The graph from the value of one node to that of another.

        None if anything before `start` is needed besides, so that it is no cut.
        """
        graph = self.cut((start, end))
        for node in list(graph.nodes):  # checks of the image's shape need the image
            if node.target is torch._assert:
                graph.erase_node(node)
        returned = graph.output_node().args[0]
        assert isinstance(returned, dict)
        entered, left = returned[start], returned[end]
        image = next(node for node in graph.nodes if node.op == "placeholder")
        graph.output_node().args = (left,)
        with graph.inserting_before(image):
            given = graph.placeholder("boundary")
        entered.replace_all_uses_with(given)
        module = fx.GraphModule(self.skeleton, graph)
        module.graph.eliminate_dead_code()
        images = [n for n in module.graph.nodes if n.op == "placeholder"][1:]
        if any(node.users for node in images):
            return None
        for node in images:
            module.graph.erase_node(node)
        return module.graph

    @functools.cached_property
    def aliased_modules(self) -> set[str]:
        """Modules whose output is an aliased layer."""
        layers = self.backbone.layers or find_layers(self.backbone)
        return {str(self._node(layer.node).target) for layer in layers}

    def comes_before(self, node: str, other: str) -> bool:
        """Whether a node is computed no later than another one."""
        assert self.graph is not None
        order = {step: place for place, step in enumerate(self.graph.nodes)}
        return order[self._node(node)] <= order[self._node(other)]

    def block_of(self, ends: tuple[str, ...]) -> dict[str, int]:
        """Module, parameter or buffer → which block uses it first.

        Block i is what comes before node ``ends[i]``, and after the one before it.
        """
        assert self.graph is not None
        last = [self._node(name) for name in ends]
        found: dict[str, int] = {}
        block = 0
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                found.setdefault(str(node.target), block)
            if node in last:
                block = last.index(node) + 1
        return found

    def _node(self, name: str) -> fx.Node:
        """The step of this name, or what enters it if the name says so."""
        if not name.endswith(INPUT_OF):
            return self._named[name]
        reader = self._named[name.removesuffix(INPUT_OF)]
        return _before_dropout(reader.all_input_nodes[0], self.skeleton)

    def returned(self) -> fx.Node | None:
        """The step whose value the network returns, None if it returns several."""
        assert self.graph is not None
        node = self.graph.output_node().args[0]
        if not isinstance(node, fx.Node) or node.op in ENDS:
            return None
        return _before_dropout(node, self.skeleton)

    def name_of(self, node: fx.Node) -> str:
        """The name of a step."""
        return next(name for name, step in self._named.items() if step is node)

    def kind(self, node: fx.Node) -> str:
        """What a step does, in one word: "softmax" of nn.Softmax and of F.softmax."""
        if node.op == "call_module":
            name = type(self.skeleton.get_submodule(str(node.target))).__name__
        else:
            name = getattr(node.target, "__name__", str(node.target))
        return name.lower().replace("_", "")

    def classifier_kind(self, node: fx.Node) -> str | None:
        """Whether a step may give classes: see `kind_of_classifier`."""
        if node.op == "call_module":
            module = self.skeleton.get_submodule(str(node.target))
            return kind_of_classifier(module)
        weight = node.args[1] if len(node.args) > 1 else None
        own = isinstance(weight, fx.Node) and weight.op == "get_attr"
        return "linear" if node.target is F.linear and own else None

    def owner_of_weights(self, name: str) -> str | None:
        """The module whose weights a step uses."""
        node = self._named[name]
        if node.op == "call_module":
            return str(node.target)
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return str(weight.target).rpartition(".")[0] or None

    @fork_safe
    def shapes(self, nodes: tuple[str, ...], image_size=None) -> dict[str, tuple]:
        """Shape of one image's output at each node, the batch axis left out.

        Nodes whose output is no tensor with one row for each image are left out.
        """
        size, n = image_size or self.image_size, 2
        device = "meta" if self.traceable else "cpu"
        x = torch.zeros(n, 3, size, size, device=device)
        network = self.skeleton if self.traceable else self.real_network()
        with torch.no_grad():
            values = bind(self, network, nodes)(x)
        return {
            node: tuple(value.shape[1:])
            for node, value in values.items()
            if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == n
        }

    def real_network(self) -> nn.Module:
        """The network with weights, its own if it has any, and nobody else's."""
        backbone = self.backbone
        has_weights = backbone.arrays is not None or backbone.weights
        source = resolve_weights(backbone, "default" if has_weights else None, 0)
        return build_network(source).module


def structure_of(backbone: Backbone, image_size: int) -> Structure:
    """The structure of a network for this input size."""
    return backbone.memo.get(
        ("structure", image_size), lambda: Structure(backbone, image_size)
    )


def representative_node(name: str, nodes) -> str | None:
    """The node of this name, or the last one within the module of this name."""
    if name in nodes:
        return name
    inside = [node for node in nodes if node.startswith(name + ".")]
    return inside[-1] if inside else None


def _before_dropout(node: fx.Node, net: nn.Module) -> fx.Node:
    """Dropout does nothing in evaluation; name what enters it."""
    if node.op != "call_module":
        return node
    module = net.get_submodule(str(node.target))
    if "Dropout" not in type(module).__name__:
        return node
    return _before_dropout(node.all_input_nodes[0], net)


# Running ----------------------------------------------------------------------------


def bind(structure: Structure, network: nn.Module, nodes: tuple[str, ...]):
    """A callable (n, 3, h, w) → {node: tensor} that runs `network` no further than
    the last of `nodes`."""
    if not structure.traceable:
        return HookedNetwork(network, nodes)
    return fill_graph(structure, network, structure.cut(nodes)).eval()


def fill_graph(structure: Structure, network: nn.Module, graph: fx.Graph):
    """The module of a graph, with the network's own parts: nothing is copied."""
    return without_inplace(fill(structure.skeleton, network, graph))


class HookedNetwork:
    """Activations of a network that fx cannot trace.

    A private copy of the network is hooked, run under a lock, and left by an
    exception once the last layer has answered. It runs in the memory format of its
    author, which its code may rely on.

    Parameters
    ----------
    network : torch.nn.Module
    nodes : tuple of str
        Names of modules; ``"fc.input"`` is what enters the module ``"fc"``, and
        ``"returned"`` what the network returns.
    """

    class _Done(Exception):
        pass

    def __init__(self, network: nn.Module, nodes: tuple[str, ...]):
        self._network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self._lock = Lock()
        self._wanted = frozenset(nodes)
        self._seen: dict[str, torch.Tensor] = {}
        modules = dict(self._network.named_modules())
        self._returned = RETURNED not in modules and RETURNED in nodes
        for node in [n for n in nodes if n in modules or n.endswith(INPUT_OF)]:
            name = node.removesuffix(INPUT_OF)
            if node.endswith(INPUT_OF):
                modules[name].register_forward_pre_hook(self._keeper(node))
            else:
                modules[name].register_forward_hook(self._keeper(node))

    def _keeper(self, node):
        def keep(module, args, output=None):
            """Keep what a module takes or gives, the first time it is used."""
            value = args[0] if output is None else output
            if isinstance(value, torch.Tensor):  # a later step may work in place
                self._seen.setdefault(node, value.clone())
            if self._seen.keys() == self._wanted:
                raise self._Done

        return keep

    def __call__(self, x):
        with self._lock:
            self._seen.clear()
            try:
                returned = self._network(x.contiguous())
                if self._returned:
                    self._seen[RETURNED] = returned
            except self._Done:
                pass
            return dict(self._seen)

    def state_dict(self):
        """Entries of the network, as of a module."""
        return self._network.state_dict()

    def to(self, device, dtype) -> None:
        """Run there, in this type of numbers, from now on."""
        self._network.to(device, dtype)


@contextlib.contextmanager
def explain_size(source: WeightsSource, nodes: tuple[str, ...]):
    """A context in which a network that refuses images says which parameter it is.

    Only a network that does so on no device, and takes images of its own size, is
    blamed on the size; any other error passes through.
    """
    try:
        yield
    except Exception as error:
        size, backbone = source.input.image_size, source.backbone
        if not _refuses(backbone, size, nodes):
            raise
        raise ValueError(
            f"Backbone {backbone.name!r} does not take images of image_size={size}: "
            f"{error}. Choose another size, for instance a larger one."
        ) from error


def _refuses(backbone: Backbone, image_size: int, nodes: tuple[str, ...]) -> bool:
    """Whether the network cannot be computed at this size, but can at its own."""
    own = backbone.input.image_size
    if image_size == own or _can_compute(structure_of(backbone, image_size), nodes):
        return False
    return _can_compute(structure_of(backbone, own), nodes)


def _can_compute(structure: Structure, nodes: tuple[str, ...]) -> bool:
    """Whether the shapes of these nodes can be found."""
    try:
        return structure.shapes(nodes).keys() >= set(nodes)
    except Exception:  # whatever the network raises
        return False


def activations_of(network: Network, source: WeightsSource, nodes: tuple[str, ...]):
    """The cut network for these nodes; made once for each shared network."""
    key = (source.input.image_size, nodes)
    with network.lock:
        if key not in network.cuts:
            structure = structure_of(source.backbone, source.input.image_size)
            cut = bind(structure, network.module, nodes)
            _check_head(cut, network.absent, source)  # before names change
            if isinstance(cut, fx.GraphModule):
                fold_batch_norms(cut, network.substitutes, structure.aliased_modules)
                if network.rounded:
                    round_off(cut, network.substitutes, *network.rounded)
                overwrite_in_place(cut)
            elif network.rounded:
                cut.to(*network.rounded)
            network.cuts[key] = cut
        return network.cuts[key]


def _check_head(cut, absent: frozenset, source: WeightsSource) -> None:
    """Refuse a layer beyond a head that the weights file does not have."""
    if absent.intersection(cut.state_dict()):
        raise WeightsError(
            f"The weights in {str(source.path)!r} have no classes that fit backbone "
            f"{source.backbone.name!r}, so layer='logits' cannot be read from them. "
            "Ask for layer='penultimate' or an earlier one."
        )


def fold_batch_norms(cut: fx.GraphModule, made: dict, apart: set[str]) -> None:
    """Replace a convolution and the batch norm after it by one convolution.

    No layer may depend on which others are read: convolutions that have an alias stay
    `apart` always, and what is asked for between the two otherwise is computed
    besides. `made` keeps what was made for other cuts of the same network.
    """
    for node in [n for n in cut.graph.nodes if n.op == "call_module"]:
        module, before = _module_of(cut, node), next(iter(node.all_input_nodes), None)
        if _is_untraced_sequence(module):
            _replace(cut, node, node, made, _fold_within, module)
        elif before and before.op == "call_module" and before.target not in apart:
            conv = _module_of(cut, before)
            if _can_fold(conv, module):
                _replace(cut, before, node, made, _fold, conv, module)
    _tidy(cut)


def round_off(cut: fx.GraphModule, made: dict, device: str, dtype) -> None:
    """Replace modules and tensors by copies on a device, in another type of numbers.

    What has been folded before is rounded once, and not rounded, folded and rounded.
    """
    for node in [n for n in cut.graph.nodes if n.op in ("call_module", "get_attr")]:
        part = operator.attrgetter(str(node.target))(cut)
        if part not in made:
            made[part] = _rounded(part, device, dtype)
        if isinstance(part, nn.Module):
            _set_module(cut, node, made[part])
        else:
            node.target = _free_name(cut, node)
            cut.register_buffer(node.target, made[part])
    _tidy(cut)


def _rounded(part, device: str, dtype):
    """A copy of a module or tensor; integers stay what they are."""
    if isinstance(part, nn.Module):
        return copy.deepcopy(part).to(device, dtype)
    return part.to(device, dtype if part.is_floating_point() else part.dtype)


def _replace(cut: fx.GraphModule, first, last, made: dict, make, *modules) -> None:
    """Put one module, made of others, where the steps from `first` to `last` are."""
    if modules not in made:
        made[modules] = make(*modules)
    with cut.graph.inserting_after(last):
        step = cut.graph.call_module("", first.args, first.kwargs)
    _set_module(cut, step, made[modules])
    last.replace_all_uses_with(step)


def _module_of(cut: fx.GraphModule, node: fx.Node) -> nn.Module:
    return cut.get_submodule(str(node.target))


def _set_module(cut: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let a step call a module that no other step knows."""
    name = _free_name(cut, node)
    cut.add_submodule(name, module)
    node.target = name


def _free_name(cut: fx.GraphModule, node: fx.Node) -> str:
    """A name for what a step uses that nothing else has."""
    name = f"own_{node.name}"
    while hasattr(cut, name):
        name += "_"
    return name


def _tidy(cut: fx.GraphModule) -> None:
    """Forget steps and modules that are of no use any more."""
    cut.graph.eliminate_dead_code()
    cut.delete_all_unused_submodules()
    cut.recompile()


def _fold_within(steps) -> nn.Sequential:
    """The same steps, batch norms taken in by the convolutions before them."""
    kept: list[nn.Module] = []
    for step in steps:
        if kept and _can_fold(kept[-1], step):
            kept[-1] = _fold(kept[-1], step)
        elif kept and _makes_new(kept[-1]) and hasattr(step, "inplace"):
            kept.append(_in_place(step))
        else:
            kept.append(step)
    return nn.Sequential(*kept)


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether these are just a convolution and a norm with statistics of its own."""
    kinds = _is_plain(conv, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d)
    return kinds and norm.running_mean is not None


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module does what its class does; hooks may do something else."""
    return type(module) is kind and calls_its_class(module)


def _is_untraced_sequence(module: nn.Module) -> bool:
    """Whether a step is several modules one after the other and no more."""
    plain = type(module).forward is nn.Sequential.forward
    return plain and calls_its_class(module)


def _fold(conv, norm) -> nn.Module:
    """One convolution that does the work of both, computed in double precision."""
    dtype = conv.weight.dtype
    both = fuse_conv_bn_eval(
        copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double().eval()
    )
    return both.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)


def overwrite_in_place(cut: fx.GraphModule) -> None:
    """Let sums and activations overwrite what nobody else reads.

    New memory takes more time than they do. Values are overwritten only where a module
    or a sum has just made them, so that nothing else can be a view of them.
    """
    for node in list(cut.graph.nodes):
        private = [n for n in node.all_input_nodes if _is_private(cut, n)]
        if not private:
            continue
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            place = node.args.index(private[0])
            node.target, node.args = add_onto, (*node.args, place)
        elif node.target in (F.relu, torch.relu):
            node.target, node.args, node.kwargs = torch.relu_, (private[0],), {}
        elif node.op == "call_module" and hasattr(_module_of(cut, node), "inplace"):
            _set_module(cut, node, _in_place(_module_of(cut, node)))
    _tidy(cut)


def _is_private(cut: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value of a step is a tensor of its own that one other step reads."""
    makes_new = node.target in (*SUMS, add_onto)
    if node.op == "call_module":
        makes_new = _makes_new(_module_of(cut, node))
    return makes_new and len(node.users) == 1


def _makes_new(module: nn.Module) -> bool:
    """Whether what a module gives is a new tensor, and no view."""
    return type(module) in MAKES_NEW and calls_its_class(module)


def add_onto(first, second, place: int):
    """The sum, in the memory of the one at `place` if both are tensors alike."""
    both = (first, second)
    if not all(isinstance(value, torch.Tensor) for value in both):
        return first + second
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return first + second
    return both[place].add_(both[1 - place])


def _in_place(module: nn.Module) -> nn.Module:
    """The same activation, which overwrites its input."""
    module = copy.copy(module)
    module.inplace = True  # type: ignore[assignment]
    return module


# Layers of networks without a record -------------------------------------------------


def layout_of(shape: tuple, larger: tuple | None, has_class_token: bool):
    """How the output of a node is laid out, the batch axis left out.

    `larger` is its shape for a larger image: places become more, channels do not.
    """
    if len(shape) == 1:
        return "vector"
    if len(shape) == 2:
        return "cls+tokens" if has_class_token else "tokens"
    channels_last = larger and shape[-1] == larger[-1] and shape[0] != larger[0]
    return "hwc" if channels_last else "chw"


def find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Aliased layers of a network without a record."""
    return backbone.memo.get("layers", lambda: _find_layers(backbone))


def _find_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """Its top-level children, in the order in which they are used, what enters its
    classifier, and its classes; or what it returns, where no classifier ends it."""
    structure = structure_of(backbone, backbone.input.image_size)
    children = [name for name, _ in structure.skeleton.named_children()]
    blocks = _in_order_of_use(structure, children)
    aliases = {f"block{i}": name for i, name in enumerate(blocks, 1)}
    classifier, returned = end_of(structure)
    if classifier:
        aliases |= {"penultimate": classifier + INPUT_OF, "logits": classifier}
    elif returned:
        aliases["penultimate"] = returned
    named = {alias: structure.canonical(name) for alias, name in aliases.items()}
    nodes = {alias: node for alias, node in named.items() if node is not None}
    shapes = structure.shapes(tuple(dict.fromkeys(nodes.values())))
    found = [
        (alias, node)
        for alias, node in nodes.items()
        if node in shapes and len(shapes[node]) <= 3
    ]
    layers = tuple(
        _layer(structure, alias, node, index, shapes[node])
        for index, (alias, node) in enumerate(found)
    )
    if not structure.traceable:
        return layers
    return with_averages(layers, structure._node, structure.skeleton)


def find_node(backbone: Backbone, node: str, image_size: int) -> Layer:
    """The layer of any node of the traced network, by its full name."""
    structure = structure_of(backbone, image_size)
    shape = structure.shapes((node,)).get(node)
    if shape is None or len(shape) > 3:
        raise ValueError(
            f"Layer {node!r} of backbone {backbone.name!r} does not give one vector, "
            "map or row of tokens for each image. Choose another node."
        )
    return _layer(structure, None, node, None, shape)


def find_shape(backbone: Backbone, node: str, image_size: int) -> tuple[int, ...]:
    """Shape of one image's output at a node for an input of this size."""
    return structure_of(backbone, image_size).shapes((node,))[node]


def _layer(structure: Structure, alias, node, index, shape) -> Layer:
    net = structure.skeleton
    has_class = hasattr(net, "class_token") or hasattr(net, "cls_token")
    larger = _larger_shape(structure, node, shape)
    layout = layout_of(shape, larger, has_class)
    stride = stride_of(layout, shape, larger, structure.image_size)
    return Layer.from_shape(alias, node, index, layout, shape, stride)


def _larger_shape(structure: Structure, node: str, shape: tuple) -> tuple | None:
    """Shape of a map for a larger image; None if the network refuses."""
    if len(shape) != 3:
        return None
    try:
        return structure.shapes((node,), structure.image_size + ENLARGED).get(node)
    except Exception:  # whatever a network built for one size raises
        return None


def _in_order_of_use(structure: Structure, names: list[str]) -> list[str]:
    """Those of these modules that are used, in the order of the computation."""
    if not structure.traceable:
        return names
    used = {name: representative_node(name, structure.nodes) for name in names}
    places = {structure.nodes.index(node): name for name, node in used.items() if node}
    return [name for _, name in sorted(places.items())]


# The end of a network ----------------------------------------------------------------

# What may follow the scores of classes: it has no weights, and moves nothing between
# them. By name, whether it is a module, a function or a method.
AFTER_SCORES = {"softmax", "logsoftmax", "sigmoid", "flatten", "squeeze", "reshape"}
AFTER_SCORES |= {"view", "unflatten", "contiguous", "float", "identity"}
AFTER_SCORES |= {"dropout", "dropout1d", "dropout2d", "featuredropout", "alphadropout"}
# What may follow maps of scores besides, as in SqueezeNet.
AFTER_MAPS = {"adaptiveavgpool2d", "avgpool2d", "adaptivemaxpool2d", "maxpool2d"}
AFTER_MAPS |= {"mean", "amax", "relu"}
SHAPES = {"size", "dim", "numel"}  # methods that read no values


def find_head(backbone: Backbone) -> str | None:
    """Name of the module that ends a network with classes, None if none does."""
    structure = structure_of(backbone, backbone.input.image_size)
    try:
        classifier, _ = end_of(structure)
    except Exception:  # it takes no images of its size, as who asks for layers learns
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
        classifier = None  # a value for each place is no class of an image
    return classifier, name


def _is_vector(shape) -> bool:
    """Whether an image gives a row of numbers, and at one place alone."""
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
    """The one step whose values a step reads, if nobody else reads them."""
    inputs = [n for n in node.all_input_nodes if not _reads_shape(n)]
    if len(inputs) != 1 or inputs[0].op in ENDS:
        return None
    readers = [user for user in inputs[0].users if not _reads_shape(user)]
    return inputs[0] if readers == [node] else None


def _reads_shape(node: fx.Node) -> bool:
    """Whether a step gives sizes of a tensor, or numbers made of them."""
    if node.target in SHAPES or (node.target is getattr and node.args[1] == "shape"):
        return True
    made_of = node.all_input_nodes
    return bool(made_of) and all(map(_reads_shape, made_of))


def _end_when_run(structure: Structure) -> tuple[str | None, str | None]:
    """The same of a network that fx cannot trace: seen in what it computes."""
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
    """(name, module, its output) of the last to run that has weights, and the output
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
    """What a network may return whose classifier gives these scores."""
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


def kind_of_classifier(module: nn.Module) -> str | None:
    """ "linear", or "convolution" if it looks at one pixel at a time."""
    if isinstance(module, nn.Linear):
        return "linear"
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return "convolution" if pointwise else None
