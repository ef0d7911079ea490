"""Tunes the tail of a network and a new head: fit → phase → epoch → step.

First the head learns alone, on features of the untouched network that are computed
once and standardised. Then tail and head learn together, the lower the slower.

References
----------
.. [1] Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification",
   2018 (first the head, then gradual rates by depth).
.. [2] Smith, Topin, "Super-Convergence", 2018 (one-cycle schedule).
.. [3] Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019 (AdamW).
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from .._backbones.weights import WeightsSource
from .._engines.arithmetic import arithmetic
from .._engines.devices import resolve_device
from .._exceptions import warn_user
from .._networks.sharing import PRECISIONS
from .._processes import Lock, fork_safe
from .data import Data
from .frozen import Frozen
from .parts import Fitted, Head, Parts, TunedPart
from .phases import Phase, Recipe, head_phase, joint_phase

HOPELESS = 1000  # times the loss of guessing
TOLERANCE = 1e-4  # by how much a better score must be better

# Dropout and augmentation draw from torch's global generator, which is seeded for a fit
# and put back afterwards; so fits of one process take turns.
_one_at_a_time = Lock()


# Fit --------------------------------------------------------------------------------


def train(
    parts: Parts,
    data: Data,
    held_out: Data | None,
    recipe: Recipe,
    previous: Fitted | None,
    epoch_done: Callable[[dict], bool],
) -> Fitted:
    """Tune head and tail.

    Parameters
    ----------
    parts : Parts
    data : Data
    held_out : Data or None
        For early stopping; None trains through.
    recipe : Recipe
    previous : Fitted or None
        What to go on from; the head does not learn alone first then.
    epoch_done : callable
        Takes the entry of an epoch; says whether to stop.

    Returns
    -------
    fitted : Fitted
        Of the last epoch, or with `held_out` of the best one. If the loss stops being
        a number, of the last epoch before.
    """
    history: list[dict] = []
    if previous is not None:
        parts.load(previous)
    alone, joint = _epochs(parts.tuned, recipe, previous)
    frozen = Frozen(parts, data, keep=recipe.augment == "none" and joint > 0)
    scaling = previous.scaling if previous else frozen.scaling(data.weights)
    with parts.standardised(*map(torch.from_numpy, scaling.values())):
        finished = True
        if alone:
            phase = head_phase(parts, data, held_out, recipe, frozen, alone)
            finished = _run(phase, recipe, history, epoch_done)
        if joint and finished:
            phase = joint_phase(parts, data, held_out, recipe, frozen, joint)
            _run(phase, recipe, history, epoch_done)
    _warn_of_nothing_learned(history, math.log(parts.head.last.out_features), recipe)
    return Fitted(*parts.arrays(), scaling, history)


def _warn_of_nothing_learned(history, guessing: float, recipe: Recipe) -> None:
    """Say so if the loss in the end is far above that of guessing."""
    loss = history[-1]["loss"] if history else 0.0
    if loss > HOPELESS * guessing:
        _warn(
            f"The loss of the last epoch is {loss:.3g}, where that of guessing is "
            f"{guessing:.3g}: training diverged with "
            f"learning_rate={recipe.learning_rate:g}. Try "
            f"learning_rate={recipe.learning_rate / 10:g}."
        )


def _epochs(
    tuned: TunedPart, recipe: Recipe, previous: Fitted | None
) -> tuple[int, int]:
    """Epochs of the head alone, and of head and tail together."""
    alone = 0 if previous is not None else recipe.head_epochs
    return (alone, recipe.epochs) if tuned.has_tail else (alone + recipe.epochs, 0)


# Phase → epoch → step ---------------------------------------------------------------


def _run(phase: Phase, recipe: Recipe, history: list, epoch_done) -> bool:
    """All epochs of a phase; says whether the next phase may begin."""
    batches = math.ceil(len(phase.data) / recipe.batch_size)
    optimizer = torch.optim.AdamW(phase.groups, weight_decay=recipe.weight_decay)
    schedule = LambdaLR(optimizer, partial(one_cycle, n_steps=phase.epochs * batches))
    best = phase.check()[0] if phase.check is not None else -math.inf
    kept, waited = _snapshot(phase.learner), 0
    for epoch in range(1, phase.epochs + 1):
        started = time.perf_counter()
        try:
            entry = _epoch(phase, recipe, optimizer, schedule, batches)
        except KeyboardInterrupt:
            _warn(f"Training was interrupted in epoch {epoch} of phase {phase.name!r}.")
            if phase.check is not None:
                phase.learner.load_state_dict(kept)
            return False
        entry["seconds"] = time.perf_counter() - started
        if not (math.isfinite(entry["loss"]) and _is_sound(phase)):
            phase.learner.load_state_dict(kept)
            _warn(_what_diverged(phase, epoch, recipe))
            return False
        if phase.check is not None:
            accuracy, loss = phase.check()
            entry |= {"validation_accuracy": accuracy, "validation_loss": loss}
        history.append({"phase": phase.name, "epoch": epoch} | entry)
        better = entry.get("validation_accuracy", math.inf) > best + TOLERANCE
        waited = 0 if better else waited + 1
        if better or phase.check is None:
            best = entry.get("validation_accuracy", best)
            kept = _snapshot(phase.learner)
        stop = epoch_done(history[-1])
        patience = recipe.n_iter_no_change
        if stop or (phase.check is not None and patience and waited >= patience):
            break
    if phase.check is not None:
        phase.learner.load_state_dict(kept)
    phase.learner.eval()
    return True


def one_cycle(step: int, n_steps: int) -> float:
    """Share of the learning rate: up in a quarter of the steps, then a cosine down."""
    rise = n_steps / 4
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise)))


def _epoch(phase: Phase, recipe: Recipe, optimizer, schedule, batches) -> dict:
    """Every image once, in random order; batches are of nearly equal size."""
    phase.learner.train()
    for norm in phase.fixed:
        norm.eval()
    loss, right, rate = 0.0, 0, 0.0
    for rows in np.array_split(torch.randperm(len(phase.data)).numpy(), batches):
        chosen = torch.from_numpy(np.sort(rows))  # as they stand in their file
        batch_loss, batch_right = _step(phase, recipe, optimizer, chosen)
        rate = max(rate, optimizer.param_groups[0]["lr"])
        schedule.step()
        loss, right = loss + batch_loss * len(rows), right + batch_right
        if not math.isfinite(loss):
            break
    n = len(phase.data)
    return {"loss": loss / n, "accuracy": right / n, "learning_rate": rate}


def _step(phase: Phase, recipe: Recipe, optimizer, chosen) -> tuple[float, int]:
    """One batch: scores, loss, gradient, step. Returns the loss and how many right."""
    batch = phase.inputs(chosen)  # which may call a function of the user's
    device = batch.device
    targets = phase.data.targets[chosen].to(device)
    weights = phase.data.weights[chosen].to(device)
    with arithmetic(recipe.precision, device.type):
        scores = _scores(phase, recipe, batch)
        losses = F.cross_entropy(
            scores.float(),
            targets,
            reduction="none",
            label_smoothing=recipe.label_smoothing,
        )
        loss = (losses * weights).mean()
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    return loss.item(), int((scores.argmax(1) == targets).sum())


def _scores(phase: Phase, recipe: Recipe, batch) -> torch.Tensor:
    """Scores in the precision of training."""
    reduced = recipe.precision != "float32"
    kind, dtype = batch.device.type, PRECISIONS[recipe.precision]
    with torch.autocast(kind, dtype, enabled=reduced):
        return phase.scores(batch)


@torch.no_grad()
def _is_sound(phase: Phase) -> bool:
    """Whether the scores of an image are numbers still after the last step."""
    phase.learner.eval()
    batch = phase.inputs(torch.arange(1))
    with arithmetic("float32", batch.device.type):
        return bool(torch.isfinite(phase.scores(batch)).all())


def _snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _what_diverged(phase: Phase, epoch: int, recipe: Recipe) -> str:
    kept = f"those of epoch {epoch - 1}" if epoch > 1 else "those before training"
    return (
        f"The loss was no number any more in epoch {epoch} of phase {phase.name!r} "
        f"with learning_rate={recipe.learning_rate:g}. Training stopped, and of the "
        f"weights {kept} are kept. Try learning_rate={recipe.learning_rate / 10:g}."
    )


def _warn(message: str) -> None:
    warn_user(message, ConvergenceWarning)


# The door ---------------------------------------------------------------------------


@fork_safe
def fine_tune(
    source: WeightsSource,
    key: bytes,
    tuned: TunedPart,
    data: Data,
    held_out: Data | None,
    n_classes: int,
    recipe: Recipe,
    previous: Fitted | None,
    epoch_done: Callable[[dict], bool],
) -> Fitted:
    """TunedPart the network, train, and leave torch's global generator as it was."""
    device = torch.device(resolve_device(recipe.device))
    if source.seed is not None:  # random weights have nothing to preserve below
        recipe = replace(recipe, layer_decay=1.0)
    devices = [device] if device.type == "cuda" else []
    with _one_at_a_time, torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(recipe.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(recipe.seed)
        head = Head(tuned.width, n_classes, recipe.dropout, tuned.inner)
        parts = Parts(source, key, tuned, head, device)
        return train(parts, data, held_out, recipe, previous, epoch_done)
