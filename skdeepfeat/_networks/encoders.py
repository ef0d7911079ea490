"""Transformer encoders: folder → a module that gives the states after each block."""

import threading

import torch
from torch import nn

from .._backbones.encoders import EMBEDDINGS, LAST, EncoderSource
from .._exceptions import WeightsError
from .sharing import PRECISIONS, SharedNetwork, networks_on


class _Done(Exception):
    """All requested states are known."""


class Encoder(nn.Module):
    """Tokens → the states of some layers, computed no further than the deepest.

    The blocks are hooked once. What a call wants is kept per thread, so that threads
    share the weights.

    Parameters
    ----------
    model : torch.nn.Module
        An encoder of transformers.
    n_blocks : int
    """

    def __init__(self, model: nn.Module, n_blocks: int):
        super().__init__()
        self.model = model
        self._call = threading.local()
        blocks = _blocks_of(model, n_blocks)
        blocks[0].register_forward_pre_hook(self._keep_given, with_kwargs=True)
        for number, block in enumerate(blocks, 1):
            block.register_forward_hook(self._keeper(f"block{number}"))

    def forward(self, tokens, mask, wanted):
        """(b, length) tokens → name of a layer → (b, length, d) states."""
        self._call.seen, self._call.wanted = {}, set(wanted)
        try:
            returned = self.model(input_ids=tokens, attention_mask=mask.long())
            self._keep(LAST, returned.last_hidden_state)
        except _Done:
            pass
        return self._call.seen

    def _keep_given(self, module, args, kwargs):
        self._keep(EMBEDDINGS, args[0] if args else kwargs["hidden_states"])

    def _keeper(self, name: str):
        def keep(module, args, output):
            self._keep(name, output if isinstance(output, torch.Tensor) else output[0])

        return keep

    def _keep(self, name: str, states) -> None:
        """Keep the states of a layer, and stop after the last that is wanted."""
        if name in self._call.wanted:
            self._call.seen[name] = states
            if len(self._call.seen) == len(self._call.wanted):
                raise _Done


def _blocks_of(model: nn.Module, n: int) -> nn.ModuleList:
    """The list of blocks in an encoder."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    for found in lists:
        if len(found) == n:
            return found
    raise ValueError(
        f"{type(model).__name__} has no list of {n} blocks, so that its layers are "
        "unknown. Wrap it with TextBackbone.from_module."
    )


def get_encoder(source: EncoderSource, key: bytes, device: str, precision: str):
    """The encoder with these weights on this device, shared by the whole process."""

    def make() -> SharedNetwork:
        dtype = PRECISIONS[precision]
        return SharedNetwork(build_encoder(source).to(device, dtype))

    name = (source.identity.digest, key, device, precision)
    return networks_on(device).get(name, make, source.backbone)


def build_encoder(source: EncoderSource) -> Encoder:
    """A new encoder on the CPU; the global generator stays as it was."""
    from transformers import AutoConfig, AutoModel

    folder, safe = source.backbone.folder, {"trust_remote_code": False}
    with torch.random.fork_rng(devices=[]):
        if source.seed is not None:
            torch.manual_seed(source.seed)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **safe)
            model = AutoModel.from_config(config, **safe)
        else:
            model, found = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                **safe,
            )
            _check_complete(found, source)
    model.eval().requires_grad_(False)
    n_blocks = len(source.backbone.layers) - 2
    return Encoder(model, n_blocks)


def _check_complete(found: dict, source: EncoderSource) -> None:
    """Refuse weights that lack entries which a feature needs."""
    missing = sorted(n for n in found["missing_keys"] if not n.startswith("pooler."))
    wrong = sorted(map(str, found.get("mismatched_keys", ())))
    if missing or wrong:
        entries = [*missing, *wrong]
        raise WeightsError(
            f"The weights in {source.name!r} do not fit its configuration: "
            f"{len(entries)} entries are missing or have other shapes "
            f"({', '.join(entries[:6])})."
        )
