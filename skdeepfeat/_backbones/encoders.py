"""Transformer encoders in a folder, as `save_pretrained` writes them; without torch."""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from .._caches import SharedCache
from .._digests import digest_fields, digest_file
from .._exceptions import WeightsError, in_one_line
from .._texts.specs import TokenSpec
from .._texts.words import fast_tokenizer
from .installed import optional
from .records import PACKAGE, Identity, Layer
from .text_records import TextRecord, TextSource, Tokenize

# Names that configurations use for one thing.
DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
WIDTH = ("hidden_size", "dim", "d_model", "n_embd")
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_length")
# Entries that say nothing about what is computed.
ABOUT_FILE = {"_name_or_path", "architectures", "transformers_version", "torch_dtype"}
ABOUT_FILE |= {"dtype", "id2label", "label2id", "problem_type", "use_cache"}
# Encoders that change the states once more after the last block.
NORMALISED_AT_END = {"modernbert", "nomic_bert", "eurobert", "modernbert-decoder"}
# Encoders that number positions from the one after the padding.
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"}
OFFSET_POSITIONS |= {"xlm-roberta-xl", "longformer", "roberta-prelayernorm"}

LAST, ENTERS_BLOCKS = "returned", "block1.input"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_tokenizers = SharedCache(8)


@dataclass(frozen=True, eq=False)
class EncoderBackbone(TextRecord):
    """A transformer encoder in a folder.

    Parameters
    ----------
    folder : Path
    name : str
        Its name in messages.
    """

    folder: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration in the folder."""
        path = self.folder / "config.json"
        try:
            found = _settings_in(path)
            for names in (DEPTH, WIDTH, LONGEST):
                _check_number(found, names)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{str(path)!r} is not the configuration of a transformer encoder "
                f"({error}). Write the folder with save_pretrained of transformers."
            ) from error
        if found.get("is_encoder_decoder"):
            raise WeightsError(
                f"The network in {str(self.folder)!r} has an encoder and a decoder. "
                "Only encoders give features: save model.get_encoder()."
            )
        return found

    @property
    def width(self) -> int:  # type: ignore[override]
        """Number of features of a token."""
        return _entry(self.config, WIDTH)

    @cached_property
    def input(self) -> TokenSpec:  # type: ignore[override]
        """Tokens, as many as there are positions."""
        paths = [self.folder / name for name in TOKENIZER_FILES]
        files = {path.name: digest_file(path) for path in paths if path.is_file()}
        return TokenSpec(digest_fields("tokenizer", 1, files), self._longest())

    def _longest(self) -> int:
        """The number of tokens in the longest text."""
        longest = _entry(self.config, LONGEST, 512)
        if self.config.get("model_type") in OFFSET_POSITIONS:
            longest -= self.config.get("pad_token_id", 1) + 1
        path = self.folder / "tokenizer_config.json"
        try:
            about = _settings_in(path) if path.is_file() else {}
            return int(min(longest, about.get("model_max_length") or longest))
        except (ValueError, TypeError) as error:
            raise _no_tokenizer(self.folder, error) from error

    @cached_property
    def layers(self) -> tuple[Layer, ...]:  # type: ignore[override]
        """The embeddings, each block, and what the network returns."""
        n, width = _entry(self.config, DEPTH), self.width
        blocks = [f"block{i}" for i in range(1, n + 1)]
        plain = self.config.get("model_type") not in NORMALISED_AT_END
        last = blocks[-1] if plain and blocks else LAST
        names = ["embeddings", *blocks, "penultimate"]
        nodes = [ENTERS_BLOCKS, *blocks, last]
        shape = (self.input.max_length or 0, width)
        return tuple(
            Layer(name, node, i, "tokens", shape, width, None, min(i, n) / max(n, 1))
            for i, (name, node) in enumerate(zip(names, nodes, strict=True))
        )

    @cached_property
    def identity(self) -> Identity:  # type: ignore[override]
        """The configuration, which names the code that is run."""
        about = {k: v for k, v in self.config.items() if k not in ABOUT_FILE}
        return Identity(digest_fields("encoder", 1, about))

    @property
    def padding(self) -> int:
        """The token that stands where there is none."""
        return self.config.get("pad_token_id") or 0

    @property
    def weights_files(self) -> list[Path]:
        """The files of the weights, which run no code."""
        return sorted(self.folder.glob("*.safetensors"))

    def source(self, weights, seed: int) -> "EncoderSource":
        """The weights in the folder, or random ones."""
        if weights not in ("default", None):
            raise ValueError(
                "The 'weights' of an encoder must be 'default', for those in its "
                f"folder, or None, for random ones. Got {weights!r} instead."
            )
        return EncoderSource(self, self.input, None if weights else seed)

    def make_tokenizer(self, max_length: int | None) -> Tokenize:
        """The tokens of a text, with those that the network wants around them."""
        name = (self.folder, self.input.tokenizer, max_length)
        return _tokenizers.get(name, lambda: _load_tokenizer(self.folder, max_length))


@dataclass(frozen=True)
class EncoderSource(TextSource):
    """The weights of a transformer encoder.

    Parameters
    ----------
    seed : int or None
        Of random weights; None reads those in the folder.
    """

    seed: int | None = None
    builder: ClassVar[str] = f"{PACKAGE}._networks.encoders:build_encoder"

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.backbone.folder)

    def known_by(self, by_values: bool = False) -> dict:
        """Digests of the files, or the seed."""
        if self.seed is not None:
            packages = {name: version(name) for name in ("torch", "transformers")}
            return {"seed": int(self.seed), **packages}
        files = self.backbone.weights_files
        if not files:
            raise WeightsError(
                f"There is no .safetensors file in {self.name!r}. Files of other kinds "
                "could run code; write one with "
                "model.save_pretrained(folder) of transformers."
            )
        return {"files": {path.name: digest_file(path) for path in files}}


_NONE = object()


def _entry(config: dict[str, Any], names: tuple[str, ...], default: Any = _NONE) -> Any:
    """The entry of a configuration under the first of several names."""
    found = next((config[name] for name in names if name in config), default)
    if found is _NONE:
        raise KeyError(f"it has no {names[0]!r}")
    return found


def _settings_in(path: Path) -> dict[str, Any]:
    """The entries of a file in JSON."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it contains a {type(found).__name__} instead of entries")
    return found


def _check_number(config: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse an entry that is no positive number; only the longest text may lack."""
    found = _entry(config, names, 1 if names is LONGEST else _NONE)
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"its {names[0]!r} is {found!r} instead of a positive number")


def _no_tokenizer(folder: Path, error: Exception) -> WeightsError:
    """The error of a folder with files of a tokenizer that cannot be read."""
    return WeightsError(
        f"The tokenizer in {str(folder)!r} cannot be read ({in_one_line(error)}). "
        "Write the folder with save_pretrained of transformers."
    )


def _load_tokenizer(folder: Path, max_length: int | None) -> Tokenize:
    """The tokenizer of a folder, as transformers sets it up."""
    make = optional("transformers").AutoTokenizer.from_pretrained
    try:
        loaded = make(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # damaged files make transformers raise anything
        raise _no_tokenizer(folder, error) from error
    return fast_tokenizer(loaded.backend_tokenizer, max_length)
