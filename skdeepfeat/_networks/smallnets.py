"""Small networks: the trunk of "mini", and two to train from scratch.

References
----------
.. [1] Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
   2016.
.. [2] LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
   recognition", 1998 (LeNet-5).
"""

import torch
from torch import nn


class Fire(nn.Module):
    """A narrow 1 x 1 convolution, then 1 x 1 and 3 x 3 side by side [1]_."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        near = self.expand1x1_activation(self.expand1x1(x))
        far = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([near, far], 1)


class Trunk(nn.Module):
    """Feature maps, and nothing else."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        return self.features(x)


def mini() -> Trunk:
    """SqueezeNet 1.0 [1]_ without its classifier; entries are named as torchvision's.

    Written here, so that the default network needs no torchvision.
    """
    return Trunk(
        nn.Conv2d(3, 96, 7, stride=2),  # (96, 45, 45) of 96 x 96 pixels
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),  # (96, 22, 22)
        Fire(96, 16, 64),
        Fire(128, 16, 64),
        Fire(128, 32, 128),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),  # (256, 11, 11)
        Fire(256, 32, 128),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),  # (512, 5, 5)
        Fire(512, 64, 256),
    )


class SmallNetwork(nn.Module):
    """Convolutions, then dense layers that make classes of what they found."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential):
        super().__init__()
        self.features, self.flatten = features, nn.Flatten()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(self.flatten(self.features(x)))


def smallcnn() -> SmallNetwork:
    """Two convolutions of 64 channels and two dense layers, for 32 x 32 images."""
    return SmallNetwork(
        nn.Sequential(
            nn.Conv2d(3, 64, 3),  # (64, 30, 30)
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),  # (64, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (64, 14, 14)
            nn.Dropout(0.25),
        ),
        nn.Sequential(
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(128, 10),
        ),
    )


def lenet5() -> SmallNetwork:
    """LeNet-5 [2]_ for 32 x 32 colour images."""
    return SmallNetwork(
        nn.Sequential(
            nn.Conv2d(3, 6, 5),  # (6, 28, 28)
            nn.Tanh(),
            nn.AvgPool2d(2),  # (6, 14, 14)
            nn.Conv2d(6, 16, 5),  # (16, 10, 10)
            nn.Tanh(),
            nn.AvgPool2d(2),  # (16, 5, 5)
        ),
        nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, 10),
        ),
    )
