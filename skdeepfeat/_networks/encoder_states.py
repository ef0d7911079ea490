"""Finds by running a transformer encoder where its layers are and how to compute rows.

transformers returns the states between the blocks of most encoders. What the modules
return is compared with them, so that no list of families is needed, and the rows of two
short texts are computed alone, padded, and again.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from .._backbones.encoders import LAST
from .._exceptions import WeightsError, in_one_line
from .comparison import measuring
from .token_networks import HookPoint, TokenNetwork, entering, states_of

SHORT, LONG = 5, 8  # tokens; the short text is padded to the length of the long one
ROUNDING = 1e-3  # of a usual value, between two ways to compute the same


class EncoderNetwork(TokenNetwork):
    """A transformer encoder: tokens → the states of some layers.

    Attributes
    ----------
    pads : bool
        Whether texts are padded. Those of a network that sees the padding are computed
        one at a time.
    """

    pads = True

    def forward(self, tokens, mask, wanted):
        """(b, length) tokens → node → states (b, length, d)."""
        if self.pads:
            states = super().forward(tokens, mask, wanted)
            # Some encoders pad the states once more, to whole windows.
            return {node: s[:, : tokens.shape[1]] for node, s in states.items()}
        return self._one_by_one(tokens, mask, wanted)

    def _one_by_one(self, tokens, mask, wanted):
        """The same, where each text is computed at its own length."""
        lengths = mask.sum(1).tolist()
        found: dict[str, Any] = {}
        for row in [i for i, n in enumerate(lengths) if n] or [0]:
            n = lengths[row] or 1
            text = slice(row, row + 1), slice(n)
            for node, s in super().forward(tokens[text], mask[text], wanted).items():
                if node not in found:
                    found[node] = s.new_zeros(*tokens.shape, s.shape[2])
                found[node][row, :n] = s[0, :n]
        return found


def call_encoder(model: nn.Module, tokens, mask):
    """The last states that an encoder returns."""
    return model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def make_encoder(
    model: nn.Module,
    folder: str,
    nodes: list[str],
    width: int,
    padding: int = 0,
    last: str = LAST,
) -> EncoderNetwork:
    """The network of an encoder whose states after its blocks have these nodes.

    What it returns has the node `last`, which may be that of the last block.
    Raises WeightsError if its rows cannot be computed.
    """
    try:
        with measuring(), torch.autocast("cpu", enabled=False):
            return _Trial(model, nodes, width, padding, last).network()
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # of any architecture
        reason = str(error) if isinstance(error, Unsuitable) else in_one_line(error)
        raise WeightsError(
            f"The {type(model).__name__} in {folder!r} cannot give features: {reason}. "
            "Use another encoder, or wrap a network of your own with "
            "TextBackbone.from_module."
        ) from error


class Unsuitable(ValueError):
    """An encoder cannot give features; says why."""


class _Trial:
    """Two short texts, and what transformers computes of them.

    Parameters
    ----------
    model : torch.nn.Module
    nodes : list of str
        Of the states before, between and after the blocks.
    width : int
        Number of features of a token.
    padding : int
        The token that fills up shorter texts.
    last : str
        Node of what the encoder returns.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: list[str],
        width: int,
        padding: int,
        last: str,
    ):
        self._model, self._nodes, self._width = model, nodes, width
        self._padding, self._last = padding, last
        self._long = _tokens_of(model, padding)
        self._short = self._long[:, :SHORT]

    def network(self) -> EncoderNetwork:
        """The network, after all checks."""
        settings = _settings_of(self._model)
        with _Recorder(self._model) as recorder:
            short = self._states(self._short)
        _check_settings(self._model, settings)
        long = self._states(self._long)
        if not _equal(long[self._last], long[LAST]):
            raise Unsuitable("it changes the states after its last block once more")
        network = EncoderNetwork(
            self._model, self._points(recorder, short), call_encoder
        )
        for text, states in ((self._short, short), (self._long, long)):
            if not _all_same(self._run(network, text), states):
                raise Unsuitable("its features are different in every call")
        network.pads = self._ignores_padding(network, short, long)
        return network

    def _states(self, tokens) -> dict[str, torch.Tensor]:
        """Node → states, as transformers computes them; checks their shapes."""
        mask = torch.ones_like(tokens)
        out = self._model(
            input_ids=tokens, attention_mask=mask, output_hidden_states=True
        )
        between = out.hidden_states
        if len(between) != len(self._nodes):
            raise Unsuitable(
                f"transformers returns the states of {len(between) - 1} blocks, and "
                f"its configuration has {len(self._nodes) - 1}"
            )
        found = dict(zip(self._nodes, between, strict=True))
        return {n: self._checked(s) for n, s in {**found, LAST: out[0]}.items()}

    def _checked(self, states) -> torch.Tensor:
        """These states, if they have a vector of numbers for each token."""
        if states.ndim != 3 or states.shape[2] != self._width:
            raise Unsuitable(
                f"the states of a text have the shape {tuple(states.shape[1:])} "
                f"instead of (tokens, {self._width})"
            )
        if not states.isfinite().all():
            raise Unsuitable("some of its weights are NaN or infinite")
        return states.clone()

    def _points(self, recorder: "_Recorder", states: dict) -> dict[str, HookPoint]:
        """Node → where its states pass; what the network returns needs none."""
        points = {}
        for node in self._nodes:
            point = recorder.find(states[node])
            if point is None:
                raise Unsuitable(f"no module returns the states of {node!r}")
            points[node] = point
        return points

    def _run(self, network: EncoderNetwork, tokens, mask=None) -> dict:
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        return network(tokens, mask, [*self._nodes, LAST])

    def _ignores_padding(self, network: EncoderNetwork, short, long) -> bool:
        """Whether the short text has the same states beside the long one, padded."""
        tokens = self._long.repeat(2, 1)
        mask = torch.arange(LONG) < torch.tensor([[SHORT], [LONG]])
        tokens[~mask] = self._padding
        both = self._run(network, tokens, mask)
        first = {node: s[:1, :SHORT] for node, s in both.items()}
        second = {node: s[1:] for node, s in both.items()}
        return _all_same(first, short) and _all_same(second, long)


class _Recorder:
    """A context that keeps what the modules of a network take and return.

    Parameters
    ----------
    model : torch.nn.Module
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._seen: list[tuple[HookPoint, torch.Tensor]] = []
        self._handles: list = []

    def __enter__(self):
        for module in self._model.modules():
            numbers: Counter = Counter()
            self._handles += [
                module.register_forward_pre_hook(
                    self._keeper(True, numbers), with_kwargs=True
                ),
                module.register_forward_hook(
                    self._keeper(False, numbers), with_kwargs=True
                ),
            ]
        return self

    def __exit__(self, *exception):
        for handle in self._handles:
            handle.remove()

    def _keeper(self, enters: bool, numbers: Counter):
        """A hook that keeps the first of what enters or leaves a module."""

        def keep(module, args, kwargs, *output):
            value = states_of(output[0]) if output else entering(args, kwargs)
            if isinstance(value, torch.Tensor) and value.ndim == 3:
                point = HookPoint(module, numbers[enters], enters)
                self._seen.append((point, value.clone()))
            numbers[enters] += 1

        return keep

    def find(self, states) -> HookPoint | None:
        """Where these states pass: the whole block returns them last."""
        length = states.shape[1]
        same = [p for p, v in self._seen if _equal(v[:, :length], states)]
        left = [point for point in same if not point.entering]
        return next(iter([*reversed(left), *same]), None)


def _equal(found, expected) -> bool:
    return found.shape == expected.shape and torch.equal(found, expected)


def _all_same(found: dict, expected: dict) -> bool:
    """Whether all states are the same up to rounding."""
    return all(
        torch.allclose(found[n], e, ROUNDING, ROUNDING * float(e.abs().median()))
        for n, e in expected.items()
    )


def _tokens_of(model: nn.Module, padding: int) -> torch.Tensor:
    """A text (1, LONG) without padding."""
    n_words = len(cast(Any, model).get_input_embeddings().weight)
    words = torch.arange(n_words)
    words = words[words != padding]
    generator = torch.Generator().manual_seed(0)
    return words[torch.randint(len(words), (1, LONG), generator=generator)]


def _settings_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """The settings of modules that are words or switches."""
    return dict(_settings_in(model))


def _settings_in(model: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (str, bool)) and not name.startswith("_"):
                yield (path, name), value


def _check_settings(model: nn.Module, before: dict) -> None:
    """Refuse a network that a text has changed, as the next ones would differ."""
    after = _settings_of(model)
    for (path, name), value in before.items():
        now = after.get((path, name), value)
        if now != value:
            raise Unsuitable(
                f"a short text changes its {name!r} from {value!r} to {now!r}, so that "
                f"rows depend on the texts before{_remedy(model, name, now)}"
            )


def _remedy(model: nn.Module, name: str, now: Any) -> str:
    """What to set in the configuration, if it has such an entry."""
    if not hasattr(cast(Any, model).config, name):
        return ""
    return f". Set this entry of config.json to {now!r} for all texts"
