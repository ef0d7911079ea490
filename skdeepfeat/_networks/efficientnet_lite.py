"""EfficientNet-Lite: networks for laptops and phones, and the trunk of "mini".

EfficientNet [1]_ without the parts that small processors compute slowly [2]_: ReLU6 in
place of swish, and no squeeze and excitation. The modules are named as in the published
files, without the underscores.

References
----------
.. [1] Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural
   networks", 2019.
.. [2] Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020.
"""

import math

import torch.nn.functional as F
from torch import nn

STEM, HEAD = 32, 1280  # channels, which no factor scales
EPS = 1e-3  # of all batch norms
# One stage a line: kernel size, stride, expansion, channels, number of blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class Halving(nn.Module):
    """The zeros around maps that a convolution of stride 2 needs to halve their sides.

    As in TensorFlow, an odd side gives (side + 1) / 2 places, and of an odd number of
    zeros the larger half comes last, so even and odd sides need other zeros.
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def _zeros(self, side):
        """Number of zeros before and after a side."""
        total = self.kernel - 2 + side % 2
        return total // 2, total - total // 2

    def forward(self, x):
        rows, columns = self._zeros(x.shape[2]), self._zeros(x.shape[3])
        return F.pad(x, (*columns, *rows))


def padded(kernel: int, stride: int) -> tuple[nn.Module, int]:
    """The module that pads for a convolution, and the padding of the convolution."""
    return (nn.Identity(), kernel // 2) if stride == 1 else (Halving(kernel), 0)


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow, add if shapes agree."""

    def __init__(self, kernel, stride, expansion, channels, out):
        super().__init__()
        wide = channels * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self.expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self.bn0, self.act0 = nn.BatchNorm2d(wide, EPS), nn.ReLU6()
        self.pad, padding = padded(kernel, stride)
        self.depthwise_conv = nn.Conv2d(
            wide, wide, kernel, stride, padding, groups=wide, bias=False
        )
        self.bn1, self.act1 = nn.BatchNorm2d(wide, EPS), nn.ReLU6()
        self.project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, EPS)

    def forward(self, x):
        maps = self.act0(self.bn0(self.expand_conv(x))) if self.expands else x
        maps = self.act1(self.bn1(self.depthwise_conv(self.pad(maps))))
        maps = self.bn2(self.project_conv(maps))
        return x + maps if self.adds else maps


class EfficientNetLite(nn.Module):
    """Stem, blocks, a convolution to 1,280 channels, average, and class scores.

    Parameters
    ----------
    width, depth : float
        Factors of the channels, rounded to multiples of 8, and of the numbers of
        blocks, of all stages; the first and the last stage keep their blocks.
    classes : int
        Number of class scores; 0 gives the last maps in their place.
    """

    def __init__(self, width: float, depth: float, classes: int = 1000):
        super().__init__()
        self.pad = Halving(3)
        self.conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.bn0, self.act0 = nn.BatchNorm2d(STEM, EPS), nn.ReLU6()
        blocks = _blocks(width, depth)
        self.blocks = nn.Sequential(*blocks)
        last = blocks[-1].project_conv.out_channels
        self.conv_head = nn.Conv2d(last, HEAD, 1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(HEAD, EPS), nn.ReLU6()
        self.classes = classes
        if classes:
            self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
            self.fc = nn.Linear(HEAD, classes)

    def forward(self, x):
        x = self.act0(self.bn0(self.conv_stem(self.pad(x))))  # (n, 32, h/2, w/2)
        x = self.blocks(x)  # (n, 320, h/32, w/32)
        x = self.act1(self.bn1(self.conv_head(x)))  # (n, 1280, h/32, w/32)
        return self.fc(self.flatten(self.pool(x))) if self.classes else x


def _blocks(width: float, depth: float) -> list[Block]:
    """All blocks in order; the first of a stage changes resolution and channels."""
    blocks, channels = [], STEM
    for place, (kernel, stride, expansion, out, repeats) in enumerate(STAGES):
        out = int(out * width + 4) // 8 * 8
        inner = 0 < place < len(STAGES) - 1
        for i in range(math.ceil(repeats * depth) if inner else repeats):
            first = stride if i == 0 else 1
            blocks.append(Block(kernel, first, expansion, channels, out))
            channels = out
    return blocks


def efficientnet_lite0() -> EfficientNetLite:
    """4.7 million parameters, for images of 224 pixels."""
    return EfficientNetLite(1.0, 1.0)


def efficientnet_lite1() -> EfficientNetLite:
    """5.4 million parameters, for images of 240 pixels."""
    return EfficientNetLite(1.0, 1.1)


def efficientnet_lite2() -> EfficientNetLite:
    """6.1 million parameters, for images of 260 pixels."""
    return EfficientNetLite(1.1, 1.2)


def mini() -> EfficientNetLite:
    """The maps of EfficientNet-Lite0, without its average and classifier."""
    return EfficientNetLite(1.0, 1.0, classes=0)
