"""Finds tokens that are the same for every image, such as a class token, by a run.

Before a network mixes its tokens, those of its parameters are the same for every image,
whatever their names are.
"""

import torch

from .comparison import measuring, tensors_of, two_images
from .structure import Structure

ROUNDING = 1e-6  # of the largest value
Constant = list[bool]  # for each token, whether it is the same for every image


def constant_in_front(structure: Structure, n: int) -> int | None:
    """How many of n tokens, in front of the others, are the same for every image.

    None if some are elsewhere.
    """
    constant = constant_tokens(structure).get(n, [False])
    others = constant.index(False)
    return None if any(constant[others:]) else others


def constant_tokens(structure: Structure) -> dict[int, Constant]:
    """By the number of tokens in a row, where some of them are first constant.

    Where none ever are, all are False.
    """
    name = ("constant tokens", structure.image_size)
    return structure.backbone.memo.get(name, lambda: _find(structure))


def _find(structure: Structure) -> dict[int, Constant]:
    """Run a network on two images, and look at what enters and leaves its modules."""
    found: dict[int, Constant] = {}

    def note(*values):
        for rows in tensors_of(values):
            if (
                rows.ndim == 3
                and len(rows) == 2
                and not any(found.get(len(rows[0]), ()))
            ):
                constant = _constant_in(rows)
                if not all(constant):  # as in what has no row for each image
                    found[len(constant)] = constant

    network = structure.real_network()
    for module in network.modules():
        module.register_forward_pre_hook(
            lambda module, args, kwargs: note(args, kwargs), with_kwargs=True
        )
        module.register_forward_hook(lambda module, args, output: note(output))
    with measuring():
        network(two_images(structure.backbone.input, structure.image_size))
    return found


def _constant_in(rows: torch.Tensor) -> Constant:
    """Which tokens of rows (2, n, d) are the same in both."""
    first, second = rows.float()
    tolerance = ROUNDING * float(first.abs().max())
    return ((first - second).abs().amax(1) <= tolerance).tolist()
