"""A network in three parts: a frozen trunk, a tail that is tuned, and a new head.

The trunk is shared by all estimators and never changes; the tail is a private copy of
the blocks to tune. Both are taken from the traced graph of the network, so the output
of the trunk can be computed once for all epochs.
"""

import contextlib
import copy
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from .._backbones.records import Layer
from .._backbones.weights import WeightsSource
from .._engines.torch import Normalise
from .._networks.building import SkipInitialisation
from .._networks.hooks import INPUT_OF
from .._networks.image_size import explain_size
from .._networks.layers import aliased_layers, resolve_layer
from .._networks.pooling import pool
from .._networks.sharing import get_network
from .._networks.structure import Structure, bind, fill_graph, structure_of
from .._processes import fork_safe


@dataclass(frozen=True)
class TunedPart:
    """Which part of a network is tuned.

    Parameters
    ----------
    start : str or None
        Node after which the tail begins; None if the tail is the whole network.
    end : Layer
        What enters the head.
    blocks : tuple of str
        Last nodes of the tuned blocks, in order of depth.
    inner : nn.Module or None
        The dense layers of the head before the last one, without weights, if the
        backbone's head has several.
    """

    start: str | None
    end: Layer
    blocks: tuple[str, ...]
    inner: nn.Sequential | None

    @property
    def has_tail(self) -> bool:
        """Whether any block is tuned, in addition to the head."""
        return len(self.blocks) > 0

    @property
    def width(self) -> int:
        """Number of features that enter the head."""
        return self.end.features


@dataclass
class Fitted:
    """The result of training, as arrays and plain values.

    Parameters
    ----------
    tail, head : dict of str to ndarray
        Parameters and buffers by name; those of the tail are named as in the network.
    scaling : dict of str to ndarray
        "mean" and "scale" of what enters the head, in the first fit.
    history : list of dict
        One entry for each epoch.
    """

    tail: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    scaling: dict[str, np.ndarray]
    history: list[dict[str, Any]] = field(default_factory=list)


# Which part is tuned ----------------------------------------------------------------


def find_tuned_part(source: WeightsSource, unfreeze) -> TunedPart:
    """The part that a number of blocks, a lowest layer, or "all" means."""
    structure = structure_of(source.backbone, source.input.image_size)
    if not structure.traceable:
        raise ValueError(
            f"Backbone {source.backbone.name!r} cannot be traced by torch.fx "
            f"({structure.fault}), so it cannot be divided into a frozen and a tuned "
            "part. Use PretrainedCNNFeatures(backbone) with any classifier instead."
        )
    end, inner = head_input(source)
    _refuse_other_width(source, end, inner)
    blocks = _tunable_blocks(structure, end)
    n_tuned = _number_tuned(source, blocks, unfreeze)
    frozen, tuned = blocks[: len(blocks) - n_tuned], blocks[len(blocks) - n_tuned :]
    start = frozen[-1].node if frozen else None
    if not tuned:
        start = end.node
    return TunedPart(start, end, tuple(layer.node for layer in tuned), inner)


def head_input(source: WeightsSource) -> tuple[Layer, nn.Sequential | None]:
    """The layer that enters the head, and the layers of the head before the last."""
    backbone, size = source.backbone, source.input.image_size
    end = resolve_layer(backbone, "penultimate", size)
    skeleton = structure_of(backbone, size).skeleton
    head = skeleton.get_submodule(backbone.head) if backbone.head else None
    inside = end.node.startswith(f"{backbone.head}.")
    if not inside or not isinstance(head, nn.Sequential):
        return end, None
    linear = [i for i, layer in enumerate(head) if isinstance(layer, nn.Linear)]
    if not linear:
        return end, None
    first = f"{backbone.head}.{linear[0]}{INPUT_OF}"
    inner = copy.deepcopy(head[linear[0] : linear[-1]])  # which keep their names
    return resolve_layer(backbone, first, size), inner


def _refuse_other_width(source: WeightsSource, end: Layer, inner) -> None:
    """Refuse an image size that the dense layers of a head cannot take."""
    if inner is not None and inner[0].in_features != end.features:
        raise ValueError(
            f"Backbone {source.backbone.name!r} has a head of several layers, which "
            f"takes {inner[0].in_features} features. With image_size="
            f"{source.input.image_size} there are {end.features}; "
            "leave image_size=None."
        )


def _tunable_blocks(structure: Structure, end: Layer) -> list[Layer]:
    """Aliased layers below the head that end a block with parameters."""
    layers = [
        layer
        for layer in aliased_layers(structure.backbone)
        if layer.alias not in ("penultimate", "logits")
        and structure.comes_before(layer.node, end.node)
    ]
    block_of = structure.block_of(tuple(layer.node for layer in layers))
    with_weights = {
        block
        for target, block in block_of.items()
        if _has_parameters(attrgetter(target)(structure.skeleton))
    }
    return [layer for i, layer in enumerate(layers) if i in with_weights]


def _number_tuned(source: WeightsSource, blocks: list[Layer], unfreeze) -> int:
    """Number of blocks, from the top, that `unfreeze` means."""
    name = source.backbone.name
    aliases = [layer.alias for layer in blocks]
    if unfreeze == "all":
        return len(blocks)
    if isinstance(unfreeze, str):
        wanted = resolve_layer(source.backbone, unfreeze, source.input.image_size)
        nodes = [layer.node for layer in blocks]
        if wanted.node not in nodes:
            raise ValueError(
                f"unfreeze={unfreeze!r} is not a block of backbone {name!r} that can "
                f"be tuned. Its blocks are {', '.join(map(repr, aliases))}."
            )
        return len(blocks) - nodes.index(wanted.node)
    if unfreeze > len(blocks):
        raise ValueError(
            f"unfreeze={unfreeze} is deeper than backbone {name!r}, which has "
            f"{len(blocks)} blocks: {', '.join(map(repr, aliases))}. Use at most "
            f"{len(blocks)}, or 'all'."
        )
    return unfreeze


def _refuse_shared_modules(structure: Structure, start: str | None, graph) -> None:
    """Refuse modules that the trunk and the tail share."""
    below = structure.graph_to((start,)).nodes if start else ()
    targets = [
        {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
        for nodes in (below, graph.nodes)
    ]
    both = [
        target
        for target in sorted(targets[0] & targets[1])
        if _has_parameters(attrgetter(target)(structure.skeleton))
    ]
    if both:
        raise ValueError(
            f"The network uses {both[0]!r} in both frozen and tuned blocks, but it "
            "cannot be frozen and learn. Choose another 'unfreeze', or 'all'."
        )


def _has_parameters(part) -> bool:
    if isinstance(part, nn.Module):
        return any(True for _ in part.parameters())
    return isinstance(part, nn.Parameter)


# The parts ---------------------------------------------------------------------------


class Head(nn.Module):
    """Maps rows (n, d) to scores (n, classes): dense layers and dropout.

    Parameters
    ----------
    n_features, n_classes : int
    dropout : float
        Dropout probability before the last layer.
    inner : nn.Module or None
        The backbone's own dense layers up to the last one, which is replaced.
    """

    def __init__(self, n_features, n_classes, dropout, inner=None):
        super().__init__()
        self.inner = nn.Identity()
        if inner is not None:
            self.inner = copy.deepcopy(inner).to_empty(device="cpu")
        widths = [
            m.out_features for m in self.inner.modules() if isinstance(m, nn.Linear)
        ]
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear((widths or [n_features])[-1], n_classes)
        for module in self.inner.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if inner is None:  # start from equal probabilities
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x):
        return self.last(self.dropout(self.inner(x)))

    @torch.no_grad()
    def take_raw(self, mean, scale) -> None:
        """Change the weights so that the head takes rows as they are."""
        first = self._first()
        first.weight.div_(scale)
        first.bias.sub_(first.weight @ mean)

    @torch.no_grad()
    def take_standardised(self, mean, scale) -> None:
        """Change the weights so that the head takes standardised rows."""
        first = self._first()
        first.bias.add_(first.weight @ mean)
        first.weight.mul_(scale)

    def _first(self) -> nn.Linear:
        """The first dense layer."""
        return next(m for m in self.modules() if isinstance(m, nn.Linear))


class Parts:
    """A network in three parts on one device.

    Parameters
    ----------
    source : WeightsSource
    key : bytes
        Digest of the weights.
    tuned : TunedPart
    head : Head
    device : torch.device
    """

    def __init__(
        self, source: WeightsSource, key: bytes, tuned: TunedPart, head: Head, device
    ):
        self.spec, self.tuned, self.device = source.input, tuned, device
        self._source = source
        self.normalise = Normalise(source.input).to(device)
        self.pretrained = source.pretrained
        structure = structure_of(source.backbone, self.spec.image_size)
        network = get_network(source, key, str(device), "float32").module
        ends = (tuned.start, *tuned.blocks) if tuned.start else tuned.blocks
        self.block_of = structure.block_of(ends)
        nodes = tuple(dict.fromkeys(n for n in (tuned.start, tuned.end.node) if n))
        self._nodes, self._frozen = nodes, bind(structure, network, nodes)
        self.head = head.to(device)
        self.mean, self.scale = torch.zeros(()), torch.ones(())  # of what enters it
        self._names = {*network.state_dict(), *dict(network.named_buffers())}
        self.tail: nn.Module = nn.Identity()
        if tuned.has_tail:
            self.tail = self._private_tail(structure, network)

    def _private_tail(self, structure, network) -> nn.Module:
        """A copy of the blocks to tune, whose parameters learn."""
        if self.tuned.start is None:
            graph = structure.graph_to((self.tuned.end.node,))
        else:
            graph = structure.tail(self.tuned.start, self.tuned.end.node)
        if graph is None:
            raise ValueError(
                f"The network cannot be divided after {self.tuned.start!r}, because "
                "later layers also read earlier ones. Choose another 'unfreeze', or "
                "'all'."
            )
        _refuse_shared_modules(structure, self.tuned.start, graph)
        tail = copy.deepcopy(fill_graph(structure, network, graph))
        for parameter in tail.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return tail

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised input of the network, on its device, from pixels (b, 3, s, s)."""
        size = self.spec.image_size
        pixels = v2.functional.center_crop(pixels, [size, size])
        batch = pixels.to(self.device).float()
        batch = batch.contiguous(memory_format=torch.channels_last)
        return self.normalise(batch)

    def frozen(self, batch: torch.Tensor) -> dict:
        """Activations of the untouched network where the tail begins and ends."""
        with explain_size(self._source, self._nodes):
            return self._frozen(batch)

    @torch.no_grad()
    def below(self, batch: torch.Tensor) -> torch.Tensor:
        """What enters the tail, from the input of the network."""
        return (
            batch if self.tuned.start is None else self.frozen(batch)[self.tuned.start]
        )

    def above(self, entered: torch.Tensor) -> torch.Tensor:
        """Scores from what enters the tail."""
        with explain_size(self._source, self._nodes):
            left = self.tail(entered)
        left = left[self.tuned.end.node] if isinstance(left, dict) else left
        return self.classify(self.pooled(left))

    def whole(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores from the input of the network."""
        return self.above(self.below(batch))

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores from rows that enter the head."""
        return self.head((rows - self.mean) / self.scale)

    @contextlib.contextmanager
    def standardised(self, mean: torch.Tensor, scale: torch.Tensor):
        """A context in which the head learns from standardised rows."""
        self.mean, self.scale = mean.to(self.device), scale.to(self.device)
        self.head.take_standardised(self.mean, self.scale)
        yield
        self.head.take_raw(self.mean, self.scale)

    def pooled(self, activation: torch.Tensor) -> torch.Tensor:
        """Activations pooled to rows, which enter the head."""
        return torch.cat(pool(activation, self.tuned.end.layout, "avg"), 1)

    def groups(self, rate, layer_decay, decay, head_only=False) -> list[dict]:
        """Parameters with learning rates, lower for lower blocks, and weight decay."""
        groups: dict[tuple, dict] = {}
        named = [(0, p) for p in self.head.parameters()]
        tuned = () if head_only else self.tail.named_parameters()
        named += [(self._depth(name), p) for name, p in tuned]
        for depth, parameter in named:
            bare = parameter.ndim <= 1  # no weight decay for biases and norms
            group = {
                "params": [],
                "lr": rate * layer_decay**depth,
                "weight_decay": 0.0 if bare else decay,
            }
            groups.setdefault((depth, bare), group)["params"].append(parameter)
        return list(groups.values())

    def _depth(self, name: str) -> int:
        """Number of blocks from the head down to a parameter of the tail, from 1."""
        part = next(t for t in self.block_of if name == t or name.startswith(f"{t}."))
        first = 0 if self.tuned.start is None else 1
        return max(1, len(self.tuned.blocks) - (self.block_of[part] - first))

    def norms(self) -> list[nn.Module]:
        """Batch norms of the tail."""
        kind = nn.modules.batchnorm._BatchNorm
        return [module for module in self.tail.modules() if isinstance(module, kind)]

    def arrays(self) -> tuple[dict, dict]:
        """Copies of the tuned weights as plain arrays: the tail's, the head's."""
        tail = _arrays(self.tail)  # constants of the code are not weights
        return {k: v for k, v in tail.items() if k in self._names}, _arrays(self.head)

    def load(self, fitted: Fitted) -> None:
        """Continue from the weights of an earlier fit."""
        lost = fitted.tail.keys() - self.tail.state_dict().keys()
        if lost:
            raise ValueError(
                f"'unfreeze' is smaller than before, so {len(lost)} tuned parameters "
                f"such as {min(lost)!r} would be lost. Continue with at least as many "
                "blocks, or call save_weights(path) and fit a new classifier with "
                "weights=path."
            )
        _load(self.tail, fitted.tail)
        _load(self.head, fitted.head)


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.cpu().numpy().copy() for k, v in module.state_dict().items()}


def _load(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
    module.load_state_dict(module.state_dict() | tensors)


@fork_safe
@torch.inference_mode()
def head_scores(end: Layer, inner, arrays: dict, rows: np.ndarray) -> np.ndarray:
    """Scores (n, classes) of rows that enter a trained head.

    Computed in double precision, so that the rounded scores of a row do not depend on
    the rows around it.
    """
    with SkipInitialisation():
        head = Head(end.features, len(arrays["last.bias"]), 0.0, inner).eval()
    _load(head, arrays)
    return head.double()(torch.from_numpy(rows).double()).float().numpy()


@fork_safe
def weights_of(source: WeightsSource, key: bytes, fitted: Fitted) -> dict:
    """All weights of the tuned network as arrays, named as in the network.

    The last layer is left out, since its classes are specific to one data set.
    """
    module = get_network(source, key, "cpu", "float32").module
    tensors = dict(module.state_dict()) | dict(module.named_buffers())
    head = f"{source.backbone.head}."
    arrays = {
        name: tensor.numpy().copy()
        for name, tensor in tensors.items()
        if not name.startswith(head)
    }
    inner = {
        head + name.removeprefix("inner."): array
        for name, array in fitted.head.items()
        if name.startswith("inner.")
    }
    arrays |= inner
    for name, array in fitted.tail.items():
        for same in _names_of(tensors, name):
            arrays[same] = array
    return arrays


def _names_of(tensors: dict[str, torch.Tensor], name: str) -> list[str]:
    """All names of a tensor that several modules share."""
    place = tensors[name].data_ptr()
    return [n for n, t in tensors.items() if n == name or t.data_ptr() == place != 0]


def layers_at_size(source: WeightsSource) -> list[Layer]:
    """The aliased layers, with their shapes at the image size in use."""
    backbone, size = source.backbone, source.input.image_size
    layers = aliased_layers(backbone)
    if size == backbone.input.image_size:
        return list(layers)
    nodes = tuple(dict.fromkeys(layer.node for layer in layers))
    shapes = structure_of(backbone, size).shapes(nodes, size)
    return [replace(layer, shape=shapes[layer.node]) for layer in layers]
