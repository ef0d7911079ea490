"""Pools the states of tokens (b, length, d) to rows (b, d), without the padding."""

import torch

from .._texts.specs import POOLINGS


def mean(states, mask):
    """(b, length, d) → (b, d): mean over the tokens, zero without any."""
    kept = states * mask[..., None]
    return kept.sum(1) / mask.sum(1).clamp(min=1)[:, None]


def largest(states, mask):
    """(b, length, d) → (b, d): largest value over the tokens, zero without any."""
    kept = states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return kept.masked_fill(~mask.any(1)[:, None], 0)


def first(states, mask):
    """(b, length, d) → (b, d): the first token."""
    return states[:, 0]


PARTS = {"mean": mean, "max": largest, "first": first}


def pool_tokens(states, mask, pooling: str):
    """Rows (b, n * d) of the states of tokens, which `mask` (b, length) marks."""
    states = states.float()
    return torch.cat([PARTS[part](states, mask) for part in POOLINGS[pooling]], 1)
