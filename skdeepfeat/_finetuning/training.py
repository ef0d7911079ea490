"""Trains the tail of a network and a new head: fit → phase → epoch → step.

First the head learns alone, on standardised features of the untouched network that are
computed once. Then tail and head learn together, lower blocks at lower rates.

References
----------
.. [1] Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification",
   2018 (first the head, then gradual rates by depth).
.. [2] Smith, Topin, "Super-Convergence", 2018 (one-cycle schedule).
.. [3] Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019 (AdamW).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from .._backbones.weights import WeightsSource
from .._engines.devices import resolve_device
from .._engines.tf32 import arithmetic
from .._exceptions import warn_user
from .._networks.building import single_precision
from .._networks.generators import Draws
from .._networks.sharing import PRECISIONS
from .._processes import Lock, fork_safe
from .data import Data, UnusableImages
from .fitted import Fitted
from .frozen import FrozenFeatures
from .monitoring import Diverged, Snapshots, Stopping, has_diverged, warn_if_hopeless
from .parts import Parts
from .phases import Phase, Regime, head_phase, joint_phase
from .settling import settle
from .tuned_part import TunedPart

# A process runs one fit at a time, since each one needs memory for itself.
_one_at_a_time = Lock()


# Fit --------------------------------------------------------------------------------


@contextlib.contextmanager
def as_in_a_fresh_process() -> Iterator[None]:
    """A context in which torch computes in single precision, with gradients.

    The caller may be in another context, such as autocast or inference mode.
    """
    with (
        single_precision,
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Parameters
    ----------
    source : WeightsSource
    key : bytes
        Digest of the weights.
    tuned : TunedPart
    n_classes : int
    previous : Fitted or None
        What was tuned in the fit that this one continues.
    """

    source: WeightsSource
    key: bytes
    tuned: TunedPart
    n_classes: int
    previous: Fitted | None


@fork_safe
def fine_tune(
    start: Start,
    data: Data,
    held_out: Data | None,
    regime: Regime,
    epoch_done: Callable[[dict], bool],
) -> Fitted:
    """Divide the network, train it, and leave torch's global generator as it was."""
    device = torch.device(resolve_device(regime.device))
    if not start.source.pretrained:  # random weights have nothing to preserve below
        regime = replace(regime, layer_decay=1.0)
    with _one_at_a_time:
        parts = Parts.with_new_head(
            start.source,
            start.key,
            start.tuned,
            start.n_classes,
            regime.dropout,
            Draws(regime.seed, device),
        )
        return train(parts, data, held_out, regime, start.previous, epoch_done)


def train(
    parts: Parts,
    data: Data,
    held_out: Data | None,
    regime: Regime,
    previous: Fitted | None,
    epoch_done: Callable[[dict], bool],
) -> Fitted:
    """Train the head, then head and tail.

    Parameters
    ----------
    parts : Parts
    data : Data
    held_out : Data or None
        For early stopping; None trains through.
    regime : Regime
    previous : Fitted or None
        What to continue from; the head does not learn alone first then.
    epoch_done : callable
        Takes the entry of an epoch; returns whether to stop the phase.

    Returns
    -------
    fitted : Fitted
        Of the last epoch, or with `held_out` of the best one. If training diverges, of
        the last such epoch before.

    Raises
    ------
    UnusableImages
        If the features of some images are not finite; before anything is trained.
    """
    if previous is None:
        settle(parts, data)
    else:
        parts.load(previous)
    phases, scaling = _prepare(parts, data, held_out, regime, previous)
    history: list[dict] = []
    with parts.standardised(*map(torch.from_numpy, scaling.values())):
        for phase in phases:
            if not train_phase(phase, regime, history, epoch_done):
                break
    warn_if_hopeless(history, parts.head.last.out_features, regime)
    return Fitted(*parts.arrays(), scaling, history)


def _prepare(
    parts: Parts,
    data: Data,
    held_out: Data | None,
    regime: Regime,
    previous: Fitted | None,
) -> tuple[list[Phase], dict[str, np.ndarray]]:
    """The phases to train, and the scaling of what enters the head."""
    alone, joint = _epochs(parts.tuned, regime, previous)
    frozen = FrozenFeatures(parts, data, keep=regime.augment == "none" and joint > 0)
    unseen = None if held_out is None else FrozenFeatures(parts, held_out)
    errors = frozen.errors(all_images=previous is None or alone > 0 or frozen.keeps)
    if unseen is not None:
        errors += unseen.errors(all_images=alone > 0)
    if errors:
        raise UnusableImages(errors)
    is_trained = previous is not None
    phases = [
        head_phase(parts, regime, frozen, unseen, alone, is_trained),
        joint_phase(parts, regime, frozen, unseen, joint, is_trained or alone > 0),
    ]
    scaling = previous.scaling if previous else frozen.scaling(data.weights)
    return [phase for phase in phases if phase.epochs], scaling


def _epochs(
    tuned: TunedPart, regime: Regime, previous: Fitted | None
) -> tuple[int, int]:
    """Epochs of the head alone, and of head and tail together."""
    alone = 0 if previous is not None else regime.head_epochs
    return (alone, regime.epochs) if tuned.has_tail else (alone + regime.epochs, 0)


# Phase ------------------------------------------------------------------------------


def train_phase(
    phase: Phase,
    regime: Regime,
    history: list[dict],
    epoch_done: Callable[[dict], bool],
) -> bool:
    """Train for the epochs of a phase; returns whether the next phase may begin."""
    snapshots = Snapshots(phase.learner)
    try:
        for entry in _run_epochs(phase, regime, snapshots):
            history.append(entry)
            if epoch_done(entry):
                break
    except KeyboardInterrupt:  # also between epochs, while weights are copied
        if phase.validate is not None:
            snapshots.restore()
        epoch = 1 + sum(entry["phase"] == phase.name for entry in history)
        return _abort(
            f"Training was interrupted in epoch {epoch} of phase {phase.name!r}."
        )
    except Diverged as error:
        return _abort(str(error))
    if phase.validate is not None:
        snapshots.restore()
    phase.learner.eval()
    return True


def _abort(reason: str) -> bool:
    """Warn that training ends early; no further phase begins."""
    warn_user(reason, ConvergenceWarning)
    return False


def _run_epochs(phase: Phase, regime: Regime, snapshots: Snapshots) -> Iterator[dict]:
    """Run the epochs of a phase; yields the entry of each for the history."""
    schedule = _one_cycle_schedule(phase, regime)
    stopping = Stopping(regime.n_iter_no_change)
    if phase.validate is not None and phase.is_trained:
        stopping.start(*phase.validate())
    for epoch in range(1, phase.epochs + 1):
        entry = {"phase": phase.name, "epoch": epoch}
        entry |= _guarded_epoch(phase, regime, schedule, epoch, snapshots)
        if phase.validate is None:
            snapshots.keep(epoch)
        else:
            accuracy, loss = phase.validate()
            entry |= {"validation_accuracy": accuracy, "validation_loss": loss}
            if stopping.improves(accuracy, loss):
                snapshots.keep(epoch)
        yield entry
        if stopping.is_due:
            return


def _one_cycle_schedule(phase: Phase, regime: Regime) -> LambdaLR:
    """AdamW and its learning rate over all steps of a phase."""
    optimizer = torch.optim.AdamW(phase.groups, weight_decay=regime.weight_decay)
    n_steps = phase.epochs * _n_batches(phase, regime)
    return LambdaLR(optimizer, partial(one_cycle, n_steps=n_steps))


def one_cycle(step: int, n_steps: int) -> float:
    """Share of the learning rate: up in a quarter of the steps, then a cosine down."""
    rise = n_steps / 4
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise)))


# Epoch ------------------------------------------------------------------------------


def _guarded_epoch(
    phase: Phase, regime: Regime, schedule: LambdaLR, epoch: int, snapshots: Snapshots
) -> dict:
    """One epoch and its time; aborts the phase if the loss diverges."""
    started = time.perf_counter()
    entry = train_epoch(phase, regime, schedule)
    seconds = time.perf_counter() - started
    if has_diverged(phase, entry["loss"]):
        snapshots.restore()
        raise Diverged(phase, epoch, snapshots.epoch, regime)
    return entry | {"seconds": seconds}


def train_epoch(phase: Phase, regime: Regime, schedule: LambdaLR) -> dict:
    """Every image once, in random order."""
    phase.start_epoch()
    optimizer = schedule.optimizer
    loss, n_right, rate = 0.0, 0, 0.0
    for chosen in _batches(phase, regime):
        with phase.draws.turn():
            batch_loss, batch_right = train_step(phase, regime, optimizer, chosen)
        rate = max(rate, optimizer.param_groups[0]["lr"])
        schedule.step()
        loss += batch_loss * len(chosen)
        n_right += batch_right
        if not math.isfinite(loss):
            break
    n = len(phase.data)
    return {"loss": loss / n, "accuracy": n_right / n, "learning_rate": rate}


def _batches(phase: Phase, regime: Regime) -> Iterator[torch.Tensor]:
    """Positions of all images in random order, in batches of nearly equal size."""
    with phase.draws.turn():
        order = torch.randperm(len(phase.data)).numpy()
    for chosen in np.array_split(order, _n_batches(phase, regime)):
        yield torch.from_numpy(np.sort(chosen))  # read in the order of their file


def _n_batches(phase: Phase, regime: Regime) -> int:
    return math.ceil(len(phase.data) / regime.batch_size)


# Step -------------------------------------------------------------------------------


def train_step(
    phase: Phase, regime: Regime, optimizer: torch.optim.Optimizer, chosen: torch.Tensor
) -> tuple[float, int]:
    """One batch: scores, loss, gradient, step.

    Returns
    -------
    loss : float
    n_right : int
        Number of images whose highest score is that of their class.
    """
    batch = phase.inputs(chosen)  # which may call a function of the user's
    targets = phase.data.targets[chosen].to(batch.device)
    weights = phase.data.weights[chosen].to(batch.device)
    with arithmetic(regime.precision, batch.device.type), _explained(phase, regime):
        scores = _scores(phase, regime, batch)
        losses = F.cross_entropy(
            scores.float(),
            targets,
            reduction="none",
            label_smoothing=regime.label_smoothing,
        )
        loss = (losses * weights).mean()
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    return loss.item(), int((scores.argmax(1) == targets).sum())


@contextlib.contextmanager
def _explained(phase: Phase, regime: Regime) -> Iterator[None]:
    """A context that explains the error of a batch norm in a batch of one image."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "A batch norm of the network cannot learn its statistics from a batch of "
            f"one image, which batch_size={regime.batch_size} gives for "
            f"{len(phase.data)} images. Pass at least 2 images, and a batch_size of at "
            "least 3."
        ) from error


def _scores(phase: Phase, regime: Regime, batch: torch.Tensor) -> torch.Tensor:
    """Scores in the precision of training.

    Within another autocast context, even one that is off, torch would keep rounded
    copies of the weights, and all steps would compute with those of the first.
    """
    reduced = regime.precision != "float32"
    kind, dtype = batch.device.type, PRECISIONS[regime.precision]
    with torch.autocast(kind, dtype, enabled=reduced, cache_enabled=False):
        return phase.scores(batch)
