"""Compares outputs: of a network and its graph, and of an image alone and in a batch.

The code of a user's network may do what torch.fx does not see. So network and graph are
run on the same two images, and their outputs decide, not a list of possible causes.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import nn

from .._exceptions import in_one_line
from .._images.recipe import InputSpec
from .generators import restored

ROUNDING = 1e-4  # of the largest value, between two ways to compute the same
# Between batches of one and two images, also of a network that rounds to bfloat16.
NEIGHBOURS = 2e-2

MIXED = (
    "Backbone {name!r} cannot give features: those of an image depend on the other "
    "images of the batch, for instance because a BatchNorm has no running statistics. "
    "Use a network that computes each image by itself."
)
ALONE = (
    "Backbone {name!r} cannot give features: it takes two images, but not one alone "
    "({error}). Use a network that computes each image by itself: one whose BatchNorm "
    "has running statistics, or that was not exported for one batch size."
)
CHANGING = (
    "Backbone {name!r} cannot give features: they are different in every call, for "
    "instance because torch.nn.functional.dropout(x) is called without "
    "training=self.training. Use a network that draws no random numbers in evaluation."
)


@contextlib.contextmanager
def measuring():
    """A context in which tensors count their changes; restores the generator."""
    with torch.inference_mode(False), torch.no_grad(), restored():
        yield


def two_images(spec: InputSpec, size: int) -> torch.Tensor:
    """A bright and a dark image of noise, as they enter a network."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float32)
    pixels[1] *= 0.3
    mean, std = (
        torch.tensor(v, dtype=torch.float32).view(3, 1, 1)
        for v in (spec.mean, spec.std)
    )
    return (pixels - mean) / std


def check_rows(name: str, network: nn.Module, x: torch.Tensor, returned) -> None:
    """Raise an error if the rows of two images are random or depend on each other."""
    if not same(network(x.clone()), returned):
        raise ValueError(CHANGING.format(name=name))
    try:
        alone = network(x[:1].clone())
    except Exception as error:  # it needs several images, as norms over the batch do
        reason = in_one_line(error)
        raise ValueError(ALONE.format(name=name, error=reason)) from error
    if not _same_alone(alone, x, returned):
        raise ValueError(MIXED.format(name=name))


def _same_alone(alone, x: torch.Tensor, returned) -> bool:
    """Whether the first image has the same result without the second one."""
    pairs = zip(tensors_of(returned), tensors_of(alone), strict=False)
    rows = [(a, b[:1]) for b, a in pairs if _length(b) == len(x) and _length(a) == 1]
    return all(_same_tensor(a, b, NEIGHBOURS) for a, b in rows)


def _length(tensor: torch.Tensor) -> int:
    return len(tensor) if tensor.ndim else 0


def tensors_of(value) -> list[torch.Tensor]:
    """The tensors in what a step or a network returns."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value):
        value = [getattr(value, field.name, None) for field in fields(value)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def only_tensor(value):
    """The only tensor in a value, or the value itself."""
    found = tensors_of(value)
    return found[0] if len(found) == 1 else value


def copied(value) -> list[torch.Tensor]:
    """Copies of the tensors in a value, which no later step overwrites."""
    return [tensor.clone() for tensor in tensors_of(value)]


def same(found, expected) -> bool:
    """Whether the tensors in two values are the same up to rounding."""
    found, expected = tensors_of(found), tensors_of(expected)
    return len(found) == len(expected) and all(
        _same_tensor(*pair, ROUNDING) for pair in zip(found, expected, strict=True)
    )


def _same_tensor(found, expected, tolerance: float) -> bool:
    """Whether the difference is small relative to the largest finite value."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    found, expected = _as_numbers(found), _as_numbers(expected)
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(found, expected, 0, tolerance * largest, equal_nan=True)


def _as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision, with real and imaginary parts separated."""
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return parts.double()
