"""The backbone and the images that ship with the package."""

import json
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdeepfeat
from skdeepfeat import (
    PretrainedCNNFeatures,
    WeightsError,
    list_layers,
    load_image_folder,
    load_textures,
)
from skdeepfeat._backbones import files

FOLDER = Path(skdeepfeat.__file__).parent / "_backbones" / "shipped"
ROOT = Path(__file__).parents[2]


def probe():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))


def test_the_default_needs_no_connection(monkeypatch, photos):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert PretrainedCNNFeatures().fit_transform(photos).shape == (6, 1280)


def test_the_manifest_tells_what_ships():
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert list(manifest) == ["mini"]
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
    assert "mini.safetensors" in (FOLDER / "NOTICE").read_text()
    assert manifest["mini"].keys() >= {"origin", "changes", "licence", "retrain"}
    assert (FOLDER / "mini.safetensors").stat().st_size < 8_000_000


def test_changed_weights_are_refused(monkeypatch, tmp_path, photos):
    (tmp_path / "shipped").mkdir()
    damaged = bytearray((FOLDER / "mini.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "shipped" / "mini.safetensors").write_bytes(damaged)
    monkeypatch.setattr(files.resources, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="missing or changed"):
        PretrainedCNNFeatures().transform(photos)


def test_the_package_may_be_in_a_zip_archive(tmp_path):
    archive = shutil.make_archive(
        tmp_path / "package", "zip", FOLDER.parents[2], "skdeepfeat"
    )
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import skdeepfeat
        assert skdeepfeat.__file__.startswith(sys.argv[1])
        textures = skdeepfeat.load_textures().data[:2]
        features = skdeepfeat.PretrainedCNNFeatures(engine="torch", cache=None)
        print(features.transform(textures).sum())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), archive]
    done = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    rows = PretrainedCNNFeatures(engine="torch").transform(load_textures().data[:2])
    assert float(done.stdout) == pytest.approx(float(rows.sum()), rel=1e-5)


def test_depth_matters_on_textures():
    textures = load_textures()
    assert np.bincount(textures.target).tolist() == [40] * 8
    assert "CC0" in textures.DESCR
    scores = {}
    for layer in ("penultimate", "block3", "stem"):
        X = PretrainedCNNFeatures(layer=layer).transform(textures.data)
        scores[layer] = cross_val_score(probe(), X, textures.target).mean()
    pixels = textures.data.reshape(320, -1)
    raw = cross_val_score(RidgeClassifier(1e4), pixels, textures.target).mean()
    assert scores["penultimate"] > 0.75 and scores["block3"] > scores["stem"]
    assert scores["penultimate"] > raw + 0.4


def test_at_least_five_depths():
    assert len({layer.node for layer in list_layers()}) >= 5
    assert {layer.stride for layer in list_layers()} == {2, 4, 8, 16, 32}


@pytest.mark.slow
def test_linear_probe_on_photos_never_trained_on(shared_data):
    features = PretrainedCNNFeatures()
    cifar = np.load(shared_data / "cifar10_subset.npz")
    head = probe().fit(
        features.transform(cifar["X_train"][:2000]), cifar["y_train"][:2000]
    )
    X_test, y_test = cifar["X_test"][:1000], cifar["y_test"][:1000]
    assert head.score(features.transform(X_test), y_test) > 0.7
    folder = shared_data / "hymenoptera"
    train, test = (load_image_folder(folder / split) for split in ("train", "val"))
    head = probe().fit(features.transform(train.data), train.target)
    assert head.score(features.transform(test.data), test.target) > 0.8


@pytest.mark.slow
def test_the_training_script_runs_and_resumes(shared_data, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shared_data / "imagenet_samples").glob("*.jpg"))[:8]:
        (photos / path.name).symlink_to(path)

    def train(steps):
        command = [sys.executable, str(ROOT / "tools" / "train_mini.py")]
        command += ["--photos", photos, "--out", tmp_path / "run", "--views", "16"]
        command += ["--batch", "4", "--steps", str(steps), "--every", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout

    assert "16 of 16 views" in train(1)
    again = train(2)
    assert "views" not in again and "step 2" in again and "step 1" not in again
    trained = torch.load(tmp_path / "run" / "average.pth", weights_only=True)
    shipped = load_file(FOLDER / "mini.safetensors")
    assert shipped.keys() < trained.keys()
