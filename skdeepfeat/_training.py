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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import InterpolationMode, v2

from ._backbones import InputSpec, WeightsSource
from ._batches import Prepared, read_row
from ._device import resolve_device, resolve_threads
from ._exceptions import FeatureWarning, ImageError, warn_user
from ._images import Images
from ._networks import PRECISIONS
from ._parts import Cut, Fitted, Head, Parts
from ._processes import Lock, fork_safe
from ._report import warn_of_range

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


@dataclass
class Data:
    """Images of one fit, decoded and resized once, with their targets.

    Parameters
    ----------
    pixels : torch.Tensor of shape (n, 3, s, s)
        8-bit where the images are, or floats on the scale 0 to 255. The margin around
        the network's own input size is for random crops.
    targets : torch.Tensor of shape (n,), int64
    weights : torch.Tensor of shape (n,)
        Of the loss of each image, 1 on average.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, pixels: torch.Tensor, targets: np.ndarray, weights: np.ndarray):
        """From arrays; scales the weights."""
        scaled = torch.from_numpy(weights / weights.mean()).float()
        return cls(pixels, torch.from_numpy(targets), scaled)

    def __len__(self):
        return len(self.targets)

    def at(self, rows) -> "Data":
        """Some of the images."""
        return Data(self.pixels[rows], self.targets[rows], self.weights[rows])


# Images -----------------------------------------------------------------------------


def read_pixels(
    images: Images, rows: Sequence[int], spec: InputSpec, value_range, n_jobs
) -> torch.Tensor:
    """Images at the network's input size and the margin of its recipe.

    The margin is a multiple of 4, so that the centre crop of the result is the very
    crop of the recipe.
    """
    spec = replace(spec, image_size=spec.image_size + _margin(spec))
    with ThreadPoolExecutor(resolve_threads(n_jobs), "skdeepfeat-decode") as pool_:
        found = list(
            pool_.map(lambda row: read_row(images, row, spec, value_range), rows)
        )
    errors = [result for result in found if isinstance(result, ImageError)]
    if errors:
        raise _all_errors(errors, len(rows)) from errors[0].__cause__
    good = [result for result in found if isinstance(result, Prepared)]
    if not all(image.in_range for image in good):
        warn_of_range()
    pixels = [torch.tensor(image.pixels).permute(2, 0, 1) for image in good]
    dtype = torch.uint8 if all(p.dtype == torch.uint8 for p in pixels) else torch.float
    return torch.stack([p.to(dtype) for p in pixels])  # (n, 3, s, s)


def _margin(spec: InputSpec) -> int:
    """Pixels that an image has in each direction beyond the network's input."""
    return max(0, (spec.resize or 0) - spec.image_size) // 4 * 4


def _all_errors(errors: list[ImageError], n: int) -> ImageError:
    """The first error, which says how many more there are."""
    first = errors[0]
    if len(errors) == 1:
        return first
    others = ", ".join(str(error.row) for error in errors[1:6])
    reason = (
        f"{first.reason}. {len(errors)} of {n} images cannot be read (also rows "
        f"{others}{', ...' if len(errors) > 6 else ''}); nothing was trained"
    )
    return ImageError(first.row, first.source, reason)


def _augmentations(name, spec: InputSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is done to one (3, s, s) 8-bit image before it is cropped and normalised."""
    if callable(name):
        return name
    size, interpolation = spec.image_size, InterpolationMode(spec.interpolation)
    padding = 0 if _margin(spec) else size // 16

    def crops(smallest):
        return v2.RandomResizedCrop(
            size, scale=(smallest, 1), interpolation=interpolation, antialias=True
        )

    steps = {
        "light": lambda: [v2.RandomCrop(size, padding, padding_mode="reflect")],
        "standard": lambda: [crops(0.5), v2.ColorJitter(0.2, 0.2, 0.2)],
        "strong": lambda: [
            crops(0.25),
            v2.TrivialAugmentWide(),
            v2.RandomErasing(0.25),
        ],
    }[name]()
    return v2.Compose([v2.RandomHorizontalFlip(), *steps])


# What does not change is computed once ----------------------------------------------


class Frozen:
    """Activations of the frozen trunk for all images, computed when first asked for.

    Parameters
    ----------
    parts : Parts
    data : Data
    keep : bool
        Whether to keep the activations where the tail begins, in half precision, in a
        file that the operating system holds in memory as long as it can.
    """

    def __init__(self, parts: Parts, data: Data, keep: bool):
        self._parts, self._data = parts, data
        self._keep = keep and parts.cut.start is not None

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
        rows, kept = [], None
        with torch.inference_mode():
            for start in range(0, n, FROZEN_BATCH):
                chunk = slice(start, start + FROZEN_BATCH)
                values = parts.frozen(parts.prepare(self._data.pixels[chunk]))
                rows.append(parts.pooled(values[parts.cut.end.node]).cpu())
                if self._keep and start == 0:
                    kept = _room_for(n, values[parts.cut.start])
                if kept is not None:
                    kept = _put(kept, chunk, values[parts.cut.start])
        return torch.cat(rows).clone(), kept

    def scaling(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """Mean and deviation of each feature; hardly any is as good as a little."""
        share = (weights / weights.sum())[:, None]
        mean = (share * self.rows).sum(0)
        scale = (share * (self.rows - mean).square()).sum(0).sqrt()
        floor = 0.1 * scale.square().mean().sqrt()
        if floor == 0:  # images that are all the same tell nothing
            return {"mean": mean.numpy(), "scale": np.ones_like(mean.numpy())}
        return {"mean": mean.numpy(), "scale": scale.clamp(min=floor).numpy()}


def _room_for(n: int, first: torch.Tensor) -> torch.Tensor | None:
    """A file for the activations of n images, as a tensor; None if it is too large."""
    shape = (n, *first.shape[1:])
    size = 2 * math.prod(shape)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > 0.5 * free:
        _say_not_kept(
            f"would take {size:,} bytes, more than half of the {free:,} that are free "
            f"in {folder!r}"
        )
        return None
    with tempfile.TemporaryFile() as file:  # whose content lives with its map
        return torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))


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
    alone, joint = _epochs(parts.cut, recipe, previous)
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


def _epochs(cut: Cut, recipe: Recipe, previous: Fitted | None) -> tuple[int, int]:
    """Epochs of the head alone, and of head and tail together."""
    alone = 0 if previous is not None else recipe.head_epochs
    return (alone, recipe.epochs) if cut.has_tail else (alone + recipe.epochs, 0)


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
    scores : callable
        Rows of the data → scores (b, classes), as they are learned from.
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
    scores: Callable[[torch.Tensor], torch.Tensor]
    check: Callable[[], tuple[float, float]] | None
    fixed: Sequence[nn.Module] = ()


def _head_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
    """The head alone, on rows of the untouched network."""
    rows = frozen.rows.to(parts.device)
    check = None
    if held_out is not None:
        others = Frozen(parts, held_out, keep=False).rows.to(parts.device)
        check = _checker(
            parts.head, lambda some: parts.classify(others[some]), held_out
        )
    rate = recipe.learning_rate * (HEAD_RATE if parts.cut.inner is None else 1)
    return Phase(
        "head",
        epochs,
        parts.head,
        parts.groups(rate, 1.0, recipe.weight_decay, head_only=True),
        data,
        lambda chosen: parts.classify(rows[chosen]),
        check,
    )


def _joint_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
    """Head and tail together, from the frozen trunk's output."""
    entered = frozen.entered
    augment = None
    if recipe.augment != "none":
        augment = _augmentations(recipe.augment, parts.spec)
        data = replace(data, pixels=data.pixels.round().clamp(0, 255).byte())

    def scores(chosen):
        if entered is not None:
            return parts.above(entered[chosen].to(parts.device).float())
        pixels = data.pixels[chosen]
        if augment is not None:
            pixels = torch.stack([augment(image) for image in pixels])
        return parts.above(parts.below(parts.prepare(pixels)))

    def unseen(chosen):
        return parts.above(parts.below(parts.prepare(held_out.pixels[chosen])))

    learner = nn.ModuleList([parts.tail, parts.head])
    check = None if held_out is None else _checker(learner, unseen, held_out)
    groups = parts.groups(recipe.learning_rate, recipe.layer_decay, recipe.weight_decay)
    fixed = parts.norms() if parts.pretrained else ()
    return Phase("joint", epochs, learner, groups, data, scores, check, fixed)


def _checker(learner: nn.Module, scores: Callable, data: Data):
    """A function that measures (accuracy, loss) of images held out."""

    @torch.inference_mode()
    def check():
        learner.eval()
        found = torch.cat(
            [
                scores(torch.arange(start, min(start + FROZEN_BATCH, len(data)))).cpu()
                for start in range(0, len(data), FROZEN_BATCH)
            ]
        )
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
        chosen = torch.from_numpy(rows)
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
    device = next(phase.learner.parameters()).device
    targets = phase.data.targets[chosen].to(device)
    weights = phase.data.weights[chosen].to(device)
    reduced = recipe.precision != "float32"
    with torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=reduced):
        scores = phase.scores(chosen)
    smooth = recipe.label_smoothing
    losses = F.cross_entropy(
        scores.float(), targets, reduction="none", label_smoothing=smooth
    )
    loss = (losses * weights).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((scores.argmax(1) == targets).sum())


@torch.no_grad()
def _is_sound(phase: Phase) -> bool:
    """Whether the scores of an image are numbers still after the last step."""
    phase.learner.eval()
    return bool(torch.isfinite(phase.scores(torch.arange(1))).all())


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
    cut: Cut,
    data: Data,
    held_out: Data | None,
    n_classes: int,
    recipe: Recipe,
    previous: Fitted | None,
    epoch_done: Callable[[dict], bool],
) -> Fitted:
    """Cut the network, train, and leave torch's global generator as it was."""
    device = torch.device(resolve_device(recipe.device))
    if source.seed is not None:  # random weights have nothing to preserve below
        recipe = replace(recipe, layer_decay=1.0)
    devices = [device] if device.type == "cuda" else []
    with _one_at_a_time, torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(recipe.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(recipe.seed)
        head = Head(cut.width, n_classes, recipe.dropout, cut.inner)
        parts = Parts(source, key, cut, head, device)
        return train(parts, data, held_out, recipe, previous, epoch_done)
