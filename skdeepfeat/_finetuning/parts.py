"""A network in three parts: a frozen trunk, a tail that is tuned, and a new head.

The trunk is shared by all estimators and never changes; the tail is a private copy of
the blocks to tune. Both are taken from the traced graph of the network, so the output
of the trunk can be computed once for all epochs.
"""

import contextlib
import copy

import torch
from torch import nn
from torchvision.transforms import v2

from .._backbones.tensors import named_tensors
from .._backbones.weights import WeightsSource
from .._engines.torch import Normalise
from .._networks.activations import activations_of
from .._networks.image_size import explain_size
from .._networks.pooling import pool
from .._networks.sharing import get_network
from .._networks.structure import fill_graph, structure_of
from .fitted import Fitted, arrays_of, load_arrays
from .new_head import Head
from .tuned_part import TunedPart


class Parts:
    """A network in three parts on one device.

    Parameters
    ----------
    source : WeightsSource
    key : bytes
        Digest of the weights.
    tuned : TunedPart
    head : Head
    draws : Draws
        What learning draws, and on which device.
    """

    def __init__(
        self, source: WeightsSource, key: bytes, tuned: TunedPart, head: Head, draws
    ):
        self.spec, self.tuned, self.draws = source.input, tuned, draws
        self.device = device = draws.device
        self._source = source
        self.normalise = Normalise(source.input).to(device)
        self.pretrained = source.pretrained
        structure = structure_of(source.backbone, self.spec.image_size)
        shared = get_network(source, key, str(device), "float32")
        ends = (tuned.start, *tuned.blocks) if tuned.start else tuned.blocks
        self.block_of = structure.block_of(ends)
        nodes = tuple(dict.fromkeys(n for n in (tuned.start, tuned.end.node) if n))
        self._nodes, self._frozen = nodes, activations_of(shared, source, nodes)
        self._below = activations_of(shared, source, nodes[:1])
        self.head, self.is_settled = head.to(device), False
        self.mean, self.scale = torch.zeros(()), torch.ones(())  # of what enters it
        self._names = set(named_tensors(shared.module))
        self.tail: nn.Module = nn.Identity()
        if tuned.has_tail:
            self.tail = self._private_tail(structure, shared.module)

    @classmethod
    def with_new_head(
        cls, source: WeightsSource, key: bytes, tuned, n_classes: int, dropout, draws
    ) -> "Parts":
        """The parts of a network, with a new head for this number of classes."""
        with draws.turn():
            head = Head(tuned.width, n_classes, dropout, tuned.inner)
        if tuned.inner is not None:
            network = get_network(source, key, "cpu", "float32").module
            head.take_what_has_no_start(network.get_submodule(source.backbone.head))
        return cls(source, key, tuned, head, draws)

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
        tail = fill_graph(structure, network, graph)
        if self.tuned.start is not None:
            below = structure.graph_to((self.tuned.start,))
            _refuse_shared_weights(fill_graph(structure, network, below), tail)
        tail = copy.deepcopy(tail)
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
        """Activations where the tail begins and ends, before it has learned."""
        if self.is_settled:
            entered = self.below(batch)
            output = self.tail_output(entered)
            return {self.tuned.start: entered, self.tuned.end.node: output}
        with explain_size(self._source, self._nodes):
            return self._frozen(batch)

    @torch.no_grad()
    def below(self, batch: torch.Tensor) -> torch.Tensor:
        """What enters the tail, from the input of the network."""
        if self.tuned.start is None:
            return batch
        with explain_size(self._source, self._nodes):
            return self._below(batch)[self.tuned.start]

    def tail_output(self, entered: torch.Tensor) -> torch.Tensor:
        """What leaves the tail, from what enters it."""
        with explain_size(self._source, self._nodes):
            left = self.tail(entered)
        return left[self.tuned.end.node] if isinstance(left, dict) else left

    def above(self, entered: torch.Tensor) -> torch.Tensor:
        """Scores from what enters the tail."""
        return self.classify(self.pooled(self.tail_output(entered)))

    def whole(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores from the input of the network."""
        return self.above(self.below(batch))

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores from rows that enter the head."""
        return self.head((rows - self.mean) / self.scale)

    @contextlib.contextmanager
    def standardised(self, mean: torch.Tensor, scale: torch.Tensor):
        """A context in which the head learns from standardised rows.

        They are only scaled for a head that could not take them raw again.
        """
        if not self.head.can_be_centred:
            mean = torch.zeros_like(mean)
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
        """Norms of the tail that may have statistics: of batches and of instances."""
        kind = nn.modules.batchnorm._NormBase
        return [module for module in self.tail.modules() if isinstance(module, kind)]

    def arrays(self) -> tuple[dict, dict]:
        """Copies of the tuned weights as plain arrays: the tail's, the head's."""
        tail = arrays_of(self.tail)  # constants of the code are not weights
        return {k: v for k, v in tail.items() if k in self._names}, arrays_of(self.head)

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
        load_arrays(self.tail, fitted.tail)
        load_arrays(self.head, fitted.head)


def _refuse_shared_weights(below: nn.Module, tail: nn.Module) -> None:
    """Refuse weights that the trunk and the tail share, under any names."""
    frozen, tuned = (
        {id(p): name for name, p in part.named_parameters()} for part in (below, tail)
    )
    if both := sorted(tuned[place] for place in frozen.keys() & tuned.keys()):
        raise ValueError(
            f"The network uses {both[0]!r} in both frozen and tuned blocks, but it "
            "cannot be frozen and learn. Choose another 'unfreeze', or 'all'."
        )
