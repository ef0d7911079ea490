"""Early stopping, the best weights so far, and what divergence leaves."""

import itertools

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from small_fits import classifier, coloured_images

from skdeepfeat._finetuning import phases, training
from skdeepfeat._finetuning.monitoring import Snapshots, Stopping


def test_training_stops_after_some_epochs_without_improvement():
    stopping = Stopping(0.5, patience=2)
    accuracies = [0.6, 0.6, 0.7, 0.70005, 0.4]
    assert [stopping.improves(a) for a in accuracies] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert stopping.is_due
    assert stopping.improves(0.8) and not stopping.is_due


def test_an_epoch_must_beat_the_accuracy_before_training():
    stopping = Stopping(0.9, patience=1)
    assert not stopping.improves(0.8) and stopping.is_due


def test_without_validation_each_epoch_counts_as_better():
    stopping = Stopping(None, patience=1)
    assert all(stopping.improves(None) for _ in range(5)) and not stopping.is_due


def test_a_snapshot_is_a_copy():
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    snapshots = Snapshots(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    assert snapshots.epoch == 0
    snapshots.restore()
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.weight.add_(1)
    snapshots.keep(3)
    snapshots.restore()
    assert snapshots.epoch == 3 and torch.equal(layer.weight, before + 1)


@pytest.mark.parametrize(("early_stopping", "kept"), [(False, 3), (True, 2)])
def test_divergence_names_the_epoch_whose_weights_are_kept(
    early_stopping, kept, monkeypatch
):
    """With early stopping, that is the best epoch and not the one before."""
    accuracies, epochs = iter([0.1, 0.2, 0.9, 0.3, 0.3]), itertools.count(1)
    validation = lambda *arguments: lambda: (next(accuracies), 1.0)  # noqa: E731
    monkeypatch.setattr(phases, "_validation", validation)
    real = training.train_epoch

    def diverge(*arguments):
        entry = real(*arguments)
        return entry | {"loss": float("nan")} if next(epochs) == 4 else entry

    monkeypatch.setattr(training, "train_epoch", diverge)
    clf = classifier(
        head_epochs=6, early_stopping=early_stopping, validation_fraction=0.3
    )
    sentence = f"NaN or infinite in epoch 4 .* weights of epoch {kept} were kept"
    with pytest.warns(ConvergenceWarning, match=sentence):
        clf.fit(*coloured_images())
