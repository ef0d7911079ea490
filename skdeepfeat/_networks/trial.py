"""Traces a network once and tries whether its graph computes the same.

A network of the user's own and its graph are run on two images. If their outputs
differ, the graph is dropped and the network is run as it is, with hooks.
"""

import operator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .._backbones.records import Backbone
from .._caches import SharedCache
from .._exceptions import in_one_line
from .building import skeleton_of, trial_network, with_transient_buffers
from .channels_last import with_channels_last
from .code_digest import digest_code
from .comparison import check_rows, copied, measuring, same, two_images
from .hooks import HookedNetwork
from .loading import transient_buffers
from .overwriting import Watcher, make_out_of_place, overwrites_nothing, without_inplace
from .repeats import merge_repeats
from .tracer import NotTraceable, trace
from .whole import Intermediates, Whole, can_stop_early

_tried = SharedCache(32)

DIFFERS = "the graph it finds computes something else"
COPY_DIFFERS = (
    "Backbone {name!r} cannot give features: a copy of its network computes something "
    "else. Check the methods '__deepcopy__' and 'train' of its modules: a copy must "
    "have the same weights, and stay in evaluation mode after eval()."
)


@dataclass
class Traced:
    """A network without its weights, as fx traced it once.

    The identity of a user's network and what is run come from the same graph, so code
    that is edited in between cannot make them differ.

    Parameters
    ----------
    skeleton : torch.nn.Module
        On the device "meta", with the constants that tracing leaves on it.
    values : bytes
        Digest of the tensors that its builder sets and no file holds.
    graph : fx.Graph or None
        None if fx cannot trace it, or if the graph computes something else.
    named : dict of str to fx.Node
        Its steps.
    classified : fx.Node or None
        What enters the classifier, if the network says so.
    fault : str
        Why there is no graph, or why it could not be compared with the network; empty
        if the graph is known to compute what the network computes.
    """

    skeleton: nn.Module
    values: bytes
    graph: fx.Graph | None = None
    named: dict[str, fx.Node] = field(default_factory=dict)
    classified: fx.Node | None = None
    fault: str = ""


class CannotRun(RuntimeError):
    """A network cannot be run here; says why."""


@dataclass
class Trial:
    """A network that was run, its images, and copies of the tensors it returned.

    `returned` is None for a network on the device "meta".
    """

    network: nn.Module
    images: torch.Tensor
    returned: list[torch.Tensor] | None


def traced(backbone: Backbone, image_size: int) -> Traced:
    """The network of a backbone, traced once unless it depends on the input size."""
    size = image_size if backbone.size_option else None

    def make():
        with measuring():  # also while it is built, in which its tensors are made
            return _trace(backbone, size or backbone.input.image_size)

    return backbone.memo.get(("traced", size), make)


def _trace(backbone: Backbone, image_size: int) -> Traced:
    """Trace a network; copies of a backbone share the result."""
    skeleton, values = skeleton_of(backbone, image_size)
    found = Traced(skeleton, values)
    if backbone.published_name is not None:
        return _with_graph(backbone, found, on_meta(skeleton, image_size))
    code = digest_code(backbone, skeleton)
    name = backbone.token, image_size, values, code
    return _tried.get(name, lambda: _try_out(backbone, image_size, found))


def _try_out(backbone: Backbone, image_size: int, found: Traced) -> Traced:
    """Trace a network of the user's own, and compare the graph with a run of it."""
    try:
        return _with_graph(backbone, found, run_once(backbone, image_size))
    except CannotRun as error:
        trial = on_meta(found.skeleton, image_size)
        found = _with_graph(backbone, found, trial)
        return replace(found, fault=found.fault or str(error))


def _with_graph(backbone: Backbone, found: Traced, trial: Trial) -> Traced:
    """Add the first graph that computes the same, or else why there is none."""
    faults: list[str] = []
    size, says_end = trial.images.shape[-1], can_stop_early(found.skeleton)
    for way in [way for way in WAYS if way.serves(found.skeleton)]:
        if not way.stops_early and says_end and DIFFERS not in faults:
            break  # it is run as it is, and says its end itself
        # A trace may leave its stand-ins in the network.
        skeleton = skeleton_of(backbone, size)[0] if faults else found.skeleton
        fixed = with_transient_buffers(skeleton, backbone, size) if way.fixes else ()
        try:
            return _graph_of(replace(found, skeleton=skeleton), trial, way, fixed)
        except NotTraceable as error:
            faults.append(str(error))
        except Exception as error:  # fx raises whatever the traced code raises
            faults.append(in_one_line(error))
    _check_copy(backbone.name, trial)
    return replace(found, skeleton=skeleton_of(backbone, size)[0], fault=faults[0])


def _check_copy(name: str, trial: Trial) -> None:
    """Refuse a network whose hooked copy, which runs in place of a graph, differs."""
    if trial.returned is None:
        return
    copied = HookedNetwork(trial.network, ())
    if not same(copied.returned(trial.images.clone()), trial.returned):
        raise ValueError(COPY_DIFFERS.format(name=name))


@dataclass(frozen=True)
class Way:
    """A way to trace a network.

    Parameters
    ----------
    stops_early : bool
        Whether to also trace what enters the classifier.
    fixes : bool
        Whether code may look at the values of buffers that no file holds.
    """

    stops_early: bool
    fixes: bool

    def serves(self, net: nn.Module) -> bool:
        """Whether this differs from the other ways for a network."""
        if self.stops_early and not can_stop_early(net):
            return False
        return bool(transient_buffers(net)) or not self.fixes


# In the order in which they are tried.
WAYS = [Way(early, fixes) for early in (True, False) for fixes in (False, True)]


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


def on_meta(skeleton: nn.Module, image_size: int) -> Trial:
    """A run without values, which shows which steps overwrite which values."""
    shape = (2, 3, image_size, image_size)
    images = torch.zeros(shape, device="meta", dtype=torch.float32)
    return Trial(skeleton, images, None)


def _graph_of(found: Traced, trial: Trial, way: Way, fixed) -> Traced:
    """Add a graph that computes what the network did, and overwrites no value."""
    skeleton, network = found.skeleton, trial.network
    traced = trace(skeleton, Whole(skeleton, way.stops_early), fixed)
    skeleton.to("meta")
    if trial.returned is None:
        network = skeleton
    graph = traced.graph
    if trial.returned is not None or not overwrites_nothing(graph, skeleton):
        _let_overwrite_nothing(graph, skeleton, network, trial.images)
    without_inplace(skeleton)
    named, classified = traced.named, traced.classified
    if way.stops_early:
        named, classified = merge_repeats(graph, named, classified)
    if trial.returned is not None:
        _check_same(fill(skeleton, network, graph), trial)
    return replace(found, graph=graph, named=named, classified=classified)


def _let_overwrite_nothing(graph: fx.Graph, skeleton, network, images) -> None:
    """Replace the steps of a graph that overwrite values when the network runs."""
    watcher = Watcher(fill(skeleton, network, graph))
    watcher.run(images.clone())
    make_out_of_place(graph, skeleton, watcher.overwritten)


def graph_of_intermediates(backbone: Backbone, image_size: int) -> fx.Graph:
    """A graph that returns the maps that a network in the style of timm offers.

    It has the steps of the network's own graph.
    """
    skeleton = skeleton_of(backbone, image_size)[0]
    graph = trace(skeleton, Intermediates(skeleton)).graph
    skeleton.to("meta")
    if not overwrites_nothing(graph, skeleton):
        images = on_meta(skeleton, image_size).images
        _let_overwrite_nothing(graph, skeleton, skeleton, images)
    return graph


def _check_same(filled: fx.GraphModule, trial: Trial) -> None:
    """Compare what a graph and its network return; graphs run with channels last."""
    with_channels_last(without_inplace(filled))
    watcher = Watcher(filled)
    x = trial.images.contiguous(memory_format=torch.channels_last)
    if not same(watcher.run(x), trial.returned) or watcher.overwritten:
        raise NotTraceable(DIFFERS)


def looks_at_values(network: nn.Module, image_size: int) -> bool:
    """Whether a network can only be run on images with values, as it may do something
    else for others."""
    with measuring(), FakeTensorMode(allow_non_fake_inputs=True):
        shape = (2, 3, image_size, image_size)
        images = torch.zeros(shape, dtype=torch.float32)
        try:
            network(images)
        except Exception:  # whatever its code raises without values
            return True
    return False


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
