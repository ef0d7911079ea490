"""The known networks: their records, the registry, and the sources of their weights.

No network is built and torch is not imported; ``inspector`` answers the questions that
need the network itself. Pickles of earlier versions refer to the names below.
"""

from .._images.recipe import InputSpec
from .builders import Skeleton
from .records import Layer, Weights

__all__ = ["InputSpec", "Layer", "Skeleton", "Weights"]
