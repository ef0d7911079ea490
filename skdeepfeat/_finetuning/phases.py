"""What learns in each phase of fine-tuning, from what input, and how fast."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .._engines.tf32 import arithmetic
from .._networks.generators import Draws
from .augmentation import augmentation
from .data import Data
from .frozen import FrozenFeatures, chunks
from .parts import Parts

HEAD_RATE = 10  # how much faster a head of one layer learns alone


@dataclass(frozen=True)
class Regime:
    """How to train; the fields mean what the classifier's parameters mean."""

    head_epochs: int
    epochs: int
    learning_rate: float
    layer_decay: float
    weight_decay: float
    batch_size: int
    augment: str | Callable
    label_smoothing: float
    dropout: float
    n_iter_no_change: int
    device: str
    precision: str
    seed: int


@dataclass
class Phase:
    """Modules that learn together for some epochs.

    Parameters
    ----------
    name : str
    epochs : int
    learner : nn.Module
    groups : list of dict
        Parameters with their learning rates.
    data : Data
    inputs : callable
        Maps positions in the data to what the learner takes, on the device.
    scores : callable
        Maps that to scores (b, classes).
    validate : callable or None
        Returns (accuracy, loss) of the images held out; None if there are none.
    fixed : sequence of nn.Module
        Norms that keep the statistics of the pretraining, which are better than those
        of a small batch.
    draws : Draws
        Of the augmentation and of dropout.
    is_trained : bool
        Whether the head has learned before. If not, the weights at the start are not
        worth keeping, even if always guessing the largest class is accurate.
    """

    name: str
    epochs: int
    learner: nn.Module
    groups: list[dict]
    data: Data
    inputs: Callable[[torch.Tensor], torch.Tensor]
    scores: Callable[[torch.Tensor], torch.Tensor]
    validate: Callable[[], tuple[float, float]] | None
    fixed: Sequence[nn.Module]
    draws: Draws
    is_trained: bool

    def start_epoch(self) -> None:
        """Put the learner in training mode, apart from the fixed norms."""
        self.learner.train()
        for norm in self.fixed:
            norm.eval()


def head_phase(
    parts: Parts,
    regime: Regime,
    frozen: FrozenFeatures,
    unseen: FrozenFeatures | None,
    epochs: int,
    is_trained: bool,
) -> Phase:
    """The head alone, on features of the untouched network."""
    validate = None
    if unseen is not None:
        inputs = unseen.take_rows(parts.device)
        validate = _validation(parts.head, inputs, parts.classify, unseen.data)
    rate = regime.learning_rate * (HEAD_RATE if parts.tuned.inner is None else 1)
    return Phase(
        name="head",
        epochs=epochs,
        learner=parts.head,
        groups=parts.groups(rate, 1.0, regime.weight_decay, head_only=True),
        data=frozen.data,
        inputs=frozen.take_rows(parts.device),
        scores=parts.classify,
        validate=validate,
        fixed=(),
        draws=parts.draws,
        is_trained=is_trained,
    )


def joint_phase(
    parts: Parts,
    regime: Regime,
    frozen: FrozenFeatures,
    unseen: FrozenFeatures | None,
    epochs: int,
    is_trained: bool,
) -> Phase:
    """Head and tail together, on what leaves the frozen blocks."""
    learner = nn.ModuleList([parts.tail, parts.head])
    inputs, scores = _inputs_and_scores(parts, regime, frozen)
    validate = None
    if unseen is not None:
        plain = _augmented(parts, unseen.data, "none")
        validate = _validation(learner, plain, parts.whole, unseen.data)
    rates = regime.learning_rate, regime.layer_decay, regime.weight_decay
    return Phase(
        name="joint",
        epochs=epochs,
        learner=learner,
        groups=parts.groups(*rates),
        data=frozen.data,
        inputs=inputs,
        scores=scores,
        validate=validate,
        fixed=parts.norms() if parts.pretrained else (),
        draws=parts.draws,
        is_trained=is_trained,
    )


def _inputs_and_scores(
    parts: Parts, regime: Regime, frozen: FrozenFeatures
) -> tuple[Callable, Callable]:
    """What the tail and the head learn from, and how scores are computed from that."""
    if frozen.entered is not None:
        return frozen.take_entered(parts.device), parts.above
    return _augmented(parts, frozen.data, regime.augment), parts.whole


def _augmented(parts: Parts, data: Data, name):
    """A function that maps positions to input of the network, changed at random."""
    augment = augmentation(name, parts.spec)
    return lambda chosen: parts.prepare(augment(data.take(chosen).to(parts.device)))


def _validation(learner: nn.Module, inputs: Callable, scores: Callable, data: Data):
    """A function that returns (accuracy, loss) of the images held out."""

    def scores_of(chunk):
        batch = inputs(chunk)
        with arithmetic("float32", batch.device.type):
            return scores(batch).cpu()

    @torch.inference_mode()
    def validate():
        learner.eval()
        found = torch.cat([scores_of(chunk) for chunk in chunks(len(data))])
        right = (found.argmax(1) == data.targets).float()
        share = data.weights / data.weights.sum()
        loss = F.cross_entropy(found, data.targets, reduction="none")
        return (share * right).sum().item(), (share * loss).sum().item()

    return validate
