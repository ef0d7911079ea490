"""Which networks there are: records, the registry, and where weights come from.

Nothing here builds a network or imports torch; what only the network itself can say is
asked through ``inspector``. Pickles of earlier versions look up these names here.
"""

from .._images.recipe import InputSpec
from .records import Layer, Skeleton, Weights

__all__ = ["InputSpec", "Layer", "Skeleton", "Weights"]
