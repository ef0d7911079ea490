"""Early stopping, the best weights so far, and what divergence leaves."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from small_fits import classifier, coloured_images

from skdeepfeat._finetuning import phases, training
from skdeepfeat._finetuning.monitoring import Snapshots, Stopping


def test_training_stops_after_some_epochs_without_a_gain_in_accuracy():
    stopping = Stopping(patience=2)
    stopping.start(0.5, 1.0)
    accuracies = [0.6, 0.6, 0.7, 0.70005, 0.4]
    assert [stopping.improves(a, 1.0) for a in accuracies] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert stopping.is_due
    assert stopping.improves(0.8, 1.0) and not stopping.is_due


def test_an_epoch_must_beat_the_accuracy_before_training():
    stopping = Stopping(patience=1)
    stopping.start(0.9, 1.0)
    assert not stopping.improves(0.8, 0.1) and stopping.is_due


def test_of_equal_accuracies_the_smallest_loss_is_best_but_does_not_reset_patience():
    stopping = Stopping(patience=3)
    losses = [0.6, 0.5, 0.55, 0.4]
    assert [stopping.improves(0.9, loss) for loss in losses] == [
        True,
        True,
        False,
        True,
    ]
    assert stopping.is_due


def test_early_stopping_never_keeps_a_head_that_has_not_learned():
    """Always guessing the larger class is more accurate than the first epochs."""
    rng = np.random.default_rng(0)
    is_rare = np.arange(60) % 10 == 0
    X = rng.integers(0, 150, (60, 8, 8, 3)) + 100 * (is_rare[:, None, None, None])
    X[~is_rare] += rng.integers(0, 100, (54, 1, 1, 3))
    for head_epochs in (3, 0):
        clf = classifier(
            head_epochs=head_epochs,
            learning_rate=1e-4,
            early_stopping=True,
            validation_fraction=0.3,
        )
        clf.fit(X.astype(np.uint8), is_rare)
        found = clf.predict_proba(X.astype(np.uint8))[:, 1]
        assert roc_auc_score(is_rare, found) > 0.6


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
    accuracies, epochs = iter([0.2, 0.9, 0.3, 0.3]), itertools.count(1)
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
