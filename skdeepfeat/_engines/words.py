"""Runs vectors of words with numpy: words → pooled rows."""

from typing import Any

import numpy as np

from .._texts.specs import POOLINGS
from .base import PooledLayers, Runner

# (n, d) vectors → (d,) features
PARTS = {"mean": lambda v: v.mean(0), "max": lambda v: v.max(0)}


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
        backbone: Any = pooled.source.backbone
        self._table, self._width = backbone.table(), backbone.width
        self._layers = pooled.layers

    def load(self, words: Any) -> list:
        """The words as they are."""
        return words

    def start(self, loaded: list) -> list[np.ndarray]:
        """Pool the vectors of each text."""
        texts = [self._pooled(words) for words in loaded]
        return [np.stack(rows) for rows in zip(*texts, strict=True)]

    def _pooled(self, words) -> list[np.ndarray]:
        """The row of one text for each layer; zeros if it has no words."""
        vectors = self._table.vectors(words)  # (n, d)
        if not len(vectors):
            vectors = np.zeros((1, self._width), np.float32)
        return [
            np.concatenate([PARTS[part](vectors) for part in POOLINGS[how]])
            for _, how in self._layers
        ]

    def finish(self, started: list[np.ndarray]) -> list[np.ndarray]:
        """The rows, which are computed already."""
        return started
