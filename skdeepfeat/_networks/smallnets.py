"""Small networks to train from scratch.

References
----------
.. [1] LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
   recognition", 1998 (LeNet-5).
"""

from torch import nn


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
    """LeNet-5 [1]_ for 32 x 32 colour images."""
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
