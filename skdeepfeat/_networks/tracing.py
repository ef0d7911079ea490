"""Record of a network → its graph, which is known to compute what the network does.

The network of a user is run once on two images, and its graph too. Where the two differ
there is no graph, and the network runs as it is.
"""

import operator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from .._backbones.records import Backbone
from .._caches import SharedCache
from .building import skeleton_of, trial_network
from .code import digest_code
from .evidence import Watcher, check_rows, copied, measuring, same, two_images
from .tracer import NotTraceable, make_out_of_place, trace, without_inplace

_tried = SharedCache(32)


@dataclass
class Traced:
    """A network without its weights, as fx saw it the one time that it looked.

    What a network of the user's own is known by and what runs are made of the same
    graph, so code that is edited in between cannot make them differ.

    Parameters
    ----------
    skeleton : torch.nn.Module
        On no device, with the constants that tracing leaves on it.
    values : bytes
        Digest of the tensors that its builder gave it and no file holds.
    graph : fx.Graph or None
        None if fx cannot trace it, or traces something else than it computes.
    named : dict of str to fx.Node
        Its steps.
    checked : bool
        Whether the graph is known to compute what the network computes.
    """

    skeleton: nn.Module
    values: bytes
    graph: fx.Graph | None = None
    named: dict[str, fx.Node] = field(default_factory=dict)
    checked: bool = False


@dataclass
class Trial:
    """A network that ran, what it was given, and copies of the tensors it returned.

    None were returned by a network on no device.
    """

    network: nn.Module
    images: torch.Tensor
    returned: list[torch.Tensor] | None


def traced(backbone: Backbone, image_size: int) -> Traced:
    """The network of a backbone, traced once; only some depend on an input size."""
    size = image_size if backbone.size_option else None
    return backbone.memo.get(
        ("traced", size), lambda: _trace(backbone, size or backbone.input.image_size)
    )


def _trace(backbone: Backbone, image_size: int) -> Traced:
    """Trace a network; copies of a backbone share what one of them found."""
    skeleton, values = skeleton_of(backbone, image_size)
    found = Traced(skeleton, values)
    if backbone.published_name is not None:
        with measuring():
            return _with_graph(found, on_no_device(skeleton, image_size), True)
    code = digest_code(backbone, skeleton)
    name = backbone.token, image_size, values, code
    return _tried.get(name, lambda: _try_out(backbone, image_size, found))


def _try_out(backbone: Backbone, image_size: int, found: Traced) -> Traced:
    """Trace a network of the user's own, and compare the graph with a run of it."""
    with measuring():
        if trial := run_once(backbone, image_size):
            return _with_graph(found, trial, True)
        trial = on_no_device(found.skeleton, image_size)
        return _with_graph(found, trial, False)


def _with_graph(found: Traced, trial: Trial, checked: bool) -> Traced:
    """Add the graph, if there is one that computes the same."""
    try:
        graph, named = _graph_of(found.skeleton, trial)
    except Exception:  # fx raises whatever the traced code raises
        return found
    return replace(found, graph=graph, named=named, checked=checked)


# The trial ---------------------------------------------------------------------------


def run_once(backbone: Backbone, image_size: int) -> Trial | None:
    """Run a network with its weights; None if it cannot run here.

    Raises a ValueError if it has no row of its own for each image.
    """
    network = trial_network(backbone, image_size)
    images = two_images(backbone.input, image_size)
    try:
        returned = copied(network(images.clone()))
    except Exception:  # whatever the network raises
        return None
    check_rows(backbone.name, network, images, returned)
    return Trial(network, images, returned)


def on_no_device(skeleton: nn.Module, image_size: int) -> Trial:
    """The same of a network that is trusted: enough to see what overwrites what."""
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    return Trial(skeleton, images, None)


def _graph_of(skeleton: nn.Module, trial: Trial):
    """A graph and its steps: none overwrites the value of another one, and together
    they compute what the network did."""
    graph, named = trace(skeleton)
    watcher = Watcher(fill(skeleton, trial.network, graph))
    watcher.run(trial.images.clone())
    make_out_of_place(graph, skeleton, watcher.overwritten)
    without_inplace(skeleton)
    if trial.returned is not None:
        _check_same(fill(skeleton, trial.network, graph), trial)
    return graph, named


def _check_same(filled: fx.GraphModule, trial: Trial) -> None:
    """Compare a graph, run as it will be, with what its network returned."""
    without_inplace(filled).to(memory_format=torch.channels_last)
    watcher = Watcher(filled)
    x = trial.images.contiguous(memory_format=torch.channels_last)
    if not same(watcher.run(x), trial.returned) or watcher.overwritten:
        raise NotTraceable("the graph computes something else")


# Graphs that run ---------------------------------------------------------------------


def fill(skeleton: nn.Module, network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The module of a graph, with the network's own parts: nothing is copied."""
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    return fx.GraphModule({t: _part(skeleton, network, t) for t in used}, graph)


def _part(skeleton: nn.Module, network: nn.Module, target: str):
    """A module, parameter or buffer of the network, or a constant where it runs."""
    find = operator.attrgetter(target)
    try:
        part = find(network)
    except AttributeError:  # tracing leaves its constants on the skeleton
        part = find(skeleton)
    if isinstance(part, nn.Module):
        return part
    like = next(network.parameters(), part)
    return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype)
