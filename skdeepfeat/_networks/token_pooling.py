"""Pools the states of tokens (b, length, d) to rows (b, d), without the padding."""

import torch

from .._texts.specs import AS_STATES, POOLINGS


def mean(states, mask):
    """(b, length, d) → (b, d): mean over the tokens, zero without any."""
    kept = states * mask[..., None]
    return kept.sum(1) / mask.sum(1).clamp(min=1)[:, None]


def largest(states, mask):
    """(b, length, d) → (b, d): largest value over the tokens, zero without any."""
    kept = states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return kept.masked_fill(~mask.any(1)[:, None], 0)


def first(states, mask):
    """(b, length, d) → (b, d): the first token, zero without any."""
    return states[:, 0].masked_fill(~mask[:, :1], 0)


PARTS = {"mean": mean, "max": largest, "first": first}


def pool_tokens(activation, layout: str, mask, pooling: str):
    """Rows of one activation; `mask` (b, length) says where the tokens are."""
    as_states = AS_STATES.get(layout)
    if as_states is None:
        return activation.float()
    # Contiguous, or the order in which torch adds depends on the place in the batch.
    states = as_states(activation.float()).contiguous()
    mask = _resized(mask, states.shape[1])
    return torch.cat([PARTS[part](states, mask) for part in POOLINGS[pooling]], 1)


def _resized(mask, length: int):
    """The mask of as many places as a convolution has left, by where they begin."""
    if length == mask.shape[1]:
        return mask
    begins = torch.arange(length, device=mask.device) * mask.shape[1] // length
    return mask[:, begins]
