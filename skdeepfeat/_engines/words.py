"""Runs vectors of words with numpy: words → pooled rows."""

import numpy as np

from .._texts.specs import POOLINGS
from .base import PooledLayers, Runner


class WordRunner(Runner):
    """Vectors of words, looked up and pooled text by text.

    Parameters
    ----------
    pooled : PooledLayers
    device, precision : str
        Vectors are in memory or in a file, in single precision.
    batch_size : int
    """

    ahead = 0
    out_of_memory = ()

    def __init__(self, pooled: PooledLayers, device, precision, batch_size: int):
        self._table = pooled.source.backbone.table()
        self._width = pooled.source.backbone.width
        self._layers = pooled.layers

    def load(self, words: list) -> list:
        """The words as they are."""
        return words

    def start(self, loaded: list) -> list[np.ndarray]:
        """Pool the vectors of each text."""
        texts = [self._pooled(words) for words in loaded]
        return [np.stack(rows) for rows in zip(*texts, strict=True)]

    def _pooled(self, words) -> list[np.ndarray]:
        """The row of one text for each layer; zeros if it has no words."""
        if not len(words):
            none = np.zeros(self._width, np.float32)
            return [np.tile(none, len(POOLINGS[how])) for _, how in self._layers]
        vectors = self._table.vectors(words)  # (n, d)
        return [
            np.concatenate([REDUCED[part](vectors) for part in POOLINGS[how]])
            for _, how in self._layers
        ]

    def finish(self, started: list[np.ndarray]) -> list[np.ndarray]:
        """The rows, which are computed already."""
        return started


REDUCED = {"mean": lambda v: v.mean(0), "max": lambda v: v.max(0)}
