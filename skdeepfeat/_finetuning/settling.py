"""Statistics to start from, for the batch norms of networks with random weights."""

import math

import torch
from torch import nn

from .._engines.tf32 import arithmetic
from .data import Data
from .frozen import FROZEN_BATCH
from .parts import Parts


@torch.no_grad()
def settle(parts: Parts, data: Data) -> None:
    """Let the batch norms of a random tail start from the statistics of these images.

    They have none yet, and without them the features of a deep network nearly vanish.
    The head learns first, and its input is scaled: neither would fit the features that
    the network has as soon as it learns. Images out of range, which may have no finite
    features, are left out.
    """
    kind, data = nn.modules.batchnorm._BatchNorm, data.ranged(within=True)
    batch_norms = [norm for norm in parts.norms() if isinstance(norm, kind)]
    norms = [norm for norm in batch_norms if norm.track_running_stats]
    if parts.pretrained or not norms or len(data) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average of all batches
        norm.train()
    n_batches = math.ceil(len(data) / FROZEN_BATCH)
    for first in range(n_batches):  # of images from all over the data
        batch = parts.prepare(data.take(torch.arange(first, len(data), n_batches)))
        with arithmetic("float32", batch.device.type):
            parts.tail_output(parts.below(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    parts.is_settled = True
