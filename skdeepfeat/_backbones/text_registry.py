"""The networks of texts by name: those that pip installs, folders, and the hub."""

from functools import lru_cache
from pathlib import Path

from .encoders import EncoderBackbone
from .text_records import TextBackbone
from .word_vectors import WordLlama

NAMED = {"wordllama": WordLlama()}


def resolve_text_backbone(backbone) -> TextBackbone:
    """The network of a `backbone` parameter: a name, a path or a record."""
    if isinstance(backbone, TextBackbone):
        return backbone
    if backbone in NAMED:
        return NAMED[backbone]
    if (Path(backbone) / "config.json").is_file():
        return _encoder_in(Path(backbone).resolve())
    raise ValueError(backbone)


@lru_cache(maxsize=32)
def _encoder_in(folder: Path) -> EncoderBackbone:
    return EncoderBackbone(folder, folder.name)
