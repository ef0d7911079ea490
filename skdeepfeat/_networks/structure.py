"""The structure of a network without its weights: nodes, graphs to them, shapes."""

import functools
from operator import attrgetter

import torch
from torch import fx, nn

from .._backbones.records import Backbone
from .._exceptions import in_one_line
from .._processes import fork_safe
from .building import trial_network
from .hooks import ENDS_WHEN_RUN, INPUT_OF, HookedNetwork, use_named
from .overwriting import without_inplace
from .tracer import ENDS
from .trial import fill, traced
from .whole import can_stop_early


class Structure:
    """The structure of a network for one input size: nodes, graphs to them, shapes.

    Parameters
    ----------
    backbone : Backbone
    image_size : int
        Side of the input.

    Attributes
    ----------
    skeleton : torch.nn.Module
        The network on the device "meta", without values.
    graph : fx.Graph or None
        None if torch.fx cannot trace the network.
    fault : str
        Why there is no graph, or why it may compute something else; else empty.
    values : bytes
        Digest of the tensors that the builder sets and no file holds.
    classified : fx.Node or None
        What enters the classifier, if the network says so.
    nodes : tuple of str
        Names of the steps, or of the modules if there is no graph.
    """

    def __init__(self, backbone: Backbone, image_size: int):
        self.backbone, self.image_size = backbone, image_size
        found = traced(backbone, image_size)
        self.skeleton, self.values = found.skeleton, found.values
        self.graph, self._named, self.fault = found.graph, found.named, found.fault
        self.classified = found.classified
        self.nodes = tuple(self._named)
        if self.graph is None:
            modules = (name for name, _ in self.skeleton.named_modules() if name)
            first = 0 if can_stop_early(self.skeleton) else 1
            self.nodes = (*dict.fromkeys((*modules, *ENDS_WHEN_RUN[first:])),)

    @property
    def traceable(self) -> bool:
        """Whether fx could trace the network."""
        return self.graph is not None

    def canonical(self, node: str) -> str | None:
        """The full name of a node, or None if there is no such node.

        The name of a module means the last node within it, and its input that of the
        first.
        """
        if not self.traceable and use_named(node, self.nodes):
            return node
        reader = node.removesuffix(INPUT_OF)
        if reader == node:
            return representative_node(node, self.nodes)
        inside = [reader] if reader in self.nodes else nodes_within(reader, self.nodes)
        first = next(filter(self._reads, inside), None)
        return first and first + INPUT_OF

    def _reads(self, node: str) -> bool:
        """Whether a step reads what depends on the image; modules do."""
        if not self.traceable:
            return True
        return not self.from_image.isdisjoint(self._named[node].all_input_nodes)

    @functools.cached_property
    def from_image(self) -> set[fx.Node]:
        """The steps whose values depend on those of the image, not just on its size."""
        assert self.graph is not None
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            read = node.op == "placeholder" or found.intersection(node.all_input_nodes)
            if read and not reads_shape(node):
                found.add(node)
        return found

    @functools.cached_property
    def live(self) -> set[fx.Node]:
        """The steps that the network needs for what it returns, and its end."""
        assert self.graph is not None
        output = self.graph.output_node()
        return {output, *steps_below(output)}

    def graph_to(self, nodes: tuple[str, ...]) -> fx.Graph:
        """The graph that returns {node: value} for these nodes and computes no more."""
        assert self.graph is not None
        copies: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph.graph_copy(self.graph, copies)
        graph.output({name: copies[self.step(name)] for name in nodes})
        for check in self._checks_beyond(nodes):
            graph.erase_node(copies[check])
        module = fx.GraphModule(self.skeleton, graph)
        module.graph.eliminate_dead_code()
        return module.graph

    def _checks_beyond(self, nodes: tuple[str, ...]) -> list[fx.Node]:
        """The checks of shapes for which more than these nodes would be computed."""
        assert self.graph is not None
        wanted = {self.step(name) for name in nodes}
        needed = wanted.union(*map(steps_below, wanted))
        checks = (node for node in self.graph.nodes if node.target is torch._assert)
        return [n for n in checks if steps_below(n) & self.from_image - needed]

    def tail(self, start: str, end: str) -> fx.Graph | None:
        """The graph from the value of one node to that of another.

        None if it also needs anything before `start`.
        """
        graph = self.graph_to((start, end))
        for node in list(graph.nodes):  # these checks of the shape need the image
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

    def comes_before(self, node: str, other: str) -> bool:
        """Whether a node is computed no later than another one."""
        assert self.graph is not None
        order = {step: place for place, step in enumerate(self.graph.nodes)}
        return order[self.step(node)] <= order[self.step(other)]

    def block_of(self, ends: tuple[str, ...]) -> dict[str, int]:
        """Module, parameter or buffer → the block that uses it first.

        Block i ends with node ``ends[i]`` and begins after the end of block i - 1.
        """
        assert self.graph is not None
        last = [self.step(name) for name in ends]
        found: dict[str, int] = {}
        block = 0
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                found.setdefault(str(node.target), block)
            if node in last:
                block = last.index(node) + 1
        return found

    def step(self, name: str) -> fx.Node:
        """The step of this name, or what enters it if the name ends in ".input"."""
        if not name.endswith(INPUT_OF):
            return self._named[name]
        reader = self._named[name.removesuffix(INPUT_OF)]
        entering = next(n for n in reader.all_input_nodes if n in self.from_image)
        return _before(entering, self.skeleton)

    def returned(self) -> fx.Node | None:
        """The step whose value the network returns, or the only one in the tuple,
        dictionary or object that it returns; None if there are several."""
        nodes = self.all_returned()
        return _before(nodes[0], self.skeleton) if len(nodes) == 1 else None

    def all_returned(self) -> list[fx.Node]:
        """The steps whose values the network returns; none if it returns its images."""
        assert self.graph is not None
        nodes = _returned_in(self.graph.output_node())
        return [] if any(node.op in ENDS for node in nodes) else nodes

    def name_of(self, node: fx.Node) -> str:
        """The name of a step."""
        return next(name for name, step in self._named.items() if step is node)

    def name_where_computed(self, node: fx.Node) -> str:
        """The name of the step that computes a value, before steps that do nothing."""
        return self.name_of(_before(node, self.skeleton, ("Dropout", "Identity")))

    def where_computed(self, name: str) -> str:
        """The name of the node that computes a "NAME.input", if there is one."""
        if not self.traceable or not name.endswith(INPUT_OF):
            return name
        step = self.step(name)
        return name if step.op in ENDS else self.name_of(step)

    def kind(self, node: fx.Node) -> str:
        """What a step does, in one word: "softmax" for nn.Softmax and for F.softmax."""
        if node.op == "call_module":
            name = type(self.skeleton.get_submodule(str(node.target))).__name__
        else:
            name = getattr(node.target, "__name__", str(node.target))
        return name.lower().replace("_", "")

    def module_of(self, target: str) -> str:
        """The module of a target: itself, or the owner of a parameter."""
        part = attrgetter(target)(self.skeleton)
        return target if isinstance(part, nn.Module) else target.rpartition(".")[0]

    def has_weights(self, name: str, axes: int = 1) -> bool:
        """Whether a module has parameters with this number of axes or more."""
        parameters = self.skeleton.get_submodule(name).parameters()
        return any(parameter.ndim >= axes for parameter in parameters)

    def uses_weights(self, node: fx.Node) -> bool:
        """Whether a step has parameters or reads one."""
        if node.op == "call_module":
            return self.has_weights(str(node.target))
        return any(n.op == "get_attr" for n in node.all_input_nodes)

    @fork_safe
    def shapes(self, nodes: tuple[str, ...], image_size=None) -> dict[str, tuple]:
        """Shape of the output of each node for one image, without the batch axis.

        Nodes whose output is not a tensor with a row for each image are left out.
        """
        size, n = image_size or self.image_size, 2
        device = "meta" if self.traceable else "cpu"
        x = torch.zeros(n, 3, size, size, device=device, dtype=torch.float32)
        network = self.skeleton if self.traceable else self.real_network()
        with torch.no_grad():
            network = bind(self, network, nodes)
            # A call of the module of a graph would print its errors.
            values = self.run(getattr(network, "forward", network), x)
        return {
            node: tuple(value.shape[1:])
            for node, value in values.items()
            if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == n
        }

    def run(self, network, x: torch.Tensor):
        """What a network returns for images, or an error that says why it does not."""
        try:
            return network(x)
        except Exception as error:  # whatever its code raises
            side = x.shape[-1]
            raise ValueError(
                f"Backbone {self.backbone.name!r} does not take a batch of images, of "
                f"shape (n, 3, {side}, {side}), in single precision: "
                f"{in_one_line(error)}. Create it with the image_size that its network "
                "takes. Before a network of grey images, put a step that makes them "
                "grey, such as torchvision.transforms.v2.Grayscale()."
            ) from error

    def real_network(self) -> nn.Module:
        """A new network with numbers in it, which are never published weights."""
        return trial_network(self.backbone, self.image_size)


def structure_of(backbone: Backbone, image_size: int) -> Structure:
    """The structure of a network for this input size."""
    return backbone.memo.get(
        ("structure", image_size), lambda: Structure(backbone, image_size)
    )


def representative_node(name: str, nodes) -> str | None:
    """The node of this name, or the last one within the module of this name."""
    if name in nodes:
        return name
    return next(reversed(nodes_within(name, nodes)), None)


def nodes_within(name: str, nodes) -> list[str]:
    """The nodes within the module of this name, in order."""
    return [node for node in nodes if node.startswith(name + ".")]


SHAPES = {"size", "dim", "numel"}  # methods that read no values
ABOUT = {"shape", "ndim", "device", "dtype"}  # attributes that are not values


def reads_shape(node: fx.Node) -> bool:
    """Whether a step reads the shape or the kind of a tensor, not its values."""
    return node.target in SHAPES or (node.target is getattr and node.args[1] in ABOUT)


def steps_below(node: fx.Node) -> set[fx.Node]:
    """The steps that a step is computed from."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += step.all_input_nodes
    return found


def _returned_in(node: fx.Node) -> list[fx.Node]:
    """The different values in what a step collects, such as a named tuple."""
    found = []
    for step in node.all_input_nodes:
        found += _returned_in(step) if isinstance(step.target, type) else [step]
    return list(dict.fromkeys(found))


def _before(node: fx.Node, net: nn.Module, passed=("Dropout",)) -> fx.Node:
    """The step before those that do nothing in evaluation, such as dropout."""
    if node.op != "call_module":
        return node
    name = type(net.get_submodule(str(node.target))).__name__
    if not any(part in name for part in passed):
        return node
    return _before(node.all_input_nodes[0], net, passed)


def bind(structure: Structure, network: nn.Module, nodes: tuple[str, ...]):
    """A callable (n, 3, h, w) → {node: tensor} that runs `network` no further than
    the last of `nodes`."""
    if absent := [node for node in nodes if structure.canonical(node) is None]:
        raise ValueError(
            f"Backbone {structure.backbone.name!r} has no layer {absent[0]!r} with "
            f"torch {torch.__version__}. {structure.fault}"
        )
    if not structure.traceable:
        return HookedNetwork(network, nodes)
    return fill_graph(structure, network, structure.graph_to(nodes)).eval()


def fill_graph(structure: Structure, network: nn.Module, graph: fx.Graph):
    """The module of a graph, with the network's own parts: nothing is copied."""
    return without_inplace(fill(structure.skeleton, network, graph))
