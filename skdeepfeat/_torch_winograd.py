"""3 x 3 convolutions with fewer multiplications, for torch on a CPU."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from ._winograd import (
    KERNEL,
    MIN_CHANNELS,
    RESULTS,
    TILE,
    WINDOW,
    P,
    Q,
    padding,
    pays,
    tiles,
    weights_at_points,
)

MAX_BYTES = 16 << 20  # of transformed inputs at once; the allocator keeps such blocks


def suits(conv) -> bool:
    """Whether a convolution may gain from it; whether it does depends on the maps."""
    return (
        conv.kernel_size == (KERNEL, KERNEL)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """What a convolution computes, to rounding errors.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        One that suits; it is kept, for maps that do not pay.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self._conv, k = conv, conv.out_channels
        self._bias = torch.zeros(k) if conv.bias is None else conv.bias.detach()
        self._results = torch.from_numpy(RESULTS)

    @functools.cached_property
    def _weights(self) -> torch.Tensor:
        """(36, c, k), which single photos never ask for."""
        weights = weights_at_points(self._conv.weight.detach().numpy())
        return torch.from_numpy(weights).transpose(1, 2)

    def forward(self, x):
        """(n, c, h, w) → (n, k, h, w), both with the channels last in memory."""
        (n, c, h, w), k = x.shape, len(self._bias)
        if not pays(n, c, h, w, k):
            return self._conv(x)
        down, across = tiles(h), tiles(w)
        out = x.new_empty(n, down * TILE, across * TILE, k)
        size = WINDOW**2 * down * across * max(c, k) * x.element_size()
        at_once = max(1, MAX_BYTES // size)
        parts = zip(x.split(at_once), out.split(at_once), strict=True)
        for maps, results in parts:
            self._convolve(maps.permute(0, 2, 3, 1), results)
        # Later steps may take a view of it, and must not compute in another order if a
        # copy is made for somebody else.
        cropped = out[:, :h, :w].permute(0, 3, 1, 2)
        return cropped.contiguous(memory_format=torch.channels_last)

    def _convolve(self, x, out) -> None:
        """Fill `out`, whole tiles (n, height, width, k), from x (n, h, w, c)."""
        (n, h, w, c), k = x.shape, out.shape[-1]
        down, across = tiles(h), tiles(w)
        x = F.pad(x, (0, 0, *padding(w), *padding(h)))
        rows = _to_points(x.unfold(1, WINDOW, TILE))  # (6, n, down, padded width, c)
        both = _to_points(rows.unfold(3, WINDOW, TILE))  # (6, 6, n, down, across, c)
        products = both.view(WINDOW**2, -1, c) @ self._weights
        results = self._results @ products.view(WINDOW**2, -1)
        results = results.view(TILE, TILE, n, down, across, k)  # columns, then rows
        places = out.view(n, down, TILE, across, TILE, k).permute(4, 2, 0, 1, 3, 5)
        torch.add(results, self._bias, out=places)


def _to_points(windows):
    """(..., 6) → (6, ...): each window, at each point.

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
    ends.add_(d[0:2])  # times P² Q², which is 1
    return out
