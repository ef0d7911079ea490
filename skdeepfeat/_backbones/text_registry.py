"""Networks of texts by name: what pip installs, folders, files, and the hub."""

import re
from functools import lru_cache
from os import PathLike
from pathlib import Path

from .._digests import state_of_file
from .._exceptions import WeightsError, closest, in_one_line
from .._files import expanded, has_content
from .._listing import Field, Listing
from .encoders import READ, EncoderBackbone, tokenizer_files
from .installed import optional
from .text_modules import TextBackbone
from .text_records import TextRecord
from .word_files import SUFFIXES, WordFile
from .word_vectors import WordLlama

NAMED = {"wordllama": WordLlama()}
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", *(f"*{end}" for end in READ)]

SHOWN = (  # the columns of the printed list
    Field("backbone", str),
    Field("parameters", lambda name: NAMED[name].parameters, ","),
    Field("features", lambda name: NAMED[name].width, ","),
    Field("licence", lambda name: NAMED[name].vectors_file.licence),
)


def list_text_backbones(prefix: str = "") -> Listing:
    """The names of networks of texts that begin with a prefix."""
    return Listing(sorted(n for n in NAMED if n.startswith(prefix)), SHOWN)


def resolve_text_backbone(backbone) -> TextRecord:
    """The network of a `backbone` parameter: a name, a path, a hub id or a value."""
    if isinstance(backbone, TextBackbone):
        return backbone.record
    name = str(backbone)
    if name in NAMED:
        return NAMED[name]
    path = expanded(name, "backbone")
    if path.is_dir():
        return _encoder_at(path.resolve(), path.name)
    if has_content(path):
        return _file_at(path.resolve())
    if path.exists():
        raise WeightsError(
            f"{str(path)!r} is not a file of word vectors: it is empty, a pipe or a "
            "device. Check the path."
        )
    if ON_HUB.fullmatch(name) and not name.endswith(SUFFIXES):
        return _encoder_at(_on_hub(name), name)
    raise ValueError(
        f"Unknown backbone {name!r}: there is no such file or folder."
        f"{closest(name, NAMED)} Pass 'wordllama', the folder of a transformer encoder "
        "or its id on the hub of Hugging Face ('owner/name'), a file of word vectors, "
        "or TextBackbone.from_module(net, tokenize=...)."
    )


def refuse_texts(backbone) -> None:
    """Refuse what is a network of texts where one of images is needed."""
    if _is_of_texts(backbone):
        raise ValueError(
            f"backbone={getattr(backbone, 'name', str(backbone))!r} is a network of "
            "texts. Pass it to PretrainedTextFeatures, whose layer='auto' compares its "
            "layers (see layer_scores_), or to list_layers(..., kind='text')."
        )


def _is_of_texts(backbone) -> bool:
    """Whether a parameter is a network of texts, without loading it."""
    if not isinstance(backbone, (str, PathLike)):
        return isinstance(backbone, TextBackbone)
    if str(backbone) in NAMED:
        return True
    try:
        path = expanded(backbone, "backbone")
        if path.is_file():
            return path.name.endswith(SUFFIXES)
        return '"vocab_size"' in (path / "config.json").read_text("utf-8")
    except (OSError, ValueError):
        return False


def _encoder_at(folder: Path, name: str) -> EncoderBackbone:
    """The encoder in a folder, described again once a file has changed."""
    paths = filter(Path.is_file, (folder / "config.json", *tokenizer_files(folder)))
    states = [f"{path.name} {state_of_file(path.stat())}" for path in paths]
    return _encoder_in(folder, name, tuple(states))


@lru_cache(maxsize=32)
def _encoder_in(folder: Path, name: str, states: tuple) -> EncoderBackbone:
    """The encoder in a folder whose files have these states."""
    return EncoderBackbone(folder, name)


@lru_cache(maxsize=32)
def _file_at(path: Path) -> WordFile:
    """The word vectors in a file."""
    return WordFile(path)


@lru_cache(maxsize=32)
def _on_hub(name: str) -> Path:
    """The folder of a model in the cache of the hub; downloads it."""
    download = optional("huggingface_hub").snapshot_download
    try:  # what is in the cache needs no connection
        return Path(download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except Exception:  # the client raises whatever says that it is not there
        pass
    try:
        return Path(download(name, allow_patterns=HUB_FILES))
    except Exception as error:
        raise WeightsError(
            f"There is no folder {name!r} here, and no encoder of this name could be "
            f"downloaded from the hub of Hugging Face ({in_one_line(error)}). Check "
            "the path, or copy the folder of the encoder to this machine and pass its "
            "path as backbone=..."
        ) from error
