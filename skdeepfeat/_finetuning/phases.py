"""What learns in each phase of fine-tuning, from what, and how fast."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .._engines.arithmetic import arithmetic
from .augmentation import augmentation
from .data import Data
from .frozen import Frozen, chunks
from .parts import Parts

HEAD_RATE = 10  # how much faster a head of one layer learns alone


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


def head_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
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


def joint_phase(parts, data, held_out, recipe, frozen, epochs) -> Phase:
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
        found = torch.cat([scores_of(chunk) for chunk in chunks(len(data))])
        right = (found.argmax(1) == data.targets).float()
        share = data.weights / data.weights.sum()
        loss = F.cross_entropy(found, data.targets, reduction="none")
        return (share * right).sum().item(), (share * loss).sum().item()

    return check
