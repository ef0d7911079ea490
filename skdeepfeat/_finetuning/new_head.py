"""The new head: from the features of the last layer to the scores of classes."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from .._backbones.copies import keeping_ties
from .._backbones.records import Layer
from .._networks.building import SkipInitialisation, single_precision
from .._processes import fork_safe
from .fitted import load_arrays


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
        self.inner, width = nn.Identity(), n_features
        if inner is not None:
            width = _width_after(inner, n_features)
            own = copy.deepcopy(inner)
            self.inner = keeping_ties(own, lambda net: net.to_empty(device="cpu"))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, n_classes)
        for module in self.inner.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if inner is None:  # start from equal probabilities
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @torch.no_grad()
    def take_what_has_no_start(self, own_head: nn.Module) -> None:
        """Copy from the backbone's own head what no module can reset."""
        for name, module in self.inner.named_modules():
            if hasattr(module, "reset_parameters"):
                continue
            own = own_head.get_submodule(name)
            for key, tensor in _own_tensors(module):
                tensor.copy_(getattr(own, key))

    def forward(self, x):
        return self.last(self.dropout(self.inner(x)))

    @property
    def can_be_centred(self) -> bool:
        """Whether the first dense layer has a bias, which can subtract a mean."""
        return self._first().bias is not None

    @torch.no_grad()
    def take_raw(self, mean, scale) -> None:
        """Change the weights so that the head takes rows as they are."""
        first = self._first()
        first.weight.div_(scale)
        if self.can_be_centred:
            first.bias.sub_(first.weight @ mean)

    @torch.no_grad()
    def take_standardised(self, mean, scale) -> None:
        """Change the weights so that the head takes standardised rows."""
        first = self._first()
        if self.can_be_centred:
            first.bias.add_(first.weight @ mean)
        first.weight.mul_(scale)

    def _first(self) -> nn.Linear:
        """The first dense layer."""
        return next(m for m in self.modules() if isinstance(m, nn.Linear))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a module itself, by name."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _width_after(layers: nn.Module, width: int) -> int:
    """Number of features that layers without weights return for this number."""
    return layers.eval()(torch.empty(1, width, device="meta")).shape[1]


@fork_safe
@torch.inference_mode()
def head_scores(end: Layer, inner, arrays: dict, rows: np.ndarray) -> np.ndarray:
    """Scores (n, classes) of rows that enter a trained head.

    Computed in double precision, so that the rounded scores of a row do not depend on
    the rows around it.
    """
    with SkipInitialisation(), single_precision:
        head = Head(end.features, len(arrays["last.bias"]), 0.0, inner).eval()
    load_arrays(head, arrays)
    return head.double()(torch.from_numpy(rows).double()).float().numpy()
