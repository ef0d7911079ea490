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
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from .._backbones.weights import WeightsSource
from .._engines.arithmetic import arithmetic
from .._engines.devices import resolve_device
from .._exceptions import FeatureWarning, warn_user
from .._networks.sharing import PRECISIONS
from .._processes import Lock, fork_safe
from .augmentation import augmentation
from .data import Data
from .parts import Fitted, Head, Parts, TunedPart
from .scratch import scratch_array

FROZEN_BATCH = 16  # images that go through the frozen trunk at once
HEAD_RATE = 10  # how much faster a head of one layer learns alone
HOPELESS = 1000  # times the loss of guessing
TOLERANCE = 1e-4  # by how much a better score must be better

# Dropout and augmentation draw from torch's global generator, which is seeded for a fit
# and put back afterwards; so fits of one process take turns.
_one_at_a_time = Lock()


@dataclass(frozen=True)
class Recipe:
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
    n_iter_no_change: int | None
    device: str
    precision: str
    seed: int


# What does not change is computed once ----------------------------------------------


class Frozen:
    """Activations of the frozen trunk for all images, computed when first asked for.

    Parameters
    ----------
    parts : Parts
    data : Data
    keep : bool
        Whether to keep the activations where the tail begins, in half precision.
    """

    def __init__(self, parts: Parts, data: Data, keep: bool):
        self._parts, self._data = parts, data
        self._keep = keep and parts.tuned.start is not None

    @property
    def rows(self) -> torch.Tensor:
        """What enters the head, (n, d)."""
        return self._computed[0]

    @property
    def entered(self) -> torch.Tensor | None:
        """What enters the tail; None if that is not kept."""
        return self._computed[1] if self._keep else None

    @cached_property
    def _computed(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts, n = self._parts, len(self._data)
        size, kept = (n, parts.tuned.width), None
        array = scratch_array(size, np.float32, f"The features of {n:,} images")
        rows = torch.from_numpy(array)
        for chunk in _chunks(n):
            values = self._frozen(chunk)
            rows[chunk] = parts.pooled(values[parts.tuned.end.node]).cpu()
            if self._keep and chunk.start == 0:
                kept = _room_for(n, values[parts.tuned.start])
            if kept is not None:
                kept = _put(kept, chunk, values[parts.tuned.start])
        return rows, kept

    @torch.inference_mode()
    def _frozen(self, chunk: slice) -> dict:
        batch = self._parts.prepare(self._data.take(chunk))
        with arithmetic("float32", batch.device.type):
            return self._parts.frozen(batch)

    def scaling(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """Mean and deviation of each feature; hardly any is as good as a little."""
        share = (weights / weights.sum()).double()
        mean = self._weighted(share, lambda rows: rows)
        scale = self._weighted(share, lambda rows: (rows - mean).square()).sqrt()
        floor = 0.1 * scale.square().mean().sqrt()
        if floor == 0:  # images that are all the same tell nothing
            scale = torch.ones_like(scale)
        parts = {"mean": mean, "scale": scale.clamp(min=floor)}
        return {name: part.float().numpy() for name, part in parts.items()}

    def _weighted(self, share: torch.Tensor, function) -> torch.Tensor:
        """Weighted mean of a function of the rows, chunk by chunk."""
        total = torch.zeros(self.rows.shape[1], dtype=share.dtype)
        for chunk in _chunks(len(share)):
            total += share[chunk] @ function(self.rows[chunk].double())
        return total


def _chunks(n: int) -> Iterator[slice]:
    """What goes through the frozen trunk at once."""
    return (slice(i, min(n, i + FROZEN_BATCH)) for i in range(0, n, FROZEN_BATCH))


def _room_for(n: int, first: torch.Tensor) -> torch.Tensor | None:
    """A file for the activations of n images, as a tensor; None if it is too large."""
    shape = (n, *first.shape[1:])
    size = 2 * math.prod(shape)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size <= 0.5 * free:
        return torch.from_numpy(scratch_array(shape, np.float16, "The activations"))
    _say_not_kept(
        f"would take {size:,} bytes, more than half of the {free:,} that are free in "
        f"{folder!r}"
    )
    return None


def _put(kept: torch.Tensor, chunk: slice, entered: torch.Tensor):
    """Keep the activations of some images; gives None if they cannot be kept."""
    kept[chunk] = entered.half().cpu()
    if torch.isfinite(kept[chunk]).all():
        return kept
    _say_not_kept("do not fit in half precision")
    return None


def _say_not_kept(why: str) -> None:
    warn_user(
        f"The activations of the frozen blocks {why}. They are computed in every epoch "
        "instead of once.",
        FeatureWarning,
    )


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
            phase = _head_phase(parts, data, held_out, recipe, frozen, alone)
            finished = _run(phase, recipe, history, epoch_done)
        if joint and finished:
            phase = _joint_phase(parts, data, held_out, recipe, frozen, joint)
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


@dataclass
class Phase:
    """Something that learns, epoch by epoch.

    Parameters
    ----------
    name : str
    epochs : int
    learner : nn.Module
    groups : list of dict
        Parameters and learning rates.
    data : Data
    inputs : callable
        Rows of the data → what is learned from, on the device.
    scores : callable
        Those → scores (b, classes).
    check : callable or None
        () → (accuracy, loss) of the images held out.
    fixed : sequence of nn.Module
        Norms whose statistics stay: those of the pretraining are better than those
        of a small batch.
    """

    name: str
    epochs: int
    learner: nn.Module
    groups: list[dict]
    data: Data
    inputs: Callable[[torch.Tensor], torch.Tensor]
    scores: Callable[[torch.Tensor], torch.Tensor]
    check: Callable[[], tuple[float, float]] | None
    fixed: Sequence[nn.Module] = ()


def _head_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
    """The head alone, on rows of the untouched network."""

    def rows_of(images: Frozen):
        return lambda chosen: images.rows[chosen].to(parts.device)

    check = None
    if held_out is not None:
        others = rows_of(Frozen(parts, held_out, keep=False))
        check = _checker(parts.head, others, parts.classify, held_out)
    rate = recipe.learning_rate * (HEAD_RATE if parts.tuned.inner is None else 1)
    return Phase(
        "head",
        epochs,
        parts.head,
        parts.groups(rate, 1.0, recipe.weight_decay, head_only=True),
        data,
        rows_of(frozen),
        parts.classify,
        check,
    )


def _joint_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
    """Head and tail together, from the frozen trunk's output."""
    learner = nn.ModuleList([parts.tail, parts.head])
    inputs, scores = _augmented(parts, data, recipe.augment), parts.whole
    if frozen.entered is not None:
        inputs, scores = _kept(parts, frozen.entered), parts.above
    check = None
    if held_out is not None:
        unseen = _augmented(parts, held_out, "none")
        check = _checker(learner, unseen, parts.whole, held_out)
    groups = parts.groups(recipe.learning_rate, recipe.layer_decay, recipe.weight_decay)
    fixed = parts.norms() if parts.pretrained else ()
    return Phase("joint", epochs, learner, groups, data, inputs, scores, check, fixed)


def _augmented(parts: Parts, data: Data, name):
    """A function of rows that gives the input of the network, changed at random."""
    augment = augmentation(name, parts.spec)
    return lambda rows: parts.prepare(augment(data.take(rows).to(parts.device)))


def _kept(parts: Parts, entered: torch.Tensor):
    """A function of rows that gives what enters the tail, computed before."""
    return lambda rows: entered[rows].to(parts.device).float()


def _checker(learner: nn.Module, inputs: Callable, scores: Callable, data: Data):
    """A function that measures (accuracy, loss) of images held out."""

    def scores_of(chunk):
        batch = inputs(chunk)
        with arithmetic("float32", batch.device.type):
            return scores(batch).cpu()

    @torch.inference_mode()
    def check():
        learner.eval()
        found = torch.cat([scores_of(chunk) for chunk in _chunks(len(data))])
        right = (found.argmax(1) == data.targets).float()
        share = data.weights / data.weights.sum()
        loss = F.cross_entropy(found, data.targets, reduction="none")
        return (share * right).sum().item(), (share * loss).sum().item()

    return check


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
