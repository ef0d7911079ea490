"""The tensors of a network, as arrays, and their digests; torch is not imported."""

from typing import Any

import numpy as np

from .._digests import digest_fields


def named_tensors(net) -> dict[str, Any]:
    """The tensors of a network by name, also buffers that no file holds."""
    return dict(net.state_dict()) | dict(net.named_buffers())


def digest_tensors(arrays) -> bytes:
    """Digest of the names, shapes and values of tensors, given as arrays."""
    return digest_fields("tensors", 1, arrays)


def as_array(tensor) -> np.ndarray:
    """A copy of a tensor as an array; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    if "bfloat16" in str(tensor.dtype):
        tensor = tensor.float()
    return tensor.numpy().copy()
