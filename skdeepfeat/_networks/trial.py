"""Traces a network once and tries whether its graph computes the same.

A network of the user's own and its graph are run on two images. If their outputs
differ, the graph is dropped and the network is run as it is, with hooks.
"""

import operator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from .._backbones.records import Backbone
from .._caches import SharedCache
from .._exceptions import in_one_line
from .building import skeleton_of, trial_network
from .code_digest import digest_code
from .comparison import check_rows, copied, measuring, same, two_images
from .overwriting import Watcher, make_out_of_place, without_inplace
from .tracer import NotTraceable, trace

_tried = SharedCache(32)


@dataclass
class Traced:
    """A network without its weights, as fx traced it once.

    The identity of a user's network and what is run come from the same graph, so code
    that is edited in between cannot make them differ.

    Parameters
    ----------
    skeleton : torch.nn.Module
        On no device, with the constants that tracing leaves on it.
    values : bytes
        Digest of the tensors that its builder sets and no file holds.
    graph : fx.Graph or None
        None if fx cannot trace it, or if the graph computes something else.
    named : dict of str to fx.Node
        Its steps.
    fault : str
        Why there is no graph, or why it could not be compared with the network; empty
        if the graph is known to compute what the network computes.
    """

    skeleton: nn.Module
    values: bytes
    graph: fx.Graph | None = None
    named: dict[str, fx.Node] = field(default_factory=dict)
    fault: str = ""


class CannotRun(RuntimeError):
    """A network cannot be run here; says why."""


@dataclass
class Trial:
    """A network that was run, its images, and copies of the tensors it returned.

    `returned` is None for a network on no device.
    """

    network: nn.Module
    images: torch.Tensor
    returned: list[torch.Tensor] | None


def traced(backbone: Backbone, image_size: int) -> Traced:
    """The network of a backbone, traced once unless it depends on the input size."""
    size = image_size if backbone.size_option else None
    return backbone.memo.get(
        ("traced", size), lambda: _trace(backbone, size or backbone.input.image_size)
    )


def _trace(backbone: Backbone, image_size: int) -> Traced:
    """Trace a network; copies of a backbone share the result."""
    skeleton, values = skeleton_of(backbone, image_size)
    found = Traced(skeleton, values)
    if backbone.published_name is not None:
        with measuring():
            return _with_graph(found, on_no_device(skeleton, image_size))
    code = digest_code(backbone, skeleton)
    name = backbone.token, image_size, values, code
    return _tried.get(name, lambda: _try_out(backbone, image_size, found))


def _try_out(backbone: Backbone, image_size: int, found: Traced) -> Traced:
    """Trace a network of the user's own, and compare the graph with a run of it."""
    with measuring():
        try:
            return _with_graph(found, run_once(backbone, image_size))
        except CannotRun as error:
            found = _with_graph(found, on_no_device(found.skeleton, image_size))
            return replace(found, fault=found.fault or str(error))


def _with_graph(found: Traced, trial: Trial) -> Traced:
    """Add the graph if there is one that computes the same, or else why not."""
    try:
        graph, named = _graph_of(found.skeleton, trial)
    except NotTraceable as error:
        return replace(found, fault=str(error))
    except Exception as error:  # fx raises whatever the traced code raises
        return replace(found, fault=in_one_line(error))
    return replace(found, graph=graph, named=named)


def run_once(backbone: Backbone, image_size: int) -> Trial:
    """Run a network with its weights on two images.

    Raises a ValueError if it has no row of its own for each image.
    """
    network = trial_network(backbone, image_size)
    images = two_images(backbone.input, image_size)
    try:
        returned = copied(network(images.clone()))
    except Exception as error:  # whatever the network raises
        reason = f"it cannot be run on two images ({in_one_line(error)})"
        raise CannotRun(reason) from error
    check_rows(backbone.name, network, images, returned)
    return Trial(network, images, returned)


def on_no_device(skeleton: nn.Module, image_size: int) -> Trial:
    """A run without values, which shows which steps overwrite which values."""
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    return Trial(skeleton, images, None)


def _graph_of(skeleton: nn.Module, trial: Trial):
    """A graph that computes what the network did, whose steps overwrite no value, and
    its steps by name."""
    graph, named = trace(skeleton)
    watcher = Watcher(fill(skeleton, trial.network, graph))
    watcher.run(trial.images.clone())
    make_out_of_place(graph, skeleton, watcher.overwritten)
    without_inplace(skeleton)
    if trial.returned is not None:
        _check_same(fill(skeleton, trial.network, graph), trial)
    return graph, named


def _check_same(filled: fx.GraphModule, trial: Trial) -> None:
    """Compare what a graph and its network return; graphs run with channels last."""
    without_inplace(filled).to(memory_format=torch.channels_last)
    watcher = Watcher(filled)
    x = trial.images.contiguous(memory_format=torch.channels_last)
    if not same(watcher.run(x), trial.returned) or watcher.overwritten:
        raise NotTraceable("the graph it finds computes something else")


def fill(skeleton: nn.Module, network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The module of a graph, with the network's own parts: nothing is copied."""
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    return fx.GraphModule({t: _part(skeleton, network, t) for t in used}, graph)


def _part(skeleton: nn.Module, network: nn.Module, target: str):
    """A module, parameter or buffer of the network, or a constant on its device."""
    find = operator.attrgetter(target)
    try:
        part = find(network)
    except AttributeError:  # tracing leaves its constants on the skeleton
        part = find(skeleton)
    if isinstance(part, nn.Module):
        return part
    like = next(network.parameters(), part)
    return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype)
