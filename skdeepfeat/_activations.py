"""Network + names of layers → a smaller network that returns just those activations.

The graph of a network is traced on its skeleton (torch.fx), cut after the last layer
asked for, and bound to the shared network's own weights: nothing is hooked, copied
or computed in vain, and many threads may run it at once. Networks that fx cannot
trace run as a private copy with hooks, one thread at a time (:class:`HookedNetwork`).
"""

import contextlib
import copy
import functools
import operator
import threading

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._averages import with_averages
from ._backbones import (
    Backbone,
    Layer,
    WeightsSource,
    linear_layers,
    resolve_weights,
)
from ._exceptions import WeightsError
from ._layouts import ENLARGED, stride_of
from ._networks import Network, build_network, skeleton_of
from ._torch_winograd import WinogradConv2d, suits
from ._tracing import trace

INPUT_OF = ".input"

# Modules that give a new tensor, which is no view of another.
MAKES_NEW = (nn.Conv2d, WinogradConv2d, nn.BatchNorm2d, nn.Linear)
SUMS = (operator.add, torch.add)

# Structure ---------------------------------------------------------------------------


class Structure:
    """What is known of a network without its weights: nodes, and shapes at a size.

    Parameters
    ----------
    backbone : Backbone
    image_size : int
        Side of the input, for networks that are built for one size.
    """

    def __init__(self, backbone: Backbone, image_size: int):
        self.backbone, self.image_size = backbone, image_size
        self.skeleton = skeleton_of(backbone, image_size)
        self.graph: fx.Graph | None = None
        try:
            self.graph, self._named = trace(self.skeleton)
            self.nodes = tuple(self._named)
        except Exception:  # fx raises whatever the traced code raises
            self.nodes = tuple(name for name, _ in self.skeleton.named_modules())[1:]

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

    def shapes(self, nodes: tuple[str, ...], image_size=None) -> dict[str, tuple]:
        """Shape of one image's output at each node, the batch axis left out.

        Nodes whose output is no tensor with one row for each image are left out.
        """
        size, n = image_size or self.image_size, 2
        device = "meta" if self.traceable else "cpu"
        x = torch.zeros(n, 3, size, size, device=device)
        network = self.skeleton if self.traceable else self._real_network()
        with torch.no_grad():
            values = bind(self, network, nodes)(x)
        return {
            node: tuple(value.shape[1:])
            for node, value in values.items()
            if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == n
        }

    def _real_network(self) -> nn.Module:
        """The network with its weights: untraced code may look at values."""
        source = resolve_weights(self.backbone, "default", 0)
        return build_network(source).module


def structure_of(backbone: Backbone, image_size: int) -> Structure:
    """The structure of a network for this input size; traced once."""
    return _structure_of(backbone.without_arrays(), image_size)


@functools.lru_cache(maxsize=32)
def _structure_of(backbone: Backbone, image_size: int) -> Structure:
    return Structure(backbone, image_size)


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
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    parts = {target: _part(structure, network, target) for target in used}
    return fx.GraphModule(parts, graph)


def _part(structure: Structure, network: nn.Module, target: str):
    """A module, parameter or buffer of the network, or a constant where it runs."""
    find = operator.attrgetter(target)
    try:
        part = find(network)
    except AttributeError:  # tracing leaves its constants on the skeleton
        part = find(structure.skeleton)
    if isinstance(part, nn.Module):
        return part
    like = next(network.parameters(), part)
    return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype)


class HookedNetwork:
    """Activations of a network that fx cannot trace.

    A private copy of the network is hooked, run under a lock, and left by an
    exception once the last layer has answered.

    Parameters
    ----------
    network : torch.nn.Module
    nodes : tuple of str
        Names of modules; ``"fc.input"`` is what enters the module ``"fc"``.
    """

    class _Done(Exception):
        pass

    def __init__(self, network: nn.Module, nodes: tuple[str, ...]):
        self._network = copy.deepcopy(network)
        self._lock = threading.Lock()
        self._wanted = frozenset(nodes)
        self._seen: dict[str, torch.Tensor] = {}
        modules = dict(self._network.named_modules())
        for node in nodes:
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
                self._network(x)
            except self._Done:
                pass
            return dict(self._seen)

    def state_dict(self):
        """Entries of the network, as of a module."""
        return self._network.state_dict()


@contextlib.contextmanager
def explain_size(source: WeightsSource):
    """A context in which a network that refuses images says which parameter it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        size, backbone = source.input.image_size, source.backbone
        if size == backbone.input.image_size:
            raise
        raise ValueError(
            f"Backbone {backbone.name!r} does not take images of image_size={size}: "
            f"{error}. Choose another size, for instance a larger one."
        ) from error


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
                if network.winograd:
                    multiply_less(cut, network.substitutes)
                overwrite_in_place(cut)
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
        if type(module).forward is nn.Sequential.forward:  # which was not traced
            _replace(cut, node, node, made, _fold_within, module)
        elif before and before.op == "call_module" and before.target not in apart:
            conv = _module_of(cut, before)
            if _can_fold(conv, module):
                _replace(cut, before, node, made, _fold, conv, module)
    _tidy(cut)


def multiply_less(cut: fx.GraphModule, made: dict) -> None:
    """Replace convolutions by ones that need fewer multiplications."""
    for node in [n for n in cut.graph.nodes if n.op == "call_module"]:
        module = _module_of(cut, node)
        if _is_plain(module, nn.Conv2d) and suits(module):
            _replace(cut, node, node, made, WinogradConv2d, module)
    _tidy(cut)


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
    """Let a step call a module that no other step knows, under a name that is free."""
    name = f"own_{node.name}"
    while hasattr(cut, name):
        name += "_"
    cut.add_submodule(name, module)
    node.target = name


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
        elif kept and type(kept[-1]) in MAKES_NEW and hasattr(step, "inplace"):
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
    hooks = module._forward_pre_hooks or module._forward_hooks
    return type(module) is kind and not hooks


def _fold(conv, norm) -> nn.Module:
    """One convolution that does the work of both, computed in single precision."""
    dtype = conv.weight.dtype
    both = fuse_conv_bn_eval(
        copy.deepcopy(conv).float().eval(), copy.deepcopy(norm).float().eval()
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
        makes_new = type(_module_of(cut, node)) in MAKES_NEW
    return makes_new and len(node.users) == 1


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
    """Aliased layers of a network without a record: its top-level children, in the
    order in which they are used, and the input of the last linear layer."""
    structure = structure_of(backbone, backbone.input.image_size)
    children = [name for name, _ in structure.skeleton.named_children()]
    blocks = _in_order_of_use(structure, children)
    linear = _in_order_of_use(structure, linear_layers(structure.skeleton))
    aliases = {f"block{i}": name for i, name in enumerate(blocks, 1)}
    if linear:
        aliases["penultimate"] = linear[-1] + INPUT_OF
        aliases["logits"] = linear[-1]
    elif blocks:
        aliases["penultimate"] = blocks[-1]
    named = {alias: structure.canonical(name) for alias, name in aliases.items()}
    nodes = {alias: node for alias, node in named.items() if node is not None}
    shapes = structure.shapes(tuple(dict.fromkeys(nodes.values())))
    found = [(alias, node) for alias, node in nodes.items() if node in shapes]
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
