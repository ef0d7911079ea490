"""What is watched while a network trains: improvement, the best weights, divergence."""

import math

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from .._engines.tf32 import arithmetic
from .._exceptions import warn_user
from .phases import Phase, Regime

TOLERANCE = 1e-4  # smaller gains in accuracy do not count as an improvement
HOPELESS = 1000  # a final loss this many times that of guessing is reported


class Stopping:
    """Decides which epoch is the best so far, and when training stops early.

    Without validation, each epoch counts as the best so far, and training never stops
    early.

    Parameters
    ----------
    patience : int
        Number of epochs without a gain in accuracy after which training stops.
    """

    def __init__(self, patience: int):
        self._accuracy, self._loss = -math.inf, math.inf  # of the best epoch
        self._patience, self._n_waited = patience, 0

    def start(self, accuracy: float, loss: float) -> None:
        """Set what an epoch must beat: the validation before training."""
        self._accuracy, self._loss = accuracy, loss

    def improves(self, accuracy: float, loss: float) -> bool:
        """Record the validation of an epoch; returns whether it is the best so far.

        Of epochs with the same accuracy, the one with the smallest loss is best.
        """
        gain = accuracy - self._accuracy
        if gain > TOLERANCE:
            self._accuracy, self._loss, self._n_waited = accuracy, loss, 0
            return True
        self._n_waited += 1
        is_better = gain >= -TOLERANCE and loss < self._loss
        if is_better:
            self._loss = loss
        return is_better

    @property
    def is_due(self) -> bool:
        """Whether patience has run out."""
        return self._n_waited >= self._patience


class Snapshots:
    """Keeps a copy of the weights of one epoch: the best, or the last, so far.

    Parameters
    ----------
    learner : nn.Module

    Attributes
    ----------
    epoch : int
        The epoch of the copy; 0 before training.
    """

    def __init__(self, learner: nn.Module):
        self._learner = learner
        self.keep(0)

    def keep(self, epoch: int) -> None:
        """Copy the weights as they are after this epoch."""
        state = self._learner.state_dict()
        self._weights = {name: value.clone() for name, value in state.items()}
        self.epoch = epoch

    def restore(self) -> None:
        """Put the copied weights back."""
        self._learner.load_state_dict(self._weights)


class Diverged(Exception):
    """The loss or the scores of an epoch are not finite; says what to do about it.

    Parameters
    ----------
    phase : Phase
    epoch : int
    kept : int
        The epoch whose weights were kept.
    regime : Regime
    """

    def __init__(self, phase: Phase, epoch: int, kept: int, regime: Regime):
        weights = f"of epoch {kept}" if kept else "from before training"
        super().__init__(
            f"The loss became NaN or infinite in epoch {epoch} of phase {phase.name!r} "
            f"with learning_rate={regime.learning_rate:g}. Training stopped; the "
            f"weights {weights} were kept. Try "
            f"learning_rate={regime.learning_rate / 10:g}."
        )


def has_diverged(phase: Phase, loss: float) -> bool:
    """Whether the loss of an epoch, or a score after its last step, is not finite."""
    return not (math.isfinite(loss) and _has_finite_scores(phase))


@torch.no_grad()
def _has_finite_scores(phase: Phase) -> bool:
    """Whether the first image has finite scores."""
    phase.learner.eval()
    with phase.draws.turn():
        batch = phase.inputs(torch.arange(1))
    with arithmetic("float32", batch.device.type):
        return bool(torch.isfinite(phase.scores(batch)).all())


def warn_if_hopeless(history: list[dict], n_classes: int, regime: Regime) -> None:
    """Warn if the final loss is far above that of guessing."""
    loss, guessing = history[-1]["loss"] if history else 0.0, math.log(n_classes)
    if loss > HOPELESS * guessing:
        warn_user(
            f"The loss of the last epoch is {loss:.3g}, while guessing gives "
            f"{guessing:.3g}: training diverged with "
            f"learning_rate={regime.learning_rate:g}. Try "
            f"learning_rate={regime.learning_rate / 10:g}.",
            ConvergenceWarning,
        )
