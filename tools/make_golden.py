"""Save models and a store of this version, for the tests of later versions.

Run it once for each layout of pickles or stores, before changing the layout:

    python tools/make_golden.py tests/golden/NAME

It writes pickles of a classifier trained from scratch, of one with only a trained head,
and of a classifier and a pipeline that use a custom network; a store in a folder; and
their predictions.
"""

import argparse
import gzip
import pickle
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    load_textures,
)


def own_backbone():
    """A small custom network with weights from a seed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(8, 16, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 4),
    )
    return Backbone.from_module(net.eval(), image_size=32, name="own")


def thinned(classifier):
    """Keep one in fifty weights of the largest layers, so that the file is small."""
    for array in classifier.weights_["head"].values():
        if array.size > 10_000:
            array[np.abs(array) < np.quantile(np.abs(array), 0.98)] = 0
    return classifier


def main(folder: Path) -> None:
    """Train, predict and save."""
    folder.mkdir(parents=True)
    textures = load_textures()
    X, y = textures.data[:64], textures.target[:64]
    scratch = FineTunedClassifier(
        "smallcnn", weights=None, unfreeze="all", epochs=2, random_state=0
    )
    head = FineTunedClassifier(unfreeze=0, random_state=0)
    own = FineTunedClassifier(own_backbone(), epochs=2, random_state=0)
    features = PretrainedCNNFeatures(own_backbone(), layer=("block4", "penultimate"))
    models = {
        "scratch": thinned(scratch.fit(X, y)),
        "head": head.fit(X, y),
        "own": own.fit(X, y),
        "pipeline": make_pipeline(features, LogisticRegression(max_iter=500)).fit(X, y),
    }
    for name, model in models.items():
        (folder / f"{name}.pkl.gz").write_bytes(
            gzip.compress(pickle.dumps(model, 4), mtime=0)
        )
    store = PretrainedCNNFeatures(engine="torch", cache=folder / "store")
    expected = {name: model.predict_proba(X[:8]) for name, model in models.items()}
    np.savez(folder / "expected.npz", store=store.transform(X[:4]), **expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
