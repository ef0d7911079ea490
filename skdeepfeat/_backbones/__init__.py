"""The known networks: their records, the registry, and the sources of their weights.

No network is built and torch is not imported; ``inspector`` answers the questions that
need the network itself. Pickles of earlier versions refer to the names below.

- ``records``, ``builders``, ``layouts``: a network, what builds it, and its layers
- ``registry``, ``timm_records``, ``listing``: networks by name
- ``timm_folders``: networks of timm in folders
- ``weights``, ``recipes``, ``saved``: where weights come from, and their preprocessing
- ``files``, ``contents``, ``notes``, ``installed``: weights files, read safely
- ``copies``, ``skeletons``, ``tensors``: a network of the user's own, and its weights
- ``text_registry``, ``text_records``, ``text_modules``: networks of texts
- ``encoders``, ``sentence_folders``: transformer encoders in folders
- ``word_vectors``, ``word_files``, ``word_readers``, ``word_tables``: word vectors
"""

from .._images.recipe import InputSpec
from .builders import Skeleton
from .records import Layer, Weights

__all__ = ["InputSpec", "Layer", "Skeleton", "Weights"]
