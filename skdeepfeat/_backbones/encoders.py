"""Transformer encoders in a folder, as `save_pretrained` writes them; without torch."""

import json
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from .._caches import SharedCache
from .._digests import digest_fields, digest_file
from .._exceptions import WeightsError, in_one_line
from .._texts.specs import TokenSpec
from .._texts.words import MOST_TOKENS, fast_tokenizer, known_tokens
from .._validation import is_number
from .builders import PACKAGE
from .installed import optional
from .records import Identity, Layer
from .sentence_folders import warn_about_modules, where_the_encoder_is
from .text_records import TextRecord, TextSource, Tokenize

# Names that configurations use for one thing. Decoders have a depth of their own.
DEPTH: tuple[str, ...] = ("encoder_layers", "num_encoder_layers", "num_hidden_layers")
DEPTH += ("n_layers", "n_layer", "num_layers")
WIDTH = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_length")
VOCABULARY = ("vocab_size", "n_words")
# Entries that say nothing about what is computed.
ABOUT_FILE = {"_name_or_path", "architectures", "transformers_version", "torch_dtype"}
ABOUT_FILE |= {"dtype", "id2label", "label2id", "problem_type", "use_cache"}
# Encoders that number positions from the one after the padding.
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"}
OFFSET_POSITIONS |= {"xlm-roberta-xl", "longformer", "roberta-prelayernorm", "ibert"}
OFFSET_POSITIONS |= {"esm", "lilt", "luke", "markuplm", "xmod"}
# Encoders that return the states after their last block as they are.
END_WITH_BLOCK = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet"}
END_WITH_BLOCK |= {"distilbert", "albert", "deberta", "deberta-v2"}

EMBEDDINGS, LAST = "embeddings", "returned"
ADAPTER = "adapter_config.json"

WRITE = "Write the folder with save_pretrained of transformers."
OF_PARTS = (
    "It is that of a network of texts and images. Save the part for texts, and the "
    "tokenizer, in a folder of their own, such as CLIPTextModel.from_pretrained(folder)"
    ".save_pretrained(other)."
)
# How the names of files end that a tokenizer may read, and that it never reads.
READ: tuple[str, ...] = (".json", ".txt", ".model", ".vocab", ".bpe", ".codes")
READ += (".spm", ".tiktoken", ".tokenizer")
NOT_READ = ("modules.json", "generation_config.json", ".index.json")
NO_VOCABULARY = "there is no vocabulary"
NOT_FAST = "it is not one of the package tokenizers, which has a tokenizer.json"
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
        _refuse_adapter(self.folder)
        if not path.is_file():
            raise WeightsError(
                f"There is no 'config.json' in {str(self.folder)!r}. "
                f"{where_the_encoder_is(self.folder)}"
            )
        found: dict[str, Any] = {}
        try:
            found = _settings_in(path)
            _check_number(found, DEPTH)
            _check_number(found, WIDTH)
            _check_number(found, LONGEST, required=False)
            _check_number(found, VOCABULARY, required=False)
        except (OSError, ValueError) as error:
            remedy = OF_PARTS if "text_config" in found else WRITE
            raise WeightsError(
                f"{str(path)!r} is not the configuration of a transformer encoder "
                f"({error}). {remedy}"
            ) from error
        _refuse_quantised(self.folder, found)
        return found

    @property
    def width(self) -> int:
        """Number of features of a token."""
        return _entry(self.config, WIDTH)

    @cached_property
    def input(self) -> TokenSpec:
        """Tokens, as many as there are positions."""
        files = {p.name: digest_file(p) for p in tokenizer_files(self.folder)}
        return TokenSpec(digest_fields("tokenizer", 1, files), self._longest())

    def _longest(self) -> int:
        """The number of tokens in the longest text."""
        longest = _entry(self.config, LONGEST, None) or 512
        if self.config.get("model_type") in OFFSET_POSITIONS:
            padding = self.config.get("pad_token_id")
            longest -= (1 if padding is None else padding) + 1
        limits = [limit.of(self.folder) for limit in LIMITS]
        return int(min([longest, *filter(None, limits)]))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The embeddings, each block, and what the network returns."""
        n, width = _entry(self.config, DEPTH), self.width
        blocks = [f"block{i}" for i in range(1, n + 1)]
        names = [EMBEDDINGS, *blocks, "penultimate"]
        ends_with_block = self.config.get("model_type") in END_WITH_BLOCK
        nodes = [EMBEDDINGS, *blocks, blocks[-1] if ends_with_block else LAST]
        shape = (self.input.max_length or 0, width)
        return tuple(
            Layer(name, node, i, "tokens", shape, width, None, min(i, n) / n)
            for i, (name, node) in enumerate(zip(names, nodes, strict=True))
        )

    @cached_property
    def identity(self) -> Identity:
        """The configuration, which names the code that is run."""
        return Identity(digest_fields("encoder", 2, self.settings))

    @property
    def settings(self) -> dict[str, Any]:
        """The entries of the configuration that may say what is computed."""
        return {k: v for k, v in self.config.items() if k not in ABOUT_FILE}

    @property
    def padding(self) -> int:
        """The token that fills up shorter texts."""
        return self.config.get("pad_token_id") or 0

    @property
    def weights_files(self) -> list[Path]:
        """The files of the weights, which run no code."""
        return sorted(self.folder.glob("*.safetensors"))

    def compare_pooling(self, pooling: str) -> None:
        """Warn once if sentence-transformers computes more than pooled states."""
        warn_about_modules(self.folder, self.name, pooling)

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
        make = partial(_load_tokenizer, self.folder, max_length)
        return known_tokens(_tokenizers.get(name, make), self._n_tokens)

    @property
    def _n_tokens(self) -> int:
        """How many different tokens the network takes, if that is known."""
        return _entry(self.config, VOCABULARY, None) or MOST_TOKENS


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

    @property
    def parameters(self) -> str:
        """The parameters to check, and the file beside the weights."""
        return "backbone, its config.json, or weights"

    def known_by(self, by_values: bool = False) -> dict:
        """Digests of the files, or the seed, with that of the configuration, which
        says what is computed with the weights."""
        settings = digest_fields("configuration", 1, self.backbone.settings)
        about: dict[str, Any] = {"configuration": settings}
        if self.seed is not None:
            packages = {name: version(name) for name in ("torch", "transformers")}
            return {**about, "seed": int(self.seed), **packages}
        files = self.backbone.weights_files
        if not files:
            raise WeightsError(
                f"There is no .safetensors file in {self.name!r}. Files of other kinds "
                "could run code; write one with "
                "model.save_pretrained(folder) of transformers."
            )
        return {**about, "files": {path.name: digest_file(path) for path in files}}


_NONE = object()


def _entry(config: dict[str, Any], names: tuple[str, ...], default: Any = _NONE) -> Any:
    """The entry of a configuration under the first of several names."""
    found = next((config[name] for name in names if name in config), default)
    if found is _NONE:
        raise ValueError(f"it has no {names[0]!r}")
    return found


def tokenizer_files(folder: Path) -> list[Path]:
    """The files in a folder that its tokenizer may read, in order."""
    named = [path for path in folder.iterdir() if path.name.endswith(READ)]
    return sorted(
        path
        for path in named
        if not path.name.endswith(NOT_READ)
        and not path.name.startswith("config")
        and path.is_file()
    )


@dataclass(frozen=True)
class Limit:
    """An entry of a file that limits the number of tokens in a text.

    Parameters
    ----------
    file, entry : str
    """

    file: str
    entry: str

    def of(self, folder: Path) -> float | None:
        """The limit in a folder, if there is one."""
        path = folder / self.file
        try:
            found = _settings_in(path).get(self.entry) if path.is_file() else None
            _check_positive(self.entry, found)
        except ValueError as error:
            raise _no_tokenizer(folder, f"{self.file}: {error}") from error
        return found


LIMITS = (
    Limit("tokenizer_config.json", "model_max_length"),
    Limit("sentence_bert_config.json", "max_seq_length"),  # of sentence-transformers
)


def _settings_in(path: Path) -> dict[str, Any]:
    """The entries of a file in JSON."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it contains a {type(found).__name__} instead of entries")
    return found


def _check_number(config: dict[str, Any], names: tuple[str, ...], required=True):
    """Refuse an entry that is not a positive number, or missing but required."""
    found = _entry(config, names, _NONE if required else None)
    name = next((name for name in names if name in config), names[0])
    if found is None and required:
        raise ValueError(f"its {name!r} is None instead of a positive number")
    _check_positive(name, found)


def _check_positive(name: str, found: Any) -> None:
    """Refuse an entry that is neither missing nor a positive number."""
    if found is not None and not (is_number(found) and found >= 1):
        raise ValueError(f"its {name!r} is {found!r} instead of a positive number")


def _refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter: transformers applies it if peft is installed,
    and leaves it out otherwise."""
    if (folder / ADAPTER).is_file():
        raise WeightsError(
            f"There is an adapter in {str(folder)!r} ({ADAPTER}). Merge it into the "
            "weights with AutoPeftModel.from_pretrained(folder).merge_and_unload() of "
            "peft, and write these into another folder with save_pretrained(other)."
        )


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Refuse weights whose values depend on the packages that compute with them."""
    if config.get("quantization_config") is not None:
        raise WeightsError(
            f"The weights in {str(folder)!r} are quantised (see 'quantization_config' "
            "in its config.json). Write them in float32, with "
            "model.dequantize().save_pretrained(other) of transformers."
        )


def _no_tokenizer(folder: Path, reason: str) -> WeightsError:
    """The error of a folder with files of a tokenizer that cannot be read."""
    return WeightsError(
        f"The tokenizer in {str(folder)!r} cannot be read ({reason}). Write it with "
        "tokenizer.save_pretrained(folder) of transformers."
    )


def _load_tokenizer(folder: Path, max_length: int | None) -> Tokenize:
    """The tokenizer of a folder, as transformers sets it up."""
    make = optional("transformers").AutoTokenizer.from_pretrained
    try:
        loaded = make(folder, trust_remote_code=False, local_files_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make transformers raise anything
        raise _no_tokenizer(folder, in_one_line(error)) from error
    fast = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise _no_tokenizer(folder, NOT_FAST)
    if not loaded.get_vocab().keys() - loaded.get_added_vocab().keys():
        raise _no_tokenizer(folder, NO_VOCABULARY)
    return fast_tokenizer(
        fast, max_length, loaded.truncation_side, loaded.split_special_tokens
    )
