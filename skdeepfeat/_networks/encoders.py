"""Builds transformer encoders from their folders."""

import contextlib

import torch
from torch import nn

from .._backbones.encoders import ENTERS_BLOCKS, EncoderSource
from .._backbones.installed import optional
from .._exceptions import WeightsError, in_one_line
from .token_networks import TokenNetwork

SAFE = {"trust_remote_code": False, "local_files_only": True}


def build_encoder(source: EncoderSource) -> TokenNetwork:
    """A new encoder on the CPU; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]), _without_progress_bars():
        model = _model_of(source)
    n_blocks = len(source.backbone.layers) - 2
    blocks = _blocks_of(model, n_blocks)
    places = {f"block{i}": block for i, block in enumerate(blocks, 1)}
    return TokenNetwork(model, {ENTERS_BLOCKS: blocks[0], **places}, _call)


def _model_of(source: EncoderSource) -> nn.Module:
    """The encoder of transformers, or an error that says which folder is not one."""
    try:
        return _load(source) if source.seed is None else _seeded(source)
    except (ImportError, MemoryError, WeightsError):
        raise
    except Exception as error:  # damaged files make transformers raise anything
        raise WeightsError(
            f"transformers cannot make an encoder of the files in {source.name!r} "
            f"({in_one_line(error)}). Write the folder with save_pretrained of "
            "transformers."
        ) from error


def _call(model: nn.Module, tokens, mask):
    """The last states that an encoder returns."""
    return model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def _load(source: EncoderSource) -> nn.Module:
    """An encoder with the weights in its folder, which run no code."""
    model, found = optional("transformers").AutoModel.from_pretrained(
        source.backbone.folder,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **SAFE,
    )
    _check_complete(found, source)
    return model


def _seeded(source: EncoderSource) -> nn.Module:
    """An encoder with random weights."""
    transformers = optional("transformers")
    torch.manual_seed(source.seed)
    config = transformers.AutoConfig.from_pretrained(source.backbone.folder, **SAFE)
    return transformers.AutoModel.from_config(config, trust_remote_code=False)


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


def _blocks_of(model: nn.Module, n: int) -> nn.ModuleList:
    """The list of blocks in an encoder."""
    for found in model.modules():
        if isinstance(found, nn.ModuleList) and len(found) == n:
            return found
    raise ValueError(
        f"{type(model).__name__} has no list of {n} blocks, so that its layers are "
        "unknown. Wrap it with TextBackbone.from_module."
    )


def _check_complete(found: dict, source: EncoderSource) -> None:
    """Refuse weights that lack entries which a feature needs."""
    missing = sorted(n for n in found["missing_keys"] if not n.startswith("pooler."))
    entries = [*missing, *sorted(map(str, found.get("mismatched_keys", ())))]
    if entries:
        raise WeightsError(
            f"The weights in {source.name!r} do not fit its configuration: "
            f"{len(entries)} entries are missing or have other shapes "
            f"({', '.join(entries[:6])})."
        )
