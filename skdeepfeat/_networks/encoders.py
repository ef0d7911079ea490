"""Loads transformer encoders from their folders."""

import contextlib
from typing import Any

import torch

from .._backbones.encoders import EncoderSource
from .._backbones.installed import optional
from .._exceptions import WeightsError, in_one_line
from .encoder_states import EncoderNetwork, make_encoder
from .generators import restored

SAFE = {"trust_remote_code": False, "local_files_only": True}
# How every encoder is called, whatever its configuration says.
CALLED = {"return_dict": True, "use_cache": False, "chunk_size_feed_forward": 0}
CALLED |= {"output_hidden_states": False, "output_attentions": False}

REMEDY = "Write the folder with save_pretrained of transformers."
# Words of an error of transformers → what to do.
REMEDIES = {
    "custom code": "Code in a folder is never run: use an encoder that needs none.",
    "ignore_mismatched_sizes": "The weights have other shapes than config.json says.",
    "deserializing": "A .safetensors file is damaged or incomplete: download it again "
    "(git lfs pull in a clone).",
    "No such file": "Download the missing file.",
}


def build_encoder(source: EncoderSource) -> EncoderNetwork:
    """A new encoder on the CPU; the global generator stays as it was."""
    with restored(), _without_progress_bars():
        model = _model_of(source).eval().requires_grad_(False)
    backbone = source.backbone
    *between, last = [layer.node for layer in backbone.layers]
    return make_encoder(
        model, source.name, between, backbone.width, backbone.padding, last
    )


def _model_of(source: EncoderSource) -> Any:
    """The encoder of transformers, or an error that says which folder is not one."""
    try:
        model = _load(source) if source.seed is None else _seeded(source)
    except (ImportError, MemoryError, WeightsError):
        raise
    except Exception as error:  # damaged files make transformers raise anything
        raise WeightsError(
            f"transformers cannot make an encoder of the files in {source.name!r} "
            f"({in_one_line(error)}). {_remedy(error)}"
        ) from error
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _remedy(error: Exception) -> str:
    """What to do about an error of transformers."""
    return next((do for words, do in REMEDIES.items() if words in str(error)), REMEDY)


def _load(source: EncoderSource) -> Any:
    """An encoder with the weights in its folder, which run no code."""
    config = _config_of(source)
    model, found = _maker(config).from_pretrained(
        source.backbone.folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **SAFE,
    )
    _check_complete(found, source)
    return model


def _seeded(source: EncoderSource) -> Any:
    """An encoder with random weights."""
    torch.manual_seed(source.seed)
    config = _config_of(source)
    return _maker(config).from_config(config, trust_remote_code=False)


def _maker(config: Any) -> Any:
    """What makes the encoder: of some architectures, without the decoder."""
    transformers = optional("transformers")
    encodes = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    name = "AutoModelForTextEncoding" if encodes else "AutoModel"
    return getattr(transformers, name)


def _config_of(source: EncoderSource) -> Any:
    """The configuration in the folder, with how we call the encoder."""
    make = optional("transformers").AutoConfig.from_pretrained
    config = make(source.backbone.folder, **SAFE)
    for name, value in CALLED.items():
        setattr(config, name, value)
    return config


@contextlib.contextmanager
def _without_progress_bars():
    """A context in which transformers prints no progress of reading a file."""
    settings = optional("transformers").utils.logging
    enabled = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            settings.enable_progress_bar()


def _check_complete(found: dict, source: EncoderSource) -> None:
    """Refuse weights that lack entries which a feature needs."""
    missing = sorted(n for n in found["missing_keys"] if not n.startswith("pooler."))
    entries = [*missing, *sorted(map(str, found.get("mismatched_keys", ())))]
    if entries:
        raise WeightsError(
            f"The weights in {source.name!r} do not fit its configuration: "
            f"{len(entries)} entries are missing or have other shapes "
            f"({', '.join(entries[:6])}). Save the whole model with "
            "model.save_pretrained(folder)."
        )
