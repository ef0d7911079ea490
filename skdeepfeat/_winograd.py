"""3 x 3 convolutions with a quarter of the multiplications, for torch on a CPU.

Tiles of 4 x 4 results are polynomials times polynomials: both are evaluated at six
points, multiplied there, and interpolated [1]_.

References
----------
.. [1] Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

TILE = 4  # results on a side
WINDOW = 6  # the inputs that they depend on
MIN_CHANNELS = 128  # of fewer, transforming takes longer than it saves
MIN_GAIN = 2  # times fewer multiplications, which tiles beyond the map cost again
MIN_PRODUCTS = 200_000_000  # in fewer, reading the larger weights costs what it saves
MAX_BYTES = 16 << 20  # of transformed inputs at once; the allocator keeps such blocks

# The points are 0, P, -P, Q, -Q and infinity. With these the rounding errors are as
# small as in the sum of products itself; with 1 and 2 they are three times as large.
P, Q = 0.5**0.5, 2**0.5


def _interpolation() -> tuple[np.ndarray, np.ndarray]:
    """(6, 3) matrix from weights to points, (4, 6) from points to results."""
    points = np.array([0, P, -P, Q, -Q])
    apart = np.subtract.outer(points, points) + np.eye(len(points))
    at_points = points[:, None] ** np.arange(3) / apart.prod(1, keepdims=True)
    of_points = points ** np.arange(TILE)[:, None]
    infinity = np.eye(TILE)[:, -1:]
    return np.vstack([at_points, [[0, 0, 1]]]), np.hstack([of_points, infinity])


WEIGHTS_TO_POINTS, POINTS_TO_RESULTS = (
    torch.from_numpy(np.kron(matrix, matrix)) for matrix in _interpolation()
)


def suits(module: nn.Module) -> bool:
    """Whether a module is a convolution that may gain from it."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding == (1, 1)
        and module.padding_mode == "zeros"
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """What a convolution computes, to rounding errors.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        One that suits; it is kept, for maps that are too small to gain.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self._conv = conv
        k, c = conv.weight.shape[:2]
        kernels = conv.weight.detach().double().transpose(2, 3).reshape(k * c, -1)
        weights = (WEIGHTS_TO_POINTS @ kernels.T).float().view(-1, k, c)
        self._weights = weights.transpose(1, 2).contiguous()  # (36, c, k)
        self._bias = torch.zeros(k) if conv.bias is None else conv.bias.detach()
        self._results = POINTS_TO_RESULTS.float()

    def forward(self, x):
        """(n, c, h, w) → (n, k, h, w), both with the channels last in memory."""
        n, c, h, w = x.shape
        down, across = -(-h // TILE), -(-w // TILE)
        k = len(self._bias)
        gain = 9 * h * w / (WINDOW**2 * down * across)
        if gain < MIN_GAIN or 9 * h * w * n * c * k < MIN_PRODUCTS:
            return self._conv(x)
        out = x.new_empty(n, down * TILE, across * TILE, k)
        size = WINDOW**2 * down * across * max(c, k) * x.element_size()
        at_once = max(1, MAX_BYTES // size)
        pairs = zip(x.split(at_once), out.split(at_once), strict=True)
        for some, results in pairs:
            self._convolve(some.permute(0, 2, 3, 1), results)
        return out[:, :h, :w].permute(0, 3, 1, 2)

    def _convolve(self, x, out) -> None:
        """Fill `out`, whole tiles (n, height, width, k), from x (n, h, w, c)."""
        (n, h, w, c), (_, height, width, k) = x.shape, out.shape
        down, across = height // TILE, width // TILE
        x = F.pad(x, (0, 0, 1, width + 1 - w, 1, height + 1 - h))
        rows = _to_points(x.unfold(1, WINDOW, TILE))  # (6, n, down, width + 2, c)
        both = _to_points(rows.unfold(3, WINDOW, TILE))  # (6, 6, n, down, across, c)
        products = both.view(WINDOW**2, -1, c) @ self._weights
        results = self._results @ products.view(WINDOW**2, -1)
        results = results.view(TILE, TILE, n, down, across, k)
        places = out.view(n, down, TILE, across, TILE, k).permute(4, 2, 0, 1, 3, 5)
        torch.add(results, self._bias, out=places)


def _to_points(windows):
    """(..., 6) coefficients → (6, ...) what their interpolation needs at the points.

    A point has the coefficients of the polynomial that is 0 at all others:
    x (x² - q²) (x ± p) for ±p, and (x² - p²) (x² - q²), times x for infinity.
    """
    d = windows.movedim(-1, 0)
    out = windows.new_empty(d.shape)
    parts = None
    for place, p, q in ((1, P, Q), (3, Q, P)):
        parts = torch.sub(d[3:5], d[1:3], alpha=q * q, out=parts)
        odd, even = parts
        torch.add(even, odd, alpha=p, out=out[place])
        torch.sub(even, odd, alpha=p, out=out[place + 1])
    ends = out[::5]
    torch.sub(d[4:6], d[2:4], alpha=P * P + Q * Q, out=ends)
    ends.add_(d[0:2], alpha=P * P * Q * Q)
    return out
